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
import re
import secrets
import time
from pathlib import Path
from typing import Any

from ..utils.atomic import atomic_path

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")


class Tokens:
    """The file ``tokens.json`` of a data folder, read anew whenever it changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.json"
        self._read_at, self._entries = -1.0, list[dict[str, Any]]()

    def entries(self) -> list[dict[str, Any]]:
        """What is kept: user, hash, end."""
        if not self.path.is_file():
            return []
        changed = self.path.stat().st_mtime
        if changed != self._read_at:
            self._entries, self._read_at = json.loads(self.path.read_text()), changed
        return self._entries

    def add(self, user: str, days: float) -> str:
        """A new token for a user; shown once, kept as a hash."""
        if not _NAME.fullmatch(user):
            raise ValueError("A user name has letters, digits and _ . @ - only, at most 64.")
        token = secrets.token_urlsafe(32)
        self._write(
            [
                *self.entries(),
                {"user": user, "hash": _hash(token), "ends": time.time() + 86400 * days},
            ]
        )
        return token

    def remove(self, user: str) -> int:
        """Withdraw all tokens of a user."""
        kept = [e for e in self.entries() if e["user"] != user]
        gone = len(self.entries()) - len(kept)
        self._write(kept)
        return gone

    def user_of(self, token: str) -> tuple[str | None, str]:
        """The user, or ``None`` and why not."""
        digest = _hash(token)
        for entry in self.entries():
            if hmac.compare_digest(entry["hash"], digest):
                if entry["ends"] < time.time():
                    return None, "this token has expired; ask for a new one"
                return entry["user"], ""
        return None, "this token is not known here"

    def _write(self, entries: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(entries, indent=1))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["add", "remove", "list"])
    parser.add_argument("user", nargs="?")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--days", type=float, default=90)
    arguments = parser.parse_args()
    tokens = Tokens(arguments.data)
    if arguments.what == "list":
        for entry in tokens.entries():
            print(
                f"{entry['user']}\tuntil {time.strftime('%Y-%m-%d', time.localtime(entry['ends']))}"
            )
    elif arguments.user is None:
        parser.error("name the user")
    elif arguments.what == "add":
        print(tokens.add(arguments.user, arguments.days))
    else:
        print(f"{tokens.remove(arguments.user)} tokens withdrawn")


if __name__ == "__main__":
    main()
