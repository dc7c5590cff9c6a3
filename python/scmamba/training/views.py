"""Linear ways to look at a cell: each sees types that the others miss.

``genes`` weighs all genes alike, rare classes as much as common ones (few genes that mark a type). ``components`` sees leading
components (programmes of many genes). ``scaled`` sees the most variable genes, each divided by its spread (genes whose every count
matters). ``plain`` is multinomial logistic regression on all genes as anybody would run it, so that nothing is lost beside it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from ..data.neighbours import principal_components

KINDS = ("genes", "components", "scaled", "plain")
#: Components of the reduced view.
COMPONENTS = 50
#: Most variable genes of the scaled one.
VARIABLE = 3000
_FLOOR = 1e-4  # no view may rule a class out alone
_CLIP = 5.0  # spreads from the mean beyond which a gene says no more
_BLOCK = 2000
_SETTINGS: dict[str, dict[str, Any]] = {
    "genes": {"C": 0.02, "class_weight": "balanced", "max_iter": 300},
    "components": {"C": 1.0, "max_iter": 500},
    "scaled": {"C": 1e-3, "class_weight": "balanced", "max_iter": 100},
    "plain": {"C": 1.0, "max_iter": 300},
}
_PARTS = ("columns", "basis", "centre", "spread", "weight", "bias")


def softmax(logits: np.ndarray) -> np.ndarray:
    """(n, k) rows that sum to one."""
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))


def floored(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(n, k) log probabilities at a temperature, none of them quite zero."""
    return np.log(softmax(logits / temperature) + _FLOOR)


@dataclass
class View:
    """One linear model of log1p(CP10k) values.

    Attributes
    ----------
    columns
        (d,) genes it sees, all if empty.
    basis
        (m, d) of the components it sees instead; empty if none.
    centre, spread
        (d,) of the scores, empty where values are taken as they are.
    weight, bias
        (k, d) and (k,).
    """

    columns: np.ndarray
    basis: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def scores(self, x: sparse.csr_matrix) -> sparse.csr_matrix | np.ndarray:
        """What the linear model sees of (n, m) values."""
        if self.basis.size:
            capped = x.copy()
            capped.data = np.minimum(capped.data, 10.0)
            return (capped @ self.basis - self.centre) / self.spread
        if self.columns.size:
            values = x[:, self.columns].toarray().astype(np.float32)
            return np.clip((values - self.centre) / self.spread, -_CLIP, _CLIP).astype(np.float32)
        return x

    def logits(self, x: sparse.csr_matrix) -> np.ndarray:
        """(n, k) of (n, m) values, a block of cells at a time."""
        starts = range(0, max(x.shape[0], 1), _BLOCK)
        return np.vstack([np.asarray(self.scores(x[i : i + _BLOCK]) @ self.weight.T + self.bias) for i in starts])

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Everything, by name."""
        return {prefix + part: getattr(self, part) for part in _PARTS}

    @classmethod
    def of(cls, kept: dict[str, np.ndarray], prefix: str) -> View:
        """From what :meth:`arrays` gave."""
        return cls(*(kept[prefix + part] for part in _PARTS))


def fit_view(x: sparse.csr_matrix, codes: np.ndarray, classes: int, kind: str, seed: int) -> View:
    """Fit one of :data:`KINDS` to (n, m) log1p(CP10k) and the class (n,) of each cell; classes without a cell are never called."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    none = np.zeros(0)
    view = View(np.zeros(0, dtype=np.int64), np.zeros((0, 0)), none, none, none, none)
    if kind == "components":
        _reduce(view, x, seed)
    elif kind == "scaled":
        _scale(view, x)
    model = LogisticRegression(**_SETTINGS[kind])
    seen = np.unique(codes)
    scores = view.scores(x)
    weight, bias = np.zeros((classes, scores.shape[1])), np.full(classes, -30.0)
    if len(seen) == 1:
        bias[seen] = 0.0
    else:
        with warnings.catch_warnings():  # a model that stopped early is judged on donors left out like any other
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(scores, codes)
        if len(seen) == 2:  # scikit-learn keeps one row for two classes
            weight[seen[1]], bias[seen[0]], bias[seen[1]] = model.coef_[0], 0.0, model.intercept_[0]
        else:
            weight[seen], bias[seen] = model.coef_, model.intercept_
    view.weight, view.bias = weight, bias
    return view


def _reduce(view: View, x: sparse.csr_matrix, seed: int) -> None:
    capped = x.copy()
    capped.data = np.minimum(capped.data, 10.0)
    scores, view.basis = principal_components(capped, COMPONENTS, seed=seed)
    view.centre, view.spread = scores.mean(axis=0), scores.std(axis=0) + 1e-9


def _scale(view: View, x: sparse.csr_matrix) -> None:
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.maximum(np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2, 1e-4)
    view.columns = np.argsort(-variance / np.maximum(mean, 1e-3), kind="stable")[:VARIABLE]
    view.centre = mean[view.columns].astype(np.float32)
    view.spread = np.sqrt(variance[view.columns]).astype(np.float32)


# ---------------------------------------------------------------- profiles


def log_profiles(x: sparse.csr_matrix, codes: np.ndarray, classes: int) -> np.ndarray:
    """(k, m) log share of each gene in the mean cell of each class, with one average cell of all classes mixed in."""
    linear = x.copy()
    np.expm1(linear.data, out=linear.data)
    overall = np.asarray(linear.mean(axis=0)).ravel() + 1e-3
    chosen = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(classes, len(codes)))
    sums = (chosen @ linear).toarray() + overall
    return np.log(sums / sums.sum(axis=1, keepdims=True))


#: Counts a profile's likelihood is worked out for.
COUNTS = 200


def profile_logits(x: sparse.csr_matrix, profiles: np.ndarray, absent: np.ndarray | None = None) -> np.ndarray:
    """(n, k) log likelihood of 200 counts drawn like the cell's own, under the profile of each class; ``absent`` (k,) classes have none.

    200, not the cell's depth: genes are no independent draws, and a temperature is chosen afterwards. Divided by -200 it is how many
    nats a count of the cell surprises somebody who expects the class.
    """
    linear = x.copy()
    np.expm1(linear.data, out=linear.data)
    total = np.maximum(np.asarray(linear.sum(axis=1)).ravel(), 1e-12)
    likelihood = COUNTS * np.asarray(linear @ profiles.T) / total[:, None]
    if absent is not None and absent.any():
        likelihood[:, absent] = likelihood.min(axis=1, keepdims=True) - 60.0
    return likelihood


def choose_subset(views: dict[str, np.ndarray], loss: Callable[[np.ndarray], float]) -> tuple[str, ...]:
    """The views (log probabilities by name) whose mean has the smallest loss, over all that can be left out."""
    from itertools import combinations

    sets = [s for n in range(1, len(views) + 1) for s in combinations(views, n)]
    return min(sets, key=lambda s: loss(np.mean([views[k] for k in s], axis=0)))
