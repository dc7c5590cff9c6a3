"""Imputation by the rates of network and nearest neighbors (method ``"ensemble"``)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy import sparse
from scipy.special import gammainccinv

from ..data.preprocess import CellReader
from ..data.values import SCALE
from ..model import Model
from ..neighbors.hierarchical import RatePosterior
from ..utils.progress import say
from .base import Imputer
from .base_predictors import GeneMap
from .options import ImputeOptions
from .rate_fit import FittedRates, fit_rates

#: Cells among which neighbors are searched, at most: a random sample of larger data.
MAX_POOL = 10_000
#: A gene is expressed in a cell if its rate is at least half of its average, and at least this one (0.2 as log1p(CP10k)).
EXPRESSED_SHARE, EXPRESSED_RATE = 0.5, float(np.expm1(0.2)) / SCALE
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
        zero; where it is below ``min_probability`` the zero stays.
        """
        found = self.posterior(rows)
        rate = found.mean
        if self.fitted.rates is not None and self.options.min_probability > 0:
            rate[~self._expressed(found)] = 0
        rate[linear.nonzero()] = 0
        result = sparse.csr_matrix(rate, dtype=np.float64)
        totals = np.asarray(linear.sum(axis=1)).ravel()
        result.data *= np.repeat(totals, np.diff(result.indptr))
        result.eliminate_zeros()
        return result

    def predict(self, rows: slice) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Observed and imputed values of some cells, or with ``values="posterior"`` the expected rates of all genes."""
        if self.options.values != "posterior":
            return super().predict(rows)
        linear = self.cells.linear(rows)
        self._observed += linear.nnz
        totals = np.asarray(linear.sum(axis=1)).ravel()
        rate = self.posterior(rows).mean.astype(np.float64)
        rate[totals == 0] = 0
        scale = np.full(len(totals), SCALE)
        if self.options.to_counts or self.cells.values.kind == "log1p":
            scale = totals
        kept = self._scaled(rate, scale)
        if not self.options.to_counts:
            kept[kept < np.expm1(self.min_value)] = 0
            kept = np.log1p(self._scaled(kept, scale))
        return sparse.csr_matrix(kept.astype(np.float32)), totals

    @staticmethod
    def _scaled(values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The values of each cell with the sum ``scale``."""
        sums = values.sum(axis=1)
        return values * np.divide(scale, sums, out=np.zeros(len(sums)), where=sums > 0)[:, None]

    def _expressed(self, found: RatePosterior) -> np.ndarray:
        """(r, genes) whether a gene in which nothing was counted is expressed with probability ``min_probability``."""
        assert self.fitted.rates is not None
        # The shape of the posterior is that of the prior where nothing was counted, the same in all cells: one quantile
        # per gene replaces a gamma distribution function per entry.
        shape = 1 / self.fitted.rates.dispersions[-1]
        quantile = gammainccinv(shape, min(self.options.min_probability, 1 - 1e-9))
        least = np.maximum(EXPRESSED_SHARE * self.fitted.rates.average, EXPRESSED_RATE)
        return found.inverse_scale <= (quantile / least).astype(np.float32)

    def _explain_depth(self, median: float) -> None:
        if median > DEEP:
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
