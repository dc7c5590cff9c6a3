"""The queue in PostgreSQL, where several servers share it: the same statements as :mod:`scmamba.serve.jobs`, in the other's dialect."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..utils.errors import ScMambaError
from .jobs import Queue, Unavailable

#: Names the database; an environment variable, so that a password in it is in no list of processes.
VARIABLE = "SCMAMBA_QUEUE"
# Seconds to wait for a database that is starting again, as SQLite waits for its lock.
_PATIENCE = 30.0


def open_queue(folder: Path) -> Queue:
    """The queue of a data folder: in PostgreSQL if ``SCMAMBA_QUEUE`` names one (``postgresql://...``), else in the folder's SQLite file.

    Raises
    ------
    ScMambaError
        The database cannot be reached, or its driver is missing.
    """
    url = os.environ.get(VARIABLE)
    return PostgresQueue(folder, url) if url else Queue(folder)


class PostgresQueue(Queue):
    """Jobs in PostgreSQL. Uploads and results stay in the data folder, which all servers must share."""

    def __init__(self, folder: Path, url: str) -> None:
        try:
            import psycopg  # noqa: F401
        except ImportError as error:
            raise ScMambaError(
                "A queue in PostgreSQL needs its driver: pip install 'scmamba[postgres]'."
            ) from error
        if not re.match(r"postgres(ql)?://", url):
            raise ScMambaError(
                f"{VARIABLE} must be the address of a PostgreSQL database, postgresql://user@host/name."
            )
        self._url = url
        super().__init__(folder)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        import psycopg

        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                connection = psycopg.connect(
                    self._url, autocommit=True, row_factory=_row, connect_timeout=10
                )
                break
            except psycopg.OperationalError as error:
                if time.monotonic() > give_up:
                    raise Unavailable(
                        f"The database named by {VARIABLE} cannot be reached: {error}"
                    ) from error
                time.sleep(0.5)
        try:
            with connection:
                yield _Database(connection)
        except psycopg.OperationalError as error:
            raise Unavailable("The connection to the queue's database broke; try again.") from error

    def _has(self, column: str) -> bool:
        with self._open() as db:
            row = db.execute(
                "SELECT 1 FROM information_schema.columns WHERE table_name='jobs' AND column_name=?",
                (column,),
            ).fetchone()
        return row is not None

    def check(self) -> bool:
        """PostgreSQL looks after its own files."""
        return True

    def backup(self) -> None:
        """PostgreSQL has its own backups."""

    def recover(self) -> None:
        """PostgreSQL recovers by itself."""


class _Row(dict[str, Any]):
    """A row by name, or by place as SQLite's are."""

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


def _row(cursor: Any) -> Any:
    names = [c.name for c in cursor.description or ()]
    return lambda values: _Row(zip(names, values))


def translate(sql: str) -> str:
    """SQLite's dialect as PostgreSQL's: places, the reserved word ``user``, double precision, and the one lock that claims need."""
    sql = (
        re.sub(r"\buser\b", '"user"', sql).replace("?", "%s").replace(" REAL", " DOUBLE PRECISION")
    )
    return "BEGIN; LOCK TABLE jobs IN EXCLUSIVE MODE" if sql == "BEGIN IMMEDIATE" else sql


class _Database:
    """What :class:`Queue` uses of a SQLite connection."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.execute(translate(sql), values or None)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            self.execute(sql, row)

    def executescript(self, sql: str) -> None:
        # Servers that start together must not make the tables at the same moment.
        self._connection.execute("SELECT pg_advisory_lock(8642)")
        for statement in filter(str.strip, sql.split(";")):
            self.execute(statement)
        self._connection.execute("SELECT pg_advisory_unlock(8642)")
