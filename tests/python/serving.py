"""Shared by the tests of the server: a server in a separate process, the application within this one, and a PostgreSQL."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A server process on a free port; all of its workers share its process group.

    Without tokens in its folder it is open to this machine (``--tokens none``), unless the test says otherwise.
    """

    def __init__(self, data: Path, *options: str, stderr: Any = subprocess.DEVNULL) -> None:
        self.port = free_port()
        if not (data / "tokens.json").is_file() and "--tokens" not in options:
            options = ("--tokens", "none", *options)
        self.url, self.data = f"http://127.0.0.1:{self.port}", data
        command = [
            sys.executable,
            "-m",
            "scmamba.serve",
            "--data",
            str(data),
            "--port",
            str(self.port),
        ]
        self.process = subprocess.Popen([*command, *options], start_new_session=True, stderr=stderr)
        for _ in range(1800):  # slow on a busy machine
            try:
                urllib.request.urlopen(self.url + "/v2/health/live", timeout=1)
                return
            except (urllib.error.URLError, ConnectionError):
                assert self.process.poll() is None, f"ended with {self.process.returncode}"
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


class Answer:
    """Status, headers and body of a response."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


class App:
    """The application on a real port in a thread of this process, without workers: a test changes the state of jobs."""

    def __init__(self, data: Path, **settings: Any) -> None:
        import uvicorn

        from scmamba.serve.app import create_app
        from scmamba.serve.connections import limited_protocol
        from scmamba.serve.jobs import Queue
        from scmamba.serve.settings import Settings

        if settings.get("host", "127.0.0.1") == "127.0.0.1":
            settings = {"tokens": "none", **settings}
        self.data, self.settings = data, Settings(data, **{"workers": 0, **settings})
        config = uvicorn.Config(
            create_app(self.settings),
            "127.0.0.1",
            0,
            log_level="warning",
            http=limited_protocol(
                self.settings.max_connections, self.settings.head_seconds, self.settings.patience
            ),
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        self.queue, self.uvicorn = Queue(data), uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, daemon=True)
        self.thread.start()
        for _ in range(3000):
            if self.uvicorn.started:
                break
            time.sleep(0.01)
        self.port = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        # Not force_exit, which would skip the shutdown of the application and leave its supervisor running.
        self.uvicorn.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
    ) -> Answer:
        """One request; ``upload_length=...`` is sent as ``upload-length``. An iterator as body goes in pieces."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)
        try:
            line.request(method, path, body, sent)
            answer = line.getresponse()
            return Answer(
                answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
            )
        finally:
            line.close()

    def submit(
        self, body: bytes, token: str | None = None, task: str = "impute", **more: str
    ) -> Answer:
        return self.ask("POST", f"/v2/models/brain-mini/{task}", body, token, **more)

    def end(self, job: str, state: str = "done", message: str = "", **files: bytes) -> None:
        """Simulate a worker: claim jobs in turn until it is this one, write the result, finish."""
        folder = self.data / "jobs" / job / "result"
        if state == "done":
            folder.mkdir(parents=True, exist_ok=True)
            for ending, value in files.items():
                (folder / f"result.{ending}").write_bytes(value)
        with self.queue._open() as db:
            db.execute("UPDATE jobs SET state='running', worker='w' WHERE id=?", (job,))
        assert self.queue.finish(job, "w", state, message)

    def uploads(self) -> list[bytes]:
        """Files in the folder of whole uploads."""
        return sorted(f.read_bytes() for f in (self.data / "uploads").glob("*"))


def plain_bytes(cells: int = 2, genes: int = 3) -> bytes:
    """A file in the plain form with one value per cell, made by hand."""
    names = {
        "genes": [f"GENE{g}" for g in range(genes)],
        "cells": [f"cell{c}" for c in range(cells)],
    }
    shapes = [("p", "int32", cells + 1), ("i", "int32", cells), ("x", "float64", cells)]
    arrays = [{"name": name, "kind": kind, "shape": [n]} for name, kind, n in shapes]
    text = json.dumps({**names, "arrays": arrays}).encode()
    p, i, x = (
        np.arange(cells + 1, dtype="<i4"),
        np.arange(cells, dtype="<i4") % genes,
        np.ones(cells, "<f8"),
    )
    return (
        b"SCMB1\n"
        + len(text).to_bytes(8, "little")
        + text
        + p.tobytes()
        + i.tobytes()
        + x.tobytes()
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests without special settings."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    running = Server(tmp_path_factory.mktemp("serve"), "--requests-per-minute", "100000")
    yield running
    running.kill()


def postgres_tools() -> Path | None:
    """Folder of PostgreSQL's programs, if they can be run here."""
    try:
        import pwd  # not on Windows

        import psycopg  # noqa: F401
    except ImportError:
        return None
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = found or [Path(p) for p in [shutil.which("initdb")] if p]
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        return None  # it does not run as root
    return found[-1].parent if found else None


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """A separate PostgreSQL, on a socket in its own folder; skip if none is installed."""
    tools, folder = postgres_tools(), Path(tempfile.mkdtemp(prefix="pg"))
    if tools is None:
        pytest.skip("PostgreSQL or psycopg is not installed (apt install postgresql)")
    who = "postgres" if os.geteuid() == 0 else None
    if who is not None:
        shutil.chown(folder, who)
    null = subprocess.DEVNULL
    quiet: dict[str, Any] = {
        "user": who,
        "cwd": folder,
        "check": True,
        "stdout": null,
        "stderr": null,
    }
    subprocess.run(
        [tools / "initdb", "-D", folder / "db", "-A", "trust", "-U", "scmamba", "-N"], **quiet
    )
    options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
    start = ["-D", folder / "db", "-o", options, "-w", "-t", "300", "start"]
    subprocess.run([tools / "pg_ctl", *start], **quiet)
    yield f"postgresql:///postgres?host={folder}&user=scmamba"
    subprocess.run([tools / "pg_ctl", "-D", folder / "db", "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def queue_url(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database, empty, in the notation of the server's setting."""
    import psycopg

    with psycopg.connect(database, autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS jobs, turns")
    monkeypatch.setenv("SCMAMBA_QUEUE", database)
    return database


@pytest.fixture(params=["sqlite", "postgres"] if postgres_tools() else ["sqlite"])
def queue(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty queue in ``tmp_path``: SQLite's, and PostgreSQL's if it is installed."""
    from scmamba.serve.postgres import open_queue

    if request.param == "postgres":
        request.getfixturevalue("queue_url")
    else:
        monkeypatch.delenv("SCMAMBA_QUEUE", raising=False)
    return open_queue(tmp_path)
