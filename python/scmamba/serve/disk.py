"""The disk of the data folder: its room, and what has to be on it before the queue names it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: Bytes below which the disk counts as full: no job is begun, since its result would find no room.
LEAST = 64 << 20


def has_room(folder: Path) -> bool:
    """Whether there is room for results; false if the folder cannot be reached.

    Parameters
    ----------
    folder
        The data folder.
    """
    try:
        return shutil.disk_usage(folder).free >= LEAST
    except OSError:
        return False


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk.

    Parameters
    ----------
    folder
        The folder; not what is below it.
    """
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
