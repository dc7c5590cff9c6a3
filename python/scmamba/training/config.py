"""Settings of a training run: a recipe, changed by a YAML file, changed by what is given on the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.collection import IMPUTE_TOTAL
from ..utils.errors import OptionError
from .batches import SequenceConfig
from .options import OptimizerOptions, TrainingOptions
from .trainer import TrainerConfig


@dataclass(frozen=True)
class Settings(TrainingOptions):
    """The hyperparameters of one run, and what they become for the trainer."""

    def loop(self, cells: int, processes: int, gpu: bool) -> TrainerConfig:
        """The optimizer's options for ``cells`` training cells.

        Parameters
        ----------
        cells
            Number of training cells, which turns epochs into steps.
        processes
            Number of processes that share each step.
        gpu
            Whether the run is on a GPU, for ``precision="auto"``.

        Returns
        -------
        The configuration of :func:`scmamba.training.fit`.
        """
        each = self.batch_size * self.accumulate * processes
        steps = self.steps or max(1, round(self.epochs * cells / each))
        precision = ("16" if gpu else "32") if self.precision == "auto" else self.precision
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(OptimizerOptions)}
        return TrainerConfig(steps=steps, precision=precision, **shared)

    def sequence(self) -> SequenceConfig:
        """What a training sequence holds, for :func:`scmamba.training.make_batch`."""
        return SequenceConfig(
            mask_nonzero=self.mask_nonzero,
            mask_zero=self.mask_zero,
            genes_per_step=self.genes_per_step,
        )

    def text(self) -> str:
        """As YAML, every setting on its own line."""
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
            "rates": True,
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
    """Combine a recipe, a YAML file and options given by hand, the later ones first.

    Parameters
    ----------
    verb
        ``pretrain``, ``impute``, ``annotate`` or ``doublets``.
    recipe
        ``paper`` (as published) or ``small`` (what a laptop can train).
    file
        YAML file of lines ``setting: value``.
    given
        Values by name; ``None`` counts as not given.

    Returns
    -------
    The settings, and the names of those that came from the file or from ``given``.

    Raises
    ------
    OptionError
        An unknown recipe or setting, a value of the wrong type or outside of its range, or a file that is not YAML.
    """
    if recipe not in RECIPES[verb]:
        raise OptionError(
            f"There is no recipe '{recipe}' for {verb}; choose one of {', '.join(RECIPES[verb])}."
        )
    chosen = {
        **_read_yaml(file),
        **{name: value for name, value in (given or {}).items() if value is not None},
    }
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    if unknown := sorted(set(chosen) - set(kinds)):
        raise OptionError(
            f"Unknown settings: {', '.join(unknown)}. The settings are {', '.join(kinds)}."
        )
    values = {
        **RECIPES[verb][recipe],
        **{name: _as(kinds[name], name, value) for name, value in chosen.items()},
    }
    if "epochs" in chosen and "steps" not in chosen:
        values["steps"] = 0  # epochs given by hand replace the recipe's steps
    return Settings(**values), set(chosen)


def _read_yaml(file: str | os.PathLike[str] | None) -> dict[str, Any]:
    if file is None:
        return {}
    path = Path(file)
    if not path.is_file():
        raise OptionError(f"There is no configuration {path}.")
    try:
        import yaml
    except ImportError as error:
        raise OptionError(
            "Reading a configuration needs PyYAML: pip install 'scmamba[train]'."
        ) from error
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is not YAML: {error}") from error
    if not isinstance(found or {}, dict):
        raise OptionError(
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
    raise OptionError(f"The setting {name} is {value!r}; {_EXPECTED[kind]} is expected.")


_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "one word"}


def _plain(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else repr(value)
