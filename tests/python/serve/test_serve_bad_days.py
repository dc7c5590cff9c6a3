"""Bad days of a real server with real workers: no open files left, jobs without end, a sleeping machine, a server killed while it starts."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import Server, free_port

from scmamba.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve.jobs import Queue
from scmamba.utils.errors import ScMambaError

pytestmark = pytest.mark.slow
LONG = {
    "method": "masked",
    "adapt_steps": 0,
    "passes": 1000,
    "force": True,
}  # takes longer than a test, also on a fast machine


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    brain_cohort(400, n_donors=2, seed=5)[:, :3000].write_h5ad(file)
    return file


def wait_for(condition, seconds: float = 600.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)
    assert condition()


def of_server(server: Server, word: str = "scmamba.serve.worker") -> list[psutil.Process]:
    """Processes that the server started, and theirs."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in " ".join(process.cmdline()):
                    found.append(process)
    return found


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_server_without_open_files_continues(cells, tmp_path):
    """400 connections with half a head, and room for some 30: twice as many as the limit of open files."""
    log = tmp_path / "log"
    command = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (230, 230)); "
        "sys.argv = sys.argv[1:]; runpy.run_module('scmamba.serve', run_name='__main__')"
    )
    port, data = free_port(), tmp_path / "data"
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", command, "serve", "--data", data, "--port", str(port), "--tokens", "none",
             "--head-seconds", "5"],
            stderr=errors, start_new_session=True,
        )  # fmt: skip
    try:
        client = Client(f"http://127.0.0.1:{port}")

        def ready() -> bool:
            with contextlib.suppress(ScMambaError):
                return bool(client.models())
            return False

        wait_for(ready)
        held = []
        for _ in range(400):
            with contextlib.suppress(OSError):
                line = socket.create_connection(("127.0.0.1", port), timeout=30)
                line.sendall(b"GET / HTTP/1.1\r\nHo")
                held.append(line)
        (worker,) = [
            p
            for p in psutil.Process(process.pid).children()
            if "serve.worker" in " ".join(p.cmdline())
        ]
        worker.kill()  # its supervisor needs files, too
        done = client.run("embed", str(cells), force=True, verbose=False)
        assert "X_scmamba" in done.obsm and process.poll() is None
        for line in held:
            line.close()
        size = log.stat().st_size + (data / "audit.log").stat().st_size
        assert size < 1 << 20
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_job_without_end_is_ended_by_its_user_and_by_the_limit_and_runs_confined(cells, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        server = Server(tmp_path / "data", "--max-seconds", "45", stderr=log)
    try:
        client = Client(server.url)
        job = client.submit("impute", cells, **LONG)
        wait_for(lambda: client.state(job)["state"] == "running")
        # The process of the job is a child of the worker.
        wait_for(lambda: len(of_server(server)) > 1)
        (worker,) = [p for p in of_server(server) if p.ppid() == server.process.pid]
        wait_for(lambda: any(status(p.pid)["Seccomp"] == "2" for p in worker.children()))
        child = next(p for p in worker.children() if status(p.pid)["Seccomp"] == "2")
        assert status(child.pid)["NoNewPrivs"] == "1"
        assert int(Path(f"/proc/{child.pid}/oom_score_adj").read_text()) == 900
        limits = dict(zip(("soft", "hard"), child.rlimit(resource.RLIMIT_DATA), strict=True))
        assert 0 < limits["hard"] < 1 << 50
        active = client._json("GET", "/v2/health")["confinement"]
        assert {"no-new-privileges", "seccomp"} <= set(active)
        announced = (tmp_path / "log").read_text()
        for words in (server.url, "TLS", "tokens       NONE", "limits", str(server.data), *active):
            assert words in announced
        client.cancel(job)
        wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30)
        late = client.submit("impute", cells, **LONG)
        with pytest.raises(ScMambaError, match="longer than this server's 45 seconds"):
            client.wait(late, verbose=False)
        after = client.submit("embed", cells, force=True)
        assert client.wait(after, verbose=False)["state"] == "done"
        assert worker.is_running()  # only the processes of the jobs were ended
    finally:
        server.kill()


def test_a_machine_that_sleeps_costs_no_attempt(cells, tmp_path):
    """All processes stand still for longer than a worker may be silent."""
    server = Server(tmp_path / "data")
    try:
        client = Client(server.url)
        job = client.submit("impute", cells, **LONG)
        wait_for(lambda: client.state(job)["state"] == "running")
        os.killpg(server.process.pid, signal.SIGSTOP)
        time.sleep(33)
        os.killpg(server.process.pid, signal.SIGCONT)
        time.sleep(3)
        now = Queue(tmp_path / "data").get(job)
        assert (now["state"], now["attempts"], now["deaths"]) == ("running", 1, 0)
    finally:
        server.kill()


@pytest.mark.parametrize("moment", [0.0, 0.2, 0.5, 1.0, 2.0])
def test_a_worker_ends_with_its_server_at_every_moment_of_its_start(tmp_path, moment):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "scmamba.serve", "--data", tmp_path / "data", "--port", str(port), "--tokens", "none"],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: psutil.Process(process.pid).children())
        workers = psutil.Process(process.pid).children(recursive=True)
        time.sleep(moment)
        workers += psutil.Process(process.pid).children(recursive=True)
        process.kill()  # the server alone
        process.wait()
        gone = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        wait_for(lambda: not any(w.is_running() and w.status() not in gone for w in workers), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_every_kind_of_event_is_in_the_audit_log(cells, tmp_path):
    data = tmp_path / "data"
    server = Server(data)
    try:
        client = Client(server.url)
        job = client.submit("embed", cells, force=True)
        client.wait(job, verbose=False)
        client.fetch(job, tmp_path / "result.h5ad")
        client._json("GET", f"/v2/jobs/{job}/picture")
        gene = client._json("GET", f"/v2/jobs/{job}/genes/GADD45B")["gene"]
        client.cancel(job)
        waits = client.submit("impute", cells, **LONG)
        client.cancel(waits)
        kept = client.keep_reference(cells)
        client.drop_reference(kept)
        (tmp_path / "bad.h5ad").write_bytes(b"nothing")
        with pytest.raises(ScMambaError, match="422"):
            client.submit("embed", tmp_path / "bad.h5ad")
        with pytest.raises(ScMambaError, match="401"):
            Client(server.url, "wrong").models()
        for command in (["add", "ann"], ["remove", "ann"]):
            subprocess.run(
                [sys.executable, "-m", "scmamba.serve.tokens", *command, "--data", data], check=True, capture_output=True
            )  # fmt: skip
        text = (data / "audit.log").read_text()
        events = [json.loads(line) for line in text.splitlines()]
        # On a busy machine the client repeats a reading that takes too long.
        twice = {
            i
            for i in range(1, len(events))
            if events[i]["event"] == events[i - 1]["event"] == "map read"
        }
        events = [e for i, e in enumerate(events) if i not in twice]
        assert [e["event"] for e in events] == [
            "signed in", "accepted", "result read", "map read", "gene read", "deleted", "accepted", "cancelled",
            "reference added", "reference deleted", "upload refused", "refused", "token added", "token withdrawn",
        ]  # fmt: skip
        assert events[4]["gene"] == gene and "wrong" not in text
        assert all(e["time"].endswith("Z") for e in events)
    finally:
        server.kill()
