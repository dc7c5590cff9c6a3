"""The server as users run it: a real process, real HTTP, real files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import Server

import scmamba
from scmamba.client.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve.jobs import Queue
from scmamba.serve.tokens import Tokens
from scmamba.utils.errors import ScMambaError
from scmamba.wire import scmb as wire


@pytest.fixture(scope="module")
def nuclei() -> ad.AnnData:
    return brain_cohort(30, n_donors=2, seed=5)[:, :6000].copy()


@pytest.fixture(scope="module")
def upload(nuclei, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("upload") / "cells.h5ad"
    nuclei.write_h5ad(path)
    return path


def test_the_server_returns_the_result_of_the_direct_call(server, nuclei):
    far = Client(server.url).impute(nuclei, adapt_steps=0, force=True, verbose=False)
    near = scmamba.impute(nuclei.copy(), adapt_steps=0, force=True, verbose=False)
    assert (far.layers["scmamba"] != near.layers["scmamba"]).nnz == 0
    assert far.obs.columns.tolist() == near.obs.columns.tolist()
    embedded = Client(server.url).embed(nuclei, force=True, verbose=False)
    again = scmamba.embed(nuclei.copy(), force=True, verbose=False)
    np.testing.assert_array_equal(embedded.obsm["X_scmamba"], again.obsm["X_scmamba"])


def test_upload_and_result_in_the_plain_form(server, nuclei, tmp_path):
    matrix = sparse.csc_matrix(nuclei.X.T)
    header = {"genes": list(nuclei.var_names), "cells": list(nuclei.obs_names)}
    wire.write(
        tmp_path / "in.scmb",
        header,
        {"p": matrix.indptr, "i": matrix.indices, "x": matrix.data.astype(float)},
    )
    client = Client(server.url)
    job = client.submit("impute", tmp_path / "in.scmb", adapt_steps=0, force=True)
    client.wait(job, verbose=False)
    about, arrays = wire.read(client.fetch(job, tmp_path / "out.scmb", format="scmb"))
    near = scmamba.impute(
        ad.AnnData(nuclei.X, obs=nuclei.obs[[]], var=nuclei.var[[]]),
        adapt_steps=0,
        force=True,
        verbose=False,
    )
    expected = sparse.csr_matrix(near.layers["scmamba"])
    np.testing.assert_array_equal(arrays["x"], expected.data.astype(float))
    np.testing.assert_array_equal(arrays["i"], expected.indices)
    assert about["provenance"]["params"]["method"] == "ensemble" and len(
        about["obs"]["scmamba_low_depth"]
    ) == len(nuclei)


@pytest.mark.parametrize(
    "job", ["nothing-like-it", "..%2f..%2fqueue.sqlite", "a", "%00", "x" * 300]
)
def test_missing_jobs(server, job):
    for end in ("", "/result", "/events"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/v2/jobs/{job}{end}", timeout=5)
        assert refused.value.code == 404


def test_tokens_separate_users(tmp_path, upload):
    tokens = Tokens(tmp_path)
    ann, bob = tokens.add("ann", 1), tokens.add("bob", 1)
    old = tokens.add("old", -1)
    assert ann not in (tmp_path / "tokens.json").read_text()
    server = Server(tmp_path, "--jobs-per-user", "1")
    try:
        for token, reason in ((old, "expired"), ("wrong", "not known")):
            status, text = server.post("/v2/models/brain-mini/embed", upload.read_bytes(), token)
            assert status == 401 and reason in text
        hers = Client(server.url, ann)
        job = hers.submit("embed", upload, force=True)
        with pytest.raises(ScMambaError, match="no such job"):
            Client(server.url, bob).state(job)
        with pytest.raises(ScMambaError, match="no such job"):
            Client(server.url, bob).cancel(job)
        assert hers.wait(job, verbose=False)["state"] == "done"
    finally:
        server.kill()


def test_the_server_does_not_start_for_other_machines_without_tokens(tmp_path):
    command = [sys.executable, "-m", "scmamba.serve", "--data", str(tmp_path), "--host", "0.0.0.0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "tokens" in result.stderr


def test_every_job_ends_once_after_server_and_workers_are_killed(tmp_path, upload):
    server = Server(tmp_path)
    client = Client(server.url)
    jobs = [client.submit("embed", upload, force=True) for _ in range(4)]
    deadline = time.time() + 60
    while not any(client.state(j)["state"] == "running" for j in jobs) and time.time() < deadline:
        time.sleep(0.05)
    server.kill()
    queue = Queue(tmp_path)
    assert {queue.get(j)["state"] for j in jobs} <= {"queued", "running", "done"}
    again = Server(tmp_path)
    try:
        for entry in Path("/proc").glob("[0-9]*/stat"):
            fields = entry.read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == again.process.pid and int(entry.parent.name) != again.process.pid:
                os.kill(int(entry.parent.name), signal.SIGKILL)  # and again, the worker alone
        client = Client(again.url)
        for job in jobs:
            assert client.wait(job, verbose=False)["state"] == "done"
            client.fetch(job, tmp_path / f"{job}.h5ad")
    finally:
        again.kill()


def test_a_job_is_cancelled_and_deleted(server, upload):
    client = Client(server.url)
    job = client.submit("impute", upload, force=True, adapt_steps=500)
    client.cancel(job)
    with pytest.raises(ScMambaError, match="cancelled"):
        client.wait(job, verbose=False)
    client.cancel(job)
    with pytest.raises(ScMambaError, match="no such job"):
        client.state(job)
    assert not (server.data / "jobs" / job).exists()


def test_the_page_and_the_headers(server):
    with urllib.request.urlopen(server.url + "/", timeout=5) as page:
        text = page.read().decode()
        assert (
            "frame-ancestors 'none'" in page.headers["content-security-policy"]
            and page.headers["x-frame-options"] == "DENY"
        )
    assert "http://" not in text and "https://" not in text  # no external resources
    with urllib.request.urlopen(server.url + "/metrics", timeout=5) as metrics:
        assert b'scmamba_jobs{state="done"}' in metrics.read()


def test_error_when_no_server_answers(monkeypatch):
    monkeypatch.setattr("scmamba.client.client._RETRIES", 1)
    with pytest.raises(ScMambaError, match="cannot be reached"):
        Client("http://127.0.0.1:9").models()
    with pytest.raises(ScMambaError, match="begins with http"):
        Client("file:///etc/passwd")
