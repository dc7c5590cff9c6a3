"""What a server does: each task's verb, and the options a user may set.

Names, types, ranges, defaults and help come from the options dataclass of each verb (``<package>/options.py``); the server adds upper limits.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.deprecation import REMOVED_IN

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

    return scmamba.annotate(adata, verbose=True, **options)


def _doublets(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.find_doublets(adata, verbose=True, **options)


def _markers(adata: AnnData, options: dict[str, Any]) -> Tables:
    from ..deg import find_all_markers, find_markers
    from ..wire.tables import Tables

    if options.get("groups"):
        given = {k: v for k, v in options.items() if k not in ("group1", "group2")}
        table = find_all_markers(adata, **given)
        table["cluster"] = table["cluster"].astype(str)
    else:
        table = find_markers(adata, **options)
    return Tables({"markers": table}, {name: table.attrs[name] for name in ("values", "read_as")})


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


@dataclass(frozen=True)
class ServedOption:
    """One option of a task as the server takes it.

    Attributes
    ----------
    kinds
        Types of JSON values that are accepted; ``null`` always is, and means the default.
    minimum, maximum, exclusive
        Range of a number.
    choices
        The values that are accepted.
    default, help
        As in Python.
    """

    kinds: tuple[type, ...]
    minimum: float | None = None
    maximum: float | None = None
    exclusive: bool = False
    choices: tuple[Any, ...] | None = None
    default: Any = None
    help: str = ""


@dataclass(frozen=True)
class Task:
    """One task: its verb and its options.

    Attributes
    ----------
    run
        Takes the cells and the options; returns the cells, :class:`scmamba.wire.tables.Tables`, or a model and its card.
    options
        By name.
    needed
        Options it cannot do without.
    """

    run: Callable[[AnnData, dict[str, Any]], Any]
    options: Mapping[str, ServedOption]
    needed: tuple[str, ...] = field(default=())


#: Tasks that open the model named in the address (``annotate`` by a reference does, too).
WITH_MODEL = ("impute", "embed", "finetune")


def has_own_reference(options: Mapping[str, Any]) -> bool:
    """Whether the options name labeled cells that the user sent, not a reference of the package."""
    from ..annotation.brain_reference import is_shipped

    return "reference" in options and not is_shipped(options["reference"])


def needs_model(task: str, options: Mapping[str, Any]) -> bool:
    """Whether a job opens the model named in the address."""
    return task in WITH_MODEL or has_own_reference(options)


#: The options dataclass of each verb.
_CLASSES = {
    "impute": ("imputation", "ImputeOptions"),
    "embed": ("embedding", "EmbedOptions"),
    "annotate": ("annotation", "AnnotateOptions"),
    "doublets": ("doublets", "DoubletOptions"),
    "markers": ("deg", "MarkerOptions"),
    "robustness": ("deg", "RobustnessOptions"),
    "finetune": ("training", "FinetuneOnOptions"),
}
#: Options that name files, machines or the display; users of the server cannot set them.
_NEVER = {
    "model", "device", "backend", "resume", "folder", "cache", "n_jobs", "path", "output", "verbose", "copy", "return_result",
}  # fmt: skip
#: Arguments of the verbs that are no scalar options and are served all the same.
_MORE: dict[str, dict[str, ServedOption]] = {
    "annotate": {
        "reference": ServedOption(
            (str,),
            help="Id of labeled cells sent to /v2/references, or human-brain (the default without markers).",
        ),
        "markers": ServedOption(
            (dict, str),
            choices=("panel",),
            help="Marker genes of each cell type; or panel, for the panel of the human brain.",
        ),
    },
    "markers": {
        "groupby": ServedOption((str,), help="Column of obs with the groups."),
        "group1": ServedOption((str, list), help="Group or groups that are tested."),
        "group2": ServedOption(
            (str, list), help="Group or groups to compare with; all others if not given."
        ),
        "groups": ServedOption(
            (list,),
            help="Instead of group1 and group2: each of these groups is compared with all other cells.",
        ),
        "genes": ServedOption((list,), help="Genes to test; all if not given."),
    },
}
#: Largest values a server accepts, where the verb has no limit or a larger one, and smallest ones.
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "passes": (1, 1000),
    "batch_size": (1, 65_536),
    "min_value": (0, 1e6),
    "adapt": (0, 100_000),
    "adapt_steps": (0, 100_000),
    "network": (0, 100_000),
    "finetune_steps": (0, 100_000),
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
_ANY = (-1e9, 1e9)
#: Old names of options: today's name, and today's value for an old one.
RENAMED: dict[str, dict[str, str]] = {
    "impute": {"batch": "batch_key", "adapt": "adapt_steps"},
    "annotate": {"labels": "label_key", "donor": "donor_key", "network": "finetune_steps"},
    "doublets": {"sample": "sample_key", "labels": "label_key", "recipe": "doublet_simulation"},
    "markers": {"latent_vars": "covariates"},
    "robustness": {"donor": "donor_key", "cell_type": "label_key", "groupby": "condition_key"},
}
_VALUES = {"impute": {"method": {"rates": "ensemble", "published": "masked"}}}


def _options_class(task: str) -> Any:
    """The options dataclass of a verb, read without importing its package, which would load torch."""
    room, name = _CLASSES[task]
    module = f"{__package__}.{room}_options"
    if module not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            module, Path(__file__).parents[1] / room / "options.py"
        )
        assert spec is not None and spec.loader is not None
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    return getattr(sys.modules[module], name)


def _served(task: str) -> dict[str, ServedOption]:
    """The options of a task."""
    return {**_MORE.get(task, {}), **_from_class(_options_class(task))}


def _from_class(options: Any) -> dict[str, ServedOption]:
    """The options of a dataclass that JSON can carry."""
    hints, found = typing.get_type_hints(options), {}
    for each in dataclasses.fields(options):
        meta = each.metadata
        kinds = _kinds(hints[each.name])
        if each.name in _NEVER or meta.get("python_only") or not kinds:
            continue
        served = ServedOption(
            kinds,
            meta.get("minimum"),
            meta.get("maximum"),
            bool(meta.get("exclusive")),
            meta.get("choices"),
            each.default,
            str(meta.get("help", "")),
        )
        found[each.name] = _limited(each.name, served)
    return found


def _limited(name: str, option: ServedOption) -> ServedOption:
    """With the limits of the server."""
    if not {int, float} & set(option.kinds):
        return option
    low, high = LIMITS.get(name, _ANY)
    return dataclasses.replace(
        option,
        minimum=low if option.minimum is None else option.minimum,
        maximum=high if option.maximum is None else min(high, option.maximum),
    )


def _kinds(hint: Any) -> tuple[type, ...]:
    """Types of JSON for a type of Python; none for what JSON cannot carry."""
    parts = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
    found: list[type] = []
    for part in parts:
        origin = typing.get_origin(part) or part
        if origin in (str, bool, int):
            found.append(origin)
        elif origin is float:
            found += [int, float]
        elif origin is typing.Literal:
            found += {type(v) for v in typing.get_args(part)}
        elif origin is PathLike:
            return ()
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            found.append(dict)
        elif isinstance(origin, type) and issubclass(origin, Sequence):
            found.append(list)
    return tuple(dict.fromkeys(found))


_RUN: dict[str, Callable[[AnnData, dict[str, Any]], Any]] = {
    "impute": _impute,
    "embed": _embed,
    "annotate": _annotate,
    "doublets": _doublets,
    "markers": _markers,
    "robustness": _robustness,
    "finetune": _finetune,
}


def _tasks() -> dict[str, Task]:
    needed = {"markers": ("groupby", "group1"), "robustness": ("groupby", "condition_key")}
    tasks = {}
    for name, run in _RUN.items():
        options = _served(name)
        tasks[name] = Task(run, options, tuple(n for n in needed.get(name, ()) if n in options))
    return tasks


#: The tasks by name.
TASKS: dict[str, Task] = _tasks()


def schema(task: str) -> list[dict[str, Any]]:
    """The options of a task as JSON: name, types, range, choices, default and help."""
    found = []
    for name, option in TASKS[task].options.items():
        about: dict[str, Any] = {"name": name, "types": [k.__name__ for k in option.kinds]}
        for key in ("minimum", "maximum", "choices", "default"):
            value = getattr(option, key)
            if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
                about[key] = value
        if option.exclusive:
            about["exclusive"] = True
        if option.help:
            about["help"] = option.help
        found.append(about)
    return found


def renamed_options(
    task: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], str | None]:
    """Options under today's names.

    Returns
    -------
    The options, a warning for each old name or value, and why they cannot be (both names given), or ``None``.
    """
    known, found, warnings = TASKS[task].options, dict(options), list[str]()
    for old, new in RENAMED.get(task, {}).items():
        if new in found and new not in known and old in known:
            found[old] = found.pop(new)  # the verb still has the old name
        if old not in found or old in known or new not in known:
            continue
        if new in found:
            return (
                found,
                warnings,
                f"both '{old}' and '{new}' are given; '{old}' is the old name of '{new}'",
            )
        value = found.pop(old)
        if not (isinstance(value, bool) and bool not in known[new].kinds):
            found[new] = value
        elif not value:
            found[new] = 0  # True was the default number of steps
        warnings.append(_warning(f"option '{old}'", f"'{new}'"))
    for name, values in _VALUES.get(task, {}).items():
        choices = known[name].choices if name in known else None
        given = found.get(name)
        if isinstance(given, str) and given in values and choices and values[given] in choices:
            found[name] = values[given]
            warnings.append(_warning(f"{name} '{given}'", f"'{values[given]}'"))
    return found, warnings, None


def _warning(old: str, new: str) -> str:
    return f"{old} was renamed to {new}; the old name stops working in scMamba {REMOVED_IN}."


def _beyond(name: str, value: Any, option: ServedOption) -> str | None:
    """Why a value of the right type cannot be, or ``None``."""
    if isinstance(value, bool):
        return None
    if (
        option.choices is not None
        and isinstance(value, (str, int, float))
        and value not in option.choices
    ):
        return (
            f"option '{name}' is {value!r}; expected one of {', '.join(map(repr, option.choices))}"
        )
    if isinstance(value, (int, float)):
        low = _ANY[0] if option.minimum is None else option.minimum
        high = _ANY[1] if option.maximum is None else option.maximum
        fits = low < value < high if option.exclusive else low <= value <= high
        return (
            None
            if fits
            else f"option '{name}' is {value}; it must lie between {low:g} and {high:g}"
        )
    if isinstance(value, dict):
        fits = all(
            isinstance(g, str) or isinstance(g, list) and all(isinstance(x, str) for x in g)
            for g in value.values()
        )
        return (
            None if fits else f"option '{name}' must give a list of gene names for each cell type"
        )
    if isinstance(value, list) and name == "ratios":
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        if len(value) > 100 or not numbers:
            return "option 'ratios' must be a list of shares between 0 and 1"
        bad = [v for v in value if not 0 < v <= 1]
        # The sentence of robustness(), so that both backends of R give the same.
        return (
            f"ratios must be shares of the cells, above 0 and up to 1; found {bad[0]:g}"
            if bad
            else None
        )
    if isinstance(value, list) and not all(isinstance(v, str) for v in value):
        return f"option '{name}' must be a list of names"
    return None


def check_options(task: str, options: Any) -> str | None:
    """Why these options cannot be, or ``None``."""
    if not isinstance(options, dict):
        return "options must be one JSON object"
    try:
        json.dumps(options, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "options hold half a character (an unpaired surrogate such as \\ud800)"
    known = TASKS[task].options
    for name, value in options.items():
        if name not in known:
            return f"'{task}' has no option '{name}'; it has {', '.join(known)}"
        kinds = known[name].kinds
        if isinstance(value, bool) and bool not in kinds:
            return f"option '{name}' cannot be true or false"
        if value is not None and not isinstance(value, kinds):
            return f"option '{name}' is {type(value).__name__}; it must be {' or '.join(k.__name__ for k in kinds)}"
        if problem := _beyond(name, value, known[name]):
            return problem
    every = task == "markers" and bool(options.get("groups"))
    if every and (options.get("group1") is not None or options.get("group2") is not None):
        return "option 'groups' compares each group with all others; omit 'group1' and 'group2'"
    missing = [name for name in TASKS[task].needed if options.get(name) is None]
    if missing := [name for name in missing if not (every and name == "group1")]:
        return f"'{task}' needs the option '{missing[0]}'"
    return None
