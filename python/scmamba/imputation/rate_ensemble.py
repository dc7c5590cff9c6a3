"""What the network says of a cell's genes, combined with what similar cells show: weights learnt on the user's own hidden counts.

Neighbours know the data set at hand, the network knows nuclei it was trained on; neither wins everywhere. A fifth of the counts is
hidden, every source says how frequent the hidden genes are, and a small mixer learns how far to believe each. It never sees which cell
or which gene it is judging, only what the sources say, so a few hundred cells suffice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ..data.masking import interleaved_values
from ..data.preprocess import CellReader
from ..data.values import SCALE, log1p_cp10k
from ..model import Model
from ..neighbors.batch_balanced import BatchBalancedKNN
from ..neighbors.rates import truncated_mean
from ..training.batches import CellSource
from ..training.objectives import gene_log_rate
from ..utils.progress import say, track
from .adaptation import adapt_rates

#: With fewer cells there are no neighbours to speak of and nothing to learn weights from.
MIN_CELLS = 100
#: CellReader neighbours are looked for among, at most: a random sample of larger data.
MAX_POOL = 10_000
#: Neighbours pooled, and how many counts' worth of the average gene each pool is mixed with.
POOLS = ((8, 2000.0), (30, 5000.0), (100, 10_000.0), (200, 20_000.0))
#: Leading components a cell's values are rebuilt from.
RANKS = (10, 50)
#: Variance beyond Poisson, as in training (see RateConfig.spread).
SPREAD = 0.2
_HIDDEN = 5  # one value in five is hidden while the weights are learnt
_FIT_CELLS = 1500  # cells the weights are learnt on, at most
_AMONG = 30  # neighbours from all batches that a cell's components are averaged over
_FLOOR = 0.02  # log values below it are noise of the rebuilding


class GatingNetwork(nn.Module):
    """(n, F) what the sources say -> (n, 2): log factor of the gene's frequency, and the same for a count known not to be zero."""

    def __init__(self, sources: int, width: int = 24) -> None:
        super().__init__()
        self.linear = nn.Linear(sources, 2)
        last = nn.Linear(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(sources, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )
        for weight in (*self.linear.parameters(), *last.parameters()):
            nn.init.zeros_(
                weight
            )  # nobody is believed before anything was seen: the gene's average

    def forward(self, x: Tensor) -> Tensor:
        """Logs of two factors over the gene's average frequency."""
        return self.linear(x) + self.mlp(x)


@dataclass
class Prediction:
    """Answers for a block of cells, (r, n_vars) float32.

    Attributes
    ----------
    rate
        Share of the cell's counts expected to be the gene's.
    value
        log1p(CP10k) expected if the gene was counted at all: what a hidden non-zero value most likely is.
    """

    rate: np.ndarray
    value: np.ndarray


@dataclass
class GeneMap:
    """Columns of the data that the network knows.

    ``gather`` (n_vars, m) 0/1 sums the rows of one gene, ``columns`` (m,) says where its answer goes, ``genes`` (m,) its position in
    the vocabulary.
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
    """Everything that has an opinion on a gene of a cell: the network, neighbours of several reaches, leading components.

    ``base`` (n_vars,) is the log average frequency all features are relative to. On genes the network does not know it has no opinion.
    """

    model: Model
    map: GeneMap
    base: np.ndarray
    pool: BatchBalancedKNN | None

    @property
    def number(self) -> int:
        """How many features there are, F."""
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
        """(F, r, n_vars) float32. ``own`` (r,) says which member of the pool each cell is (-1: none), so that it is not its own
        neighbour; ``batch`` (r,) of which batch it is, where neighbours are to come from all of them.
        """
        assert self.pool is not None
        out = np.empty((self.number, *counts.shape), dtype=np.float32)
        out[0] = self.network(counts, totals)
        scores = self.pool.project(counts, totals)
        nearest = self.pool.query(scores, max(k for k, _ in POOLS), own, batch)
        if batch is not None:  # where the cell lies among all batches, not where its own lies
            scores = self.pool.scores[nearest[:, :_AMONG]].mean(axis=1)
        for i, rate in enumerate(self.pool.rates(nearest, POOLS, np.exp(self.base)), start=1):
            out[i] = np.log(np.maximum(rate, 1e-12)) - self.base
        level = np.log(self.pool.mean_value + _FLOOR)
        for i, rank in enumerate(RANKS, start=1 + len(POOLS)):
            out[i] = (
                np.log(np.maximum(self.pool.reconstruct_from_pcs(scores, rank), 0) + _FLOOR) - level
            )
        out[-2] = (self.base + 9) / 2
        out[-1] = (np.log(np.maximum(totals, 1)) - 8)[:, None]
        return out


@dataclass
class RateEnsemble:
    """The sources and the learnt mixer (``None``: too few cells, the network answers alone).

    ``report`` says how well each source did on hidden counts of cells the weights were not learnt on.
    """

    sources: BasePredictors
    mixer: GatingNetwork | None
    report: dict[str, Any] = field(default_factory=dict)

    def expect(
        self,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
    ) -> Prediction:
        """Expected frequencies and values of all genes in some cells, a few dozen at a time; ``own``, ``batch`` as in :class:`BasePredictors`."""
        depth = np.maximum(totals, 1.0)[:, None]
        base = self.sources.base.astype(np.float32)
        if self.mixer is None:
            log_rate = log_counted = self.sources.network(counts, totals) + base
        else:
            log_rate, log_counted = (
                self._mix(self.sources.features(counts, totals, own, batch)) + base
            )
        return Prediction(np.minimum(np.exp(log_rate), 1.0), value_if_counted(log_counted, depth))

    def _mix(self, features: np.ndarray) -> np.ndarray:
        """(F, r, n_vars) -> (2, r, n_vars) float32."""
        assert self.mixer is not None
        flat = torch.from_numpy(features.reshape(len(features), -1))
        answer = np.empty((2, flat.shape[1]), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, flat.shape[1], 1 << 18):
                part = flat[:, start : start + (1 << 18)].T.contiguous()
                answer[:, start : start + (1 << 18)] = self.mixer(part).T.numpy()
        return answer.reshape(2, *features.shape[1:])


def given_zero(rate: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """(r, m) expected frequency once the gene was looked for and not found: a zero in a deep cell says more than in a shallow one.

    Posterior mean of a gamma prior around ``rate`` whose counts have variance ``mu + SPREAD mu^2``.
    """
    return rate / (1 + SPREAD * rate * totals[:, None])


def value_if_counted(log_rate: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """log1p(CP10k) of the zero-truncated Poisson mean of a rate in a cell of this depth."""
    mu = np.exp(np.minimum(log_rate, 0.0)) * totals
    return np.log1p(SCALE / totals * truncated_mean(mu)).astype(np.float32)


def base_rate(counts: sparse.csr_matrix, model: Model, genes: GeneMap) -> np.ndarray:
    """(n_vars,) log average frequencies: the data's, a few counts' worth of the model's mixed in for genes hardly ever seen."""
    seen = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    prior = np.full(len(seen), np.log(1e-7))
    prior[genes.columns] = model.gene_log_rate(genes.genes)
    return gene_log_rate(seen, prior)


def fit_rate_ensemble(
    model: Model,
    counts: sparse.csr_matrix,
    totals: np.ndarray,
    genes: GeneMap,
    *,
    batch: np.ndarray | None = None,
    adapt: bool | int = True,
    seed: int = 0,
    verbose: bool = True,
) -> RateEnsemble:
    """Adapt the network to these cells and learn how far to believe it and the neighbours.

    The hidden fifth is out of sight of the adaptation too: weights learnt on what the network has been trained on would trust it
    too far.

    Parameters
    ----------
    counts, totals, genes
        (n, n_vars) counts of some cells, their (n,) depths, and which of the columns the model knows. With fewer than
        :data:`MIN_CELLS` cells nothing is learnt and the network answers alone.
    batch
        (n,) code of each cell's donor or library, if neighbours are to come from all of them in turn.
    adapt
        Whether, or for how many steps, the network is adapted first (:func:`adapt_rates`).

    Returns
    -------
    A :class:`RateEnsemble` whose neighbours are these cells with nothing hidden.
    """
    if counts.shape[0] < MIN_CELLS:
        say(
            f"{counts.shape[0]} cells are too few to learn from (at least {MIN_CELLS}): the network answers as it is, alone",
            verbose,
        )
        sources = BasePredictors(model, genes, base_rate(counts, model, genes), None)
        return RateEnsemble(
            sources, None, {"adapt": {"used": False, "reason": f"fewer than {MIN_CELLS} cells"}}
        )
    rng = np.random.default_rng(seed)
    visible, hidden = interleaved_values(counts, _HIDDEN, seed)
    report: dict[str, Any] = {}
    if adapt:
        values, depth = genes.model_input(visible, totals)
        source = CellSource("cells", values, genes.genes, np.full(len(depth), ""), depth)
        adapted = adapt_rates(
            model, source, steps=None if adapt is True else int(adapt), seed=seed, verbose=verbose
        )
        model, report["adapt"] = adapted.model, adapted.report
    base = base_rate(visible, model, genes)
    cells = np.arange(counts.shape[0])
    if len(cells) > _FIT_CELLS:
        cells = np.sort(rng.choice(cells, _FIT_CELLS, replace=False))
    sources = BasePredictors(
        model,
        genes,
        base,
        BatchBalancedKNN(visible, totals, components=max(RANKS), seed=seed, batch=batch),
    )
    table = TrainingEntries.draw(sources, visible, hidden, totals, cells, rng, batch, verbose)
    judged = np.isin(table.cell, rng.permutation(cells)[: max(10, len(cells) // 10)])
    mixer = _fit_gating(table.take(~judged), seed)
    report |= _evaluate(mixer, table.take(judged))
    say(
        f"squared error of hidden counts in {report['judged_cells']} cells left out: gene average x depth {report['gene_average']:.4f}, "
        f"network {report['network']:.4f}, neighbours {report['neighbours']:.4f}, combined {report['combined']:.4f}",
        verbose,
    )
    pool = BatchBalancedKNN(counts, totals, components=max(RANKS), seed=seed, batch=batch)
    full = BasePredictors(model, genes, base_rate(counts, model, genes), pool)
    return RateEnsemble(full, mixer, report)


@dataclass
class TrainingEntries:
    """Hidden counts and a sample of zeros: (n, F) features, counts, weights, log averages, depths and cells."""

    features: np.ndarray
    count: np.ndarray
    weight: np.ndarray
    base: np.ndarray
    depth: np.ndarray
    cell: np.ndarray

    def take(self, keep: np.ndarray) -> TrainingEntries:
        """Only the entries that ``keep`` selects."""
        return TrainingEntries(
            *(
                getattr(self, name)[keep]
                for name in ("features", "count", "weight", "base", "depth", "cell")
            )
        )

    @classmethod
    def draw(
        cls,
        sources: BasePredictors,
        visible: sparse.csr_matrix,
        hidden: sparse.csr_matrix,
        totals: np.ndarray,
        cells: np.ndarray,
        rng: np.random.Generator,
        batch: np.ndarray | None,
        verbose: bool,
    ) -> TrainingEntries:
        """As many zeros as hidden counts, weighted to stand for a hidden share of all zeros."""
        parts: list[tuple[np.ndarray, ...]] = []
        parts_of_cells = np.array_split(cells, max(1, len(cells) // 64))
        for rows in track(
            parts_of_cells, "Weighing network and neighbours", len(parts_of_cells), verbose
        ):
            features = sources.features(
                visible[rows], totals[rows], rows, None if batch is None else batch[rows]
            )
            at = hidden[rows].tocoo()
            shown = visible[rows].toarray() > 0
            shown[at.row, at.col] = True
            zero = np.flatnonzero(~shown.ravel())
            drawn = rng.choice(zero, min(len(zero), max(at.nnz, 1)), replace=False)
            i = np.concatenate([at.row, drawn // shown.shape[1]])
            j = np.concatenate([at.col, drawn % shown.shape[1]])
            count = np.concatenate([at.data, np.zeros(len(drawn))])
            weight = np.concatenate(
                [np.ones(at.nnz), np.full(len(drawn), len(zero) / _HIDDEN / max(len(drawn), 1))]
            )
            parts.append(
                (features[:, i, j].T, count, weight, sources.base[j], totals[rows][i], rows[i])
            )
        return cls(*(np.concatenate(column) for column in zip(*parts)))


def _fit_gating(
    table: TrainingEntries, seed: int, epochs: int = 8, batch: int = 8192
) -> GatingNetwork:
    """Negative binomial likelihood for the frequency, squared error of log values for what a hidden count is."""
    columns = (table.features, table.count, table.weight, table.base, table.depth)
    x, y, weight, base, depth = (
        torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in columns
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixer = GatingNetwork(x.shape[1])
        steps = max(300, epochs * (len(y) // batch + 1))
        optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        for _ in range(steps):
            i = torch.randint(0, len(y), (min(batch, len(y)),))
            loss = _loss(mixer(x[i]) + base[i, None], y[i], weight[i], depth[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return mixer.eval()


def _loss(log_rate: Tensor, y: Tensor, weight: Tensor, depth: Tensor) -> Tensor:
    log_mu = log_rate + depth.log()[:, None]
    frequency = weight * (
        (y + 1 / SPREAD) * torch.log1p(SPREAD * log_mu[:, 0].exp()) - y * log_mu[:, 0]
    )
    mu = log_mu[:, 1].exp()
    mean = torch.where(mu > 1e-4, mu / -torch.expm1(-mu.clamp(min=1e-4)), 1 + mu / 2)
    error = (torch.log1p(SCALE / depth * mean) - torch.log1p(SCALE / depth * y)) ** 2
    return (frequency.sum() + (error * (y > 0)).sum()) / (y > 0).sum().clamp(min=1)


def _evaluate(mixer: GatingNetwork, table: TrainingEntries) -> dict[str, Any]:
    """Squared error of log values, each source alone and all together."""
    table = table.take(table.count > 0)
    depth, truth = table.depth, np.log1p(SCALE / table.depth * table.count)

    def error(log_factor: np.ndarray | float) -> float:
        return float(np.mean((value_if_counted(table.base + log_factor, depth) - truth) ** 2))

    with torch.inference_mode():
        combined = mixer(torch.from_numpy(np.ascontiguousarray(table.features))).numpy()[:, 1]
    return {
        "gene_average": error(0.0),
        "network": error(table.features[:, 0]),
        "neighbours": error(table.features[:, 2]),
        "combined": error(combined),
        "judged_cells": int(len(np.unique(table.cell))),
        "judged_values": int(len(truth)),
    }
