"""The division of samples into training, validation and test."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import say

from .label import known_names
from .studies import PARTS, Study, obs_of, place, read_json, write_json


def splits(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """The samples of train, validation and test, made once and kept in ``splits.json``.

    Raises
    ------
    ScMambaError
        The file names donors that do not exist, or a sample twice; another division is kept already.
    """
    target = place(study, options) / "splits.json"
    obs = obs_of(place(study, options) / "labelled.h5ad")
    if options.splits is not None:
        parts = given_splits(study, options.splits, obs)
        how = f"given ({options.splits.name})"
    elif options.test_samples == "published":
        parts = {"test": samples_of(study, study.test, obs, "the published test set")}
        how = f"published test samples, the others divided with seed {options.seed}"
    else:
        parts, how = {}, f"divided with seed {options.seed}"
    if target.is_file():
        kept = read_json(target)
        if kept["how"] != how or (
            options.splits is not None and any(kept[part] != parts[part] for part in PARTS)
        ):
            raise ScMambaError(
                f"{target} holds another division ({kept['how']}; now: {how}). Delete it, or choose another --work."
            )
        return kept
    if options.splits is None:
        parts = _divide(study, options, parts.get("test", []))
    absent = set(obs["sample"].astype(str)) - {name for part in PARTS for name in parts[part]}
    if absent:
        say(
            f"{study.name}: {len(absent)} samples are in no part and not used: {', '.join(sorted(absent))}",
            True,
        )
    write_json(target, {"how": how, **parts})
    return read_json(target)


def given_splits(study: Study, file: Path, obs: pd.DataFrame) -> dict[str, list[str]]:
    """The split of a study in the authors' file; ``val`` is validation."""
    if not file.is_file():
        raise ScMambaError(f"There is no file of splits {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        own = next(
            (value for key, value in content.items() if key.lower() in known_names(study)), None
        )
        if own is None:
            raise ScMambaError(
                f"{file.name} does not divide {study.name}; it divides {', '.join(content)}."
            )
        own = {
            {"val": "validation", "valid": "validation"}.get(key, key): value
            for key, value in own.items()
        }
        parts = {
            part: samples_of(study, own.get(part, []), obs, f"{file.name}, {part}")
            for part in PARTS
        }
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        form = '{"Lau": {"train": [...], "validation": [...], "test": [...]}}'
        raise ScMambaError(f"{file.name} must be JSON of the form {form} ({error}).") from error
    for part in ("train", "test"):
        if not parts[part]:
            raise ScMambaError(f"{file.name} puts no donor of {study.name} in '{part}'.")
    several = [name for name in sum(parts.values(), []) if sum(parts.values(), []).count(name) > 1]
    if several:
        raise ScMambaError(
            f"{file.name}: {', '.join(sorted(set(several)))} of {study.name} stands in more than one part."
        )
    return parts


def samples_of(study: Study, names: Iterable[str], obs: pd.DataFrame, what: str) -> list[str]:
    """Samples given by their own names (a GSM number before them is ignored) or by their donor.

    Raises
    ------
    ScMambaError
        There is no such sample or donor.
    """
    people = obs[["sample", "donor"]].astype(str).drop_duplicates()
    found: list[str] = []
    unknown = []
    for name in names:
        plain = re.sub(r"^GSM\d+[_-]", "", str(name)).upper()
        own = people["sample"][people["sample"].str.upper() == plain]
        own = own if len(own) else people["sample"][people["donor"].str.upper() == plain]
        found += list(own)
        unknown += [] if len(own) else [str(name)]
    if unknown:
        raise ScMambaError(
            f"{what}: {study.name} has no donor or sample {', '.join(unknown)} with cells left; it has "
            f"{', '.join(sorted(people['sample']))}. --test-samples seed draws the test set from those."
        )
    return list(dict.fromkeys(found))


def _divide(study: Study, options: argparse.Namespace, test: list[str]) -> dict[str, list[str]]:
    """Donors divided by seed: a tenth for validation and, if no test set is given, a fifth for it (as published)."""
    cells = collection(study, options, None, "donor")
    obs = obs_of(place(study, options) / "labelled.h5ad")[["sample", "donor"]].astype(str)
    rest = cells.take(~obs["sample"].isin(test).to_numpy())
    where = rest.split(validation=0.1, test=0 if test else 0.2, seed=options.seed).set_index(
        "donor"
    )["split"]
    people = obs.drop_duplicates().sort_values("sample")
    part = np.where(people["sample"].isin(test), "test", people["donor"].map(where))
    return {name: list(people["sample"][part == name]) for name in PARTS}


def collection(
    study: Study, options: argparse.Namespace, vocabulary: Any, donor: str, label: str = "celltype"
) -> Any:
    """The labeled cells as the package's training reads them."""
    from scmamba.data import Collection

    folder = place(study, options)
    return Collection(
        [folder / "labelled.h5ad"],
        vocabulary=vocabulary,
        donor_key=donor,
        study_key="study",
        condition_key="disease",
        label_key=label,
        cache=folder / "cache",
        verbose=False,
    )
