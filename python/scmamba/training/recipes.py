"""Recipes: masked-expression pre-training and imputation fine-tuning (paper, Methods; spec "Pre-training", "Fine-tuning")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import ScMambaError
from ..data.collection import Collection
from ..genes import Vocabulary
from ..model import Model, ModelConfig, ScMamba, load_model
from .engine import Loss, Share, SharedStep, several_processes, training_device
from .feeds import SourceFeed, open_feed, open_held_out, reconstruction
from .loop import LoopConfig, Step, Validate, fit
from .rates import RateConfig, rate_step, rate_validation, remember_rates
from .sequences import SequenceConfig, Source, draw_batch

if TYPE_CHECKING:
    from anndata import AnnData

#: Hidden shares of the two recipes (paper, Methods).
PRETRAIN = SequenceConfig(mask_nonzero=0.15, mask_zero=0.0)
IMPUTE = SequenceConfig(mask_nonzero=0.4, mask_zero=0.04)


def reconstruction_loss(network: ScMamba, source: Source, rows: np.ndarray, sequence: SequenceConfig, rng: np.random.Generator) -> Tensor:
    """Weighted mean squared error at the hidden positions of some cells (paper, Methods)."""
    batch = draw_batch(source, rows, sequence, network.config.reads, rng)
    device = next(network.parameters()).device
    x, mask = batch.x.to(device), batch.mask.to(device)
    genes: Tensor | None = batch.genes.to(device)
    keep = None if batch.keep is None else batch.keep.to(device)
    if keep is None:
        # A published model reads every gene of its vocabulary; those that were not measured are zeros.
        x, mask, weight = (_every_gene(v, batch.genes, network.config.n_genes) for v in (x, mask, batch.weight.to(device)))
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


def reconstruction_step(sources: Sequence[Source], sequence: SequenceConfig, config: LoopConfig) -> Step:
    """A step that draws a source by its number of cells, then cells of it."""
    return reconstruction(SourceFeed(sources), sequence, config)


def validation(sources: Sequence[Source], sequence: SequenceConfig, cells: int = 64, seed: int = 12345):
    """A function of the network: loss at the same hidden positions of the same held-out cells every time."""

    def validate(network: nn.Module) -> dict[str, float]:
        losses = []
        with torch.no_grad():
            for source in sources:
                rng = np.random.default_rng(seed)
                rows = np.sort(rng.choice(len(source), min(cells, len(source)), replace=False))
                rows = source.by_length[rows]
                parts = np.array_split(rows, max(1, len(rows) // 8))
                losses += [float(reconstruction_loss(network, source, part, sequence, rng)) for part in parts]  # type: ignore[arg-type]
        return {"validation_loss": float(np.mean(losses))}

    return validate


def pretrain(
    data: Collection | Sequence[str | PathLike[str] | AnnData],
    *,
    config: ModelConfig | None = None,
    vocabulary: Vocabulary | None = None,
    loop: LoopConfig | None = None,
    sequence: SequenceConfig = PRETRAIN,
    held_out: Collection | Sequence[str | PathLike[str] | AnnData] = (),
    folder: str | PathLike[str] | None = None,
    name: str = "pretrained",
    seed: int = 0,
    force: bool = False,
    verbose: bool = True,
) -> Model:
    """Pre-train a network from nothing by masked-expression modelling.

    Parameters
    ----------
    data, held_out
        A :class:`~scmamba.data.collection.Collection`, filtered and split as it is to be used; or h5ad files or AnnData objects of raw
        counts, read into memory. For training and for the validation loss (other donors).
    config
        Sizes; default the published ones. ``vocabulary`` defaults to the published genes.
    folder
        Keeps the state, so that a stopped run goes on where it was.

    Returns
    -------
    The trained model (see :func:`scmamba.model.save_checkpoint`).

    Raises
    ------
    ScMambaError
        Data that cannot be read or do not fit the vocabulary.
    """
    vocabulary = vocabulary or Vocabulary.published()
    config = config or ModelConfig(n_genes=len(vocabulary))
    loop = replace(loop or LoopConfig(), seed=seed)
    feed = open_feed(data, vocabulary, seed=seed, reads=config.reads, force=force)
    others = open_held_out(held_out, vocabulary, force=force)
    torch.manual_seed(seed)
    model = Model(ScMamba(replace(config, n_genes=len(vocabulary), name=name)), vocabulary)
    model.network.to(training_device())
    validate = validation(others, sequence) if others else None
    fit(
        model.network,
        reconstruction(feed, sequence, loop),
        loop,
        folder=folder,
        description="Pre-training",
        verbose=verbose,
        validate=validate,
    )
    return model


def finetune(
    data: Collection | Sequence[str | PathLike[str] | AnnData],
    *,
    model: str | PathLike[str] | Model | None = None,
    task: str = "impute",
    loop: LoopConfig | None = None,
    sequence: SequenceConfig = IMPUTE,
    held_out: Collection | Sequence[str | PathLike[str] | AnnData] = (),
    min_total: float = 200,
    folder: str | PathLike[str] | None = None,
    name: str | None = None,
    seed: int = 0,
    force: bool = False,
    verbose: bool = True,
) -> Model:
    """Fine-tune a pre-trained model; the whole network trains.

    ``task`` is ``impute`` (the mask token is kept), ``annotate`` (the cells' labels) or ``doublets`` (simulated within donors; both in
    :func:`scmamba.training.classes.finetune_classes`, which has more options). ``min_total`` 4000 is the paper's choice of training cells
    for imputation; brain nuclei of other studies rarely reach it, so the default is that of pre-training. Other parameters
    as in :func:`pretrain`.

    Raises
    ------
    ScMambaError
        Unknown task; data or model that do not fit.
    """
    if task not in ("impute", "annotate", "doublets"):
        raise ScMambaError(f"The task '{task}' is not known; choose impute, annotate or doublets.")
    if task != "impute":
        from .classes import finetune_classes

        start = load_model(model, device=training_device() if several_processes() else None)
        cells, rest = (_as_collection(files, start.genes, min_total, force) for files in (data, held_out))
        if cells is None:
            raise ScMambaError("There is nothing to train on: no file was given.")
        return finetune_classes(task, cells, model=start, loop=replace(loop or LoopConfig(lr=1e-4), seed=seed), sequence=sequence,
                                held_out=rest, folder=folder, name=name, verbose=verbose)  # fmt: skip
    loop = replace(loop or LoopConfig(lr=1e-4), seed=seed)
    opened = clone(load_model(model, device=training_device() if several_processes() else None), name)
    feed = open_feed(data, opened.genes, seed=seed, reads=opened.config.reads, min_total=min_total, force=force)
    others = open_held_out(held_out, opened.genes, force=force)
    validate = validation(others, sequence) if others else None
    step: Step = reconstruction(feed, sequence, loop)
    if opened.config.rates:
        remember_rates(opened.network, feed.averages())
        rates = rate_step(feed, RateConfig(), loop)
        step = in_turn(rates, rates, rates, step)  # a masked step costs three times as much and serves one method only
        validate = both(rate_validation(others, RateConfig()), validation(others, sequence)) if others else None
    fit(
        opened.network,
        step,
        loop,
        folder=folder,
        description="Fine-tuning",
        verbose=verbose,
        validate=validate,
    )
    return opened


def finetune_on(
    adata: AnnData,
    *,
    model: str | PathLike[str] | Model | None = None,
    steps: int = 1000,
    name: str | None = None,
    seed: int = 0,
    force: bool = False,
    verbose: bool = True,
) -> tuple[Model, str]:
    """Fine-tune for imputation on one object, every cell of it; R's ``ScMambaFineTune``, here or on a server.

    Returns the model and the text of its card, for :func:`scmamba.save_checkpoint`.

    Raises
    ------
    ScMambaError
        Data or model that do not fit.
    """
    start = load_model(model)
    loop = LoopConfig(steps=steps, lr=1e-3, warmup=0.05)
    tuned = finetune([adata], model=start, loop=loop, min_total=1, name=name, seed=seed, force=force, verbose=verbose)
    card = (
        f"Fine-tuned for imputation on {adata.n_obs:,} cells of the user, {steps:,} steps, from {start.config.name}. "
        "Not evaluated on other data.\n"
    )
    return tuned, card


def _as_collection(
    files: Collection | Sequence[str | PathLike[str] | AnnData], vocabulary: Vocabulary, min_total: float, force: bool
) -> Collection | None:
    if isinstance(files, Collection) or not len(files):
        return files if isinstance(files, Collection) else None
    return Collection(files, vocabulary=vocabulary, force=force, verbose=False).filter(min_total=min_total, min_donor_cells=0)


def in_turn(*steps: Step) -> Step:
    """Several objectives, one a step, round and round."""

    def draw(network: nn.Module, k: int, rng: np.random.Generator, share: Share) -> Loss:
        step = steps[k % len(steps)]
        if isinstance(step, SharedStep):
            return step.draw(network, k, rng, share)
        loss = step(network, k, rng)
        return Loss(loss, torch.ones_like(loss))

    return SharedStep(draw)


def both(rates: Validate, values: Validate) -> Validate:
    """The validation of the rate head and of the masked predictions side by side."""

    def validate(network: nn.Module) -> dict[str, float]:
        return {"validation_loss": rates(network)["validation_loss"], "validation_squared_error": values(network)["validation_loss"]}

    return validate


def clone(model: Model, name: str | None = None) -> Model:
    """A copy whose weights can be trained while the original stays as it is."""
    network = ScMamba(replace(model.config, name=name or model.config.name)).to(model.device)
    network.load_state_dict(model.network.state_dict())
    network.to(next(model.network.parameters()).dtype)
    network.backend = model.network.backend
    return Model(network, model.genes, model.labels, model.card)
