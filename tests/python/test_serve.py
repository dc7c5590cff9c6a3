"""The server as people meet it: a real process, real HTTP, real files."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
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

import scmamba
from scmamba._errors import ScMambaError
from scmamba.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve import wire
from scmamba.serve.jobs import Queue
from scmamba.serve.tokens import Tokens


class Server:
    """A server process on a free port; all of its workers share its process group."""

    def __init__(self, data: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.data = f"http://127.0.0.1:{self.port}", data
        command = [sys.executable, "-m", "scmamba.serve", "--data", str(data), "--port", str(self.port), *options]
        self.process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        for _ in range(300):
            try:
                urllib.request.urlopen(self.url + "/v2/health/live", timeout=1)
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def post(self, path: str, body: bytes, token: str | None = None) -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, data=body, method="POST")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    running = Server(tmp_path_factory.mktemp("serve"))
    yield running
    running.kill()


@pytest.fixture(scope="module")
def nuclei() -> ad.AnnData:
    return brain_cohort(30, n_donors=2, seed=5)[:, :6000].copy()


@pytest.fixture(scope="module")
def upload(nuclei, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("upload") / "cells.h5ad"
    nuclei.write_h5ad(path)
    return path


def test_the_server_gives_what_the_direct_call_gives(server, nuclei):
    far = Client(server.url).impute(nuclei, adapt=False, force=True, verbose=False)
    near = scmamba.impute(nuclei.copy(), adapt=False, force=True, verbose=False)
    assert (far.layers["scmamba"] != near.layers["scmamba"]).nnz == 0
    assert far.obs.columns.tolist() == near.obs.columns.tolist()
    embedded = Client(server.url).embed(nuclei, force=True, verbose=False)
    again = scmamba.embed(nuclei.copy(), force=True, verbose=False)
    np.testing.assert_array_equal(embedded.obsm["X_scmamba"], again.obsm["X_scmamba"])


def test_the_plain_form_goes_in_and_comes_out(server, nuclei, tmp_path):
    matrix = sparse.csc_matrix(nuclei.X.T)
    header = {"genes": list(nuclei.var_names), "cells": list(nuclei.obs_names)}
    wire.write(tmp_path / "in.scmb", header, {"p": matrix.indptr, "i": matrix.indices, "x": matrix.data.astype(float)})
    client = Client(server.url)
    job = client.submit("impute", tmp_path / "in.scmb", adapt=False, force=True)
    client.wait(job, verbose=False)
    about, arrays = wire.read(client.fetch(job, tmp_path / "out.scmb", format="scmb"))
    near = scmamba.impute(ad.AnnData(nuclei.X, obs=nuclei.obs[[]], var=nuclei.var[[]]), adapt=False, force=True, verbose=False)
    expected = sparse.csr_matrix(near.layers["scmamba"])
    np.testing.assert_array_equal(arrays["x"], expected.data.astype(float))
    np.testing.assert_array_equal(arrays["i"], expected.indices)
    assert about["provenance"]["method"] == "rates" and len(about["obs"]["scmamba_low_depth"]) == len(nuclei)


def bad_uploads(upload: Path, tmp_path: Path) -> dict[str, bytes]:
    """Name -> what is sent. Each must be refused with a sentence."""
    import h5py

    good = upload.read_bytes()
    out = {
        "nothing": b"",
        "text": b"gene,cell1\nAPOE,3\n",
        "pickle": b"\x80\x04\x95\x00\x00",
        "zip": b"PK\x03\x04" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(50),
        "rds": b"RDX3\nX\n" + bytes(50),
        "zeros": bytes(4096),
        "hdf5 signature alone": good[:8],
        "hdf5 cut at a tenth": good[: len(good) // 10],
        "hdf5 cut in the middle": good[: len(good) // 2],
        "hdf5 cut at the end": good[:-2000],
        "hdf5 with its head overwritten": good[:8] + bytes(2000) + good[2008:],
        "plain form without header": b"SCMB1\n",
        "plain form with a long header": b"SCMB1\n" + (1 << 40).to_bytes(8, "little") + b"{}",
        "plain form with no JSON": b"SCMB1\n" + (4).to_bytes(8, "little") + b"abcd",
        "plain form with a list": b"SCMB1\n" + (2).to_bytes(8, "little") + b"[]",
        "plain form nested deep": b"SCMB1\n" + (40000).to_bytes(8, "little") + b"[" * 40000,
    }

    def plain(**changes) -> bytes:
        header = {"genes": ["APOE", "GFAP"], "cells": ["a"], "arrays": [{"name": "p", "kind": "int32", "shape": [2]}]} | changes
        text = json.dumps(header).encode()
        return b"SCMB1\n" + len(text).to_bytes(8, "little") + text + bytes(8)

    out |= {
        "plain form of a billion cells": plain(arrays=[{"name": "p", "kind": "int32", "shape": [10**9]}]),
        "plain form of negative size": plain(arrays=[{"name": "p", "kind": "int32", "shape": [-2]}]),
        "plain form of another kind": plain(arrays=[{"name": "p", "kind": "object", "shape": [2]}]),
        "plain form without genes": plain(genes=None),
        "plain form without cells": plain(cells=[]),
    }

    def h5(name: str, make) -> None:
        path = tmp_path / "bad.h5"
        with h5py.File(path, "w") as file:
            make(file)
        out[name] = path.read_bytes()

    def frame(file, n=3, m=4):
        file["X"] = np.ones((n, m), dtype="f4")
        file.create_group("obs")
        file.create_group("var")

    h5("hdf5 without X", lambda f: f.create_group("obs"))
    h5("hdf5 without obs", lambda f: f.create_dataset("X", data=np.ones((2, 2))))
    h5("hdf5 with X of one dimension", lambda f: (f.create_dataset("X", data=np.ones(5)), f.create_group("obs"), f.create_group("var")))
    h5("hdf5 without cells", lambda f: frame(f, 0, 4))
    h5("hdf5 without genes", lambda f: frame(f, 3, 0))
    h5("hdf5 with a link to another file", lambda f: (frame(f), f.__setitem__("layers", h5py.ExternalLink("/etc/passwd", "/"))))
    h5("hdf5 with a soft link", lambda f: (frame(f), f.__setitem__("raw", h5py.SoftLink("/X"))))

    def external(f):
        frame(f)
        f.create_dataset("secret", shape=(10,), dtype="u1", external=[("/etc/passwd", 0, 10)])

    h5("hdf5 with data in another file", external)

    def bomb(f):
        frame(f)
        f.create_dataset("bomb", shape=(10**6, 10**6), dtype="f8", chunks=(1000, 1000), compression="gzip")

    h5("hdf5 that claims eight terabytes", bomb)

    def sparse_lie(f):
        group = f.create_group("X")
        group.attrs["shape"] = (10**9, 10)
        group["indptr"], group["indices"], group["data"] = np.zeros(4), np.zeros(3), np.zeros(3)
        f.create_group("obs")
        f.create_group("var")

    h5("hdf5 that claims a billion cells", sparse_lie)

    def unequal(f):
        group = f.create_group("X")
        group.attrs["shape"] = (3, 10)
        group["indptr"], group["indices"], group["data"] = np.zeros(4), np.zeros(5), np.zeros(3)
        f.create_group("obs")
        f.create_group("var")

    h5("hdf5 whose arrays differ in length", unequal)

    def wide(f):
        f.create_dataset("X", shape=(2, 200_001), dtype="u1")
        f.create_group("obs")
        f.create_group("var")

    h5("hdf5 of too many genes", wide)
    h5("hdf5 with thousands of objects", lambda f: (frame(f), [f.create_group(f"g{i}") for i in range(10_001)]))
    return out


def test_bad_uploads_are_refused_and_leave_nothing(server, upload, tmp_path):
    before = sorted((server.data / "uploads").glob("*"))
    for name, body in bad_uploads(upload, tmp_path).items():
        status, text = server.post("/v2/models/brain-mini/impute", body)
        assert status in (400, 413, 422), f"{name}: {status} {text}"
        detail = json.loads(text)["detail"]
        assert len(detail) > 20 and "Traceback" not in detail, f"{name}: {detail}"
    assert sorted((server.data / "uploads").glob("*")) == before
    assert urllib.request.urlopen(server.url + "/v2/health/ready", timeout=5).status == 200


@pytest.mark.parametrize(
    "path",
    ["/v2/models/none/impute", "/v2/models/brain-mini/destroy", "/v2/models/brain-mini/impute?options=%7B", "/v2/models/..%2fetc/impute",
     "/v2/models/brain-mini/impute?options=[]", '/v2/models/brain-mini/impute?options={"model":"/etc/passwd"}',
     '/v2/models/brain-mini/impute?options={"passes":"ten"}', '/v2/models/brain-mini/impute?options={"seed":1e300}',
     '/v2/models/brain-mini/impute?options={"passes":true}', '/v2/models/brain-mini/embed?options={"reference":"/etc/passwd"}'],
)  # fmt: skip
def test_bad_requests_are_refused(server, upload, path):
    status, text = server.post(path.replace('"', "%22").replace("{", "%7B").replace("}", "%7D").replace("[", "%5B").replace("]", "%5D"),
                               upload.read_bytes())  # fmt: skip
    assert status in (404, 422), text


@pytest.mark.parametrize("job", ["nothing-like-it", "..%2f..%2fqueue.sqlite", "a", "%00", "x" * 300])
def test_jobs_that_are_not_there(server, job):
    for end in ("", "/result", "/events"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/v2/jobs/{job}{end}", timeout=5)
        assert refused.value.code == 404


def test_data_the_verb_refuses_fail_alone_with_its_sentence(server, nuclei):
    mice = nuclei.copy()
    mice.var_names = [f"nothing{i}" for i in range(mice.n_vars)]
    mice.var = mice.var[[]]
    with pytest.raises(ScMambaError, match="gene"):
        Client(server.url).impute(mice, adapt=False, verbose=False)
    negative = nuclei.copy()
    negative.X = negative.X * -1
    with pytest.raises(ScMambaError, match="go down to"):
        Client(server.url).impute(negative, adapt=False, force=True, verbose=False)
    missing = nuclei.copy()
    missing.X = missing.X.astype(float)
    missing.X.data[0] = np.nan
    with pytest.raises(ScMambaError, match="(?i)nan|missing"):
        Client(server.url).impute(missing, adapt=False, force=True, verbose=False)


def test_tokens_keep_people_apart(tmp_path, upload):
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


def test_others_need_a_token_before_the_server_starts(tmp_path):
    command = [sys.executable, "-m", "scmamba.serve", "--data", str(tmp_path), "--host", "0.0.0.0"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert told.returncode == 2 and "tokens" in told.stderr


def test_everything_killed_and_started_again_ends_every_job_once(tmp_path, upload):
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
                os.kill(int(entry.parent.name), signal.SIGKILL)  # and once more, the worker alone
        client = Client(again.url)
        for job in jobs:
            assert client.wait(job, verbose=False)["state"] == "done"
            client.fetch(job, tmp_path / f"{job}.h5ad")
    finally:
        again.kill()


def test_a_job_is_cancelled_and_deleted(server, upload):
    client = Client(server.url)
    job = client.submit("impute", upload, force=True, adapt=500)
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
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"] and page.headers["x-frame-options"] == "DENY"
    assert "http://" not in text and "https://" not in text  # nothing from elsewhere
    with urllib.request.urlopen(server.url + "/metrics", timeout=5) as metrics:
        assert b'scmamba_jobs{state="done"}' in metrics.read()


def test_no_server_there_is_said(monkeypatch):
    monkeypatch.setattr("scmamba.client._RETRIES", 1)
    with pytest.raises(ScMambaError, match="cannot be reached"):
        Client("http://127.0.0.1:9").models()
    with pytest.raises(ScMambaError, match="begins with http"):
        Client("file:///etc/passwd")
