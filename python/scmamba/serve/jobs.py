"""The queue: one SQLite file, read and written by the server and every worker; a job changes hands in one transaction.

Attempts are counted where a job is taken, deaths where a supervisor saw its own worker die over a job. Only deaths end a job: a server that
was stopped, killed or asleep costs none. Whether a worker is silent is judged by its counter of beats, never by the clock.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..utils.errors import ScMambaError
from .validation import whole_text

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
  id TEXT PRIMARY KEY, user TEXT NOT NULL, task TEXT NOT NULL, model TEXT NOT NULL, options TEXT NOT NULL, upload TEXT NOT NULL,
  state TEXT NOT NULL, done REAL NOT NULL DEFAULT 0, message TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
  worker TEXT, created REAL NOT NULL, started REAL, beat REAL, finished REAL);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, created);
CREATE TABLE IF NOT EXISTS turns (user TEXT PRIMARY KEY, at REAL NOT NULL);
"""
#: Columns added after the first version of the table.
_LATER = {
    "deaths": "INTEGER NOT NULL DEFAULT 0",
    "warnings": "TEXT NOT NULL DEFAULT '[]'",
    "digest": "TEXT NOT NULL DEFAULT ''",
    "messages": "TEXT NOT NULL DEFAULT '[]'",
}
#: States a job does not leave.
FINAL = ("done", "failed", "cancelled")
#: Seconds without a beat after which a worker is taken to be dead.
SILENT = 30.0
#: Deaths of its worker after which a job fails, and starts of any kind.
DEATHS, STARTS = 3, 100
_PUBLIC = (
    "id",
    "task",
    "model",
    "state",
    "done",
    "message",
    "attempts",
    "created",
    "started",
    "finished",
)
_log = logging.getLogger("scmamba.serve")


def public_view(job: dict[str, Any], *, messages: bool = True) -> dict[str, Any]:
    """The part of a job that is shown to its user, with or without what the verb reported while it ran."""
    shown = {k: job[k] for k in _PUBLIC}
    columns = ("options", "warnings", *(["messages"] if messages else []))
    return {**shown, **{k: whole_text(json.loads(job[k])) for k in columns}}


class Unavailable(ScMambaError):
    """The queue cannot be reached at the moment; nothing was done, a later try may succeed."""


class Damaged(Unavailable):
    """The file of the queue is not a database any more."""


class Queue:
    """Jobs on disk. Every method is one short transaction, safe between processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._make()
        except Damaged:  # it was damaged while no server ran
            self.recover()

    def _make(self) -> None:
        """The tables, with the columns of this version."""
        with self._open() as db:
            db.executescript(_TABLE)
        for column, kind in _LATER.items():
            if self._has(column):
                continue
            try:
                with self._open() as db:
                    db.execute(f"ALTER TABLE jobs ADD COLUMN {column} {kind}")
            except Exception:
                if not self._has(column):  # unless another server was faster
                    raise

    def _has(self, column: str) -> bool:
        with self._open() as db:
            return column in {row["name"] for row in db.execute("PRAGMA table_info(jobs)")}

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with closing(
                sqlite3.connect(self.folder / "queue.sqlite", timeout=30, isolation_level=None)
            ) as db:
                db.row_factory = sqlite3.Row
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                yield db
        except sqlite3.OperationalError as error:
            # Opening the file may fail, too: no file handles left, a folder that is not mounted.
            raise Unavailable(
                f"The job queue is unavailable ({error}); please try again."
            ) from error
        except sqlite3.DatabaseError as error:
            raise Damaged(
                f"{self.folder / 'queue.sqlite'} is damaged ({error}); it is set aside, and the last backup is used."
            ) from error

    # -- a damaged file -----------------------------------------------------------------------------

    def check(self) -> bool:
        """Whether the file is a sound database."""
        try:
            with self._open() as db:
                return str(db.execute("PRAGMA quick_check(1)").fetchone()[0]) == "ok"
        except Damaged:
            return False

    def backup(self) -> None:
        """Copy the queue to ``queue.backup.sqlite``, from which :meth:`recover` restores it."""
        if not self.check():
            return
        target = self.folder / "queue.backup.sqlite"
        for left in self.folder.glob(f".{target.name}.*"):  # by a server that was killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > 3600:
                    left.unlink()
        part = target.with_name(f".{target.name}.{os.getpid()}")
        part.unlink(missing_ok=True)
        with self._open() as db, closing(sqlite3.connect(part)) as copy:
            db.backup(copy)
        os.replace(part, target)

    def recover(self) -> None:
        """Set a damaged file aside and go on with the last backup, or with an empty queue.

        The files of the jobs stay. Jobs that were sent after the backup are lost; their users get 404.
        """
        with FileLock(self.folder / "queue.lock", mode=0o600):
            try:
                sound = self.check()
            except Unavailable:
                return
            if sound:  # another server was faster
                return
            aside = f"damaged-{time.strftime('%Y%m%d-%H%M%S')}"
            for ending in ("", "-wal", "-shm"):
                file = self.folder / f"queue.sqlite{ending}"
                if file.exists():
                    os.replace(file, self.folder / f"queue.{aside}.sqlite{ending}")
            backup = self.folder / "queue.backup.sqlite"
            if backup.is_file():
                shutil.copyfile(backup, self.folder / "queue.sqlite")
            _log.error(
                "queue.sqlite was damaged; it is now queue.%s.sqlite, and %s is used",
                aside,
                "the last backup" if backup.is_file() else "an empty queue",
            )
            self._make()

    # -- jobs -----------------------------------------------------------------------------------------

    @staticmethod
    def name_of(user: str, key: str) -> str:
        """The name of the job that a user sends under a key of their own; sent again, it is the same job."""
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
        *,
        warnings: Sequence[str] = (),
        digest: str = "",
    ) -> str | None:
        """Accept a job; it survives everything from here on.

        ``job`` is a name from :meth:`name_of`, ``digest`` that of the request. Returns ``None`` if the job is there already.
        """
        job = job or secrets.token_urlsafe(12)
        values = (job, user, task, model, json.dumps(options), str(upload))
        with self._open() as db:
            # Of one user the oldest job is next, also if the clock was set back meanwhile.
            last = db.execute(
                "SELECT MAX(created) AS newest FROM jobs WHERE user = ? AND state = 'queued'",
                (user,),
            ).fetchone()["newest"]
            now = time.time() if last is None else max(time.time(), last + 1e-6)
            added = db.execute(
                "INSERT INTO jobs (id, user, task, model, options, upload, state, created, warnings, digest) "
                "VALUES (?,?,?,?,?,?,'queued',?,?,?) ON CONFLICT (id) DO NOTHING",
                (*values, now, json.dumps(list(warnings)), digest),
            ).rowcount
        return job if added else None

    def get(self, job: str, user: str | None = None) -> dict[str, Any] | None:
        """A job of this user (``None``: anybody's), or ``None``."""
        with self._open() as db:
            row = db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        return dict(row) if row is not None and user in (None, row["user"]) else None

    def get_many(self, jobs: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Several jobs by their names, of any owner; missing ones are omitted."""
        found: dict[str, dict[str, Any]] = {}
        with self._open() as db:
            for start in range(0, len(jobs), 500):
                part = list(jobs[start : start + 500])
                places = ",".join("?" * len(part))
                query = f"SELECT * FROM jobs WHERE id IN ({places})"  # nosec B608: question marks
                for row in db.execute(query, part):
                    found[row["id"]] = dict(row)
        return found

    def of_user(self, user: str) -> list[dict[str, Any]]:
        """The user's jobs, newest first."""
        with self._open() as db:
            rows = db.execute(
                "SELECT * FROM jobs WHERE user = ? ORDER BY created DESC LIMIT 200", (user,)
            ).fetchall()
        return [dict(row) for row in rows]

    def files_of(self, user: str) -> list[dict[str, Any]]:
        """Id and upload of all jobs of a user."""
        with self._open() as db:
            rows = db.execute("SELECT id, upload FROM jobs WHERE user = ?", (user,)).fetchall()
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

        Turns are kept apart from the jobs, so that deleting one's finished jobs does not bring one to the front. They are counted, not
        timed: with a clock that was set back, users whose turn was before would wait until it has caught up.
        """
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            row = db.execute(
                "SELECT q.id, q.user FROM jobs q LEFT JOIN (SELECT user, COUNT(*) n FROM jobs WHERE state='running' GROUP BY user) r "
                "ON r.user = q.user LEFT JOIN turns t ON t.user = q.user WHERE q.state='queued' "
                "ORDER BY COALESCE(r.n, 0), COALESCE(t.at, 0), q.created LIMIT 1"
            ).fetchone()
            if row is not None:
                db.execute(
                    "UPDATE jobs SET state='running', worker=?, attempts=attempts+1, started=?, beat=0, done=0, "
                    "messages='[]' WHERE id=?",
                    (worker, time.time(), row["id"]),
                )
                last = db.execute("SELECT MAX(at) AS turn FROM turns").fetchone()["turn"]
                db.execute(
                    "INSERT INTO turns VALUES (?,?) ON CONFLICT (user) DO UPDATE SET at=excluded.at",
                    (row["user"], (last or 0) + 1),
                )
            db.execute("COMMIT")
        return None if row is None else self.get(row["id"])

    def beat(
        self,
        job: str,
        worker: str,
        done: float | None = None,
        message: str | None = None,
        messages: Sequence[str] | None = None,
    ) -> bool:
        """Count a beat of the worker; False if the job is no longer its own (cancelled, or given to another)."""
        reported = None if messages is None else json.dumps(list(messages))
        with self._open() as db:
            changed = db.execute(
                "UPDATE jobs SET beat=COALESCE(beat, 0)+1, done=COALESCE(?, done), message=COALESCE(?, message), "
                "messages=COALESCE(?, messages) WHERE id=? AND worker=? AND state='running'",
                (done, message, reported, job, worker),
            ).rowcount
        return changed == 1

    def finish(
        self,
        job: str,
        worker: str,
        state: str,
        message: str = "",
        messages: Sequence[str] | None = None,
    ) -> bool:
        """End a job once; False if another process has ended it or holds it now."""
        reported = None if messages is None else json.dumps(list(messages))
        with self._open() as db:
            changed = db.execute(
                "UPDATE jobs SET state=?, message=?, messages=COALESCE(?, messages), done=1, finished=? "
                "WHERE id=? AND worker=? AND state='running'",
                (state, message, reported, time.time(), job, worker),
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

    def running(self) -> list[dict[str, Any]]:
        """Id, worker and beats of the jobs that run, of all servers."""
        with self._open() as db:
            rows = db.execute("SELECT id, worker, beat FROM jobs WHERE state='running'").fetchall()
        return [dict(row) for row in rows]

    def bury(self, worker: str) -> int:
        """Queue again what a worker held that died over it; after three deaths the job fails with the reason."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            rows = db.execute(
                "SELECT id, deaths FROM jobs WHERE state='running' AND worker = ?", (worker,)
            ).fetchall()
            for row in rows:
                deaths = row["deaths"] + 1
                if deaths >= DEATHS:
                    reason = f"its worker died {deaths} times, most likely out of memory. Send fewer cells at once."
                    db.execute(
                        "UPDATE jobs SET state='failed', message=?, deaths=?, finished=? WHERE id=?",
                        (reason, deaths, time.time(), row["id"]),
                    )
                else:
                    db.execute(
                        "UPDATE jobs SET state='queued', worker=NULL, done=0, deaths=? WHERE id=?",
                        (deaths, row["id"]),
                    )
            db.execute("COMMIT")
        return len(rows)

    def give_back(self, worker: str, beat: float | None = None) -> int:
        """Queue again what a worker held, without counting it against the job.

        With ``beat`` only if the worker has not been heard of since that beat.
        """
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            rows = db.execute(
                "SELECT id, attempts, beat FROM jobs WHERE state='running' AND worker = ?",
                (worker,),
            ).fetchall()
            rows = [row for row in rows if beat is None or row["beat"] == beat]
            for row in rows:
                if row["attempts"] >= STARTS:
                    db.execute(
                        "UPDATE jobs SET state='failed', message=?, finished=? WHERE id=?",
                        (f"it was started {STARTS} times and never ended.", time.time(), row["id"]),
                    )
                else:
                    db.execute(
                        "UPDATE jobs SET state='queued', worker=NULL, done=0 WHERE id=?",
                        (row["id"],),
                    )
            db.execute("COMMIT")
        return len(rows)

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

    def ids(self) -> set[str]:
        """Names of all jobs."""
        with self._open() as db:
            return {row["id"] for row in db.execute("SELECT id FROM jobs")}

    def uploads(self) -> set[str]:
        """Paths of the uploads of all jobs."""
        with self._open() as db:
            return {row["upload"] for row in db.execute("SELECT upload FROM jobs")}

    def counts(self) -> dict[str, int]:
        """State -> jobs."""
        with self._open() as db:
            return {
                row["state"]: row["n"]
                for row in db.execute("SELECT state, COUNT(*) n FROM jobs GROUP BY state")
            }
