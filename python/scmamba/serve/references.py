"""Labelled cells that users keep to annotate others by: files, each in the folder of its owner, named by a digest of the user's name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from pathlib import Path

from .disk import sync_folder

_NAME = re.compile(r"[A-Za-z0-9_-]{16}")


class References:
    """References on disk; each user can access only their own."""

    def __init__(self, data: Path) -> None:
        self.folder = data / "references"

    def _own(self, user: str) -> Path:
        return self.folder / hashlib.sha256(user.encode()).hexdigest()[:32]

    def add(self, user: str, upload: Path) -> str:
        """Keep an upload; returns its name."""
        name = secrets.token_urlsafe(12)
        self._own(user).mkdir(parents=True, exist_ok=True)
        os.replace(upload, self._own(user) / name)
        for folder in (self._own(user), self.folder, self.folder.parent):
            sync_folder(folder)
        return name

    def path(self, name: str, user: str) -> Path | None:
        """Where it is, or ``None`` if the user has no such reference."""
        found = self._own(user) / name if _NAME.fullmatch(name) else None
        return found if found is not None and found.is_file() else None

    def number(self, user: str) -> int:
        """How many the user has."""
        return len(self.files(user))

    def files(self, user: str) -> list[Path]:
        """The user's references."""
        own = self._own(user)
        return [f for f in own.iterdir() if f.is_file()] if own.is_dir() else []

    def remove(self, name: str, user: str) -> bool:
        """Delete one; False if there was none."""
        found = self.path(name, user)
        if found is not None:
            found.unlink(missing_ok=True)
        return found is not None

    def forget(self, older_than: float) -> None:
        """Delete those that were sent before this time; what is no file stays."""
        for file in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                if file.is_file() and file.stat().st_mtime < older_than:
                    file.unlink(missing_ok=True)
