"""The record of a run: a row a step, kept as CSV, TensorBoard events if that is installed, and a plot_metrics."""

from __future__ import annotations

import csv
import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.atomic import atomic_path

Row = dict[str, float]
#: Maximum age in seconds of the CSV file of a run.
_SECONDS = 30.0


class MetricsLog:
    """Rows of numbers, written to ``folder`` as they come (``None``: kept in memory only)."""

    def __init__(self, folder: Path | None, rows: list[Row]) -> None:
        self.rows, self.folder = rows, folder
        self._written = time.monotonic()
        self._events = _events(folder, len(rows))

    def add(self, row: Row) -> None:
        """One step."""
        self.rows.append(row)
        if self.folder is not None and time.monotonic() - self._written > _SECONDS:
            self.write()

    def measured(self) -> None:
        """The last row is complete: show it to TensorBoard."""
        if self._events is not None:
            row = self.rows[-1]
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(name, value, int(row["step"]))

    def write(self) -> None:
        """``log.csv``, whole."""
        if self.folder is None:
            return
        self._written = time.monotonic()
        with (
            atomic_path(self.folder / "log.csv") as temporary,
            open(temporary, "w", newline="") as file,
        ):
            writer = csv.DictWriter(
                file, list(dict.fromkeys(name for row in self.rows for name in row))
            )
            writer.writeheader()
            writer.writerows(self.rows)

    def close(self) -> None:
        """The plot_metrics and what is still to be written."""
        if self._events is not None:
            self._events.close()
        if self.folder is not None and self.rows:
            self.write()
            plot_metrics(self.rows, self.folder / "loss.png")


def pack_rows(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Rows as one float64 tensor a column, missing values NaN: small in a state file, and exact."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float64)
        for name in names
    }


def unpack_rows(columns: dict[str, torch.Tensor]) -> list[Row]:
    """What :func:`pack_rows` packed."""
    values = {name: column.tolist() for name, column in columns.items()}
    count = len(next(iter(values.values()), []))
    rows: list[Row] = [
        {name: column[i] for name, column in values.items() if not math.isnan(column[i])}
        for i in range(count)
    ]
    for row in rows:
        row["step"] = int(row["step"])
    return rows


def plot_metrics(rows: list[Row], path: Path) -> None:
    """Loss against step, its running mean, and the validation curves."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, losses = np.array([r["step"] for r in rows]), np.array([r["loss"] for r in rows])
    axes.plot(steps, losses, color="0.8", lw=0.6, label="training, each step")
    window = max(min(5, len(rows)), len(rows) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axes.plot(
        steps[window - 1 :], smooth, color="tab:blue", lw=1.4, label=f"training, mean of {window}"
    )
    for name in dict.fromkeys(name for r in rows for name in r if name.startswith("validation")):
        measured = [(r["step"], r[name]) for r in rows if name in r]
        axes.plot(
            *zip(*measured),
            marker="o",
            ms=3,
            lw=1.2,
            color=f"C{1 + len(axes.lines) - 2}",
            label=name.replace("_", " "),
        )
    axes.set(xlabel="step", ylabel="loss")
    finite = losses[np.isfinite(losses)]
    if len(finite):
        axes.set_ylim(
            top=float(np.quantile(finite, 0.995)) * 1.1, bottom=min(0.0, float(finite.min()))
        )
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def _events(folder: Path | None, first: int) -> Any:
    if folder is None or importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=first)
