"""The queue in a real PostgreSQL: its dialect, and two servers with one queue (test_serve_queue.py tests what all queues share)."""

from __future__ import annotations

import pytest

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("fastapi")

from serving import Server

from scmamba.client.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve.postgres import PostgresQueue, open_queue, translate
from scmamba.utils.errors import ScMambaError


@pytest.mark.parametrize(
    ("sqlite", "postgres"),
    [
        ("SELECT * FROM jobs WHERE user = ?", 'SELECT * FROM jobs WHERE "user" = %s'),
        ("users user_of", "users user_of"),
        ("done REAL NOT NULL", "done DOUBLE PRECISION NOT NULL"),
        ("BEGIN IMMEDIATE", "BEGIN; LOCK TABLE jobs IN EXCLUSIVE MODE"),
        ("COMMIT", "COMMIT"),
    ],
)
def test_the_dialect(sqlite, postgres):
    assert translate(sqlite) == postgres


def test_the_environment_variable_selects_the_queue(queue_url, tmp_path):
    assert isinstance(open_queue(tmp_path), PostgresQueue)
    assert not (tmp_path / "queue.sqlite").exists()


def test_two_servers_with_one_queue(queue_url, tmp_path):
    cells = brain_cohort(20, n_donors=2, seed=5)[:, :3000].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    first = Server(tmp_path / "data")
    second = None
    try:
        job = Client(first.url).submit("embed", tmp_path / "cells.h5ad", force=True)
        second = Server(tmp_path / "data")
        first.kill()  # its owner uses the other one
        assert Client(second.url).wait(job, verbose=False)["state"] == "done"
        assert Client(second.url).fetch(job, tmp_path / "out.h5ad").stat().st_size > 0
    finally:
        first.kill()
        if second is not None:
            second.kill()


def test_error_for_an_unusable_database(tmp_path, monkeypatch):
    monkeypatch.setenv("SCMAMBA_QUEUE", "mysql://box/scmamba")
    with pytest.raises(ScMambaError, match="postgresql://"):
        open_queue(tmp_path)
    monkeypatch.setenv("SCMAMBA_QUEUE", f"postgresql:///none?host={tmp_path}")
    monkeypatch.setattr("scmamba.serve.postgres._PATIENCE", 0.1)
    with pytest.raises(ScMambaError, match="cannot be reached"):
        open_queue(tmp_path)
