"""How much of the disk a user's files take: uploads in parts, references, and the uploads and results of all jobs."""

from __future__ import annotations

import contextlib
import hashlib
import os
from functools import lru_cache
from pathlib import Path

from .jobs import Queue
from .postgres import VARIABLE, open_queue
from .references import References
from .settings import Settings


def used_bytes(user: str, settings: Settings) -> int:
    """Bytes of a user's files; uploads in parts count with the length they were announced with."""
    own = settings.data / "parts" / hashlib.sha256(user.encode()).hexdigest()[:32]
    total = sum(_number(file) for file in own.glob("*.length"))
    total += sum(_size(file) for file in References(settings.data).files(user))
    for job in _queue(settings.data, os.environ.get(VARIABLE)).files_of(user):
        total += _size(Path(job["upload"])) + _folder(settings.data / "jobs" / job["id"])
    return total


@lru_cache(maxsize=8)
def _queue(folder: Path, url: str | None) -> Queue:
    return open_queue(folder)


def _number(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


def _size(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0


def _folder(folder: Path) -> int:
    return sum(_size(Path(at) / name) for at, _, names in os.walk(folder) for name in names)
