"""Which cells are like nothing in the reference.

A linear model calls a cell of an unknown type by whichever known type it leans to, and is often sure of it. Four signs give it away:
cells of its kind lie closer to each other than to any reference cell; its neighbourhood is in doubt; its neighbourhood shows genes that
the type it was called never shows; its nearest lack what marks that type. A fifth is for the few that have no neighbours of their kind, as
four erythrocytes among lymphocytes: the cell alone shows such genes, by far. Each is compared with what reference cells of donors left
out show, by the class they were called.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..neighbors.knn import nearest_neighbors
from ..neighbors.svd import principal_components

#: Components that reference and query are compared in.
COMPONENTS = 50
#: Neighbours distances are averaged over, and signs.
NEAREST, AROUND = 5, 15
#: What is said of a cell (:func:`told`) is averaged over so many of its neighbours.
OVER = (AROUND, AROUND, NEAREST)
#: What is said of the cells above this share is said no louder among neighbours.
FEW = 0.98
#: A single cell is noisy: its own sign counts half.
ALONE = 0.5
#: Share of reference cells of held-out donors that the rule rejects.
REJECTED = 0.08
#: Classes called less often than this are compared with all reference cells.
ENOUGH = 20
#: Fewer reference cells cannot say what is usual.
FEWEST = 60
_CAP = 6.0


def unit(scores: np.ndarray) -> np.ndarray:
    """Rows of length one, so that distances are angles."""
    return scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-9)


def common_space(x: sparse.csr_matrix, seed: int) -> np.ndarray:
    """(n, d) directions of the cells in leading components of all of them."""
    return (
        unit(principal_components(x, COMPONENTS, seed=seed)[0])
        if min(x.shape) > 1
        else np.ones((x.shape[0], 1))
    )


def call_evidence(probabilities: np.ndarray, profile: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """(n, 3) what speaks against the class each cell was called.

    One less its probability; how little the cell looks drawn from its profile (:func:`~.views.profile_logits`); how little it shows of
    its markers (:func:`~.views.shown_markers`). All three come as (n, k).
    """
    own = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    return np.column_stack([1 - probabilities[own], -profile[own], -shown[own]])


def novelty_scores(
    here: np.ndarray, there: np.ndarray, said: np.ndarray, pool: int, seed: int
) -> np.ndarray:
    """The five signs of cells at ``here`` (n, d) beside the reference ``there`` (r, d).

    Parameters
    ----------
    said
        (n, 3) :func:`told`.
    pool
        A cell's distance to its own kind is measured among so many of the cells: the denser they lie, the closer they are.
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
    # A few cells quite unlike all others speak for themselves, not for those around them.
    calm = np.minimum(said, np.quantile(said, FEW, axis=0)) if n else said
    averaged = (own[around[:, :over]].mean(axis=1) for own, over in zip(calm.T, OVER))
    return np.column_stack([isolated, *averaged, said[:, 1]])


@dataclass
class NoveltyDetector:
    """What reference cells of held-out donors show.

    Attributes
    ----------
    called
        (n,) class each was called.
    shown
        (n, 5) :func:`signs`.
    level
        Largest standing that is usual.
    pool
        Cells that a cell's own kind was looked for among.
    """

    called: np.ndarray
    shown: np.ndarray
    level: float
    pool: int

    @classmethod
    def of(
        cls, space: np.ndarray, called: np.ndarray, said: np.ndarray, fold: np.ndarray, seed: int
    ) -> NoveltyDetector:
        """From the reference's own cells: each fold beside the others."""
        shown = np.zeros((len(called), 2 + len(OVER)))
        judged = np.zeros(len(called), dtype=bool)
        pool = int(np.bincount(fold).min()) if len(fold) else 0
        for f in np.unique(fold):
            here = fold == f
            if here.any() and not here.all():
                shown[here] = novelty_scores(space[here], space[~here], said[here], pool, seed)
                judged |= here
        usual = cls(called[judged], shown[judged], np.inf, pool)
        if judged.sum() >= FEWEST:
            usual.level = float(
                np.quantile(usual.standardized_score(usual.shown, usual.called), 1 - REJECTED)
            )
        return usual

    def standardized_score(
        self, shown: np.ndarray, called: np.ndarray, foreign: bool = False
    ) -> np.ndarray:
        """(n,) largest of the signs, each in units of what is usual for the class called: 0 the median, 1 the ninth decile; the last half.

        ``foreign`` cells are compared with the others called like them: only what stands out among these still tells.
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
        """Whether all cells lie apart from the reference, as those of another technology do: then being apart says nothing of types."""
        low, middle, high = np.quantile(self.shown[:, 0], [0.25, 0.5, 0.9])
        return bool(np.quantile(shown[:, 0], 0.25) - low > high - middle)

    def is_novel(self, shown: np.ndarray, called: np.ndarray) -> np.ndarray:
        """(n,) True: stands further out than is usual."""
        if not np.isfinite(self.level) or not len(called):
            return np.zeros(len(called), dtype=bool)
        return self.standardized_score(shown, called, self.is_domain_shifted(shown)) > self.level
