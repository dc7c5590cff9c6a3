"""The queue in a real PostgreSQL: the same promises as SQLite's, and two servers behind one of it."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("fastapi")

import test_serve_queue
from test_serve import Server

from scmamba._errors import ScMambaError
from scmamba.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve.jobs import Queue
from scmamba.serve.postgres import PostgresQueue, open_queue


@pytest.fixture(scope="module")
def database():
    """A PostgreSQL of its own, on a socket in a folder of its own; skip where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        pytest.skip("no PostgreSQL is installed (apt install postgresql)")
    tools, folder = found[-1].parent, Path(tempfile.mkdtemp(prefix="pg"))
    who = None
    if os.geteuid() == 0:  # it refuses to run as root
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root and there is no user 'postgres'")
        who = "postgres"
        shutil.chown(folder, who)
    quiet = {"user": who, "cwd": folder, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([tools / "initdb", "-D", folder / "db", "-A", "trust", "-U", "scmamba", "-N"], **quiet)
    options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
    subprocess.run([tools / "pg_ctl", "-D", folder / "db", "-o", options, "-w", "-t", "300", "start"], **quiet)
    yield f"postgresql:///postgres?host={folder}&user=scmamba"
    subprocess.run([tools / "pg_ctl", "-D", folder / "db", "-m", "immediate", "stop"], **quiet)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(database, monkeypatch):
    """The database, empty, named as a server is told of it."""
    with psycopg.connect(database, autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS jobs, turns")
    monkeypatch.setenv("SCMAMBA_QUEUE", database)
    return database


SHARED = [name for name, test in inspect.getmembers(test_serve_queue, inspect.isfunction)
          if name.startswith("test_") and list(inspect.signature(test).parameters) == ["tmp_path"] and "processes" not in name]  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_it_keeps_what_sqlite_promises(url, tmp_path, monkeypatch, name):
    monkeypatch.setattr(test_serve_queue, "Queue", open_queue)
    getattr(test_serve_queue, name)(tmp_path)
    assert not (tmp_path / "queue.sqlite").exists()


def _claim_all(folder: Path, name: str, out) -> None:
    queue, got = open_queue(folder), []
    while (job := queue.claim(name)) is not None:
        got.append(job["id"])
    out.put(got)


def test_many_processes_claim_every_job_once(url, tmp_path):
    queue = open_queue(tmp_path)
    assert isinstance(queue, PostgresQueue)
    jobs = [queue.add(user, "embed", "brain-mini", {}, Path("upload")) for user in ("ann", "bob", "cem") for _ in range(20)]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_claim_all, args=(tmp_path, f"w{i}", out)) for i in range(3)]
    for worker in workers:
        worker.start()
    claimed = [job for _ in workers for job in out.get(timeout=300)]
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(jobs)
    assert queue.counts() == {"running": 60} and queue.unfinished("ann") == 20


def test_a_job_from_end_to_end(url, tmp_path):
    queue = open_queue(tmp_path)
    job = queue.add("ann", "embed", "brain-mini", {"force": True}, Path("upload"), Queue.name_of("ann", "a key of her own"))
    assert queue.add("ann", "embed", "brain-mini", {}, Path("upload"), job) is None  # sent twice
    assert queue.get(job, "bob") is None and queue.get(job, "ann")["state"] == "queued"
    assert queue.claim("w")["id"] == job and queue.beat(job, "w", 0.25, "half of the half") and not queue.beat(job, "v")
    assert queue.get(job)["done"] == 0.25 and queue.silent() == []
    assert queue.rescue(dead="w") == 1 and queue.claim("v")["attempts"] == 2
    assert not queue.finish(job, "w", "done") and queue.finish(job, "v", "done", "done")
    assert not queue.cancel(job) and [j["id"] for j in queue.of_user("ann")] == [job]
    assert [j["id"] for j in queue.forget(queue.get(job)["finished"] + 1)] == [job] and queue.get(job) is None


def test_two_servers_behind_one_queue(url, tmp_path):
    cells = brain_cohort(20, n_donors=2, seed=5)[:, :3000].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    first = Server(tmp_path / "data")
    second = None
    try:
        job = Client(first.url).submit("embed", tmp_path / "cells.h5ad", force=True)
        second = Server(tmp_path / "data")
        first.kill()  # whoever sent it asks the other
        assert Client(second.url).wait(job, verbose=False)["state"] == "done"
        assert Client(second.url).fetch(job, tmp_path / "out.h5ad").stat().st_size > 0
    finally:
        first.kill()
        if second is not None:
            second.kill()


def test_a_database_that_is_none_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("SCMAMBA_QUEUE", "mysql://box/scmamba")
    with pytest.raises(ScMambaError, match="postgresql://"):
        open_queue(tmp_path)
    monkeypatch.setenv("SCMAMBA_QUEUE", f"postgresql:///none?host={tmp_path}")
    monkeypatch.setattr("scmamba.serve.postgres._PATIENCE", 0.1)
    with pytest.raises(ScMambaError, match="cannot be reached"):
        open_queue(tmp_path)
