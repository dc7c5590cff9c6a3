"""Files that belong to a job of the queue."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from .settings import Settings


def discard(settings: Settings, job: dict[str, Any]) -> None:
    """Remove a job's files."""
    Path(job["upload"]).unlink(missing_ok=True)
    shutil.rmtree(settings.data / "jobs" / job["id"], ignore_errors=True)
