"""Nearest neighbors balanced across batches (donors or libraries), as in BBKNN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from scipy import sparse

from ..data.values import log1p_cp10k
from .knn import nearest_neighbors, sqrt_values
from .svd import principal_components

_SHARED = (
    10  # nearest cells of a batch that must overlap for it to count as holding the cell's type
)
_CANDIDATES = 10  # times as many cells as are wanted are considered, in all batches together
_LAST = 1e9  # rank of cells that are near, but of no balanced batch


class BatchBalancedKNN:
    """A pool of cells, and the rates pooled over the nearest neighbors of any cell: several reaches at once, block by block.

    Parameters
    ----------
    counts, totals
        (n, m) visible counts of the pool, and the (n,) depths its log values are scaled by.
    components
        Principal components of log1p(CP10k) in which distances are measured. Default 50.
    seed
        Seed of the principal components. Default 0.
    space
        What the components are computed from: ``"log"``, log1p(CP10k) (default), or ``"sqrt"``, square roots of the
        shares of the counts, whose Euclidean distance is the Hellinger distance of two cells.
    batch
        (n,) codes 0, 1, ... of the donors or libraries of the cells: neighbors are then balanced across them (see
        :meth:`query`).

    References
    ----------
    Polanski et al. (2020), Bioinformatics 36, 964-965 (BBKNN).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.neighbors import BatchBalancedKNN
    >>> counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (50, 20)))
    >>> pool = BatchBalancedKNN(counts, np.asarray(counts.sum(axis=1)).ravel(), components=3)
    >>> pool.query(pool.scores, 5, own=np.arange(50)).shape
    (50, 5)
    """

    def __init__(
        self,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        *,
        components: int = 50,
        seed: int = 0,
        batch: np.ndarray | None = None,
        space: Literal["log", "sqrt"] = "log",
    ) -> None:
        self.counts = sparse.csr_matrix(counts, dtype=np.float32)
        self.seen = np.asarray(self.counts.sum(axis=1), dtype=np.float64).ravel()
        self.space = space
        values = self._values(counts, totals)
        self.mean_value = np.asarray(values.mean(axis=0)).ravel()
        self.scores, self.basis = principal_components(values, components, seed=seed)
        self.batch_members = (
            []
            if batch is None
            else [np.flatnonzero(batch == b) for b in range(int(batch.max()) + 1)]
        )
        self._batch_of = None if batch is None else np.asarray(batch)
        self._radius_cache: tuple[tuple[int, ...], list[np.ndarray]] | None = None
        #: (n, batches, 10) the members of every batch nearest to each member; -1 where a batch has fewer.
        self._seen_from = np.full(
            (len(self.scores), len(self.batch_members), _SHARED), -1, dtype=np.int32
        )
        for b, home in enumerate(self.batch_members):
            if len(home):
                found = home[nearest_neighbors(self.scores, self.scores[home], _SHARED)]
                self._seen_from[:, b, : found.shape[1]] = found

    def project(self, counts: sparse.csr_matrix, totals: np.ndarray) -> np.ndarray:
        """(r, d) the components of other cells, or of members.

        Parameters
        ----------
        counts, totals
            (r, m) counts of the cells and their (r,) depths.
        """
        return self._values(counts, totals) @ self.basis

    def _values(self, counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
        if self.space == "log":
            return log1p_cp10k(counts, totals, dtype=np.float64)
        return sqrt_values(sparse.csr_matrix(counts, dtype=np.float64), totals)

    def query(
        self,
        scores: np.ndarray,
        k: int,
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
    ) -> np.ndarray:
        """Nearest neighbors among the members.

        Parameters
        ----------
        scores
            (r, d) components of the cells.
        k
            Number of neighbors.
        own
            (r,) the member that each cell is itself (-1: none); it is excluded.
        batch
            (r,) batches of the cells (-1: none). With batches, the nearest member of every batch comes first, then the
            second nearest of every batch, and so on. A batch without cells of the cell's type contributes nothing: a
            member of another batch counts only if its own nearest cells in the cell's batch are among the cell's nearest
            there. Where too few count, the nearest of all follow.

        Returns
        -------
        (r, k) members, nearest first.
        """
        k = min(k, len(self.scores) - 1)
        own = np.full(len(scores), -1) if own is None else np.asarray(own)
        if self.batch_members and batch is not None:
            return self._balanced_query(scores, k, own, self._known(batch))[0]
        found = nearest_neighbors(scores, self.scores, k + 1)
        itself = found == own[:, None]
        itself[~itself.any(axis=1), -1] = (
            True  # cells that are no member drop their farthest, so that all have k
        )
        return found[~itself].reshape(len(found), k)

    def query_mutual(
        self,
        scores: np.ndarray,
        levels: Sequence[int],
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Nearest neighbors, and whether they are mutual.

        A member is a mutual neighbor at level k if the cell is not farther from it than its own k-th nearest member.
        With batches, members of other batches are mutual as in :meth:`query`.

        Parameters
        ----------
        scores, own, batch
            As for :meth:`query`.
        levels
            Numbers of neighbors, increasing.

        Returns
        -------
        (r, max(levels)) members, nearest first, and for each level an (r, max(levels)) mask of mutual neighbors.
        """
        k = min(max(levels), len(self.scores) - 1)
        own = np.full(len(scores), -1) if own is None else np.asarray(own)
        balanced = np.ones((len(scores), k), dtype=bool)
        other = ~balanced
        if self.batch_members and batch is not None:
            known = self._known(batch)
            near, balanced = self._balanced_query(scores, k, own, known)
            assert self._batch_of is not None
            other = self._batch_of[near] != known[:, None]
        else:
            near = self.query(scores, k, own)
        apart = np.square(self.scores[near] - scores[:, None]).sum(axis=2)
        radii = self._radii(tuple(levels))
        return near, [balanced & (other | (apart <= radius[near])) for radius in radii]

    def _radii(self, levels: tuple[int, ...]) -> list[np.ndarray]:
        """For each level k, the (n,) squared distance of each member to its k-th nearest other member."""
        if self._radius_cache is None or self._radius_cache[0] != levels:
            k = min(max(levels), len(self.scores) - 1)
            found = nearest_neighbors(self.scores, self.scores, k + 1)
            radii = []
            for level in levels:
                farthest = self.scores[found[:, min(level, k)]]
                # Rounding must not exclude the farthest neighbor itself.
                radii.append(np.square(self.scores - farthest).sum(axis=1) * (1 + 1e-9))
            self._radius_cache = (levels, radii)
        return self._radius_cache[1]

    def _known(self, batch: np.ndarray) -> np.ndarray:
        """Batches of cells; -1 where the pool has no member of the batch."""
        return np.where(np.asarray(batch) < len(self.batch_members), batch, -1)

    def _balanced_query(
        self, scores: np.ndarray, k: int, own: np.ndarray, batch: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(r, k) members as :meth:`query` orders them, and whether they come from the balanced batches."""
        every = nearest_neighbors(
            scores, self.scores, k + 1
        )  # where too few members of balanced batches count
        at_home = self._at_home(scores, k + 1, batch)
        other = (at_home >= 0) & (at_home != own[:, None])
        columns = [every, at_home]
        turns = [
            np.where(every == own[:, None], np.inf, _LAST),
            np.where(other, np.cumsum(other, axis=1), np.inf),
        ]
        near = np.where(other, at_home, -2)[:, : _SHARED + 1]
        some = min(
            k + 1, -(-_CANDIDATES * k // len(self.batch_members))
        )  # of each batch; more would only fill memory where there are many
        for b, home in enumerate(self.batch_members):
            if not len(home):
                continue
            found = home[nearest_neighbors(scores, self.scores[home], some)]
            known = self._seen_from[
                found[..., None], np.maximum(batch, 0)[:, None, None], np.arange(_SHARED)
            ]
            mutual = (known[..., None] == near[:, None, None, :]).any(axis=(2, 3)) & (batch != b)[
                :, None
            ]
            columns.append(found)
            turns.append(np.where(mutual, np.cumsum(mutual, axis=1), np.inf))
        member, turn = np.concatenate(columns, axis=1), np.concatenate(turns, axis=1)
        apart = np.square(self.scores[member] - scores[:, None]).sum(axis=2)
        order = np.lexsort((apart, turn), axis=1)
        member, turn = (np.take_along_axis(x, order, axis=1) for x in (member, turn))
        chosen = first_different(member, k)
        return np.take_along_axis(member, chosen, axis=1), (
            np.take_along_axis(turn, chosen, axis=1) < _LAST
        )

    def _at_home(self, scores: np.ndarray, k: int, batch: np.ndarray) -> np.ndarray:
        """(r, k) the members of each cell's own batch nearest to it, itself among them; -1 if there are fewer."""
        out = np.full((len(scores), k), -1, dtype=np.int64)
        for b, home in enumerate(self.batch_members):
            rows = np.flatnonzero(batch == b)
            if len(rows) and len(home):
                found = home[nearest_neighbors(scores[rows], self.scores[home], k)]
                out[rows, : found.shape[1]] = found
        return out

    def rates(
        self, nearest: np.ndarray, pools: Sequence[tuple[int, float]], average: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Yield, for each (k, shrink) in increasing k, (r, m) rates of the first k neighbors with ``shrink`` counts' worth
        of the ``average`` (m,) rate mixed in.

        Parameters
        ----------
        nearest
            (r, k) members, nearest first.
        pools
            Pairs of a number of neighbors and of counts' worth of the average.
        average
            (m,) average rates.
        """
        counts = np.zeros((len(nearest), self.counts.shape[1]), dtype=np.float32)
        done = 0
        for k, shrink in pools:
            chosen = nearest[:, done:k]
            done = min(k, nearest.shape[1])
            if chosen.size:
                weight = sparse.csr_matrix(
                    (
                        np.ones(chosen.size, dtype=np.float32),
                        chosen.ravel(),
                        np.arange(len(chosen) + 1) * chosen.shape[1],
                    ),
                    shape=(len(chosen), self.counts.shape[0]),
                )
                counts += (weight @ self.counts).toarray()
            total = self.seen[nearest[:, :done]].sum(axis=1)
            yield (counts + (shrink * average).astype(np.float32)) / (total + shrink).astype(
                np.float32
            )[:, None]

    def reconstruct_from_pcs(self, scores: np.ndarray, rank: int) -> np.ndarray:
        """(r, m) log1p(CP10k) rebuilt from leading components.

        Parameters
        ----------
        scores
            (r, d) components of the cells.
        rank
            Number of leading components.
        """
        rank = min(rank, scores.shape[1])
        return scores[:, :rank].astype(np.float32) @ self.basis[:, :rank].T.astype(np.float32)


def first_different(members: np.ndarray, k: int) -> np.ndarray:
    """(r, k) columns of the first ``k`` distinct entries of each row."""
    out = np.empty((len(members), k), dtype=np.int64)
    for row, found in enumerate(members):
        _, first = np.unique(found, return_index=True)
        out[row] = np.sort(first)[:k]
    return out
