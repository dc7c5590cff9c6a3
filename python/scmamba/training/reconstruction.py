"""Recipes: masked-expression pre-training and imputation fine-tuning (paper, Methods)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..data.collection import Collection
from ..genes import Vocabulary
from ..model import Model
from ..nn import ScMamba
from .batches import CellSource, SequenceConfig, make_batch
from .dataloaders import InMemorySource, reconstruction
from .distributed import BatchShard, Loss, ShardedStep
from .trainer import Step, TrainerConfig, Validate

if TYPE_CHECKING:
    from anndata import AnnData

#: Masked shares of the two recipes (paper, Methods).
PRETRAIN = SequenceConfig(mask_nonzero=0.15, mask_zero=0.0)
IMPUTE = SequenceConfig(mask_nonzero=0.4, mask_zero=0.04)


def reconstruction_loss(
    network: ScMamba,
    source: CellSource,
    rows: np.ndarray,
    sequence: SequenceConfig,
    rng: np.random.Generator,
) -> Tensor:
    """Weighted mean squared error at the masked positions of some cells (paper, Methods)."""
    batch = make_batch(source, rows, sequence, network.config.reads, rng)
    device = next(network.parameters()).device
    x, mask = batch.x.to(device), batch.mask.to(device)
    genes: Tensor | None = batch.genes.to(device)
    keep = None if batch.keep is None else batch.keep.to(device)
    if keep is None:
        # A published model reads every gene of its vocabulary; those that were not measured are zeros.
        x, mask, weight = (
            _every_gene(v, batch.genes, network.config.n_genes)
            for v in (x, mask, batch.weight.to(device))
        )
        genes = None
    else:
        weight = batch.weight.to(device)
    error = (network.reconstruct(x, mask, genes, keep) - x) ** 2
    weight = weight * mask
    return (error * weight).sum() / weight.sum().clamp(min=1e-6)


def _every_gene(values: Tensor, genes: Tensor, n_genes: int) -> Tensor:
    """(B, m) at some genes -> (B, L), zero elsewhere."""
    if len(genes) == n_genes:
        return values
    whole = torch.zeros(len(values), n_genes, dtype=values.dtype, device=values.device)
    whole[:, genes] = values
    return whole


def reconstruction_step(
    sources: Sequence[CellSource], sequence: SequenceConfig, config: TrainerConfig
) -> Step:
    """A step that draws a source by its number of cells, then cells of it."""
    return reconstruction(InMemorySource(sources), sequence, config)


def validation(
    sources: Sequence[CellSource], sequence: SequenceConfig, cells: int = 64, seed: int = 12345
):
    """A function of the network: loss at the same masked positions of the same held-out cells every time."""

    def validate(network: nn.Module) -> dict[str, float]:
        losses = []
        with torch.no_grad():
            for source in sources:
                rng = np.random.default_rng(seed)
                rows = np.sort(rng.choice(len(source), min(cells, len(source)), replace=False))
                rows = source.by_length[rows]
                parts = np.array_split(rows, max(1, len(rows) // 8))
                losses += [
                    float(reconstruction_loss(network, source, part, sequence, rng))  # type: ignore[arg-type]
                    for part in parts
                ]
        return {"validation_loss": float(np.mean(losses))}

    return validate


def as_collection(
    files: Collection | Sequence[str | PathLike[str] | AnnData],
    vocabulary: Vocabulary,
    min_total: float,
    force: bool,
) -> Collection | None:
    """The files, paths or objects as one collection; a collection stays as it is."""
    if isinstance(files, Collection) or not len(files):
        return files if isinstance(files, Collection) else None
    return Collection(files, vocabulary=vocabulary, force=force, verbose=False).filter(
        min_total=min_total, min_donor_cells=0
    )


def alternate(*steps: Step) -> Step:
    """Several objectives, one a step, round and round."""

    def draw(network: nn.Module, k: int, rng: np.random.Generator, share: BatchShard) -> Loss:
        step = steps[k % len(steps)]
        if isinstance(step, ShardedStep):
            return step.draw(network, k, rng, share)
        loss = step(network, k, rng)
        return Loss(loss, torch.ones_like(loss))

    return ShardedStep(draw)


def combine_validations(rates: Validate, values: Validate) -> Validate:
    """The validation of the rate head and of the masked predictions side by side."""

    def validate(network: nn.Module) -> dict[str, float]:
        return {
            "validation_loss": rates(network)["validation_loss"],
            "validation_squared_error": values(network)["validation_loss"],
        }

    return validate


def clone(model: Model, name: str | None = None) -> Model:
    """A copy whose weights can be trained while the original stays as it is."""
    network = ScMamba(replace(model.config, name=name or model.config.name)).to(model.device)
    network.load_state_dict(model.network.state_dict())
    network.to(next(model.network.parameters()).dtype)
    network.backend = model.network.backend
    return Model(network, model.genes, model.labels, model.card)
