"""How well cell types were named: the paper's F1 columns, and what leaving cells unassigned costs and buys.

F1 macro is the mean over the classes present in the truth (paper, "Cell type annotation"); micro gives every cell the same weight, weighted every
class by its cells. A cell that is left unassigned counts as missed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..utils.errors import DataError

#: Calls with this name are no call.
UNASSIGNED = "Unassigned"


def annotation_scores(
    truth: Sequence[str] | np.ndarray, called: Sequence[str] | np.ndarray
) -> dict[str, float]:
    """Metrics of one set of calls.

    Parameters
    ----------
    truth, called
        (n,) class of each cell; ``called`` may be ``Unassigned``.

    Returns
    -------
    ``macro micro weighted`` F1 over the classes of ``truth``; ``coverage``, share of cells that were given a class; ``accuracy``, share
    of these that are right (NaN where none was).

    Raises
    ------
    DataError
        No cell, or lengths that do not fit.
    """
    table = per_class(truth, called)
    known, found = np.asarray(truth, dtype=str), np.asarray(called, dtype=str)
    given = found != UNASSIGNED
    right = known == found
    # Micro: hits over calls and truths pooled over the classes of the truth.
    pooled = int(np.isin(found, table.index).sum()) + len(known)
    return {
        "macro": float(table["f1"].mean()),
        "micro": float(2 * right.sum() / pooled),
        "weighted": float(np.average(table["f1"], weights=table["cells"])),
        "coverage": float(given.mean()),
        "accuracy": float(right[given].mean()) if given.any() else float("nan"),
    }


def per_class(
    truth: Sequence[str] | np.ndarray, called: Sequence[str] | np.ndarray
) -> pd.DataFrame:
    """``precision recall f1 cells`` for every class of ``truth``, sorted by name; 0 where nothing was called."""
    known, found = np.asarray(truth, dtype=str), np.asarray(called, dtype=str)
    if len(known) != len(found):
        raise DataError(f"{len(found)} calls came with {len(known)} cells.")
    if len(known) == 0:
        raise DataError("There is no cell to score.")
    rows = []
    for name in np.unique(known):
        cells, calls = int((known == name).sum()), int((found == name).sum())
        hits = int(((known == name) & (found == name)).sum())
        rows.append(
            (hits / calls if calls else 0.0, hits / cells, 2 * hits / (cells + calls), cells)
        )
    return pd.DataFrame(
        rows,
        columns=["precision", "recall", "f1", "cells"],
        index=pd.Index(np.unique(known), name="type"),
    )


def confusion(
    truth: Sequence[str] | np.ndarray, called: Sequence[str] | np.ndarray
) -> pd.DataFrame:
    """(classes of truth, calls) numbers of cells."""
    return pd.crosstab(
        pd.Series(np.asarray(truth, dtype=str), name="true"),
        pd.Series(np.asarray(called, dtype=str), name="called"),
    )


def coverage_accuracy(
    truth: Sequence[str] | np.ndarray,
    called: Sequence[str] | np.ndarray,
    confidence: np.ndarray,
    coverages: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
) -> pd.DataFrame:
    """``coverage accuracy threshold``: the surest share of the cells, how many of them are right, and where the cut lies."""
    order = np.argsort(-np.asarray(confidence), kind="stable")
    right = (np.asarray(truth, dtype=str) == np.asarray(called, dtype=str))[order]
    rows = []
    for share in coverages:
        n = max(1, round(share * len(right)))
        rows.append((share, float(right[:n].mean()), float(np.asarray(confidence)[order[n - 1]])))
    return pd.DataFrame(rows, columns=["coverage", "accuracy", "threshold"])


def calibration_error(
    truth: Sequence[str] | np.ndarray,
    called: Sequence[str] | np.ndarray,
    confidence: np.ndarray,
    bins: int = 10,
) -> float:
    """Expected calibration error: how far the share that is right lies from the mean probability, over equally wide bins, by cells."""
    right = np.asarray(truth, dtype=str) == np.asarray(called, dtype=str)
    confidence = np.asarray(confidence, dtype=float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[place == b].mean() - confidence[place == b].mean()) * (place == b).sum()
        for b in np.unique(place)
    ]
    return float(sum(gaps) / len(right))


__all__ = ["annotation_scores", "calibration_error", "confusion", "coverage_accuracy", "per_class"]
