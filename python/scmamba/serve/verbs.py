"""What a server does: each task's verb, and the options a user may set."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import Model
    from ..wire.tables import Tables


def _impute(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.impute(adata, verbose=True, **options)


def _embed(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.embed(adata, verbose=True, **options)


def _annotate(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.annotate(adata, verbose=True, **options).to_adata(adata)


def _doublets(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.detect_doublets(adata, verbose=True, **options)


def _markers(adata: AnnData, options: dict[str, Any]) -> Tables:
    from ..deg import find_markers
    from ..wire.tables import Tables

    return Tables({"markers": find_markers(adata, **options)})


def _robustness(adata: AnnData, options: dict[str, Any]) -> Tables:
    from ..deg import robustness
    from ..wire.tables import Tables

    found = robustness(adata, verbose=True, **options)
    frames = {
        "summary": found.summary(),
        "tests": found.tests(),
        "false_positives": found.false_positives(),
        "runs": found.runs,
        "nulls": found.nulls,
        "full": found.full,
    }
    about = {
        "settings": dict(found.settings),
        "notes": list(found.notes),
        "warnings": list(found.warnings),
    }
    return Tables({name: frame.reset_index(drop=True) for name, frame in frames.items()}, about)


def _finetune(adata: AnnData, options: dict[str, Any]) -> tuple[Model, str]:
    from ..training import finetune_on

    return finetune_on(adata, verbose=True, **options)


#: Tasks that open the model named in the address (``annotate`` by a reference does, too).
WITH_MODEL = ("impute", "embed", "finetune")

#: Task -> the verb, and the options a user may set with their kinds.
TASKS: dict[str, tuple[Callable[[AnnData, dict[str, Any]], Any], dict[str, tuple[type, ...]]]] = {
    "impute": (
        _impute,
        {
            "method": (str,),
            "batch_key": (str,),
            "adapt_steps": (int,),
            "batch": (str,),  # as batch_key and adapt_steps were called before 0.2.0
            "adapt": (bool, int),
            "passes": (int,),
            "min_value": (int, float),
            "to_counts": (bool,),
            "seed": (int,),
            "force": (bool,),
            "batch_size": (int,),
            "layer": (str,),
            "gene_column": (str,),
        },
    ),
    "embed": (
        _embed,
        {"force": (bool,), "batch_size": (int,), "layer": (str,), "gene_column": (str,)},
    ),
    "annotate": (
        _annotate,
        {
            "reference": (str,),
            "labels": (str, list),
            "donor": (str,),
            "network": (bool, int),
            "markers": (dict,),
            "error_rate": (float,),
            "seed": (int,),
            "force": (bool,),
            "layer": (str,),
            "gene_column": (str,),
        },
    ),
    "doublets": (
        _doublets,
        {
            "sample": (str,),
            "method": (str,),
            "expected_rate": (float, int),
            "identification_rate": (float, int),
            "labels": (str,),
            "seed": (int,),
            "layer": (str,),
        },
    ),
    "markers": (
        _markers,
        {
            "groupby": (str,),
            "group1": (str, list),
            "group2": (str, list),
            "covariates": (str, list),
            "latent_vars": (str, list),  # old name of covariates, until 0.3.0
            "test": (str,),
            "seurat": (str,),
            "layer": (str,),
            "scale": (str,),
            "min_pct": (int, float),
            "logfc_threshold": (int, float),
            "only_pos": (bool,),
            "min_diff_pct": (int, float),
            "fold_change": (str,),
            "genes": (list,),
        },
    ),
    "robustness": (
        _robustness,
        {
            "condition_key": (str,),
            "donor_key": (str,),
            "label_key": (str,),
            "groupby": (str,),  # old names, until 0.3.0
            "donor": (str,),
            "cell_type": (str,),
            "group1": (str,),
            "group2": (str,),
            "layers": (list,),
            "cell_types": (list,),
            "ratios": (list,),
            "permutations": (int,),
            "donors": (str,),
            "max_combinations": (int,),
            "null_permutations": (int,),
            "alpha": (int, float),
            "min_log2fc": (int, float),
            "adjust": (str,),
            "seurat": (str,),
            "min_degs": (int,),
            "min_cells": (int,),
            "seed": (int,),
        },
    ),
    "finetune": (_finetune, {"steps": (int,), "name": (str,), "seed": (int,), "force": (bool,)}),
}
#: What a task cannot do without.
_NEEDED = {"markers": ("groupby", "group1"), "robustness": ("condition_key",)}
_OLD_NAMES = {"condition_key": "groupby"}


#: What options that are numbers may be.
_RANGES = {
    "seed": (0, 2**32 - 1),
    "passes": (1, 1000),
    "batch_size": (1, 65_536),
    "min_value": (0, 1e6),
    "adapt": (0, 100_000),
    "adapt_steps": (0, 100_000),
    "network": (0, 100_000),
    "error_rate": (0, 1),
    "expected_rate": (0, 1),
    "identification_rate": (0, 1),
    "permutations": (1, 10_000),
    "null_permutations": (0, 10_000),
    "max_combinations": (1, 10_000),
    "min_degs": (1, 1_000_000),
    "min_cells": (1, 1_000_000),
    "alpha": (0, 1),
    "min_pct": (0, 1),
    "steps": (1, 1_000_000),
}


def _beyond(name: str, value: Any) -> str | None:
    """Why a value of the right kind cannot be, or ``None``."""
    if isinstance(value, (int, float)):
        low, high = _RANGES.get(name, (-1e9, 1e9))
        return (
            None
            if low <= value <= high
            else f"option '{name}' is {value}; it must lie between {low:g} and {high:g}"
        )
    if isinstance(value, dict):
        fits = all(
            isinstance(g, str) or isinstance(g, list) and all(isinstance(x, str) for x in g)
            for g in value.values()
        )
        return None if fits else f"option '{name}' must give a list of gene names for each type"
    if isinstance(value, list) and name == "ratios":
        fits = len(value) <= 100 and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v <= 1 for v in value
        )
        return None if fits else "option 'ratios' must be a list of shares between 0 and 1"
    if isinstance(value, list) and not all(isinstance(v, str) for v in value):
        return f"option '{name}' must be a list of names"
    return None


def check_options(task: str, options: Any) -> str | None:
    """Why these options cannot be, or ``None``."""
    if not isinstance(options, dict):
        return "options must be one JSON object"
    known = TASKS[task][1]
    for name, value in options.items():
        if name not in known:
            return f"'{task}' has no option '{name}'; it has {', '.join(known)}"
        if isinstance(value, bool) and bool not in known[name]:
            return f"option '{name}' cannot be true or false"
        if value is not None and not isinstance(value, known[name]):
            return f"option '{name}' is {type(value).__name__}; it must be {' or '.join(k.__name__ for k in known[name])}"
        if problem := _beyond(name, value):
            return problem
    if missing := [
        name
        for name in _NEEDED.get(task, ())
        if options.get(name, options.get(_OLD_NAMES.get(name, name))) is None
    ]:
        return f"'{task}' needs the option '{missing[0]}'"
    return None
