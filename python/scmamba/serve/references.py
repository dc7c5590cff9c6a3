"""Labelled cells users send to annotate others by: files, each in the folder of its owner, whom a digest stands for."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9_-]{16}")


class References:
    """References on disk; nobody reaches another's."""

    def __init__(self, data: Path) -> None:
        self.folder = data / "references"

    def _own(self, user: str) -> Path:
        return self.folder / hashlib.sha256(user.encode()).hexdigest()[:32]

    def add(self, user: str, upload: Path) -> str:
        """Keep an upload; returns its name."""
        name = secrets.token_urlsafe(12)
        self._own(user).mkdir(parents=True, exist_ok=True)
        os.replace(upload, self._own(user) / name)
        return name

    def path(self, name: str, user: str) -> Path | None:
        """Where it is, or ``None`` if the user has no such reference."""
        found = self._own(user) / name if _NAME.fullmatch(name) else None
        return found if found is not None and found.is_file() else None

    def number(self, user: str) -> int:
        """How many the user has."""
        own = self._own(user)
        return sum(1 for _ in own.iterdir()) if own.is_dir() else 0

    def remove(self, name: str, user: str) -> bool:
        """Delete one; False if there was none."""
        found = self.path(name, user)
        if found is not None:
            found.unlink(missing_ok=True)
        return found is not None

    def forget(self, older_than: float) -> None:
        """Delete those that came before this time."""
        for file in self.folder.glob("*/*"):
            if file.stat().st_mtime < older_than:
                file.unlink(missing_ok=True)
