"""A report of one or several sets of cell types against the truth: numbers, tables and pictures in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .annotation import (
    annotation_scores,
    calibration_error,
    confusion,
    coverage_accuracy,
    per_class,
)


@dataclass
class AnnotationReport:
    """What :func:`annotation_report` found.

    Attributes
    ----------
    summary
        One row per set of calls: F1 ``macro micro weighted``, ``coverage``, ``accuracy``.
    per_class, confusions
        Name of the calls -> table.
    curve
        ``coverage accuracy threshold`` of the first calls, if their probabilities were given.
    calibration_error
        Expected calibration error of the same.
    """

    summary: pd.DataFrame
    per_class: dict[str, pd.DataFrame]
    confusions: dict[str, pd.DataFrame]
    curve: pd.DataFrame | None = None
    calibration_error: float | None = None

    def write(self, folder: Path) -> None:
        """``report.md``, ``.tsv`` of every table and ``.png`` of the confusions and the curve."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = ["# Cell types against the truth", markdown(self.summary)]
        self.summary.to_csv(folder / "summary.tsv", sep="\t")
        for number, (name, table) in enumerate(self.per_class.items(), 1):
            table.to_csv(folder / f"per_class_{number}.tsv", sep="\t")
            self.confusions[name].to_csv(folder / f"confusion_{number}.tsv", sep="\t")
            _draw_confusion(self.confusions[name], folder / f"confusion_{number}.png")
            parts += [
                f"## {name}",
                markdown(table),
                f"![confusion of {name}](confusion_{number}.png)",
            ]
        if self.curve is not None:
            self.curve.to_csv(folder / "coverage.tsv", sep="\t", index=False)
            _draw_curve(self.curve, folder / "coverage.png")
            parts += [
                "## Accuracy against coverage",
                markdown(self.curve.set_index("coverage")),
                "![coverage](coverage.png)",
                f"Expected calibration error: {self.calibration_error:.4f}.",
            ]
        (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def annotation_report(
    truth: np.ndarray, called: Mapping[str, np.ndarray], confidence: np.ndarray | None = None
) -> AnnotationReport:
    """Score each of ``called`` (name -> (n,) calls) against ``truth`` (n,); ``confidence`` (n,) belongs to the first of them.

    The curve takes calls as they are, so give calls that were not cut where a whole curve is wanted.

    Raises
    ------
    DataError
        Lengths that do not fit, or no cell.
    """
    summary = pd.DataFrame(
        {name: annotation_scores(truth, calls) for name, calls in called.items()}
    ).T.rename_axis("calls")
    confusions = {name: confusion(truth, calls) for name, calls in called.items()}
    report = AnnotationReport(
        summary, {name: per_class(truth, calls) for name, calls in called.items()}, confusions
    )
    if confidence is not None:
        first = next(iter(called.values()))
        report.curve = coverage_accuracy(truth, first, confidence)
        report.calibration_error = calibration_error(truth, first, confidence)
    return report


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown, its index first."""
    names = [str(table.index.name or ""), *map(str, table.columns)]
    rows = [
        [str(i), *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row)]
        for i, row in zip(table.index, table.to_numpy(object))
    ]
    return "\n".join(
        [
            "| " + " | ".join(names) + " |",
            "|" + "---|" * len(names),
            *("| " + " | ".join(r) + " |" for r in rows),
        ]
    )


def _draw_confusion(table: pd.DataFrame, path: Path) -> None:
    import matplotlib.pyplot as plt

    share = table.to_numpy() / table.to_numpy().sum(axis=1, keepdims=True)
    figure, axis = plt.subplots(figsize=(2 + 0.45 * table.shape[1], 1.5 + 0.4 * table.shape[0]))
    axis.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axis.set_xticks(range(table.shape[1]), table.columns, rotation=90)
    axis.set_yticks(range(table.shape[0]), table.index)
    axis.set(xlabel="called", ylabel="true")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _draw_curve(curve: pd.DataFrame, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    axis.plot(100 * curve["coverage"], 100 * curve["accuracy"], "o-")
    axis.set(xlabel="surest cells, %", ylabel="of these right, %")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


__all__ = ["AnnotationReport", "annotation_report", "markdown"]
