"""Pre-training by masked reconstruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import torch

from ..data.collection import Collection
from ..genes import Vocabulary
from ..model import Model
from ..nn import ModelConfig, ScMamba
from .batches import SequenceConfig
from .dataloaders import open_batch_source, open_held_out, reconstruction
from .distributed import training_device
from .reconstruction import PRETRAIN, validation
from .trainer import TrainerConfig, fit

if TYPE_CHECKING:
    from anndata import AnnData


def pretrain(
    data: Collection | Sequence[str | PathLike[str] | AnnData],
    *,
    config: ModelConfig | None = None,
    vocabulary: Vocabulary | None = None,
    loop: TrainerConfig | None = None,
    sequence: SequenceConfig = PRETRAIN,
    held_out: Collection | Sequence[str | PathLike[str] | AnnData] = (),
    folder: str | PathLike[str] | None = None,
    name: str = "pretrained",
    seed: int = 0,
    force: bool = False,
    verbose: bool = True,
) -> Model:
    """Pre-train a new network by masked-expression modeling (paper, Methods).

    Parameters
    ----------
    data
        A :class:`~scmamba.data.Collection`, filtered and split as it is to be used; or h5ad files or AnnData objects of raw
        counts, which are read into memory.
    config
        Sizes of the network; the published ones if not given.
    vocabulary
        Genes of the network; the published 19,306 if not given.
    loop
        Options of the optimizer and number of steps; the paper's if not given.
    sequence
        Which values are masked, and how many genes of a cell are read.
    held_out
        Cells of other donors for the validation loss, in the same forms as ``data``; none by default.
    folder
        Folder for states, log and loss curve; a run that was stopped continues from there. ``None`` keeps nothing.
    name
        Name of the model.
    seed
        Seed of weights, batches and masks; the same seed gives the same model (on a CPU, bit for bit).
    force
        Continue although few genes are shared with the vocabulary.
    verbose
        Print messages and progress.

    Returns
    -------
    The trained model; write it with :func:`scmamba.save_checkpoint`.

    Raises
    ------
    ScMambaError
        Data cannot be read or do not fit the vocabulary.

    Examples
    --------
    >>> import scmamba
    >>> from scmamba.datasets import brain_cohort
    >>> from scmamba.training import TrainerConfig
    >>> config = scmamba.ModelConfig(n_genes=19306, d_model=8, n_layer=1, reads="expressed")
    >>> model = scmamba.pretrain(
    ...     [brain_cohort(20, n_donors=2, seed=0)],
    ...     config=config,
    ...     loop=TrainerConfig(steps=2, batch_size=2),
    ...     verbose=False,
    ... )
    >>> model.config.d_model
    8
    """
    vocabulary = vocabulary or Vocabulary.published()
    config = config or ModelConfig(n_genes=len(vocabulary))
    loop = replace(loop or TrainerConfig(), seed=seed)
    feed = open_batch_source(data, vocabulary, seed=seed, reads=config.reads, force=force)
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
