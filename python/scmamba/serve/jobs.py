"""The queue: one SQLite file, read and written by the server and every worker; a job changes hands in one transaction."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ..utils.errors import ScMambaError

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, user TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL, options TEXT NOT NULL, upload TEXT NOT NULL,
  state TEXT NOT NULL, done REAL NOT NULL DEFAULT 0, message TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
  worker TEXT, created REAL NOT NULL, started REAL, beat REAL, finished REAL);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, created);
CREATE TABLE IF NOT EXISTS turns (user TEXT PRIMARY KEY, at REAL NOT NULL);
"""
#: States a job does not leave.
FINAL = ("done", "failed", "cancelled")
#: A running job whose worker has been silent so long is taken to be dead.
SILENT = 30.0
ATTEMPTS = 3


class Unavailable(ScMambaError):
    """The queue cannot be reached at the moment; nothing was done, asking again later may help."""


class Queue:
    """Jobs on disk. Every method is one short transaction, safe between processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with self._open() as db:
            db.executescript(_TABLE)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(
                sqlite3.connect(self.folder / "queue.sqlite", timeout=30, isolation_level=None)
            ) as db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                yield db
        except (
            sqlite3.OperationalError
        ) as error:  # opening the file may fail, too: no file handles left, a folder not mounted
            raise Unavailable(
                f"The queue is not to be had at the moment ({error}); try again."
            ) from error

    @staticmethod
    def name_of(user: str, key: str) -> str:
        """The name of the job a user sends under a key of their own, so that sending it again is the same job."""
        return base64.urlsafe_b64encode(
            hashlib.sha256(f"{user} {key}".encode()).digest()[:12]
        ).decode()

    def add(
        self,
        user: str,
        task: str,
        model: str,
        options: dict[str, Any],
        upload: Path,
        job: str | None = None,
    ) -> str | None:
        """Accept a job; it survives everything from here on. ``job`` is a name from :meth:`name_of`; ``None`` if it is there already."""
        job = job or secrets.token_urlsafe(12)
        with self._open() as db:
            added = db.execute(
                "INSERT INTO jobs (id, user, task, model, options, upload, state, created) VALUES (?,?,?,?,?,?,'queued',?) "
                "ON CONFLICT (id) DO NOTHING",
                (job, user, task, model, json.dumps(options), str(upload), time.time()),
            ).rowcount
        return job if added else None

    def get(self, job: str, user: str | None = None) -> dict[str, Any] | None:
        """A job of this user (``None``: anybody's), or ``None``."""
        with self._open() as db:
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        return dict(row) if row is not None and user in (None, row["user"]) else None

    def of_user(self, user: str) -> list[dict[str, Any]]:
        """The user's jobs, newest first."""
        with self._open() as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE user = ? ORDER BY created DESC LIMIT 200", (user,)
            ).fetchall()
        return [dict(row) for row in rows]

    def unfinished(self, user: str) -> int:
        """How many of the user's jobs wait or run."""
        with self._open() as db:
            return int(
                db.execute(
                    "SELECT COUNT(*) FROM jobs WHERE user = ? AND state IN ('queued','running')",
                    (user,),
                ).fetchone()[0]
            )

    def claim(self, worker: str) -> dict[str, Any] | None:
        """The next job: users take turns, those with fewer running ones first; of one user the oldest.

        Turns are kept apart from the jobs, so that deleting one's finished jobs does not bring one to the front.
        """
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            row = db.execute(
                "SELECT q.id, q.user FROM jobs q LEFT JOIN (SELECT user, COUNT(*) n FROM jobs WHERE state='running' GROUP BY user) r "
                "ON r.user = q.user LEFT JOIN turns t ON t.user = q.user WHERE q.state='queued' "
                "ORDER BY COALESCE(r.n, 0), COALESCE(t.at, 0), q.created LIMIT 1"
            ).fetchone()
            if row is not None:
                now = time.time()
                db.execute(
                    "UPDATE jobs SET state='running', worker=?, attempts=attempts+1, started=?, beat=?, done=0 WHERE id=?",
                    (worker, now, now, row["id"]),
                )
                db.execute(
                    "INSERT INTO turns VALUES (?,?) ON CONFLICT (user) DO UPDATE SET at=excluded.at",
                    (row["user"], now),
                )
            db.execute("COMMIT")
        return None if row is None else self.get(row["id"])

    def beat(
        self, job: str, worker: str, done: float | None = None, message: str | None = None
    ) -> bool:
        """Say the worker lives; False if the job is no longer its own (cancelled, or given to another)."""
        with self._open() as db:
            changed = db.execute(
                "UPDATE jobs SET beat=?, done=COALESCE(?, done), message=COALESCE(?, message) WHERE id=? AND worker=? AND state='running'",
                (time.time(), done, message, job, worker),
            ).rowcount
        return changed == 1

    def finish(self, job: str, worker: str, state: str, message: str = "") -> bool:
        """End a job once; False if somebody else has ended it or holds it now."""
        with self._open() as db:
            changed = db.execute(
                "UPDATE jobs SET state=?, message=?, done=1, finished=? WHERE id=? AND worker=? AND state='running'",
                (state, message, time.time(), job, worker),
            ).rowcount
        return changed == 1

    def cancel(self, job: str) -> bool:
        """End a job that has not ended."""
        with self._open() as db:
            changed = db.execute(
                "UPDATE jobs SET state='cancelled', message='cancelled', finished=? WHERE id=? AND state IN ('queued','running')",
                (time.time(), job),
            ).rowcount
        return changed == 1

    def rescue(self, dead: str | None = None) -> int:
        """Queue again what dead workers held; after three attempts a job fails with the reason."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            rows = db.execute(
                "SELECT id, attempts FROM jobs WHERE state='running' AND (worker = ? OR beat < ?)",
                (dead, time.time() - SILENT),
            ).fetchall()
            for row in rows:
                if row["attempts"] >= ATTEMPTS:
                    reason = f"its worker died {row['attempts']} times: out of memory, most likely. Send fewer cells at once."
                    db.execute(
                        "UPDATE jobs SET state='failed', message=?, finished=? WHERE id=?",
                        (reason, time.time(), row["id"]),
                    )
                else:
                    db.execute(
                        "UPDATE jobs SET state='queued', worker=NULL, done=0 WHERE id=?",
                        (row["id"],),
                    )
            db.execute("COMMIT")
        return len(rows)

    def silent(self) -> list[str]:
        """Workers that hold a job and have not been heard of for long, far longer than a busy machine delays them."""
        with self._open() as db:
            rows = db.execute(
                "SELECT worker FROM jobs WHERE state='running' AND beat < ?",
                (time.time() - 4 * SILENT,),
            ).fetchall()
        return [row["worker"] for row in rows]

    def forget(self, older_than: float) -> list[dict[str, Any]]:
        """Remove finished jobs that ended before this time; returns them, so that their files can be removed."""
        with self._open() as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE finished IS NOT NULL AND finished < ?", (older_than,)
            ).fetchall()
            db.executemany("DELETE FROM jobs WHERE id = ?", [(row["id"],) for row in rows])
        return [dict(row) for row in rows]

    def remove(self, job: str) -> None:
        """Delete one job."""
        with self._open() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (job,))

    def counts(self) -> dict[str, int]:
        """State -> jobs."""
        with self._open() as db:
            return {
                row["state"]: row["n"]
                for row in db.execute("SELECT state, COUNT(*) n FROM jobs GROUP BY state")
            }
