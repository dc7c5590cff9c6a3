"""Finished tasks on disk, so that an interrupted robustness analysis continues where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..utils.atomic import atomic_path
from ..utils.errors import DataError
from .subsample import Task


def fingerprint(obs: pd.DataFrame, layers: Mapping[str, Any]) -> str:
    """A short hash of the labels and of every layer's non-zeros: other data, other fingerprint."""
    digest = hashlib.sha256()
    for name in obs:
        digest.update(pd.util.hash_array(obs[name].astype(str).to_numpy(dtype=object)).tobytes())
    for matrix in layers.values():
        digest.update(np.array(matrix.shape).tobytes())
        digest.update(np.asarray(matrix.sum(axis=0, dtype=np.float64)).tobytes())
        digest.update(np.asarray(matrix.sum(axis=1, dtype=np.float64)).tobytes())
    return digest.hexdigest()[:16]


class TaskStore:
    """One CSV per task in a folder that belongs to one analysis; without a folder nothing is kept."""

    def __init__(self, folder: str | Path | None, settings: Mapping[str, Any], data: str) -> None:
        """Open or make the folder; refuse one that holds another analysis."""
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        card = self.folder / "settings.json"
        mine = json.loads(json.dumps({"settings": dict(settings), "data": data}))
        if card.exists():
            other = json.loads(card.read_text())
            if other != mine:
                changed = [
                    k for k, v in mine["settings"].items() if other.get("settings", {}).get(k) != v
                ]
                raise DataError(
                    f"{self.folder} keeps another analysis ({', '.join(changed) or 'the data'} changed). "
                    "Choose another resume folder, or delete this one."
                )
            return
        with atomic_path(card) as path:
            path.write_text(json.dumps(mine, indent=1))

    def _path(self, task: Task) -> Path:
        assert self.folder is not None
        text = json.dumps(
            [task.kind, task.cell_type, task.layer, task.ratio, task.first, list(task.seeds)]
        )
        return self.folder / f"{task.kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.csv"

    def load(self, task: Task) -> pd.DataFrame | None:
        """The task's runs if they were stored."""
        if self.folder is None or not self._path(task).exists():
            return None
        return pd.read_csv(
            self._path(task), float_precision="round_trip", keep_default_na=False, na_values=["NaN"]
        )

    def save(self, task: Task, table: pd.DataFrame) -> None:
        """Store the task's runs, whole or not at all."""
        if self.folder is None:
            return
        with atomic_path(self._path(task)) as path:
            table.to_csv(path, index=False, na_rep="NaN")
