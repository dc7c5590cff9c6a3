"""Rates of the user's cells: neighborhoods of nearest neighbors, and the network where it pays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from ..data.count_splitting import poisson_deviance, split_counts
from ..model import Model
from ..neighbors.hierarchical import HierarchicalRates, RatePosterior
from ..training.batches import CellSource
from ..utils.progress import say
from .adaptation import adapt_rates
from .base_predictors import BasePredictors, GeneMap, base_rate
from .options import ADAPT_STEPS

#: Variance beyond Poisson where the network predicts alone, as in training (see RateConfig.spread).
SPREAD = 0.2
#: With fewer cells there are too few neighbors: the network predicts alone.
MIN_CELLS = 30
#: The network is used if it lowers the deviance of split counts by at least this share.
NETWORK_MARGIN = 0.01
#: Cells the network is tested on: neighbors are searched among so many, and so many are scored.
TEST_POOL, TEST_CELLS = 1500, 200


@dataclass
class FittedRates:
    """What predicts the rates of genes in the user's cells.

    Attributes
    ----------
    network
        The network, its genes and the average rates.
    rates
        The neighborhoods; ``None`` with too few cells, where the network predicts alone.
    use_network
        Whether the network's rates are the root of the neighborhoods' rates, instead of the average.
    report
        Deviances of split counts: of the average, of the neighborhoods, of both with the network.
    """

    network: BasePredictors
    rates: HierarchicalRates | None
    use_network: bool
    report: dict[str, Any] = field(default_factory=dict)

    def posterior(
        self,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
    ) -> RatePosterior:
        """Posteriors of the rates of some cells; arguments as for :meth:`HierarchicalRates.posterior`."""
        prior = network_rates(self.network, counts, totals) if self.use_network else None
        if self.rates is not None:
            return self.rates.posterior(counts, totals, own, batch, prior)
        assert prior is not None
        return RatePosterior.from_prior(counts, totals, prior, SPREAD)


def network_rates(
    network: BasePredictors, counts: sparse.csr_matrix, totals: np.ndarray
) -> np.ndarray:
    """(r, genes) float32 rates by the network alone; the average for genes outside its vocabulary."""
    rate = np.exp(network.network(counts, totals) + network.base.astype(np.float32))
    return np.minimum(rate, 1.0)


def fit_rates(
    model: Model,
    counts: sparse.csr_matrix,
    totals: np.ndarray,
    genes: GeneMap,
    *,
    batch: np.ndarray | None = None,
    adapt_steps: int = ADAPT_STEPS,
    seed: int = 0,
    verbose: bool = True,
) -> FittedRates:
    """Fit neighborhoods to some cells, and decide on split counts whether the network is used.

    Parameters
    ----------
    model
        The pre-trained network and its genes.
    counts, totals
        (n, n_vars) counts of the cells and their (n,) totals.
    genes
        The columns of genes in the network's vocabulary.
    batch
        (n,) codes of donors or libraries, where neighbors are balanced across them.
    adapt_steps
        Steps of adaptation of the network (:func:`adapt_rates`), if it comes near to being used; 0 turns it off.
    seed
        Seed of everything random.
    verbose
        Print messages and progress.

    Returns
    -------
    FittedRates
    """
    if counts.shape[0] < MIN_CELLS:
        say(
            f"Only {counts.shape[0]} cells ({MIN_CELLS} needed): skipping adaptation and neighbors, using the pre-trained "
            "network alone.",
            verbose,
        )
        network = BasePredictors(model, genes, base_rate(counts, model, genes), None)
        reason = f"fewer than {MIN_CELLS} cells"
        report: dict[str, Any] = {"adapt": {"used": False, "reason": reason}, "network": "used"}
        return FittedRates(network, None, True, report)
    chosen, report = judge_network(
        model, counts, totals, genes, batch, adapt_steps=adapt_steps, seed=seed, verbose=verbose
    )
    rates = HierarchicalRates.fit(counts, totals, batch=batch, seed=seed)
    network = BasePredictors(chosen or model, genes, base_rate(counts, model, genes), None)
    if chosen is not None:
        rows = _some(len(totals), TEST_CELLS * 2, seed)
        prior = network_rates(network, counts[rows], totals[rows])
        rates = rates.refit(rows, batch, prior)
    return FittedRates(network, rates, chosen is not None, report)


def judge_network(
    model: Model,
    counts: sparse.csr_matrix,
    totals: np.ndarray,
    genes: GeneMap,
    batch: np.ndarray | None,
    *,
    adapt_steps: int,
    seed: int,
    verbose: bool,
) -> tuple[Model | None, dict[str, Any]]:
    """Score neighborhoods with and without the network on split counts.

    Arguments as for :func:`fit_rates`. The network is adapted only if, as it is, it comes half way to being used.

    Returns
    -------
    The network to use, or ``None``, and the report.
    """
    rows = _some(len(totals), TEST_POOL, seed)
    train, test = split_counts(_whole(counts[rows]), seed=seed)
    depth = np.asarray(train.sum(axis=1)).ravel()
    full = depth > 0
    rows, train, test, depth = rows[full], train[full], test[full], depth[full]
    batch = None if batch is None else batch[rows]
    scored = _some(len(rows), TEST_CELLS, seed + 1)
    rates = HierarchicalRates.fit(train, depth, batch=batch, seed=seed)
    tested = _SplitCounts(rates, train, test, depth, batch, scored)
    report: dict[str, Any] = {
        "deviance_average": tested.deviance_of_average(),
        "deviance_neighbors": tested.deviance(None),
        "scored_cells": len(scored),
    }
    network = BasePredictors(model, genes, base_rate(train, model, genes), None)
    report["deviance_network"] = tested.deviance(network)
    if tested.gain(report) > NETWORK_MARGIN / 2 and adapt_steps:
        values, own_depth = genes.model_input(train, depth)
        source = CellSource("cells", values, genes.genes, np.full(len(depth), ""), own_depth)
        adapted = adapt_rates(model, source, steps=adapt_steps, seed=seed, verbose=verbose)
        report["adapt"] = adapted.report
        if adapted.report["used"]:
            network = BasePredictors(adapted.model, genes, network.base, None)
            report["deviance_network"] = tested.deviance(network)
    used = tested.gain(report) >= NETWORK_MARGIN
    report["network"] = "used" if used else "skipped"
    say(
        f"Deviance of split counts of {len(scored)} cells, all entries: {report['deviance_average']:.1f} per cell by gene "
        f"average, {report['deviance_neighbors']:.1f} by neighbors, {report['deviance_network']:.1f} with the network, which is "
        f"{report['network']} (margin {100 * NETWORK_MARGIN:.0f}%).",
        verbose,
    )
    return network.model if used else None, report


@dataclass
class _SplitCounts:
    """Split counts of some cells, and the neighborhoods fitted to the first part."""

    rates: HierarchicalRates
    train: sparse.csr_matrix
    test: sparse.csr_matrix
    depth: np.ndarray
    batch: np.ndarray | None
    scored: np.ndarray

    def deviance(self, network: BasePredictors | None) -> float:
        """Mean deviance per cell of the second part, with the network as the root or without it."""
        rows = self.scored
        batch = None if self.batch is None else self.batch[rows]
        prior = None
        rates = self.rates
        if network is not None:
            prior = network_rates(network, self.train[rows], self.depth[rows])
            rates = rates.refit(rows, self.batch, prior)
        found = rates.posterior(self.train[rows], self.depth[rows], rows, batch, prior)
        return self._of(found.mean)

    def deviance_of_average(self) -> float:
        """The same of the average rates."""
        return self._of(np.broadcast_to(self.rates.average, self.test[self.scored].shape))

    def _of(self, rate: np.ndarray) -> float:
        second = self.test[self.scored]
        # Expected totals of the second part, not the ones that were drawn: these are not known to a prediction.
        depth = self.depth[self.scored] * self.test.sum() / self.train.sum()
        return float(poisson_deviance(second, rate * depth[:, None]).mean())

    @staticmethod
    def gain(report: dict[str, Any]) -> float:
        """Share of the deviance that the network removes."""
        return 1 - report["deviance_network"] / report["deviance_neighbors"]


def _some(number: int, most: int, seed: int) -> np.ndarray:
    if number <= most:
        return np.arange(number)
    return np.sort(np.random.default_rng(seed).choice(number, most, replace=False))


def _whole(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """The nearest whole counts, for counts that were corrected or taken back from logarithms."""
    out = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    out.data = np.rint(out.data)
    return out
