"""Which calls by a labeled reference are refused in cells of another study.

Probabilities that are calibrated on held-out donors of a reference are too high in cells of another laboratory, and a type that the
reference lacks gets the name of the most similar one, often with a high probability. Each cluster of query cells is therefore compared
with the type that its cells are called, and the result with what cells of the reference show under their own type:

* ``completeness``: the share of the expected counts of the type's specific genes that is there, in the neighborhood of each cell
  (:meth:`~._label_free.LabelFreeModel.completeness`);
* ``excess``: how far the ten genes with the largest excess lie above their expected counts, after a factor for each gene between
  query and reference, averaged over the types, is taken into account;
* ``foreign``: the log share of counts beyond three times the expected ones.

If the typical ``foreign`` share is that of the reference's own cells, query and reference do not differ and nothing is refused here.
Otherwise a cell is refused for a type that does not fit its cluster, beyond what all cells of the query have in common, or for a low
probability of the cell and of its neighborhood. The coefficients were fitted to the development sets of ``benchmarks/calibration.py``
(``benchmarks/calibration_fit.py``); no set that is reported as held out was used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import logit

from ..neighbors.knn import nearest_neighbors
from ._label_free import FEWEST_NEIGHBORS, NEIGHBORS, LabelFreeModel
from .base_classifiers import class_log_profiles
from .novelty import unit
from .result import own_components

#: Columns of :func:`fit_of_calls`, and the direction in which each indicates a wrong call.
MEASURES, DIRECTIONS = ("completeness", "excess", "foreign"), np.array([-1.0, 1.0, 1.0])
#: What all query cells have in common is subtracted up to this size: beyond it most cells may be of absent types.
COMMON_CAPS, COMMON = np.array([0.25, 2.0, 1.0]), 0.1
#: Median of ``foreign`` beyond the usual above which query and reference are of different studies.
SHIFT = 0.5
#: Log odds of an absent type: of the measures, and the constant.
ABSENT = np.array([3.7, 0.15, 1.0, -1.8])
#: Log odds of a wrong name: of the log odds against the call in the cell and in its neighborhood, and the constant.
DOUBT = np.array([0.49, 0.37, 2.66])
#: Cells in a cluster, number of clusters, and objects so small that clusters are separated by call.
CLUSTER, MOST_CLUSTERS, FEW_CELLS = 40, 80, 200
#: Types with fewer reference cells are compared with all of them.
ENOUGH = 20
_AMBIENT = 0.05  # share of each cell that is the average of the query
_MIN_COUNTS = 5000.0  # of a type that contributes to the factors of genes
_SEEN, _LEAST = 5.0, 20  # expected or observed counts of a gene, and genes, that a comparison needs
_TOP, _SPREAD = (
    10,
    0.4,
)  # genes with the largest excess; standard deviation of log ratios between laboratories
_ODDS = 0.002  # probabilities are not taken to be closer to 0 or 1
_LOWEST = -0.5  # of a measure beyond the usual


def count_scale(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts of log1p(CP10k): the smallest value of a cell is taken to be one count; at most 10,000 a cell."""
    out = x.copy()
    np.expm1(out.data, out=out.data)
    smallest = np.full(x.shape[0], 1e4)
    filled = np.diff(out.indptr) > 0
    if filled.any():
        smallest[filled] = np.minimum.reduceat(out.data, out.indptr[:-1][filled])
    depth = np.clip(1e4 / np.maximum(smallest, 1e-9), 1.0, 1e4)
    out.data *= np.repeat(depth / 1e4, np.diff(out.indptr))
    return out


def clusters_of(place: np.ndarray, called: np.ndarray, seed: int) -> np.ndarray:
    """(n,) cluster of each cell by k-means of some forty cells each; of few cells also by their call."""
    from sklearn.cluster import KMeans

    number = int(np.clip(len(place) // CLUSTER, 1, MOST_CLUSTERS))
    found = np.zeros(len(place), dtype=np.int64)
    if number > 1:
        found = KMeans(number, n_init=2, random_state=seed).fit_predict(place)
    if len(place) < FEW_CELLS:
        found = found * (called.max() + 1) + called
    return np.unique(found, return_inverse=True)[1]


def gene_factors(
    pooled: np.ndarray, called: np.ndarray, rates: np.ndarray, average: np.ndarray
) -> np.ndarray:
    """(g,) log factor of each gene between (clusters, g) counts and the (g, k) rates of the called types, averaged over types."""
    total, weights = np.zeros(len(rates)), np.zeros(len(rates))
    depth = pooled.sum(axis=1)
    for code in np.unique(called):
        own = called == code
        if depth[own].sum() < _MIN_COUNTS:
            continue
        expected = depth[own].sum() * ((1 - _AMBIENT) * rates[:, code] + _AMBIENT * average)
        weight = expected / (expected + 10)
        total += weight * np.log((pooled[own].sum(axis=0) + 2) / (expected + 2))
        weights += weight
    return np.clip(total / (weights + 1), -3, 3)


def cluster_measures(
    observed: np.ndarray, code: int, rates: np.ndarray, shifted: np.ndarray, average: np.ndarray
) -> np.ndarray:
    """(2,) excess and foreign share of the (g,) counts of a cluster under a type; NaN where too few genes were seen.

    Parameters
    ----------
    observed
        (g,) counts of the cluster.
    code
        The type.
    rates, shifted
        (g, k) shares of the counts of each type, and the same times the factors of the genes.
    average
        (g,) of the query.
    """
    depth = observed.sum()
    plain, expected = (
        depth * ((1 - _AMBIENT) * r[:, code] + _AMBIENT * average) for r in (rates, shifted)
    )
    seen = (expected >= _SEEN) | (observed >= _SEEN)
    if seen.sum() < _LEAST:
        return np.full(2, np.nan)
    ratios = np.log((observed + 1) / (expected + 1)) / np.sqrt(_SPREAD**2 + 1 / (observed + 1))
    beyond = np.maximum(observed - 3 * plain - 3 * np.sqrt(plain) - 2, 0).sum()
    return np.array([np.sort(ratios[seen])[-_TOP:].mean(), np.log(beyond / depth + 0.005)])


def nearest_of(place: np.ndarray) -> np.ndarray:
    """(n, 15) nearest cells of each; of few cells a twentieth, at least five."""
    around = min(NEIGHBORS, max(FEWEST_NEIGHBORS, len(place) // 20))
    return nearest_neighbors(place, place, around)


def fit_of_calls(
    counts: sparse.csr_matrix, place: np.ndarray, called: np.ndarray, rates: np.ndarray, seed: int
) -> np.ndarray:
    """(n, 3) :data:`MEASURES` of each cell under its call.

    Parameters
    ----------
    counts
        (n, g) counts.
    place
        (n, d) principal components of the cells, rows of length one.
    called
        (n,) type of each cell.
    rates
        (g, k) shares of the counts of each type.
    seed
        Of the clusters.
    """
    n, kinds = len(called), rates.shape[1]
    model = LabelFreeModel(rates, np.array([f"{i:06d}" for i in range(kinds)]))
    out = np.full((n, len(MEASURES)), np.nan)
    out[:, 0] = model.completeness(counts, nearest_of(place))[np.arange(n), called]
    cluster = clusters_of(place, called, seed)
    size = cluster.max() + 1
    member = sparse.csr_matrix((np.ones(n), (cluster, np.arange(n))), (size, n))
    pooled = np.asarray((member @ counts).todense())
    votes = np.zeros((size, kinds))
    np.add.at(votes, (cluster, called), 1)
    average = pooled.sum(axis=0) + 0.5
    average /= average.sum()
    factor = gene_factors(pooled, votes.argmax(axis=1), rates, average)
    shifted = rates * np.exp(factor)[:, None]
    shifted /= shifted.sum(axis=0)
    for own, code in np.argwhere(votes):
        if pooled[own].sum():
            cells = (cluster == own) & (called == code)
            out[cells, 1:] = cluster_measures(pooled[own], code, rates, shifted, average)
    return out


def usual_fit(
    x: sparse.csr_matrix, codes: np.ndarray, classes: int, fold: np.ndarray, seed: int
) -> np.ndarray:
    """(k, 3) medians of :data:`MEASURES` of reference cells under their own type, whose rates come from the other folds.

    Parameters
    ----------
    x
        (n, g) log1p(CP10k) of the reference.
    codes
        (n,) type of each cell.
    classes
        Number of types.
    fold
        (n,) fold of each cell.
    seed
        Of components and clusters.

    Returns
    -------
    Medians; those of all cells for types with fewer than 20, NaN where there is no second fold.
    """
    shown, kept = [], []
    for f in np.unique(fold):
        known = fold != f
        here = ~known & np.isin(codes, codes[known])
        if here.sum() < 2:
            continue
        rates = np.exp(class_log_profiles(x[known], codes[known], classes)).T
        own = x[here]
        place = unit(own_components(own, seed))
        counts = count_scale(own)
        shown.append(fit_of_calls(counts, place, codes[here], rates / rates.sum(axis=0), seed))
        kept.append(codes[here])
    if not shown:
        return np.full((classes, len(MEASURES)), np.nan)
    values, which = np.vstack(shown), np.concatenate(kept)
    own_or_all = [
        values[which == c] if (which == c).sum() >= ENOUGH else values for c in range(classes)
    ]
    return np.array([_medians(v) for v in own_or_all])


def _medians(values: np.ndarray) -> np.ndarray:
    """Of each column, over the cells that have a value; NaN if none has."""
    seen = [v[np.isfinite(v)] for v in values.T]
    return np.array([np.median(v) if len(v) else np.nan for v in seen])


@dataclass(frozen=True)
class StudyShift:
    """What query cells show under their calls, beyond what is usual in the reference.

    Attributes
    ----------
    measures
        (n, 3) :data:`MEASURES`; positive values indicate a wrong call. A measure that cannot be taken is taken to be usual.
    against
        (n, 2) log odds against the call, of the cell and of its neighborhood.
    """

    measures: np.ndarray
    against: np.ndarray

    @classmethod
    def of(
        cls,
        x: sparse.csr_matrix,
        pcs: np.ndarray,
        probabilities: np.ndarray,
        log_profiles: np.ndarray,
        usual: np.ndarray,
        seed: int,
    ) -> StudyShift:
        """From (n, g) log1p(CP10k), (n, d) components, (n, k) probabilities, the (k, g) profiles and :func:`usual_fit`."""
        called, place = probabilities.argmax(axis=1), unit(pcs)
        rates = np.exp(log_profiles).T
        shown = fit_of_calls(count_scale(x), place, called, rates / rates.sum(axis=0), seed)
        measures = np.nan_to_num((shown - usual[called]) * DIRECTIONS)
        nearby = probabilities[nearest_of(place)].mean(axis=1)
        own = np.arange(len(called)), called
        both = np.column_stack([probabilities[own], nearby[own]])
        return cls(measures, -logit(np.clip(both, _ODDS, 1 - _ODDS)))

    @property
    def size(self) -> float:
        """Median of ``foreign`` beyond the usual: 0 for cells like those of the reference."""
        return float(np.median(self.measures[:, 2])) if len(self.measures) else 0.0

    @property
    def is_shifted(self) -> bool:
        """Whether query and reference differ as cells of different studies do."""
        return self.size > SHIFT

    def is_absent(self) -> np.ndarray:
        """(n,) True: the called type does not fit the cluster, beyond what all cells have in common."""
        if not self.is_shifted:
            return np.zeros(len(self.measures), dtype=bool)
        beyond = np.maximum(self.measures, _LOWEST)
        beyond = beyond - np.clip(np.quantile(beyond, COMMON, axis=0), 0, COMMON_CAPS)
        found: np.ndarray = beyond @ ABSENT[:-1] + ABSENT[-1] > 0
        return found

    def is_doubtful(self, error_rate: float) -> np.ndarray:
        """(n,) True: cell and neighborhood are too uncertain in cells of another study; the limit moves with the log odds of the rate."""
        if not self.is_shifted:
            return np.zeros(len(self.measures), dtype=bool)
        limit = logit(error_rate) - logit(0.05)
        found: np.ndarray = self.against @ DOUBT[:-1] + DOUBT[-1] > limit
        return found
