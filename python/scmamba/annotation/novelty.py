"""Novelty detection: flag cells whose type is absent from the reference.

A linear model assigns a cell of an unknown type to the most similar known type, often with a high probability. Five scores are used:
the cell is closer to query cells than to reference cells; the calls of its neighborhood have low probabilities; its neighborhood
expresses genes that the called type does not; its nearest neighbors lack the markers of that type; and, for types with too few cells to
have neighbors of their own (four erythrocytes among lymphocytes), the cell itself expresses such genes. Each score is compared with
that of reference cells of held-out donors with the same call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..neighbors.knn import nearest_neighbors
from ..neighbors.svd import principal_components

#: Components that reference and query are compared in.
COMPONENTS = 50
#: Neighbors that distances, and scores, are averaged over.
NEAREST, AROUND = 5, 15
#: Neighbors that each column of :func:`call_evidence` is averaged over.
OVER = (AROUND, AROUND, NEAREST)
#: Evidence is clipped at this quantile before it is averaged over neighbors.
FEW = 0.98
#: Weight of the cell's own score, because a single cell is noisy.
ALONE = 0.5
#: Share of reference cells of held-out donors that the rule flags.
REJECTED = 0.08
#: Classes with fewer calls are compared with all reference cells.
ENOUGH = 20
#: With fewer reference cells no cell is flagged.
FEWEST = 60
_CAP = 6.0


def unit(scores: np.ndarray) -> np.ndarray:
    """Rows of length one, so that distances are angles."""
    return scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-9)


def common_space(x: sparse.csr_matrix, seed: int) -> np.ndarray:
    """(n, d) leading principal components of all cells, rows of length one."""
    return (
        unit(principal_components(x, COMPONENTS, seed=seed)[0])
        if min(x.shape) > 1
        else np.ones((x.shape[0], 1))
    )


def call_evidence(probabilities: np.ndarray, profile: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(n, 3) evidence against the called class of each cell.

    One minus its probability; minus the likelihood under its profile (:func:`~.base_classifiers.profile_logits`); minus the expression of
    its markers (:func:`~.base_classifiers.marker_features`). All three inputs are (n, k).
    """
    own = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    return np.column_stack([1 - probabilities[own], -profile[own], -shown[own]])


def novelty_scores(
    here: np.ndarray, there: np.ndarray, evidence: np.ndarray, pool: int, seed: int
) -> np.ndarray:
    """(n, 5) scores of cells at ``here`` (n, d) beside the reference ``there`` (r, d).

    Parameters
    ----------
    evidence
        (n, 3) :func:`call_evidence`.
    pool
        Distances between cells are measured within a random sample of this size, because they depend on the density of cells.
    """
    rng = np.random.default_rng(seed)
    n = len(here)
    own = np.arange(n) if n <= pool else np.sort(rng.choice(n, pool, replace=False))
    isolated = np.zeros(n)
    if len(own) > NEAREST + 1:
        to_reference = np.linalg.norm(
            here[:, None] - there[nearest_neighbors(here, there, NEAREST)], axis=2
        ).mean(axis=1)
        found = nearest_neighbors(here, here[own], NEAREST + 1)
        gaps = np.linalg.norm(here[:, None] - here[own][found], axis=2)
        # A cell that is in the pool finds itself first; the others lose their farthest.
        among = np.where(
            np.isin(np.arange(n), own), gaps[:, 1:].mean(axis=1), gaps[:, :-1].mean(axis=1)
        )
        isolated = np.log(np.maximum(to_reference, 1e-3) / np.maximum(among, 1e-3))
    around = nearest_neighbors(here, here, int(np.clip(n // 20, 1, max(OVER))))
    # A few extreme cells must not raise the averages of their neighbors.
    clipped = np.minimum(evidence, np.quantile(evidence, FEW, axis=0)) if n else evidence
    averaged = (own[around[:, :over]].mean(axis=1) for own, over in zip(clipped.T, OVER))
    return np.column_stack([isolated, *averaged, evidence[:, 1]])


@dataclass
class NoveltyDetector:
    """Novelty scores of reference cells of held-out donors, which query cells are compared with.

    Attributes
    ----------
    called
        (n,) called class of each cell.
    shown
        (n, 5) :func:`novelty_scores`.
    level
        Threshold of the standardized score.
    pool
        Size of the sample that distances were measured in.
    """

    called: np.ndarray
    shown: np.ndarray
    level: float
    pool: int

    @classmethod
    def of(
        cls,
        space: np.ndarray,
        called: np.ndarray,
        evidence: np.ndarray,
        fold: np.ndarray,
        seed: int,
    ) -> NoveltyDetector:
        """Score each fold of the reference beside the others."""
        shown = np.zeros((len(called), 2 + len(OVER)))
        judged = np.zeros(len(called), dtype=bool)
        pool = int(np.bincount(fold).min()) if len(fold) else 0
        for f in np.unique(fold):
            here = fold == f
            if here.any() and not here.all():
                shown[here] = novelty_scores(space[here], space[~here], evidence[here], pool, seed)
                judged |= here
        out = cls(called[judged], shown[judged], np.inf, pool)
        if judged.sum() >= FEWEST:
            out.level = float(
                np.quantile(out.standardized_score(out.shown, out.called), 1 - REJECTED)
            )
        return out

    def standardized_score(
        self, shown: np.ndarray, called: np.ndarray, foreign: bool = False
    ) -> np.ndarray:
        """(n,) largest of the five scores, each scaled by the called class: 0 is the median, 1 the ninth decile; the last has half weight.

        With ``foreign=True`` cells are compared with query cells of the same call as well.
        """
        out = np.empty(shown.shape)
        for c in np.unique(called):
            own = shown[called == c]
            base = self.shown[self.called == c]
            base = base if len(base) >= ENOUGH else self.shown
            middle = np.median(base, axis=0)
            spread = np.quantile(base, 0.9, axis=0) - middle
            if foreign:
                here = np.median(own, axis=0)
                # Of a normal distribution the ninth decile lies 1.9 times as far out as the third quartile.
                spread = np.maximum(spread, 1.9 * (np.quantile(own, 0.75, axis=0) - here))
                middle = np.maximum(middle, here)
            out[called == c] = (own - middle) / (spread + 1e-6)
        out[:, -1] *= ALONE
        return np.clip(out, -2, _CAP).max(axis=1)

    def is_domain_shifted(self, shown: np.ndarray) -> bool:
        """Whether all cells are far from the reference, as with another technology, so that distance does not indicate a new type."""
        low, middle, high = np.quantile(self.shown[:, 0], [0.25, 0.5, 0.9])
        return bool(np.quantile(shown[:, 0], 0.25) - low > high - middle)

    def is_novel(self, shown: np.ndarray, called: np.ndarray) -> np.ndarray:
        """(n,) True: the standardized score is above the threshold."""
        if not np.isfinite(self.level) or not len(called):
            return np.zeros(len(called), dtype=bool)
        return self.standardized_score(shown, called, self.is_domain_shifted(shown)) > self.level
