"""Fine-tuning for imputation and classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from ..data.collection import Collection
from ..model import Model, load_model
from ..utils.columns import require_column
from ..utils.errors import ScMambaError
from ..utils.progress import say
from .batches import SequenceConfig
from .dataloaders import open_batch_source, open_held_out, reconstruction
from .distributed import is_distributed, training_device
from .objectives import RateConfig, nb_rate_step, rate_validation, store_gene_rates
from .options import FinetuneOnOptions
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
    """Fine-tune a pre-trained model; all weights are trained.

    Parameters
    ----------
    data
        A :class:`~scmamba.data.Collection`, or h5ad files or AnnData objects of raw counts.
    model
        Model to start from: name, checkpoint folder or open model; ``brain-mini`` if not given.
    task
        ``"impute"`` (masked values), ``"annotate"`` (the cells' labels) or ``"doublets"`` (simulated within donors). The last two
        have more options in :func:`scmamba.training.finetune_classifier.finetune_classes`.
    loop
        Options of the optimizer and number of steps; the paper's if not given.
    sequence
        Which values are masked, and how many genes of a cell are read.
    held_out
        Cells of other donors for the validation loss, in the same forms as ``data``; none by default.
    min_total
        Minimum total counts of a training cell. The paper fine-tunes imputation on cells with more than 4,000 counts, which
        brain nuclei of other studies rarely reach; the default is that of pre-training.
    folder
        Folder for states, log and loss curve; a run that was stopped continues from there. ``None`` keeps nothing.
    name
        Name of the new model; that of ``model`` if not given.
    seed
        Seed of weights, batches and masks; the same seed gives the same model (on a CPU, bit for bit).
    force
        Continue although few genes are shared with the vocabulary.
    verbose
        Print messages and progress.

    Returns
    -------
    The fine-tuned model; ``model`` itself is not changed.

    Raises
    ------
    ScMambaError
        The task is unknown, or data and model do not fit.

    Examples
    --------
    >>> import scmamba
    >>> from scmamba.datasets import brain_cohort
    >>> from scmamba.training import TrainerConfig
    >>> tuned = scmamba.finetune(
    ...     [brain_cohort(20, n_donors=2, seed=0)],
    ...     loop=TrainerConfig(steps=1, batch_size=2),
    ...     name="mine",
    ...     verbose=False,
    ... )
    >>> tuned.config.name
    'mine'
    """
    if task not in ("impute", "annotate", "doublets"):
        raise ScMambaError(f"task is '{task}'; expected impute, annotate or doublets.")
    if task != "impute":
        from .finetune_classifier import finetune_classes

        start = load_model(model, device=training_device() if is_distributed() else None)
        cells, rest = (
            as_collection(files, start.genes, min_total, force) for files in (data, held_out)
        )
        if cells is None:
            raise ScMambaError("There are no cells to train on: data is empty.")
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
        )  # a masked step costs three times as much, and only one method uses it
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
    label_key: str | None = None,
    donor_key: str | None = None,
    seed: int = 0,
    force: bool = False,
    verbose: bool = True,
) -> tuple[Model, str]:
    """Fine-tune on every cell of one object, for imputation or its cell types; R's ``ScMambaFineTune``.

    Parameters
    ----------
    adata
        Raw counts, cells x genes.
    model
        Model to start from: name, checkpoint folder or open model; ``brain-mini`` if not given.
    steps
        Optimizer steps of 16 cells.
    name
        Name of the new model; that of ``model`` if not given.
    label_key
        Column of ``obs`` with cell types: a classifier of these types is trained, for
        :func:`scmamba.annotate`. Cells without a type are omitted.
    donor_key
        Column of ``obs`` with donors. If there are at least three, the classifier is calibrated on a
        fifth of them (at least one), on whom it is not trained; donors without whom a type would be
        lost stay in the training.
    seed
        Seed of weights, batches and masks; the same seed gives the same model (on a CPU, bit for bit).
    force
        Continue although few genes are shared with the vocabulary.
    verbose
        Print messages and progress.

    Returns
    -------
    The model, and the text of its card for :func:`scmamba.save_checkpoint`.

    Raises
    ------
    ScMambaError
        Data and model do not fit.
    """
    FinetuneOnOptions(
        steps=steps, name=name, label_key=label_key, donor_key=donor_key, seed=seed, force=force
    )
    start = load_model(model)
    if label_key is not None:
        for key in [label_key, *([donor_key] if donor_key else [])]:
            require_column(adata.obs, key)
        cells = Collection(
            [adata],
            vocabulary=start.genes,
            label_key=label_key,
            donor_key=donor_key,
            force=force,
            verbose=False,
        ).filter(min_total=1, min_donor_cells=0)
        return _classifier_on(
            cells,
            start,
            TrainerConfig(steps=steps, lr=1e-4, warmup=0.05, seed=seed),
            by_donor=donor_key is not None,
            name=name,
            verbose=verbose,
        )
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
        f"Fine-tuned for imputation on {adata.n_obs:,} cells of one data set, {steps:,} steps, from {start.config.name}. "
        "Not evaluated on other data.\n"
    )
    return tuned, card


def _classifier_on(
    cells: Collection,
    start: Model,
    loop: TrainerConfig,
    *,
    by_donor: bool,
    name: str | None,
    verbose: bool,
) -> tuple[Model, str]:
    """A classifier of the collection's labels, calibrated on held-out donors if there are enough, and its card."""
    from .finetune_classifier import finetune_classes

    kept = cells.take(np.asarray(cells.column("label").astype(str)) != "")
    held_out, about = None, "Not calibrated: no donor could be held out."
    is_out = _held_out(kept, loop.seed) if by_donor else np.zeros(len(kept), dtype=bool)
    if is_out.any():
        kept, held_out = kept.take(~is_out), kept.take(is_out)
        number = len(held_out.donors())
        about = (
            f"Calibrated on {len(held_out):,} cells of {number} of {number + len(kept.donors())} donors, "
            "which were held out."
        )
    say(about, verbose)
    tuned = finetune_classes(
        "annotate", kept, model=start, loop=loop, held_out=held_out, name=name, verbose=verbose
    )
    card = (
        f"Fine-tuned to name cell types on {len(kept):,} cells of one data set, {loop.steps:,} steps, "
        f"from {start.config.name}. {about} Not evaluated on other data.\n"
    )
    return tuned, card


def _held_out(cells: Collection, seed: int) -> np.ndarray:
    """(n,) bool: cells of a fifth of the donors (at least one of three) without whom no type is lost."""
    donors = np.asarray(cells.donor_keys().astype(str))
    types = np.asarray(cells.column("label").astype(str))
    names = np.unique(donors)
    out = np.zeros(len(donors), dtype=bool)
    chosen, wanted = 0, max(1, round(len(names) / 5)) if len(names) >= 3 else 0
    for name in np.random.default_rng(seed).permutation(names):
        with_it = out | (donors == name)
        if chosen < wanted and len(np.unique(types[~with_it])) == len(np.unique(types)):
            out, chosen = with_it, chosen + 1
    return out
