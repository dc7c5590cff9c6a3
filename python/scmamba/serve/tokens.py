"""Who may use the server: tokens per user, kept as hashes, with an end.

python -m scmamba.serve.tokens add NAME --data DIR [--days 90]
python -m scmamba.serve.tokens remove NAME --data DIR
python -m scmamba.serve.tokens list --data DIR
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..utils.atomic import atomic_path
from ..utils.errors import ScMambaError
from .audit import audit, start_logging
from .jobs import Unavailable

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_LONGEST = 3650  # days


class Unreadable(Unavailable):
    """The file of the tokens is damaged; nobody is let in until it is repaired."""


class Tokens:
    """The file ``tokens.json`` of a data folder, read again whenever it changed.

    Parameters
    ----------
    folder
        The data folder of a server.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.json"
        self._read_at: tuple[int, int, int] | None = None
        self._entries = list[dict[str, Any]]()
        self._lock = threading.Lock()

    def entries(self) -> list[dict[str, Any]]:
        """User, hash and end of each token."""
        with self._lock:
            try:
                about = self.path.stat()
            except FileNotFoundError:
                return []
            # The file is replaced as a whole: its number changes even if two changes have one time.
            changed = (about.st_mtime_ns, about.st_ino, about.st_size)
            if changed != self._read_at:
                self._entries, self._read_at = self._parse(self.path.read_text()), changed
            return self._entries

    def _parse(self, text: str) -> list[dict[str, Any]]:
        try:
            return [
                {"user": str(e["user"]), "hash": str(e["hash"]), "ends": float(e["ends"])}
                for e in json.loads(text)
            ]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise Unreadable(
                f"{self.path} is damaged: it was edited by hand, or comes from another program. Restore it from a backup, or move it "
                "away and make new tokens with: python -m scmamba.serve.tokens add NAME --data DIR"
            ) from error

    def add(self, user: str, days: float) -> str:
        """Make a token for a user.

        Parameters
        ----------
        user
            Letters, digits and ``_ . @ -``, at most 64.
        days
            Days until it ends.

        Returns
        -------
        The token; only its hash is kept.

        Raises
        ------
        ValueError
            The name or the number of days is not possible.
        """
        if not _NAME.fullmatch(user):
            raise ValueError("A user name has letters, digits and _ . @ - only, at most 64.")
        if not math.isfinite(days) or days > _LONGEST:
            raise ValueError(f"days is {days}; expected a number up to {_LONGEST}.")
        token = secrets.token_urlsafe(32)
        with self._changing():
            ends = time.time() + 86400 * days
            self._write([*self.entries(), {"user": user, "hash": _hash(token), "ends": ends}])
        return token

    def remove(self, user: str) -> int:
        """Withdraw all tokens of a user; returns how many there were."""
        with self._changing():
            before = self.entries()
            kept = [e for e in before if e["user"] != user]
            if len(kept) < len(before):
                self._write(kept)
            return len(before) - len(kept)

    def user_of(self, token: str) -> tuple[str | None, str]:
        """The user of a token, or ``None`` and the reason."""
        digest = _hash(token)
        for entry in self.entries():
            if hmac.compare_digest(entry["hash"], digest):
                if not time.time() <= entry["ends"]:
                    return None, "this token has expired; request a new one from the operator"
                return entry["user"], ""
        return None, "this token is not known here"

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, of all processes."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.path.with_name("tokens.json.lock"), mode=0o600):
            yield

    def _write(self, entries: list[dict[str, Any]]) -> None:
        with atomic_path(self.path) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps(entries, indent=1))
                file.flush()
                os.fsync(file.fileno())


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scmamba.serve.tokens",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["add", "remove", "list"])
    parser.add_argument("user", nargs="?")
    parser.add_argument("--data", type=Path, required=True, help="data folder of the server")
    parser.add_argument("--days", type=float, default=90, help="days until a new token ends")
    arguments = parser.parse_args()
    os.umask(0o077)
    try:
        _run(parser, arguments)
    except ScMambaError as error:
        parser.error(str(error))


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    tokens = Tokens(arguments.data)
    if arguments.what == "list":
        for entry in tokens.entries():
            print(
                f"{entry['user']}\tuntil {time.strftime('%Y-%m-%d', time.localtime(entry['ends']))}"
            )
        return
    if arguments.user is None:
        parser.error("name the user")
    if arguments.what == "add":
        try:
            if arguments.days <= 0:
                raise ValueError(f"days is {arguments.days}; expected a positive number.")
            token = tokens.add(arguments.user, arguments.days)
        except ValueError as error:
            parser.error(str(error))
        _record(arguments.data, "token added", arguments.user)
        print(token)
        return
    gone = tokens.remove(arguments.user)
    if gone == 0:
        known = ", ".join(sorted({e["user"] for e in tokens.entries()})) or "none"
        parser.error(f"'{arguments.user}' has no token; users with tokens: {known}")
    _record(arguments.data, "token withdrawn", arguments.user)
    print(f"{gone} tokens withdrawn")


def _record(folder: Path, event: str, user: str) -> None:
    start_logging(folder)
    audit(event, user)
    logging.shutdown()


if __name__ == "__main__":
    main()
