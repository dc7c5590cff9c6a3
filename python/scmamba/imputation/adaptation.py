"""Adapting a network to the user's cells: short, self-supervised, and kept only if it predicts held-out cells better."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data.preprocess import CellReader
from ..model import Model
from ..training.batches import CellSource
from ..training.objectives import (
    RateConfig,
    gene_log_rate,
    nb_rate_step,
    rate_validation,
    source_counts,
)
from ..training.reconstruction import IMPUTE, clone, reconstruction_step, validation
from ..training.trainer import TrainerConfig, fit
from ..utils.progress import say
from .options import ADAPT_STEPS

#: With fewer cells there is too little to train on and too little to evaluate on.
MIN_CELLS = 100
#: Cells used at most; more would not be read in that many steps.
_MAX_CELLS = 5000


@dataclass
class Adapted:
    """The model to use, what was measured, and the held-out cells (rows of the source)."""

    model: Model
    report: dict[str, Any]
    held: np.ndarray


_SHORT = replace(IMPUTE, genes_per_step=2048, zeros=(100, 800))


def adapt_rates(
    model: Model,
    source: CellSource,
    *,
    steps: int = ADAPT_STEPS,
    seed: int = 0,
    verbose: bool = True,
) -> Adapted:
    """Train a copy of a model with a rate head on four fifths of some cells; use it if it predicts masked counts of the rest better.

    Parameters
    ----------
    source
        The cells; those without counts are ignored.
    steps
        Training steps of 16 cells.
    """
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(source.totals > 0))
    held, rest = (
        np.sort(order[: max(20, len(order) // 5)]),
        np.sort(order[max(20, len(order) // 5) :]),
    )
    if len(order) < MIN_CELLS:
        say(
            f"Only {len(order)} cells ({MIN_CELLS} needed): skipping adaptation, using the pre-trained network.",
            verbose,
        )
        return Adapted(model, {"used": False, "reason": f"fewer than {MIN_CELLS} cells"}, held)
    training = source.take(rest)
    base = torch.from_numpy(
        gene_log_rate(source_counts(training), model.gene_log_rate(source.genes))
    ).float()
    config = RateConfig()
    judge = rate_validation([source.take(held[:: max(1, len(held) // 128)])], config, bases=[base])
    before = judge(model.network)["validation_loss"]
    copy = clone(model)
    torch.manual_seed(seed)
    loop = TrainerConfig(steps=steps, lr=1e-3, warmup=0.05, seed=seed, batch_size=16)
    fit(
        copy.network,
        nb_rate_step([training], config, loop, [base]),
        loop,
        description="Adapting the network",
        verbose=verbose,
    )
    after = judge(copy.network)["validation_loss"]
    report = {
        "used": bool(after < before),
        "loss_before": before,
        "loss_after": after,
        "cells": len(training),
        "steps": loop.steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    say(
        f"Deviance per masked count of {len(held)} held-out cells: {before:.4f} before, {after:.4f} after adaptation; "
        + ("the adapted network is used" if after < before else "the pre-trained network is used"),
        verbose,
    )
    return Adapted(copy if after < before else model, report, held)


def adapt_masked(
    model: Model,
    cells: CellReader,
    *,
    steps: int = ADAPT_STEPS,
    seed: int = 0,
    verbose: bool = True,
) -> tuple[Model, dict[str, Any]]:
    """Train a copy of a model on nine tenths of the cells, evaluate both on the rest at full length, return the better one.

    Parameters
    ----------
    cells
        The cells as the model reads them.
    steps
        Training steps of 16 short sequences.

    Returns
    -------
    The model to use and a report: ``used``, ``loss_before``, ``loss_after`` (squared error of masked counts of held-out cells),
    ``cells``, ``steps``, ``seconds``.
    """
    started = time.monotonic()
    if len(cells) < MIN_CELLS:
        say(
            f"Only {len(cells)} cells ({MIN_CELLS} needed): skipping adaptation, using the pre-trained network.",
            verbose,
        )
        return model, {"used": False, "reason": f"fewer than {MIN_CELLS} cells"}
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(cells), min(len(cells), _MAX_CELLS), replace=False))
    values, totals = cells.to_model(cells.linear(rows))
    source = CellSource("cells", values, cells.genes, np.full(len(rows), ""), totals)
    filled = np.flatnonzero(totals > 0)
    held = rng.permutation(filled)[: max(20, len(filled) // 10)]
    training = source.take(np.setdiff1d(filled, held))
    judge = validation([source.take(held[:64])], IMPUTE)
    before = judge(model.network)["validation_loss"]
    copy = clone(model)
    torch.manual_seed(seed)
    loop = TrainerConfig(steps=steps, lr=5e-4, warmup=0.05, seed=seed, batch_size=16)
    fit(
        copy.network,
        reconstruction_step([training], _SHORT, loop),
        loop,
        description="Adapting the network",
        verbose=verbose,
    )
    after = judge(copy.network)["validation_loss"]
    used = after < before
    say(
        f"Squared error of masked counts of {min(len(held), 64)} held-out cells: {before:.4f} before, {after:.4f} after adaptation; "
        + ("the adapted network is used" if used else "the pre-trained network is used"),
        verbose,
    )
    report = {
        "used": bool(used),
        "loss_before": before,
        "loss_after": after,
        "cells": len(training),
        "steps": loop.steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    return (copy if used else model), report
