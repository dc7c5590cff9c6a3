"""What a cell's neighbours say about its genes: their pooled rate, shrunk to the gene's, times the cell's
depth.

The strongest simple predictor of hidden counts we know of: rate = (the neighbours' counts of the gene + 5000
x gene rate) / (their totals + 5000). The mean of a count known to be positive is then that of a
zero-truncated Poisson.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from .._errors import DataError
from .._threads import single_blas_thread

_BLOCK = 256  # cells whose dense rates (block x genes float64) are held at a time


def truncated_mean(mu: np.ndarray) -> np.ndarray:
    """Mean of a Poisson count given that it is not zero, mu / (1 - exp(-mu)); at least 1."""
    mu = np.maximum(np.asarray(mu, dtype=np.float64), 1e-9)
    return mu / -np.expm1(-mu)


def principal_components(x: sparse.csr_matrix, n: int, *, seed: int = 0, passes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Truncated SVD of a sparse matrix, not centred, by random projections (Halko, Martinsson and Tropp
    2011).

    Returns
    -------
    (cells, n) scores ``u * s`` and (genes, n) basis ``v``, components by decreasing singular value.
    """
    n = min(n, min(x.shape) - 1)
    if n < 1:
        raise DataError(f"{x.shape[0]} cells x {x.shape[1]} genes are too few for principal components.")
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((x.shape[1], min(n + 10, min(x.shape))))
    with single_blas_thread():
        for _ in range(passes):
            left, _ = np.linalg.qr(x @ basis)
            basis, _ = np.linalg.qr(x.T @ left)
        left, size, right = np.linalg.svd(x @ basis, full_matrices=False)
    return left[:, :n] * size[:n], basis @ right[:n].T


def nearest_cells(query: np.ndarray, pool: np.ndarray, k: int, *, block: int = 1024) -> np.ndarray:
    """(cells, k) indices into ``pool`` of the cells at the smallest Euclidean distance, exact, nearest first.

    ``query`` (cells, d) and ``pool`` (others, d). A cell that stands in both is its own first neighbour.
    """
    k = min(k, len(pool))
    squares = (pool**2).sum(axis=1)
    out = np.empty((len(query), k), dtype=np.int64)
    for start in range(0, len(query), block):
        part = query[start : start + block]
        distance = squares[None, :] - 2 * (part @ pool.T)
        found = np.argpartition(distance, k - 1, axis=1)[:, :k]
        order = np.argsort(np.take_along_axis(distance, found, axis=1), axis=1, kind="stable")
        out[start : start + block] = np.take_along_axis(found, order, axis=1)
    return out


@dataclass
class NeighbourRates:
    """Rates of every gene in every cell as its neighbours show them, computed a block of cells at a time.

    Attributes
    ----------
    gene_rate
        (genes,) share of all counts that are the gene's.
    neighbours
        (cells, k) rows of the pool.
    totals
        (cells,) depth of each cell: what a rate is multiplied with.
    """

    gene_rate: np.ndarray
    neighbours: np.ndarray
    totals: np.ndarray
    shrink: float
    _pool: sparse.csr_matrix
    _pool_totals: np.ndarray

    def rate(self, rows: np.ndarray | slice) -> np.ndarray:
        """(r, genes) float64: expected share of the cell's counts."""
        chosen = self.neighbours[rows]
        weight = sparse.csr_matrix(
            (np.ones(chosen.size), chosen.ravel(), np.arange(len(chosen) + 1) * chosen.shape[1]),
            shape=(len(chosen), self._pool.shape[0]),
        )
        counts = (weight @ self._pool).toarray()
        counts += self.shrink * self.gene_rate
        counts /= (self._pool_totals[chosen].sum(axis=1) + self.shrink)[:, None]
        return counts

    def rate_at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(n,) rates of single entries; ``rows`` in increasing order keeps it quick."""
        out = np.empty(len(rows))
        order = np.argsort(rows, kind="stable")
        sorted_rows = rows[order]
        for start in range(0, len(self.neighbours), _BLOCK):
            stop = min(start + _BLOCK, len(self.neighbours))
            lo, hi = np.searchsorted(sorted_rows, [start, stop])
            if lo < hi:
                entries = order[lo:hi]
                out[entries] = self.rate(slice(start, stop))[rows[entries] - start, columns[entries]]
        return out

    def log_values(self, rows: np.ndarray | slice) -> np.ndarray:
        """(r, genes) log1p(CP10k) of the counts expected where a count is known to be positive."""
        totals = self.totals[rows][:, None]
        return np.log1p(1e4 / totals * truncated_mean(self.rate(rows) * totals))


def neighbour_rate_prediction(
    counts_visible: sparse.csr_matrix,
    totals: np.ndarray,
    k: int = 30,
    *,
    shrink: float = 5000.0,
    components: int = 50,
    reference: sparse.csr_matrix | None = None,
    reference_totals: np.ndarray | None = None,
    seed: int = 0,
) -> NeighbourRates:
    """Prepare the neighbours' rates of all cells.

    Parameters
    ----------
    counts_visible
        (cells, genes) counts that may be seen, hidden ones left out (0).
    totals
        (cells,) total counts of the cells, hidden ones included; they scale the log values and the
        predictions.
    k
        Neighbours, the cell itself being the first of them where there is no ``reference``: nearest in
        ``components`` principal components of log1p(CP10k).
    shrink
        Counts' worth of the gene's overall rate mixed into every rate.
    reference
        (others, genes) counts of other cells, on the same genes: neighbours and gene rates come from these
        alone, and
        ``reference_totals`` are their totals (default: their row sums).

    Returns
    -------
    :class:`NeighbourRates`; nothing of size cells x genes is ever held.

    Raises
    ------
    DataError
        Shapes that do not fit, or cells without any visible count.
    """
    visible = sparse.csr_matrix(counts_visible, dtype=np.float64)
    totals = np.asarray(totals, dtype=np.float64)
    if len(totals) != visible.shape[0]:
        raise DataError(f"{len(totals)} totals came with {visible.shape[0]} cells.")
    if (totals <= 0).any():
        raise DataError(f"{int((totals <= 0).sum())} cells have no counts; remove them first.")
    pool, pool_totals = visible, totals
    if reference is not None:
        pool = sparse.csr_matrix(reference, dtype=np.float64)
        if pool.shape[1] != visible.shape[1]:
            raise DataError(f"The reference has {pool.shape[1]} genes and the cells have {visible.shape[1]}.")
        sums = np.asarray(pool.sum(axis=1)).ravel()
        pool_totals = sums if reference_totals is None else np.asarray(reference_totals, dtype=np.float64)
    scores, basis = principal_components(_log_values(pool, pool_totals), components, seed=seed)
    query = scores if reference is None else _log_values(visible, totals) @ basis
    seen = np.asarray(pool.sum(axis=1)).ravel()
    gene_rate = np.asarray(pool.sum(axis=0)).ravel() / max(seen.sum(), 1.0)
    return NeighbourRates(gene_rate, nearest_cells(query, scores, k), totals, float(shrink), pool, seen)


_REACH = 10  # nearest cells of a batch that tell whether it knows a cell's kind
_PLENTY = 10  # times as many cells as are wanted are looked at, in all batches together
_LAST = 1e9  # the turn of cells that are merely near


class NeighbourPool:
    """Cells to find neighbours among, and what the neighbours of any cell show: many reaches at once, a block of cells at a time.

    Parameters
    ----------
    counts, totals
        (n, m) visible counts of the pool, and the (n,) depths its log values are scaled by.
    components
        Leading components of log1p(CP10k) that distances are measured in.
    batch
        (n,) codes 0, 1, ... of the donors or libraries of the cells: neighbours then come from all of them in turn (see
        :meth:`nearest`).
    """

    def __init__(
        self, counts: sparse.csr_matrix, totals: np.ndarray, *, components: int = 50, seed: int = 0, batch: np.ndarray | None = None
    ) -> None:
        self.counts = sparse.csr_matrix(counts, dtype=np.float32)
        self.seen = np.asarray(self.counts.sum(axis=1), dtype=np.float64).ravel()
        values = _log_values(sparse.csr_matrix(counts, dtype=np.float64), totals)
        self.mean_value = np.asarray(values.mean(axis=0)).ravel()
        self.scores, self.basis = principal_components(values, components, seed=seed)
        self.homes = [] if batch is None else [np.flatnonzero(batch == b) for b in range(int(batch.max()) + 1)]
        #: (n, batches, 10) the members of every batch nearest to each member; -1 where a batch has fewer.
        self._seen_from = np.full((len(self.scores), len(self.homes), _REACH), -1, dtype=np.int32)
        for b, home in enumerate(self.homes):
            if len(home):
                found = home[nearest_cells(self.scores, self.scores[home], _REACH)]
                self._seen_from[:, b, : found.shape[1]] = found

    def project(self, counts: sparse.csr_matrix, totals: np.ndarray) -> np.ndarray:
        """(r, d) the components of other cells, or of members."""
        return _log_values(sparse.csr_matrix(counts, dtype=np.float64), totals) @ self.basis

    def nearest(self, scores: np.ndarray, k: int, own: np.ndarray | None = None, batch: np.ndarray | None = None) -> np.ndarray:
        """(r, k) members to learn from, first the best.

        Without batches the nearest to ``scores`` (r, d). With batches, and those of the cells in ``batch`` (r,) (-1: of none), the
        nearest of every batch, then the second nearest of every batch, and so on. A batch that lacks the cell's kind has nothing to
        give: a member of another batch counts only if the cells it is nearest to in the cell's own batch are among the cell's nearest
        there. Where too few count, the nearest of all follow.

        ``own`` (r,) is the member each cell is itself (-1: none), left out.
        """
        k = min(k, len(self.scores) - 1)
        own = np.full(len(scores), -1) if own is None else np.asarray(own)
        if self.homes and batch is not None:
            return self._in_turn(scores, k, own, np.where(np.asarray(batch) < len(self.homes), batch, -1))
        found = nearest_cells(scores, self.scores, k + 1)
        itself = found == own[:, None]
        itself[~itself.any(axis=1), -1] = True  # others lose their farthest, so that all have k
        return found[~itself].reshape(len(found), k)

    def _in_turn(self, scores: np.ndarray, k: int, own: np.ndarray, batch: np.ndarray) -> np.ndarray:
        every = nearest_cells(scores, self.scores, k + 1)  # if all else fails
        at_home = self._at_home(scores, k + 1, batch)
        other = (at_home >= 0) & (at_home != own[:, None])
        columns = [every, at_home]
        turns = [np.where(every == own[:, None], np.inf, _LAST), np.where(other, np.cumsum(other, axis=1), np.inf)]
        near = np.where(other, at_home, -2)[:, : _REACH + 1]
        some = min(k + 1, -(-_PLENTY * k // len(self.homes)))  # of each batch; more would only fill memory where there are many
        for b, home in enumerate(self.homes):
            if not len(home):
                continue
            found = home[nearest_cells(scores, self.scores[home], some)]
            known = self._seen_from[found[..., None], np.maximum(batch, 0)[:, None, None], np.arange(_REACH)]
            mutual = (known[..., None] == near[:, None, None, :]).any(axis=(2, 3)) & (batch != b)[:, None]
            columns.append(found)
            turns.append(np.where(mutual, np.cumsum(mutual, axis=1), np.inf))
        member, turn = np.concatenate(columns, axis=1), np.concatenate(turns, axis=1)
        apart = np.square(self.scores[member] - scores[:, None]).sum(axis=2)
        order = np.lexsort((apart, turn), axis=1)
        return _first_different(np.take_along_axis(member, order, axis=1), k)

    def _at_home(self, scores: np.ndarray, k: int, batch: np.ndarray) -> np.ndarray:
        """(r, k) the members of each cell's own batch nearest to it, itself among them; -1 where there are fewer."""
        out = np.full((len(scores), k), -1, dtype=np.int64)
        for b, home in enumerate(self.homes):
            rows = np.flatnonzero(batch == b)
            if len(rows) and len(home):
                found = home[nearest_cells(scores[rows], self.scores[home], k)]
                out[rows, : found.shape[1]] = found
        return out

    def rates(self, nearest: np.ndarray, pools: Sequence[tuple[int, float]], average: np.ndarray) -> Iterator[np.ndarray]:
        """Yield, for each (k, shrink) in increasing k, (r, m) rates of the first k neighbours with ``shrink`` counts' worth of the
        ``average`` (m,) rate mixed in.
        """
        counts = np.zeros((len(nearest), self.counts.shape[1]), dtype=np.float32)
        done = 0
        for k, shrink in pools:
            chosen = nearest[:, done:k]
            done = min(k, nearest.shape[1])
            if chosen.size:
                weight = sparse.csr_matrix(
                    (np.ones(chosen.size, dtype=np.float32), chosen.ravel(), np.arange(len(chosen) + 1) * chosen.shape[1]),
                    shape=(len(chosen), self.counts.shape[0]),
                )
                counts += (weight @ self.counts).toarray()
            total = self.seen[nearest[:, :done]].sum(axis=1)
            yield (counts + (shrink * average).astype(np.float32)) / (total + shrink).astype(np.float32)[:, None]

    def rebuild(self, scores: np.ndarray, rank: int) -> np.ndarray:
        """(r, m) log1p(CP10k) rebuilt from the leading ``rank`` components."""
        rank = min(rank, scores.shape[1])
        return scores[:, :rank].astype(np.float32) @ self.basis[:, :rank].T.astype(np.float32)


def _first_different(members: np.ndarray, k: int) -> np.ndarray:
    """(r, k) the first ``k`` different entries of each row."""
    out = np.empty((len(members), k), dtype=np.int64)
    for row, found in enumerate(members):
        _, first = np.unique(found, return_index=True)
        out[row] = found[np.sort(first)[:k]]
    return out


def _log_values(counts: sparse.csr_matrix, totals: np.ndarray) -> sparse.csr_matrix:
    out = counts.copy()
    out.data = np.log1p(out.data * np.repeat(1e4 / np.maximum(totals, 1e-12), np.diff(out.indptr)))
    return out
