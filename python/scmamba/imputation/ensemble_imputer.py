"""Imputation by the rates of network and nearest neighbors (method ``"ensemble"``)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy import sparse
from scipy.special import gammaincc, gammainccinv

from ..data.preprocess import CellReader
from ..data.values import SCALE
from ..model import Model
from ..neighbors.gamma import log1p_gamma_sd
from ..neighbors.hierarchical import RatePosterior
from ..utils.progress import say
from .base import ImputedBlock, Imputer
from .base_predictors import GeneMap
from .options import ImputeOptions
from .rate_fit import FittedRates, fit_rates

#: Cells among which neighbors are searched, at most: a random sample of larger data.
MAX_POOL = 10_000
#: A gene is expressed in a cell if its rate is at least half of its average, and at least this one (0.2 as log1p(CP10k)).
EXPRESSED_SHARE, EXPRESSED_RATE = 0.5, float(np.expm1(0.2)) / SCALE
#: Among posterior values, a gene in which nothing was counted is 0 if it is expressed with a probability below this one.
OFF_PROBABILITY = 0.5
#: Median total counts above which zeros are strong evidence that a gene is off: full-length protocols.
DEEP = 50_000


class RateEnsembleImputer(Imputer):
    """Expected rates of all genes of the data, given the counts of the cell.

    Parameters
    ----------
    model, options
        As for :class:`Imputer`.
    batch
        (n,) codes of the cells' batches, where neighbors are balanced across them.
    """

    method: ClassVar[str] = "ensemble"

    def __init__(
        self, model: Model, options: ImputeOptions, batch: np.ndarray | None = None
    ) -> None:
        super().__init__(model, options)
        self.batch = batch

    @property
    def min_value(self) -> float:
        """Smaller predictions stay zero: by default 0.2, 0.01 for ``values="posterior"``, 0 for counts."""
        if self.options.min_value is not None:
            return float(self.options.min_value)
        if self.options.to_counts:
            return 0.0
        return 0.01 if self.options.values == "posterior" else 0.2

    def learn(self, cells: CellReader) -> tuple[FittedRates, np.ndarray]:
        """The fitted rates, and the rows of the cells that are the members of the pool."""
        members = pool_members(len(cells), self.options.seed)
        counts, totals = cells.counts(members)
        full = totals > 0
        members = members[full]
        self._explain_depth(float(np.median(totals)))
        fitted = fit_rates(
            self.model,
            counts[full],
            totals[full],
            GeneMap.of(cells),
            batch=None if self.batch is None else self.batch[members],
            adapt_steps=self.options.adapt_steps,
            seed=self.options.seed,
            verbose=self.options.verbose,
        )
        return fitted, members

    def restore(
        self, cells: CellReader, learned: tuple[FittedRates, np.ndarray]
    ) -> RateEnsembleImputer:
        """Predict with what :meth:`learn` returned."""
        self.cells = cells
        self.fitted, members = learned
        self.model, self.summary = self.fitted.network.model, self.fitted.report
        self._own = np.full(len(cells), -1)
        self._own[members] = np.arange(len(members))
        return self

    def posterior(self, rows: slice) -> RatePosterior:
        """Posteriors of the rates of all genes in some cells."""
        counts, totals = self.cells.counts(rows)
        batch = None if self.batch is None else self.batch[rows]
        return self.fitted.posterior(counts, totals, self._own[rows], batch)

    def expected(self, rows: slice, linear: sparse.csr_matrix) -> sparse.csr_matrix:
        """Expected values of the zeros in which the gene is probably expressed.

        The probability that the rate of a gene is at least half of its average is that of the gamma posterior given the
        zero; where it is below ``min_probability`` the zero stays. Of more than ``max_filled`` of a cell's entries, those
        with the highest probability are imputed.
        """
        return self._probable(self.posterior(rows), linear)

    def _probable(self, found: RatePosterior, linear: sparse.csr_matrix) -> sparse.csr_matrix:
        rate = found.mean
        if self.fitted.rates is not None and self.options.min_probability > 0:
            rate[~self._expressed(found, self.options.min_probability)] = 0
        rate[linear.nonzero()] = 0
        totals = np.asarray(linear.sum(axis=1)).ravel()
        if self.min_value > 0:
            least = self.min_value if self.options.to_counts else np.expm1(self.min_value)
            rate[rate * (totals * self._scales(linear)[0])[:, None] < least] = 0
        self._keep_most_probable(rate, found)
        result = sparse.csr_matrix(rate, dtype=np.float64)
        result.data *= np.repeat(totals, np.diff(result.indptr))
        result.eliminate_zeros()
        return result

    def _keep_most_probable(self, rate: np.ndarray, found: RatePosterior) -> None:
        """Set all but the most probably expressed ``max_filled`` of each cell's entries to 0."""
        most = int(self.options.max_filled * rate.shape[1])
        least = self._least_rate()
        for row in np.flatnonzero(np.count_nonzero(rate, axis=1) > most):
            genes = np.flatnonzero(rate[row])
            scaled = found.inverse_scale[row, genes] * least[genes]
            probability = gammaincc(found.shape[row, genes], scaled)
            rate[row, genes[np.argsort(-probability, kind="stable")[most:]]] = 0

    def predict(self, rows: slice) -> ImputedBlock:
        """Observed and imputed values of some cells, or with ``values="posterior"`` the expected rates of all genes."""
        linear = self.cells.linear(rows)
        self._observed += linear.nnz
        totals = np.asarray(linear.sum(axis=1)).ravel()
        found = self.posterior(rows)
        added = None
        if self.options.values == "posterior":
            values, scale = self._every_gene(found, linear, totals)
        else:
            values = self._on_scale_of_data(linear, self._probable(found, linear))
            scale = totals * self._scales(linear)[0]
            added = self._added(linear, values)
        return ImputedBlock(values, totals, self._sd(found, values, scale), added)

    def _every_gene(
        self, found: RatePosterior, linear: sparse.csr_matrix, totals: np.ndarray
    ) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Expected values of all genes, and the (r,) value of a rate of 1 on the same scale, before the logarithm.

        Genes that are most probably not expressed are 0: each of them has a small expected rate, but genes of other cell
        types are many, and their sum would be several times the observed one.
        """
        rate = found.mean.astype(np.float64)
        if self.fitted.rates is not None and self.options.min_probability > 0:
            off = ~self._expressed(found, OFF_PROBABILITY)
            off[linear.nonzero()] = False
            rate[off] = 0
        rate[totals == 0] = 0
        wanted = np.full(len(totals), SCALE)
        if self.options.to_counts or self.cells.values.kind == "log1p":
            wanted = totals
        scale = self._to_sum(rate, wanted)
        if self.options.to_counts:
            return sparse.csr_matrix((rate * scale[:, None]).astype(np.float32)), scale
        rate[rate * scale[:, None] < np.expm1(self.min_value)] = 0
        scale = self._to_sum(rate, wanted)
        return sparse.csr_matrix(np.log1p(rate * scale[:, None]).astype(np.float32)), scale

    @staticmethod
    def _to_sum(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(r,) factors that give the values of each cell the sum ``wanted``."""
        sums = values.sum(axis=1)
        return wanted * np.divide(1.0, sums, out=np.zeros(len(sums)), where=sums > 0)

    def _sd(
        self, found: RatePosterior, values: sparse.csr_matrix, scale: np.ndarray
    ) -> sparse.csr_matrix | None:
        """Standard deviations of the stored values, if they were requested."""
        if not self.options.sd:
            return None
        row = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
        shape = found.shape[row, values.indices].astype(np.float64)
        mean = shape / found.inverse_scale[row, values.indices] * scale[row]
        sd = mean / np.sqrt(shape) if self.options.to_counts else log1p_gamma_sd(shape, mean)
        return sparse.csr_matrix(
            (sd.astype(np.float32), values.indices, values.indptr), shape=values.shape
        )

    def _least_rate(self) -> np.ndarray:
        """(genes,) rates from which a gene counts as expressed."""
        rates, base = self.fitted.rates, self.fitted.network.base
        average = np.exp(base) if rates is None else rates.average
        return np.maximum(EXPRESSED_SHARE * average, EXPRESSED_RATE)

    def _expressed(self, found: RatePosterior, probability: float) -> np.ndarray:
        """(r, genes) whether a gene in which nothing was counted is expressed with at least this probability."""
        assert self.fitted.rates is not None
        least = self._least_rate()
        excess = np.broadcast_to(found.excess, len(found.shape))
        out = np.empty(found.shape.shape, dtype=bool)
        for added in np.unique(excess):
            # The shape of the posterior is that of the prior where nothing was counted: one quantile per gene and excess
            # replaces a gamma distribution function per entry.
            own = excess == added
            shape = 1 / (self.fitted.rates.dispersions[-1] + added)
            quantile = gammainccinv(shape, min(probability, 1 - 1e-9))
            out[own] = found.inverse_scale[own] <= (quantile / least).astype(np.float32)
        return out

    def _explain_depth(self, median: float) -> None:
        if median > DEEP and self.options.values == "zeros":
            say(
                f"The cells have {median:,.0f} counts in the median, as full-length protocols give: at this depth a zero is "
                "evidence that the gene is not expressed, so few zeros or none are imputed. values='posterior' gives "
                "smoothed rates of all genes instead.",
                self.options.verbose,
            )


def pool_members(cells: int, seed: int) -> np.ndarray:
    """Rows of the cells that are fitted to and searched for neighbors: all of them, or a random sample of large data."""
    if cells <= MAX_POOL:
        return np.arange(cells)
    return np.sort(np.random.default_rng(seed).choice(cells, MAX_POOL, replace=False))
