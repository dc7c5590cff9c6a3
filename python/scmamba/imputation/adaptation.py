"""Adapting a model to somebody's own cells before imputation: short, self-supervised, and kept only if it helps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data.preprocess import CellReader
from ..model import Model
from ..training.batches import CellSource
from ..training.reconstruction import IMPUTE, clone, reconstruction_step, validation
from ..training.trainer import TrainerConfig, fit
from ..utils.progress import say

#: With fewer cells there is too little to learn from and too little to judge by.
MIN_CELLS = 100
#: Steps by default: about two minutes on two cores with the default model.
STEPS = 300
#: CellReader used at most; more would not be seen in that many steps.
_MAX_CELLS = 5000


@dataclass
class Adapted:
    """The model to use, what was measured, and the cells (rows of the source) it was not trained on."""

    model: Model
    report: dict[str, Any]
    held: np.ndarray


_SHORT = replace(IMPUTE, genes_per_step=2048, zeros=(100, 800))


def adapt_rates(
    model: Model,
    source: CellSource,
    *,
    steps: int | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> Adapted:
    """Train a copy of a model with a rate head on four fifths of some cells; keep it if it predicts hidden counts of the rest better.

    Parameters
    ----------
    source
        The cells; those without counts are ignored.
    steps
        Training steps of 16 cells; default :data:`STEPS`.
    """
    from ..training.objectives import (
        RateConfig,
        gene_log_rate,
        nb_rate_step,
        rate_validation,
        source_counts,
    )

    started = time.monotonic()
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(source.totals > 0))
    held, rest = (
        np.sort(order[: max(20, len(order) // 5)]),
        np.sort(order[max(20, len(order) // 5) :]),
    )
    if len(order) < MIN_CELLS:
        say(
            f"{len(order)} cells are too few to adapt the model to (at least {MIN_CELLS}); it is used as it is",
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
    loop = TrainerConfig(steps=steps or STEPS, lr=1e-3, warmup=0.05, seed=seed, batch_size=16)
    fit(
        copy.network,
        nb_rate_step([training], config, loop, [base]),
        loop,
        description="Adapting to these cells",
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
        f"deviance per hidden count of {len(held)} cells left out: {before:.4f} before, {after:.4f} after adapting; "
        + (
            "the adapted model is used"
            if after < before
            else "adapting did not help, the model is used as it is"
        ),
        verbose,
    )
    return Adapted(copy if after < before else model, report, held)


def adapt(
    model: Model,
    cells: CellReader,
    *,
    steps: int | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> tuple[Model, dict[str, Any]]:
    """Train a copy of ``model`` on nine tenths of the cells, judge both on the rest at full length, return the better one.

    Parameters
    ----------
    cells
        The user's cells as the model reads them.
    steps
        Training steps of 16 short sequences; default 300.

    Returns
    -------
    The model to use and a report: ``used``, ``loss_before``, ``loss_after`` (squared error at hidden values of held-out cells),
    ``cells``, ``steps``, ``seconds``.
    """
    started = time.monotonic()
    if len(cells) < MIN_CELLS:
        say(
            f"{len(cells)} cells are too few to adapt the model to (at least {MIN_CELLS}); it is used as it is",
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
    loop = TrainerConfig(steps=steps or STEPS, lr=5e-4, warmup=0.05, seed=seed, batch_size=16)
    fit(
        copy.network,
        reconstruction_step([training], _SHORT, loop),
        loop,
        description="Adapting to these cells",
        verbose=verbose,
    )
    after = judge(copy.network)["validation_loss"]
    used = after < before
    say(
        f"error at hidden values of {min(len(held), 64)} cells left out: {before:.4f} before, {after:.4f} after adapting; "
        + (
            "the adapted model is used"
            if used
            else "adapting did not help, the model is used as it is"
        ),
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
