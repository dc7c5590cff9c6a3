"""The depth-aware objective: mask some of a cell's genes and predict how often each is counted, given the rest.

The squared error of log values, as published, mostly rewards knowing a cell's depth (a count of one is log1p(1e4 / total)). Here the
cell's total is an offset and the gene's overall frequency a baseline, so what remains to be predicted is how this cell differs
from the average. One reading of the cell's visible genes predicts all others at once: no mask tokens, no passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from ..data.values import SCALE
from ..nn import ScMamba
from .batches import CellSource, pad
from .dataloaders import BatchSource, InMemorySource, sum_losses
from .distributed import BatchShard, Loss, ShardedStep
from .trainer import TrainerConfig, Validate

#: Counts' worth of a prior mixed into gene frequencies: a gene never counted is rare, not impossible.
_PRIOR = 50_000.0


@dataclass(frozen=True)
class RateConfig:
    """What one step of the depth-aware objective masks.

    Attributes
    ----------
    hidden
        Share of a cell's genes that is masked, drawn uniformly between these two numbers.
    genes_per_step
        At most this many visible genes are read, a random subset if there are more; 0 for no limit.
    spread
        Variance of a count beyond Poisson, ``mu + spread * mu**2``: keeps a few very frequent genes from drowning the rest.
    """

    hidden: tuple[float, float] = (0.1, 0.5)
    genes_per_step: int = 1536
    spread: float = 0.2


def gene_log_rate(counts: np.ndarray, prior: np.ndarray | None = None) -> np.ndarray:
    """(m,) total counts per gene -> (m,) log share of all counts, finite for genes never counted.

    ``prior`` (m,) log shares of which 50,000 counts' worth is mixed in; default a thousandth of the counts spread evenly.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if prior is None:
        mixed = counts + 1e-3 * max(counts.sum(), 1.0) / max(len(counts), 1)
    else:
        share = np.exp(prior)
        mixed = counts + _PRIOR * share / share.sum()
    return np.log(mixed / mixed.sum())


def source_counts(source: CellSource) -> np.ndarray:
    """(m,) counts of each gene over all cells of the source."""
    counts = np.expm1(source.values.data.astype(np.float64))
    counts *= np.repeat(source.totals / SCALE, np.diff(source.values.indptr))
    return np.bincount(source.values.indices, weights=counts, minlength=len(source.genes))


def source_log_rate(source: CellSource) -> np.ndarray:
    """(m,) log share of the source's counts that each of its genes has."""
    return gene_log_rate(source_counts(source))


def store_gene_rates(network: ScMamba, sources: Sequence[CellSource]) -> None:
    """Keep the genes' average frequencies, each source with the same weight, for data too few to have averages of their own."""
    share = torch.full_like(network.gene_log_rate, 1e-7)
    for source in sources:
        share[torch.from_numpy(source.genes)] += torch.from_numpy(
            np.exp(source_log_rate(source))
        ).to(share) / len(sources)
    network.gene_log_rate.copy_((share / share.sum()).log())


def rate_loss(
    network: ScMamba,
    source: CellSource,
    base: Tensor,
    rows: np.ndarray,
    config: RateConfig,
    rng: np.random.Generator,
) -> Tensor:
    """Negative binomial deviance (up to a constant) of the masked counts and zeros of some cells, per masked count."""
    loss = rate_sums(network, source, base, rows, config, [rng] * len(rows))
    return loss.total / loss.weight.clamp(min=1.0)


def rate_sums(
    network: ScMamba,
    source: CellSource,
    base: Tensor,
    rows: np.ndarray,
    config: RateConfig,
    generators: Sequence[np.random.Generator],
) -> Loss:
    """The deviance of some cells and their number of masked counts; the masked genes of a cell are drawn by its own generator."""
    device = next(network.parameters()).device
    shown, cells, columns, counts, share, depth = [], [], [], [], [], []
    for i, (row, rng) in enumerate(zip(rows, generators)):
        span = slice(source.values.indptr[row], source.values.indptr[row + 1])
        on, values = source.values.indices[span], source.values.data[span]
        p = rng.uniform(*config.hidden)
        hide = rng.random(len(on)) < p
        seen = np.flatnonzero(~hide)
        if config.genes_per_step and len(seen) > config.genes_per_step:
            seen = np.sort(rng.choice(seen, config.genes_per_step, replace=False))
        nothing = np.zeros(len(seen), dtype=bool)
        shown.append((on[seen], values[seen], nothing, nothing))
        cells.append(np.full(len(on), i))
        columns.append(on)
        counted = np.expm1(values.astype(np.float64)) * source.totals[row] / SCALE
        counts.append(np.where(hide, counted, -1.0))
        depth.append(
            counted.sum()
        )  # what can be counted here; the total that scales the input may be larger
        share.append(p)
    batch = pad(shown, source.genes)
    keep = None if batch.keep is None else batch.keep.to(device)
    decoded = torch.from_numpy(source.genes).to(device)
    ratio = network.log_ratio(batch.x.to(device), batch.genes.to(device), keep, decoded)
    total = torch.tensor(depth, dtype=torch.float32, device=device).clamp(min=1e-6)
    log_mu = torch.log_softmax(base.to(device) + ratio, dim=1) + total.log()[:, None]
    return _deviance(
        log_mu,
        np.concatenate(cells),
        np.concatenate(columns),
        np.concatenate(counts),
        np.array(share),
        config.spread,
    )


def _deviance(
    log_mu: Tensor,
    cells: np.ndarray,
    columns: np.ndarray,
    counts: np.ndarray,
    share: np.ndarray,
    spread: float,
) -> Loss:
    """``counts`` -1 where the gene was visible; a zero is masked with the probability ``share`` of its cell, so it counts by that share."""
    device = log_mu.device
    at = torch.from_numpy(cells).to(device), torch.from_numpy(columns.astype(np.int64)).to(device)
    y = torch.from_numpy(counts).to(device, torch.float32)
    weight = torch.from_numpy(share).to(device, torch.float32)
    absent = torch.log1p(spread * log_mu.exp()) / spread
    loss = (weight[:, None] * absent).sum() - (weight[at[0]] * absent[at]).sum()
    hidden, here, expected = y >= 0, log_mu[at], absent[at]
    # -log NB = (y + 1/spread) log(1 + spread mu) - y log mu, constants omitted
    loss = (
        loss
        + torch.where(
            hidden, (y + 1 / spread) * spread * expected - y * here, torch.zeros_like(y)
        ).sum()
    )
    return Loss(loss, y.clamp(min=0).sum())


def nb_rate_step(
    data: BatchSource | Sequence[CellSource],
    config: RateConfig,
    loop: TrainerConfig,
    bases: Sequence[Tensor] | None = None,
) -> ShardedStep:
    """A step on the cells of a feed, or of sources; ``bases`` (m,) log average rates of each source, default its own."""
    feed: BatchSource = InMemorySource(data) if isinstance(data, Sequence) else data
    known = (
        list(bases)
        if bases is not None
        else [torch.from_numpy(source_log_rate(s)).float() for s in feed.pseudobulk()]
    )

    def draw(network: nn.Module, k: int, rng: np.random.Generator, share: BatchShard) -> Loss:
        losses = []
        for part in feed.draw(k, loop.batch_size * share.whole, rng, share):
            own = [np.random.default_rng([loop.seed, k, *key]) for key in part.keys]
            losses.append(
                rate_sums(network, part.source, known[part.number], part.rows, config, own)  # type: ignore[arg-type]
            )
        return sum_losses(losses, network)

    return ShardedStep(draw)


def rate_validation(
    sources: Sequence[CellSource],
    config: RateConfig,
    cells: int = 128,
    seed: int = 12345,
    bases: Sequence[Tensor] | None = None,
) -> Validate:
    """A function of the network: the loss at the same masked counts of the same held-out cells every time, a fifth of the genes masked."""
    fixed = replace(config, hidden=(0.2, 0.2), genes_per_step=0)
    known = (
        list(bases)
        if bases is not None
        else [torch.from_numpy(source_log_rate(s)).float() for s in sources]
    )

    def validate(network: nn.Module) -> dict[str, float]:
        losses = []
        with torch.no_grad():
            for source, base in zip(sources, known):
                rng = np.random.default_rng(seed)
                rows = source.by_length[
                    np.sort(rng.choice(len(source), min(cells, len(source)), replace=False))
                ]
                parts = np.array_split(rows, max(1, len(rows) // 16))
                losses += [
                    float(rate_loss(network, source, base, part, fixed, rng))  # type: ignore[arg-type]
                    for part in parts  # type: ignore[arg-type]
                ]
        return {"validation_loss": float(np.mean(losses))}

    return validate
