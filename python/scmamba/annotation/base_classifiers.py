"""Base classifiers of the cell-type ensemble.

Five are linear. ``genes``: all genes, class-balanced (types with few marker genes). ``components``: principal components (programs
of many genes). ``scaled``: the most variable genes, each divided by its standard deviation (genes with few counts). ``markers``: sums
of the marker genes of each class (rare types such as platelets among thousands of T cells, whose ten markers have little weight among
all genes). ``plain``: multinomial logistic regression on all genes with default settings, as the baseline. ``knn`` is a
nearest-neighbor classifier, because types that were found by clustering are often not linearly separable.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import logsumexp, softmax

from ..neighbors.knn import nearest_neighbors
from ..neighbors.svd import principal_components
from .cell_products import CellProducts
from .novelty import unit

BASE_CLASSIFIERS = ("genes", "components", "scaled", "markers", "plain", "knn")
#: Principal components of ``components``.
COMPONENTS = 50
#: Most variable genes of ``scaled``.
VARIABLE = 3000
#: Genes in each sum of markers.
MARKERS = 30
#: Nearest neighbors, and principal components in which they are found.
N_NEIGHBORS, DIRECTIONS = 20, 30
#: Classifiers with a smaller weight are dropped, because they cost time.
MIN_WEIGHT = 0.05
#: Added to the share of each class among cells and neighbors, so that class weights stay finite.
MIN_CLASS_SHARE = 0.02
_FLOOR = 1e-4  # no classifier can exclude a class alone
_CLIP = 5.0  # standard deviations at which scaled values are clipped
_CAP = 10.0  # larger values are capped for components
_BLOCK = 2000
_SETTINGS: dict[str, dict[str, Any]] = {
    "genes": {"C": 0.02, "class_weight": "balanced", "max_iter": 300},
    "components": {"C": 1.0, "max_iter": 500},
    "scaled": {"C": 1e-3, "class_weight": "balanced", "max_iter": 100},
    "markers": {"C": 1.0, "class_weight": "balanced", "max_iter": 500},
    "plain": {"C": 1.0, "max_iter": 300},
}
_PARTS = ("columns", "basis", "centre", "spread", "weight", "bias")


def tempered_log_probs(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """(n, k) log probabilities at a temperature, bounded below."""
    return np.log(softmax(logits / temperature, axis=1) + _FLOOR)


@dataclass
class LinearClassifier:
    """One linear model of log1p(CP10k) values.

    Attributes
    ----------
    columns
        (d,) positions of the genes it reads; all genes if empty.
    basis
        (m, d) loadings of the components, or sums of markers, that it reads instead of genes; empty if none.
    centre, spread
        (d,) mean and standard deviation of the scores; empty if values are not scaled.
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
        """Input of the linear model from (n, m) values."""
        if self.basis.size:
            capped = x
            if (x.data > _CAP).any():
                capped = x.copy()
                capped.data = np.minimum(capped.data, _CAP)
            return (capped @ self.basis - self.centre) / self.spread
        if self.columns.size:
            values = x[:, self.columns].toarray().astype(np.float32)
            return np.clip((values - self.centre) / self.spread, -_CLIP, _CLIP).astype(np.float32)
        return x

    def logits(self, x: sparse.csr_matrix) -> np.ndarray:
        """(n, k) of (n, m) values, a block of cells at a time."""
        starts = range(0, max(x.shape[0], 1), _BLOCK)
        return np.vstack(
            [np.asarray(self.scores(x[i : i + _BLOCK]) @ self.weight.T + self.bias) for i in starts]
        )

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Everything, by name."""
        return {prefix + part: getattr(self, part) for part in _PARTS}

    @classmethod
    def of(cls, kept: dict[str, np.ndarray], prefix: str) -> LinearClassifier:
        """From what :meth:`arrays` gave."""
        return cls(*(kept[prefix + part] for part in _PARTS))


@dataclass
class KNNClassifier:
    """Class-balanced vote of the nearest reference cells in leading components of variable genes.

    Attributes
    ----------
    seen
        Scaling of the genes (its weights are empty).
    rotation, offset
        (d, 30) and (30,) projection to components; empty if there are too few cells for any.
    pool, codes
        (r, 30 or d) projected reference cells, of length one, and (r,) their classes.
    classes
        Number of classes.
    """

    seen: LinearClassifier
    rotation: np.ndarray
    offset: np.ndarray
    pool: np.ndarray
    codes: np.ndarray
    classes: int

    def place(self, scores: np.ndarray) -> np.ndarray:
        """Projection of (n, d) scores, rows of length one."""
        return unit(scores @ self.rotation - self.offset if self.rotation.size else scores)

    def logits(self, x: sparse.csr_matrix) -> np.ndarray:
        """(n, k) of (n, m) values, a block of cells at a time."""
        one_hot = np.eye(self.classes)[self.codes]
        expected = one_hot.mean(axis=0) + MIN_CLASS_SHARE
        out = []
        for start in range(0, max(x.shape[0], 1), _BLOCK):
            neighbors = nearest_neighbors(
                self.place(np.asarray(self.seen.scores(x[start : start + _BLOCK]))),
                self.pool,
                N_NEIGHBORS,
            )
            balanced = one_hot[neighbors].mean(axis=1) / expected
            out.append(np.log(balanced / balanced.sum(axis=1, keepdims=True) + MIN_CLASS_SHARE))
        return np.vstack(out)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Everything, by name."""
        own = {
            "rotation": self.rotation,
            "offset": self.offset,
            "pool": self.pool,
            "codes": self.codes,
            "classes": np.array(self.classes),
        }
        return self.seen.arrays(prefix) | {prefix + name: value for name, value in own.items()}

    @classmethod
    def of(cls, kept: dict[str, np.ndarray], prefix: str) -> KNNClassifier:
        """From what :meth:`arrays` gave."""
        rotation, offset, pool, codes, classes = (
            kept[prefix + name] for name in ("rotation", "offset", "pool", "codes", "classes")
        )
        return cls(LinearClassifier.of(kept, prefix), rotation, offset, pool, codes, int(classes))


def load_base_classifier(
    kind: str, kept: dict[str, np.ndarray]
) -> LinearClassifier | KNNClassifier:
    """The classifier of that kind from the arrays of ``arrays(kind + "_")``."""
    return (
        KNNClassifier.of(kept, f"{kind}_")
        if kind == "knn"
        else LinearClassifier.of(kept, f"{kind}_")
    )


def fit_knn(x: sparse.csr_matrix, codes: np.ndarray, classes: int, seed: int) -> KNNClassifier:
    """Project the reference cells."""
    from sklearn.decomposition import PCA

    none = np.zeros(0)
    seen = LinearClassifier(np.zeros(0, dtype=np.int64), np.zeros((0, 0)), none, none, none, none)
    _scale(seen, x)
    scores, rotation, offset = np.asarray(seen.scores(x)), np.zeros((0, 0)), none
    if min(scores.shape) > DIRECTIONS:
        found = PCA(DIRECTIONS, svd_solver="randomized", random_state=seed).fit(scores)
        rotation, offset = found.components_.T, found.mean_ @ found.components_.T
    view = KNNClassifier(seen, rotation, offset, np.zeros((0, 0)), codes, classes)
    view.pool = view.place(scores).astype(np.float32)
    return view


def fit_base_classifier(
    x: sparse.csr_matrix,
    codes: np.ndarray,
    classes: int,
    kind: str,
    seed: int,
    shared: CellProducts | None = None,
    start: LinearClassifier | KNNClassifier | None = None,
) -> LinearClassifier | KNNClassifier:
    """Fit one of :data:`BASE_CLASSIFIERS`; classes without a cell get no probability.

    Parameters
    ----------
    x
        (n, m) log1p(CP10k).
    codes
        (n,) class of each cell.
    classes
        Number of classes.
    kind
        Which of them.
    seed
        Of the components.
    shared
        Inner products of these cells; worked out if not given and of use.
    start
        Of the same kind, fitted to some of many cells: the fit to all genes begins there.
    """
    if kind == "knn":
        return fit_knn(x, codes, classes, seed)
    none = np.zeros(0)
    view = LinearClassifier(np.zeros(0, dtype=np.int64), np.zeros((0, 0)), none, none, none, none)
    if kind in ("genes", "plain", "components") and shared is None:
        shared = CellProducts.of(x)
    if kind == "components":
        _reduce(view, x, seed, shared)
    elif kind == "scaled":
        _scale(view, x)
    elif kind == "markers":
        _select_markers(view, x, codes, classes)
    scores = view.scores(x)
    if kind == "scaled":
        shared = CellProducts.of(scores)
    space = shared if kind in ("genes", "plain", "scaled") else None
    seen = np.unique(codes)
    view.weight, view.bias = np.zeros((classes, scores.shape[1])), np.full(classes, -30.0)
    if len(seen) == 1:
        view.bias[seen] = 0.0
        return view
    begin = start if isinstance(start, LinearClassifier) and kind in ("genes", "plain") else None
    weight, bias = _logistic_regression(kind, scores, codes, seen, space, begin)
    if len(seen) == 2:  # scikit-learn keeps one row for two classes
        view.weight[seen[1]], view.bias[seen[0]], view.bias[seen[1]] = weight[0], 0.0, bias[0]
    else:
        view.weight[seen], view.bias[seen] = weight, bias
    return view


def _logistic_regression(
    kind: str,
    scores: sparse.csr_matrix | np.ndarray,
    codes: np.ndarray,
    seen: np.ndarray,
    space: CellProducts | None,
    start: LinearClassifier | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts of scikit-learn's model with the settings of the kind, fitted in ``space`` where there is one."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(**_SETTINGS[kind])
    if space is None and start is not None and len(seen) > 2:
        model.warm_start = True
        model.classes_, model.coef_, model.intercept_ = seen, start.weight[seen], start.bias[seen]
    features = scores if space is None else space.coordinates()
    with (
        warnings.catch_warnings()
    ):  # a model that stopped early is judged on held-out donors like any other
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, codes)
    weight = model.coef_ if space is None else space.to_genes(features, model.coef_)
    return weight, model.intercept_


def _reduce(
    view: LinearClassifier, x: sparse.csr_matrix, seed: int, shared: CellProducts | None
) -> None:
    if shared is not None and not (x.data > _CAP).any():
        scores, view.basis = shared.components(COMPONENTS, seed)
    else:
        capped = x.copy()
        capped.data = np.minimum(capped.data, _CAP)
        scores, view.basis = principal_components(capped, COMPONENTS, seed=seed)
    view.centre, view.spread = scores.mean(axis=0), scores.std(axis=0) + 1e-9


def _select_markers(
    view: LinearClassifier, x: sparse.csr_matrix, codes: np.ndarray, classes: int
) -> None:
    """Two sums of marker genes per class: against the mean of the other classes, and against the most similar class.

    The sums of a class without a cell are zero.
    """
    spread = np.sqrt(np.maximum(_variance(x), 1e-3))
    present = np.unique(codes)
    means = (
        (_members(codes, classes) @ x).toarray()[present]
        / np.bincount(codes)[present, None]
        / spread
    )
    view.basis = np.zeros((x.shape[1], 2 * classes))
    for c, own in zip(present, means):
        others = means[present != c]
        if not len(others):
            continue
        nearest = others[np.square(others - own).sum(axis=1).argmin()]
        for column, gap in ((c, own - others.mean(axis=0)), (classes + c, own - nearest)):
            best = np.argsort(-gap, kind="stable")[:MARKERS]
            view.basis[best, column] = np.maximum(gap[best], 0) / spread[best]
    view.basis /= np.maximum(np.linalg.norm(view.basis, axis=0), 1e-9)
    scores = np.asarray(x @ view.basis)
    view.centre, view.spread = scores.mean(axis=0), scores.std(axis=0) + 1e-9


def marker_features(view: LinearClassifier, x: sparse.csr_matrix) -> np.ndarray:
    """(n, k) expression of the markers of each class, in standard deviations of the reference."""
    starts = range(0, max(x.shape[0], 1), _BLOCK)
    both = np.vstack([np.asarray(view.scores(x[i : i + _BLOCK])) for i in starts])
    return both[:, : both.shape[1] // 2]


def _variance(x: sparse.csr_matrix) -> np.ndarray:
    mean = np.asarray(x.mean(axis=0)).ravel()
    return np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2


def _members(codes: np.ndarray, classes: int) -> sparse.csr_matrix:
    """(k, n) one where a cell is of a class."""
    return sparse.csr_matrix(
        (np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(classes, len(codes))
    )


def _scale(view: LinearClassifier, x: sparse.csr_matrix) -> None:
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.maximum(_variance(x), 1e-4)
    view.columns = np.argsort(-variance / np.maximum(mean, 1e-3), kind="stable")[:VARIABLE]
    view.centre = mean[view.columns].astype(np.float32)
    view.spread = np.sqrt(variance[view.columns]).astype(np.float32)


# ---------------------------------------------------------------- profiles


def class_log_profiles(x: sparse.csr_matrix, codes: np.ndarray, classes: int) -> np.ndarray:
    """(k, m) log share of each gene in the mean cell of each class, with one average cell of all classes mixed in."""
    linear = x.copy()
    np.expm1(linear.data, out=linear.data)
    overall = np.asarray(linear.mean(axis=0)).ravel() + 1e-3
    sums = (_members(codes, classes) @ linear).toarray() + overall
    return np.log(sums / sums.sum(axis=1, keepdims=True))


#: Number of counts that a profile's likelihood is computed for.
COUNTS = 200


def profile_logits(
    x: sparse.csr_matrix, profiles: np.ndarray, absent: np.ndarray | None = None
) -> np.ndarray:
    """(n, k) log likelihood of 200 counts with the cell's proportions under the profile of each class; ``absent`` (k,) classes have none.

    200, not the cell's depth, because counts of genes are not independent; a temperature is chosen afterwards. Divided by -200 it is
    the cross-entropy of the cell and the class, in nats per count.
    """
    linear = x.copy()
    np.expm1(linear.data, out=linear.data)
    total = np.maximum(np.asarray(linear.sum(axis=1)).ravel(), 1e-12)
    likelihood = COUNTS * np.asarray(linear @ profiles.T) / total[:, None]
    if absent is not None and absent.any():
        likelihood[:, absent] = likelihood.min(axis=1, keepdims=True) - 60.0
    return likelihood


def fit_classifier_weights(views: dict[str, np.ndarray], codes: np.ndarray) -> dict[str, float]:
    """Weights, of sum one, of classifiers (log probabilities (n, k) by name) that minimize the log loss of their sum; small ones are dropped."""
    from scipy.optimize import minimize

    kinds = list(views)
    while True:
        every, rows = np.stack([views[kind] for kind in kinds]), np.arange(len(codes))

        def loss(
            weights: np.ndarray, every: np.ndarray = every, rows: np.ndarray = rows
        ) -> tuple[float, np.ndarray]:
            mixed = np.tensordot(weights, every, 1)
            wrong = softmax(mixed, axis=1)
            value = float(np.mean(logsumexp(mixed, axis=1) - mixed[rows, codes]))
            wrong[rows, codes] -= 1
            return value, np.einsum("vnk,nk->v", every, wrong) / len(rows)

        start = np.full(len(kinds), 1 / len(kinds))
        found = minimize(
            loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(kinds)
        ).x
        if found.sum() <= 0:  # no classifier is better than chance
            return dict.fromkeys(kinds, 1 / len(kinds))
        share = found / found.sum()
        strong = [kind for kind, own in zip(kinds, share) if own >= MIN_WEIGHT]
        if len(strong) == len(kinds):
            return dict(zip(kinds, share.tolist()))
        kinds = strong
