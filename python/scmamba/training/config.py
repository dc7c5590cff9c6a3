"""Settings of a training run: a recipe, changed by a YAML file, changed by what is given on the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.collection import IMPUTE_TOTAL, MIN_DONOR_CELLS
from ..utils.errors import ScMambaError
from .batches import SequenceConfig
from .trainer import TrainerConfig


@dataclass(frozen=True)
class Settings:
    """Everything a run can be told; see :data:`RECIPES` for the values of each recipe.

    Attributes
    ----------
    epochs, steps
        How long: times through the data, or optimiser steps (which wins if not 0).
    batch_size, accumulate
        Cells a process reads at once, and how many such batches make a step.
    lr, final_lr, warmup, weight_decay, clip, ema
        The optimiser (see :class:`~scmamba.training.trainer.LoopConfig`).
    precision
        ``auto`` (16 on a GPU, else 32), ``32``, ``bf16`` or ``16``.
    d_model, layers, reads
        The network of pre-training; fine-tuning takes the model's.
    mask_nonzero, mask_zero, genes_per_step
        What a sequence holds (see :class:`~scmamba.training.batches.SequenceConfig`).
    balance, freeze, probe
        Classifiers: 0 every cell counts alike, 1 every class; train head and [CLS] token only; start the head from the cell embeddings.
    doublet_recipe, doublet_fraction
        How doublets are simulated (see :func:`scmamba.data.doublet_simulation.simulate_doublets`), and how many per single cell.
    min_total, above, min_donor_cells
        Which cells: counts at least, counts more than (0: no such limit), cells of a donor at least.
    """

    epochs: float = 2.0
    steps: int = 0
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 1e-3
    final_lr: float = 0.1
    warmup: float = 0.01
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.0
    precision: str = "auto"
    d_model: int = 256
    layers: int = 6
    reads: str = "all"
    mask_nonzero: float = 0.15
    mask_zero: float = 0.0
    genes_per_step: int = 0
    balance: float = 0.0
    freeze: bool = False
    probe: bool = False
    doublet_recipe: str = "mean"
    doublet_fraction: float = 0.1
    min_total: float = 200
    above: float = 0
    min_donor_cells: int = MIN_DONOR_CELLS
    save_every: int = 200
    keep: int = 3
    seed: int = 0

    def loop(self, cells: int, processes: int, gpu: bool) -> TrainerConfig:
        """The optimiser's settings for ``cells`` training cells."""
        each = self.batch_size * self.accumulate * processes
        steps = self.steps or max(1, round(self.epochs * cells / each))
        precision = ("16" if gpu else "32") if self.precision == "auto" else self.precision
        return TrainerConfig(
            steps=steps,
            batch_size=self.batch_size,
            lr=self.lr,
            final_lr=self.final_lr,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            clip=self.clip,
            seed=self.seed,
            save_every=self.save_every,
            keep=self.keep,
            accumulate=self.accumulate,
            precision=precision,
            ema=self.ema,
        )

    def sequence(self) -> SequenceConfig:
        """What a training sequence holds."""
        return SequenceConfig(
            mask_nonzero=self.mask_nonzero,
            mask_zero=self.mask_zero,
            genes_per_step=self.genes_per_step,
        )

    def text(self) -> str:
        """As YAML, every setting on a line of its own."""
        return "".join(
            f"{name}: {_plain(value)}\n" for name, value in dataclasses.asdict(self).items()
        )


#: Verb -> name -> the settings in which the recipe differs from the defaults above (the paper's pre-training).
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "pretrain": {
        "paper": {},
        # The shipped model's: a size and a length a laptop can train.
        "small": {
            "steps": 2000,
            "lr": 3e-3,
            "warmup": 0.03,
            "d_model": 64,
            "layers": 2,
            "reads": "expressed",
            "mask_nonzero": 0.3,
            "genes_per_step": 1536,
            "min_donor_cells": 0,
            "precision": "32",
        },
    },
    "impute": {
        "paper": {
            "epochs": 5.0,
            "batch_size": 8,
            "lr": 1e-4,
            "mask_nonzero": 0.4,
            "mask_zero": 0.04,
            "above": IMPUTE_TOTAL,
        },
        "small": {
            "steps": 2000,
            "lr": 1e-3,
            "warmup": 0.03,
            "mask_nonzero": 0.4,
            "mask_zero": 0.04,
            "genes_per_step": 1536,
            "min_donor_cells": 0,
            "precision": "32",
        },
    },
    "annotate": {
        "paper": {"epochs": 5.0, "lr": 1e-4},
        "small": {
            "epochs": 5.0,
            "lr": 1e-3,
            "genes_per_step": 1536,
            "min_donor_cells": 0,
            "precision": "32",
            "balance": 0.5,
            "probe": True,
        },
    },
    "doublets": {
        "paper": {"epochs": 5.0, "lr": 1e-4},
        # Half counts give the mean of two cells away; real doublets hold most of what both cells had.
        "small": {
            "epochs": 5.0,
            "lr": 1e-3,
            "genes_per_step": 1536,
            "min_donor_cells": 0,
            "precision": "32",
            "balance": 0.5,
            "doublet_recipe": "mixed",
            "doublet_fraction": 0.5,
        },
    },
}


def read_settings(
    verb: str,
    recipe: str = "paper",
    file: str | os.PathLike[str] | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[Settings, set[str]]:
    """The settings, and the names of those somebody chose (in the file or by hand, not by the recipe).

    Raises
    ------
    ScMambaError
        An unknown recipe or setting, a value of the wrong kind, a file that is not YAML.
    """
    if recipe not in RECIPES[verb]:
        raise ScMambaError(
            f"There is no recipe '{recipe}' for {verb}; choose one of {', '.join(RECIPES[verb])}."
        )
    chosen = {
        **_read_yaml(file),
        **{name: value for name, value in (given or {}).items() if value is not None},
    }
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(chosen) - set(kinds)):
        raise ScMambaError(
            f"Unknown settings: {', '.join(unknown)}. The settings are {', '.join(kinds)}."
        )
    values = {
        **RECIPES[verb][recipe],
        **{name: _as(kinds[name], name, value) for name, value in chosen.items()},
    }
    if "epochs" in chosen and "steps" not in chosen:
        values["steps"] = 0  # who asks for epochs does not want the recipe's steps
    return Settings(**values), set(chosen)


def _read_yaml(file: str | os.PathLike[str] | None) -> dict[str, Any]:
    if file is None:
        return {}
    path = Path(file)
    if not path.is_file():
        raise ScMambaError(f"There is no configuration {path}.")
    try:
        import yaml
    except ImportError as error:
        raise ScMambaError(
            "Reading a configuration needs PyYAML: pip install 'scmamba[train]'."
        ) from error
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ScMambaError(f"{path} is not YAML: {error}") from error
    if not isinstance(found or {}, dict):
        raise ScMambaError(
            f"{path} holds a {type(found).__name__}; lines of 'setting: value' are expected."
        )
    return {str(name).replace("-", "_"): value for name, value in (found or {}).items()}


def _as(kind: type, name: str, value: Any) -> Any:
    # YAML reads 1e-4 as text, and precision: 16 as a number.
    if kind is bool and isinstance(value, bool):
        return value
    try:
        if kind is not bool and not isinstance(value, (bool, list, dict)):
            converted = kind(value)
            if kind is not int or float(value) == converted:
                return converted
    except (TypeError, ValueError):
        pass
    raise ScMambaError(f"The setting {name} is {value!r}; {_EXPECTED[kind]} is expected.")


_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "one word"}


def _plain(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else repr(value)
