"""Gamma-Poisson rates of a cell's genes, shrunk step by step from all cells to the cell's own neighborhood.

The rate of a gene in a cell has a gamma prior around its rate in the cell's neighborhood; that one has a gamma prior around
the rate in a wider neighborhood, and so on up to the average of all cells. The dispersion of each prior is fitted per gene
to the user's cells. A neighborhood holds mutual nearest neighbors only, and widens only while most of a cell's nearest
neighbors are mutual: cells of a rare type keep to themselves. Dispersions fitted to all cells are those of the common types.
Around a wider neighborhood the prior is therefore a mixture: with some probability a gene differs more than usual, as markers
of other types do in a rare one. The probabilities are fitted per neighborhood. A cell that differs from its narrowest
neighborhood in many genes gets a larger dispersion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.special import gammaln

from ..utils.errors import DataError
from ..utils.threads import single_blas_thread
from .batch_balanced import BatchBalancedKNN

#: Nearest neighbors of the neighborhoods, from the narrowest to the widest.
LEVELS = (30, 100, 300)
#: A neighborhood widens only while this share of the nearest neighbors is mutual.
MUTUAL_SHARE = 0.35
#: Principal components in which distances are measured.
COMPONENTS = 15
_FIT_CELLS = 1000  # cells that dispersions are fitted to, at most
#: Dispersions added to that of a gene in the components of the prior of a neighborhood around the next wider one.
COMPONENTS_EXCESS = (0.0, 0.4, 6.0)
#: Dispersion added to that of every gene for a cell around its narrowest neighborhood: the value with the highest likelihood.
EXCESS = (0.0, 0.1, 0.4, 1.5, 6.0)
_EXCESS_GENES = 1000  # most abundant genes that likelihoods are computed from
_EM_STEPS = 5  # iterations in which the weights of the components are fitted
_LEAST_WEIGHT = 1e-3
_EVIDENCE = 5.0  # counts' worth of the average dispersion that each gene's is shrunk by
_DISPERSION = (0.01, 30.0)


@dataclass(frozen=True)
class RatePosterior:
    """Gamma posteriors of the rates of some cells, given their counts.

    Attributes
    ----------
    shape, inverse_scale
        (r, genes) parameters: the mean rate is ``shape / inverse_scale``, a share of the cell's counts.
    excess
        (r,) dispersion that was added to that of every gene, by cell. Default: none.
    """

    shape: np.ndarray
    inverse_scale: np.ndarray
    excess: np.ndarray | float = 0.0

    @classmethod
    def from_prior(
        cls,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        rate: np.ndarray,
        dispersion: np.ndarray | float,
        excess: np.ndarray | float = 0.0,
    ) -> RatePosterior:
        """Gamma priors around expected rates, updated by Poisson counts.

        Parameters
        ----------
        counts, totals
            (r, genes) counts of the cells and their (r,) totals.
        rate
            (r, genes) means of the priors.
        dispersion
            (genes,) or one: squared coefficient of variation of the priors.
        excess
            (r,) or one: added to the dispersion of every gene, by cell. Default 0.

        Returns
        -------
        RatePosterior
        """
        added = np.asarray(excess)[..., None]
        alpha = (1 / (np.asarray(dispersion) + added)).astype(np.float32)
        depth = np.asarray(totals, dtype=np.float32)[:, None]
        return cls(counts.toarray().astype(np.float32) + alpha, depth + alpha / rate, excess)

    @property
    def mean(self) -> np.ndarray:
        """(r, genes) expected rates."""
        return self.shape / self.inverse_scale

    @property
    def sd(self) -> np.ndarray:
        """(r, genes) standard deviations of the rates."""
        return np.sqrt(self.shape) / self.inverse_scale


@dataclass(frozen=True)
class HierarchicalRates:
    """Gamma-Poisson rates over nested neighborhoods of mutual nearest neighbors.

    Attributes
    ----------
    pool
        The cells whose counts are pooled, with square-root distances.
    average
        (genes,) average rates, the root of the hierarchy.
    dispersions
        (levels + 1, genes) fitted dispersions: of each neighborhood around the next wider one (the widest around the
        average), from the narrowest to the widest; the last row is that of single cells around the narrowest.

    References
    ----------
    Gelman et al. (2013), Bayesian Data Analysis, chapter 5 (hierarchical gamma-Poisson models).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.neighbors import HierarchicalRates
    >>> counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (60, 30)).astype(float))
    >>> rates = HierarchicalRates.fit(counts, np.asarray(counts.sum(axis=1)).ravel())
    >>> posterior = rates.posterior(counts[:5], np.full(5, 30.0), own=np.arange(5))
    >>> posterior.mean.shape
    (5, 30)
    """

    pool: BatchBalancedKNN
    average: np.ndarray
    dispersions: np.ndarray

    @classmethod
    def fit(
        cls,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        *,
        batch: np.ndarray | None = None,
        seed: int = 0,
    ) -> HierarchicalRates:
        """Build the pool and fit the dispersions.

        Parameters
        ----------
        counts, totals
            (n, genes) counts of the cells and their (n,) totals.
        batch
            (n,) codes of donors or libraries, where neighbors are balanced across them.
        seed
            Seed of the principal components and of the cells that dispersions are fitted to.

        Returns
        -------
        HierarchicalRates

        Raises
        ------
        DataError
            Fewer than two cells, or cells without counts.
        """
        totals = np.asarray(totals, dtype=np.float64)
        if len(totals) < 2 or (totals <= 0).any():
            raise DataError(
                f"{len(totals)} cells, {int((totals <= 0).sum())} of them without counts; at least 2 with counts are needed."
            )
        pool = BatchBalancedKNN(
            counts, totals, components=COMPONENTS, seed=seed, batch=batch, space="sqrt"
        )
        seen = np.asarray(pool.counts.sum(axis=0), dtype=np.float64).ravel() + 0.5
        average = seen / seen.sum()
        levels = np.ones((len(LEVELS) + 1, counts.shape[1]))
        rates = cls(pool, average, levels)
        number = min(len(totals), _FIT_CELLS)
        rows = np.sort(np.random.default_rng(seed).choice(len(totals), number, replace=False))
        return rates.refit(rows, batch)

    def refit(
        self, rows: np.ndarray, batch: np.ndarray | None = None, prior: np.ndarray | None = None
    ) -> HierarchicalRates:
        """The same pool with dispersions fitted to some of its members.

        Parameters
        ----------
        rows
            (r,) members that the dispersions are fitted to.
        batch
            (n,) codes of the batches of all members.
        prior
            (r, genes) rates that replace the average as the root, for the cells ``rows``.

        Returns
        -------
        HierarchicalRates
        """
        # From the widest level: a level's rates depend on the dispersions of the wider ones.
        own = self.pool.counts[rows]
        near, masks = self._neighborhoods(
            self.pool.scores[rows], rows, None if batch is None else batch[rows]
        )
        dispersions = self.dispersions.copy()
        rate = self._root(len(rows), prior)
        for level in reversed(range(len(LEVELS))):
            pooled, total = self._pooled(near, masks[level])
            dispersions[level] = gene_dispersion(pooled, rate * total)
            rate = self._shrink(pooled, total, rate, dispersions[level])
        depth = self.pool.seen[rows][:, None].astype(np.float32)
        dispersions[-1] = gene_dispersion(own.toarray(), rate * depth)
        return replace(self, dispersions=dispersions)

    def neighborhood_rate(
        self,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
        prior: np.ndarray | None = None,
    ) -> np.ndarray:
        """(r, genes) rates of the narrowest neighborhoods of some cells, without their own counts.

        Parameters
        ----------
        counts, totals, own, batch, prior
            As for :meth:`posterior`.
        """
        scores = self.pool.project(counts, totals)
        near, masks = self._neighborhoods(scores, own, batch)
        rate = self._root(counts.shape[0], prior)
        for level in reversed(range(len(LEVELS))):
            pooled, total = self._pooled(near, masks[level])
            rate = self._shrink(pooled, total, rate, self.dispersions[level])
        return rate

    def posterior(
        self,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
        prior: np.ndarray | None = None,
    ) -> RatePosterior:
        """Posteriors of the rates of some cells, given their counts; some dozen cells at a time.

        Parameters
        ----------
        counts, totals
            (r, genes) counts of the cells and their (r,) totals.
        own
            (r,) the member of the pool that each cell is itself (-1: none), so that it is not its own neighbor.
        batch
            (r,) batch of each cell, where neighbors are balanced across batches.
        prior
            (r, genes) rates that replace the average as the root, such as those of a network.

        Returns
        -------
        RatePosterior
        """
        rate = self.neighborhood_rate(counts, totals, own, batch, prior)
        top, dispersion = self._likely_genes(), self.dispersions[-1]
        expected = rate[:, top] * np.asarray(totals, dtype=np.float32)[:, None]
        excess = excess_dispersion(counts[:, top].toarray(), expected, dispersion[top])
        return RatePosterior.from_prior(counts, totals, rate, dispersion, excess)

    def _shrink(
        self,
        pooled: np.ndarray,
        total: np.ndarray,
        rate: np.ndarray,
        dispersion: np.ndarray,
    ) -> np.ndarray:
        """Posterior mean rates of neighborhoods with the prior of the next wider ones."""
        return mixture_rate(pooled, total, rate, dispersion, self._likely_genes())

    def _likely_genes(self) -> np.ndarray:
        """The most abundant genes: the ones that likelihoods are computed from."""
        return np.argsort(-self.average, kind="stable")[:_EXCESS_GENES]

    def _root(self, number: int, prior: np.ndarray | None) -> np.ndarray:
        average = np.maximum(self.average, 1e-12).astype(np.float32)
        if prior is None:
            return np.broadcast_to(average, (number, len(average)))
        return np.maximum(prior, 1e-12).astype(np.float32)

    def _neighborhoods(
        self, scores: np.ndarray, own: np.ndarray | None, batch: np.ndarray | None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """(r, k) nearest members and, for each level, the (r, k) mask of those that belong to the neighborhood."""
        near, mutual = self.pool.query_mutual(scores, LEVELS, own, batch)
        masks: list[np.ndarray] = []
        widen = np.ones(len(near), dtype=bool)
        for level, k in enumerate(LEVELS):
            mask = mutual[level] & (np.arange(near.shape[1]) < k)
            if masks:
                mask = np.where(widen[:, None], mask | masks[-1], masks[-1])
            widen &= mask.sum(axis=1) >= MUTUAL_SHARE * min(k, near.shape[1])
            masks.append(mask)
        return near, masks

    def _pooled(self, near: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(r, genes) counts and (r, 1) totals of the chosen members."""
        chosen = np.count_nonzero(mask, axis=1)
        weight = sparse.csr_matrix(
            (
                np.ones(int(chosen.sum()), dtype=np.float32),
                near[mask],
                np.concatenate([[0], np.cumsum(chosen)]),
            ),
            shape=(len(near), self.pool.counts.shape[0]),
        )
        with single_blas_thread():
            pooled = (weight @ self.pool.counts).toarray()
        total = np.where(mask, self.pool.seen[near], 0).sum(axis=1)
        return pooled, total[:, None].astype(np.float32)


def gene_dispersion(counts: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Dispersion of each gene by the method of moments: variance = mean + dispersion x mean^2.

    Parameters
    ----------
    counts, expected
        (cells, genes) counts and their means.

    Returns
    -------
    (genes,) dispersions, those of genes with few counts shrunk to the average of all genes; between 0.01 and 30.

    References
    ----------
    Robinson and Smyth (2008), Biostatistics 9, 321-332 (moments and shrinkage of the dispersion).

    Examples
    --------
    >>> import numpy as np
    >>> from scmamba.neighbors import gene_dispersion
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.poisson(5 * rng.gamma(2.0, 0.5, (4000, 1)))
    >>> bool(abs(gene_dispersion(counts, np.full((4000, 1), 5.0))[0] - 0.5) < 0.1)
    True
    """
    pairs = (counts * (counts - 1.0)).sum(axis=0, dtype=np.float64)
    square = (expected.astype(np.float32) ** 2).sum(axis=0, dtype=np.float64)
    average = 1 + max(pairs.sum() / max(square.sum(), 1e-12) - 1, _DISPERSION[0])
    found = (pairs + _EVIDENCE * average) / (square + _EVIDENCE) - 1
    return np.clip(found, *_DISPERSION)


def mixture_rate(
    counts: np.ndarray,
    total: np.ndarray,
    rate: np.ndarray,
    dispersion: np.ndarray,
    fitted_to: np.ndarray,
) -> np.ndarray:
    """Posterior mean rates with a mixture of gamma priors: usual dispersions, and larger ones (``COMPONENTS_EXCESS``).

    Parameters
    ----------
    counts, total
        (r, genes) counts of some neighborhoods and their (r, 1) totals.
    rate
        (r, genes) means of the priors.
    dispersion
        (genes,) usual dispersions.
    fitted_to
        Genes that the weights of the components are fitted to, for each neighborhood.

    Returns
    -------
    (r, genes) float32.

    Examples
    --------
    >>> import numpy as np
    >>> from scmamba.neighbors.hierarchical import mixture_rate
    >>> counts = np.full((1, 100), 20.0)
    >>> counts[0, 0] = 0  # a gene that is not expressed in this neighborhood
    >>> found = mixture_rate(counts, np.full((1, 1), 2000.0), np.full((1, 100), 0.01), np.full(100, 0.05), np.arange(100))
    >>> bool(found[0, 0] < 0.002), bool(abs(found[0, 1] - 0.01) < 0.001)
    (True, True)
    """
    x, total, rate = (values.astype(np.float32) for values in (counts, total, rate))
    mean = rate * total
    sizes = [(1 / (dispersion + excess)).astype(np.float32) for excess in COMPONENTS_EXCESS]
    some = np.stack([_log_nb(x[:, fitted_to], mean[:, fitted_to], s[fitted_to]) for s in sizes])
    weights = np.full((len(sizes), len(x), 1), 1 / len(sizes), dtype=np.float32)
    for _ in range(_EM_STEPS):
        average = _responsibilities(some, weights).mean(axis=2, keepdims=True)
        weights = np.maximum(average, _LEAST_WEIGHT)
    shares = _responsibilities(np.stack([_log_nb(x, mean, size) for size in sizes]), weights)
    out = np.zeros_like(x)
    for share, size in zip(shares, sizes, strict=True):
        out += share * (x + size) / (total + size / rate)
    return out


def _responsibilities(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(components, r, genes) probabilities of the components, given their log likelihoods and weights."""
    logs = logs + np.log(weights)
    logs -= logs.max(axis=0)
    np.exp(logs, out=logs)
    logs /= logs.sum(axis=0)
    return logs


def _log_nb(x: np.ndarray, mean: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Negative binomial log likelihood, without the terms that are the same for all sizes; float32."""
    z = x + size
    out = size * np.log(size) - z * np.log(size + mean)
    seen = x > 0
    # Stirling's series is exact to 1e-3 here, where z is above 1, and several times faster than gammaln.
    series = (z - 0.5) * np.log(z) - z + np.float32(0.9189385) + 1 / (12 * z)
    out += np.where(seen, series - gammaln(size).astype(np.float32), 0)
    return out


def excess_dispersion(
    counts: np.ndarray, expected: np.ndarray, dispersion: np.ndarray
) -> np.ndarray:
    """How much more than usual each cell differs from its expected counts.

    Parameters
    ----------
    counts, expected
        (r, genes) counts and their means.
    dispersion
        (genes,) usual dispersions.

    Returns
    -------
    (r,) the value of ``EXCESS`` that, added to all dispersions, gives the highest negative binomial likelihood.
    """
    x, mean = counts.astype(np.float64), expected.astype(np.float64)
    seen = x > 0
    likelihood = []
    for excess in EXCESS:
        size = np.broadcast_to(1 / (dispersion + excess), x.shape)
        terms = -size * np.log1p(mean / size)
        y, m, s = x[seen], np.maximum(mean[seen], 1e-12), size[seen]
        terms[seen] += gammaln(y + s) - gammaln(s) + y * np.log(m / (s + m))
        likelihood.append(terms.sum(axis=1))
    return np.asarray(EXCESS)[np.argmax(likelihood, axis=0)]
