"""Fine-tuning for imputation and classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

from ..data.collection import Collection
from ..model import Model, load_model
from ..utils.errors import ScMambaError
from .batches import SequenceConfig
from .dataloaders import open_batch_source, open_held_out, reconstruction
from .distributed import is_distributed, training_device
from .objectives import RateConfig, nb_rate_step, rate_validation, store_gene_rates
from .reconstruction import IMPUTE, alternate, as_collection, clone, combine_validations, validation
from .trainer import Step, TrainerConfig, fit

if TYPE_CHECKING:
    from anndata import AnnData


def finetune(
    data: Collection | Sequence[str | PathLike[str] | AnnData],
    *,
    model: str | PathLike[str] | Model | None = None,
    task: str = "impute",
    loop: TrainerConfig | None = None,
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
    :func:`scmamba.training.finetune_classifier.finetune_classes`, which has more options). ``min_total`` 4000 is the paper's choice of training cells
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
        from .finetune_classifier import finetune_classes

        start = load_model(model, device=training_device() if is_distributed() else None)
        cells, rest = (
            as_collection(files, start.genes, min_total, force) for files in (data, held_out)
        )
        if cells is None:
            raise ScMambaError("There is nothing to train on: no file was given.")
        return finetune_classes(
            task,
            cells,
            model=start,
            loop=replace(loop or TrainerConfig(lr=1e-4), seed=seed),
            sequence=sequence,
            held_out=rest,
            folder=folder,
            name=name,
            verbose=verbose,
        )
    loop = replace(loop or TrainerConfig(lr=1e-4), seed=seed)
    opened = clone(load_model(model, device=training_device() if is_distributed() else None), name)
    feed = open_batch_source(
        data, opened.genes, seed=seed, reads=opened.config.reads, min_total=min_total, force=force
    )
    others = open_held_out(held_out, opened.genes, force=force)
    validate = validation(others, sequence) if others else None
    step: Step = reconstruction(feed, sequence, loop)
    if opened.config.rates:
        store_gene_rates(opened.network, feed.pseudobulk())
        rates = nb_rate_step(feed, RateConfig(), loop)
        step = alternate(
            rates, rates, rates, step
        )  # a masked step costs three times as much and serves one method only
        validate = (
            combine_validations(rate_validation(others, RateConfig()), validation(others, sequence))
            if others
            else None
        )
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
    loop = TrainerConfig(steps=steps, lr=1e-3, warmup=0.05)
    tuned = finetune(
        [adata],
        model=start,
        loop=loop,
        min_total=1,
        name=name,
        seed=seed,
        force=force,
        verbose=verbose,
    )
    card = (
        f"Fine-tuned for imputation on {adata.n_obs:,} cells of the user, {steps:,} steps, from {start.config.name}. "
        "Not evaluated on other data.\n"
    )
    return tuned, card
