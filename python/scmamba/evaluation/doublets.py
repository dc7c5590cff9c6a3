"""Scores of doublet detection: the paper's columns, with the prevalence.

AUPRC is the average precision (no interpolation); a random detector has the prevalence. At an identification rate r the r * n
droplets with the highest scores are called, as in the paper's figure for 10 to 40%.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..utils.errors import DataError

#: The paper's identification rates.
RATES = (0.1, 0.2, 0.3, 0.4)


def doublet_scores(
    truth: np.ndarray, score: np.ndarray, called: np.ndarray | None = None
) -> dict[str, float]:
    """Metrics of one detector.

    Parameters
    ----------
    truth, score
        (n,) bool and float, larger more like a doublet; droplets whose score is NaN count as the least like one.
    called
        (n,) bool calls. ``None``: as many as there are true doublets, those with the highest scores.

    Returns
    -------
    ``precision recall TNR F1 AUROC AUPRC prevalence called``; NaN where a class is missing.

    Raises
    ------
    DataError
        Lengths that do not fit.
    """
    truth, score = np.asarray(truth, dtype=bool), _scores(truth, score)
    if called is None:
        called = top_share(score, truth.mean())
    if len(called) != len(truth):
        raise DataError(f"{len(called)} calls came with {len(truth)} droplets.")
    return {
        **_called(truth, np.asarray(called, dtype=bool)),
        "AUROC": auroc(truth, score),
        "AUPRC": average_precision(truth, score),
        "prevalence": float(truth.mean()),
        "called": float(np.mean(called)),
    }


def identification_curve(
    truth: np.ndarray, score: np.ndarray, rates: Sequence[float] = RATES
) -> pd.DataFrame:
    """One row per identification rate: ``rate precision recall TNR F1``."""
    truth, score = np.asarray(truth, dtype=bool), _scores(truth, score)
    return pd.DataFrame(
        [{"rate": rate, **_called(truth, top_share(score, rate))} for rate in rates]
    )


def jaccard(calls: Mapping[int, np.ndarray] | Sequence[np.ndarray]) -> np.ndarray:
    """Jaccard index of the calls of every pair of runs: how stable they are; 1 where neither run calls any."""
    runs = [
        np.asarray(c, dtype=bool) for c in (calls.values() if isinstance(calls, Mapping) else calls)
    ]
    out = []
    for i, first in enumerate(runs):
        for second in runs[:i]:
            either = (first | second).sum()
            out.append((first & second).sum() / either if either else 1.0)
    return np.array(out)


def top_share(score: np.ndarray, rate: float) -> np.ndarray:
    """(n,) bool: the ``rate`` of droplets with the highest scores; ties by position."""
    called = np.zeros(len(score), dtype=bool)
    called[np.argsort(-score, kind="stable")[: int(round(rate * len(score)))]] = True
    return called


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """Sum over thresholds of precision times the recall gained; tied droplets enter together. NaN without a doublet."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, score)) if truth.any() else float("nan")


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """Chance that a doublet scores higher than a single cell, ties counted half. NaN where a class is missing."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, score)) if truth.any() and not truth.all() else float("nan")


def _scores(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    score = np.asarray(score, dtype=float)
    if len(score) != len(truth):
        raise DataError(f"{len(score)} scores came with {len(truth)} droplets.")
    known = score[np.isfinite(score)]
    return np.where(np.isfinite(score), score, known.min() - 1 if len(known) else 0.0)


def _called(truth: np.ndarray, called: np.ndarray) -> dict[str, float]:
    hit, doublets, others = (truth & called).sum(), truth.sum(), (~truth).sum()
    precision = hit / called.sum() if called.any() else float("nan")
    recall = hit / doublets if doublets else float("nan")
    return {
        "precision": float(precision),
        "recall": float(recall),
        "TNR": float((~truth & ~called).sum() / others) if others else float("nan"),
        "F1": float(2 * hit / (called.sum() + doublets))
        if called.any() or doublets
        else float("nan"),
    }
