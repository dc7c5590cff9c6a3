"""Files that belong to a job of the queue."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import Settings

if TYPE_CHECKING:
    from .jobs import Queue

_NAME = re.compile(r"[A-Za-z0-9_-]{16}")


def discard(settings: Settings, job: dict[str, Any]) -> None:
    """Remove a job's files."""
    Path(job["upload"]).unlink(missing_ok=True)
    shutil.rmtree(settings.data / "jobs" / job["id"], ignore_errors=True)


def forget_strays(settings: Settings, queue: Queue, before: float) -> None:
    """Remove folders whose job is no longer in the queue: a server was killed while it deleted one, or the queue was restored.

    Parameters
    ----------
    settings, queue
        Of the server.
    before
        Time of the last change up to which they are removed.
    """
    known = queue.ids()
    for folder in (settings.data / "jobs").glob("*"):
        with contextlib.suppress(OSError):
            if (
                _NAME.fullmatch(folder.name)
                and folder.name not in known
                and folder.is_dir()
                and folder.stat().st_mtime < before
            ):
                shutil.rmtree(folder, ignore_errors=True)
