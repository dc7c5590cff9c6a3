"""A confined job of a server that tries to escape: ``python confined_job.py FOLDER landlock|namespaces`` prints what succeeded.

A program of its own, as a worker is: a job is forked, and the process of the tests holds R, browsers and many threads.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from serving import plain_bytes

from scmamba.serve import confinement, worker
from scmamba.serve.jobs import Queue
from scmamba.serve.settings import Settings
from scmamba.serve.verbs import Task
from scmamba.wire.tables import Tables, read_tables


def only(folder: Path, *expected: str) -> None:
    """A folder in the job's own view has what the job may read, and nothing else."""
    if set(os.listdir(folder)) <= set(expected):
        raise PermissionError


def attempts(data: Path, job: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a job must not be able to do."""
    other, parent = data / "jobs" / "another" / "result" / "result.h5ad", os.getppid()
    yield "another's result", lambda: other.read_text()
    yield "the tokens", lambda: (data / "tokens.json").read_text()
    yield "the queue", lambda: (data / "queue.sqlite").read_bytes()
    yield "a list of jobs", lambda: only(data / "jobs", job)
    yield "writing outside", lambda: (data / "x").write_text("x")
    yield "its upload", lambda: os.open(data / "upload", os.O_RDWR)
    yield "the home folder", lambda: only(Path.home(), ".cache")
    yield "shadow", lambda: Path("/etc/shadow").read_text()
    yield "the network", lambda: socket.create_connection(("127.0.0.1", 1), timeout=1)
    yield "datagrams", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    yield "sockets of others", lambda: socket.socket(socket.AF_UNIX)
    yield "its parent", lambda: os.kill(parent, 0)
    yield "its parent's limits", lambda: resource.prlimit(parent, resource.RLIMIT_CORE)
    yield "its parent's memory", lambda: os.open(f"/proc/{parent}/mem", os.O_RDONLY)
    yield "its parent's environment", lambda: Path(f"/proc/{parent}/environ").read_bytes()
    yield "its parent's files", lambda: os.listdir(f"/proc/{parent}/root/etc")
    yield "more rights", lambda: os.setuid(1)
    yield (
        "from a program it starts",
        lambda: subprocess.run(["cat", other], check=True, capture_output=True),
    )


def main(data: Path, means: str) -> None:
    if means == "namespaces":
        confinement.landlock_version = lambda: 0
    if not any(found.startswith(means) for found in confinement.available()):
        print(json.dumps({"missing": True}))
        return
    (data / "jobs" / "another" / "result").mkdir(parents=True)
    (data / "jobs" / "another" / "result" / "result.h5ad").write_text("another's")
    (data / "tokens.json").write_text("[]")
    (data / "upload").write_bytes(plain_bytes())
    queue = Queue(data)
    job = queue.add("ann", "markers", "brain-mini", {"groupby": "a"}, data / "upload")
    (data / "jobs" / job).mkdir()

    def task(adata, options) -> Tables:
        through = {}
        for name, act in attempts(data, job):
            try:
                act()
            except (OSError, subprocess.CalledProcessError) as error:
                through[name] = isinstance(error, ConnectionRefusedError)  # the port was tried
            else:
                through[name] = True
        Path("mine").write_text("x")  # its own folder
        status = Path("/proc/self/status").read_text()
        through["new privileges"] = "NoNewPrivs:\t1" not in status
        return Tables({"t": pd.DataFrame({"x": [1]})}, through)

    worker.TASKS["markers"] = Task(task, {})
    worker.run_job(queue, Settings(data, max_seconds=1000), queue.claim("w"), "w")
    ended = queue.get(job)
    answer = {"state": ended["state"], "message": ended["message"]}
    if ended["state"] == "done":
        answer["through"] = read_tables(data / "jobs" / job / "result" / "result.scmb").about
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
