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
