"""States of a run on disk: written whole or not at all, several kept, the newest that can be read is taken."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ..utils.atomic import atomic_path
from ..utils.errors import CheckpointError
from ..utils.progress import say

#: Start of a state file; the digest of everything that follows comes after it (torch does not check what it reads).
_MAGIC = b"scMamba state 1\n"


def state_files(folder: Path) -> list[Path]:
    """States in ``folder``, newest first."""
    return sorted(folder.glob("state-*.pt"), reverse=True)


def save_state(folder: Path, done: int, state: dict[str, Any], keep: int) -> Path:
    """Write the state after ``done`` steps and remove all but the ``keep`` newest."""
    path = folder / f"state-{done:09d}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_MAGIC + hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    for old in state_files(folder)[max(1, keep) :]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, verbose: bool = True) -> dict[str, Any] | None:
    """The newest state that can be read, ``None`` if there is none; a message names those that cannot be read.

    Raises
    ------
    CheckpointError
        There are states, and none can be read.
    """
    # What a killed process left half written.
    for left in folder.glob(".*.pt.*"):
        shutil.rmtree(left, ignore_errors=True)
    files = state_files(folder)
    for path in files:
        try:
            return _read(path)
        except (CheckpointError, OSError) as error:
            say(f"{path.name} cannot be used ({error}); going back to the state before it", verbose)
    if files:
        raise CheckpointError(
            f"None of the {len(files)} states in {folder} can be read. Remove the folder to start over."
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    start, digest = len(_MAGIC), hashlib.sha256().digest_size
    whole = path.read_bytes()
    body = memoryview(whole)[start + digest :]
    if whole[:start] != _MAGIC or hashlib.sha256(body).digest() != whole[start : start + digest]:
        raise CheckpointError("it is truncated or damaged")
    return torch.load(io.BytesIO(body), weights_only=True, map_location="cpu")
