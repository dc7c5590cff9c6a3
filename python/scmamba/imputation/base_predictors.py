"""Base predictors of the rate ensemble: the network, nearest neighbors at several reaches, leading components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..data.preprocess import CellReader
from ..data.values import log1p_cp10k
from ..model import Model
from ..neighbors.batch_balanced import BatchBalancedKNN
from ..training.objectives import gene_log_rate

#: Neighbors pooled, and how many counts' worth of the average gene each pool is mixed with.
POOLS = ((8, 2000.0), (30, 5000.0), (100, 10_000.0), (200, 20_000.0))
#: Leading components a cell's values are rebuilt from.
RANKS = (10, 50)
#: Neighbors from all batches that a cell's components are averaged over.
BATCH_NEIGHBORS = 30
#: Rebuilt log values below it are noise.
FLOOR = 0.02


@dataclass
class GeneMap:
    """Columns of the data with genes in the network's vocabulary.

    Attributes
    ----------
    gather
        (n_vars, m) 0/1: sums the rows of one gene.
    columns
        (m,) columns of the data that receive the predictions.
    genes
        (m,) positions of the genes in the vocabulary.
    """

    gather: sparse.csr_matrix
    columns: np.ndarray
    genes: np.ndarray

    @classmethod
    def of(cls, cells: CellReader) -> GeneMap:
        """The map of cells read by :func:`scmamba.data.read_cells`."""
        return cls(cells.gather, cells.columns, cells.genes)

    def model_input(
        self, counts: sparse.csr_matrix, totals: np.ndarray
    ) -> tuple[sparse.csr_matrix, np.ndarray]:
        """(r, m) log1p(CP10k) of the network's genes, and its share (r,) of the depths."""
        ours = sparse.csr_matrix(counts @ self.gather)
        ours.sort_indices()
        seen = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1e-12)
        depth = totals * np.asarray(ours.sum(axis=1)).ravel() / seen
        return log1p_cp10k(ours, depth), depth


@dataclass
class BasePredictors:
    """Everything that predicts the rate of a gene in a cell.

    Attributes
    ----------
    model, map
        The network, and the columns of its genes; for other genes it predicts their average.
    base
        (n_vars,) log average rates, which all features are relative to.
    pool
        The cells among which nearest neighbors are searched; ``None``: no neighbors.
    """

    model: Model
    map: GeneMap
    base: np.ndarray
    pool: BatchBalancedKNN | None

    @property
    def number(self) -> int:
        """Number of features, F."""
        return 1 + len(POOLS) + len(RANKS) + 2

    def network(self, counts: sparse.csr_matrix, totals: np.ndarray) -> np.ndarray:
        """(r, n_vars) float32 log factors over ``base`` by the network alone; the rates of its genes keep their joint share."""
        values, _ = self.map.model_input(counts, totals)
        base = self.base[self.map.columns]
        logits = self.model.log_ratio(values, self.map.genes) + base
        top = logits.max(axis=1, keepdims=True)
        share = np.log(np.exp(base).sum())
        out = np.zeros(counts.shape, dtype=np.float32)
        out[:, self.map.columns] = (
            logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + share - base
        )
        return out

    def features(
        self,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
    ) -> np.ndarray:
        """What each base predictor predicts for some cells.

        Parameters
        ----------
        counts, totals
            (r, n_vars) visible counts of the cells and their (r,) depths.
        own
            (r,) the member of the pool that each cell is itself (-1: none), so that it is not its own neighbor.
        batch
            (r,) batch of each cell, where neighbors are balanced across batches.

        Returns
        -------
        (F, r, n_vars) float32.
        """
        assert self.pool is not None
        out = np.empty((self.number, *counts.shape), dtype=np.float32)
        out[0] = self.network(counts, totals)
        scores = self.pool.project(counts, totals)
        nearest = self.pool.query(scores, max(k for k, _ in POOLS), own, batch)
        if batch is not None:  # where the cell lies among all batches, not where its own lies
            scores = self.pool.scores[nearest[:, :BATCH_NEIGHBORS]].mean(axis=1)
        for i, rate in enumerate(self.pool.rates(nearest, POOLS, np.exp(self.base)), start=1):
            out[i] = np.log(np.maximum(rate, 1e-12)) - self.base
        level = np.log(self.pool.mean_value + FLOOR)
        for i, rank in enumerate(RANKS, start=1 + len(POOLS)):
            rebuilt = np.maximum(self.pool.reconstruct_from_pcs(scores, rank), 0)
            out[i] = np.log(rebuilt + FLOOR) - level
        out[-2] = (self.base + 9) / 2
        out[-1] = (np.log(np.maximum(totals, 1)) - 8)[:, None]
        return out


def base_rate(counts: sparse.csr_matrix, model: Model, genes: GeneMap) -> np.ndarray:
    """(n_vars,) log average rates: the data's, with some counts' worth of the model's for genes hardly ever counted."""
    seen = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    prior = np.full(len(seen), np.log(1e-7))
    prior[genes.columns] = model.gene_log_rate(genes.genes)
    return gene_log_rate(seen, prior)
