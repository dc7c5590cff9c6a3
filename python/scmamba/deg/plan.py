"""What the robustness analysis runs: the two groups, the cells of each type, and the tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from ..utils.columns import require_column, warn_similar
from ..utils.errors import DataError
from .markers import MIN_CELLS
from .options import RobustnessOptions
from .runs import CellTypeBlock
from .subsample import Task, donor_combinations, donor_splits, parse_design, run_seed

RUNS_PER_TASK = 25
_CONTROL = re.compile(
    r"(control|controls|ctrl|ctl|con|normal|healthy|nc|hc|wt|wildtype|unstimulated|vehicle)", re.I
)


def condition_pair(
    obs: pd.DataFrame, condition_key: str, group1: str | None, group2: str | None
) -> tuple[str, str]:
    """The two values compared; found by name if the column has just two."""
    require_column(obs, condition_key)
    present = sorted(obs[condition_key].dropna().astype(str).unique())
    warn_similar(present, condition_key)
    for asked in (group1, group2):
        if asked is not None and str(asked) not in present:
            raise DataError(
                f"{condition_key!r} has no cells of {asked!r}. It has: {', '.join(present[:20])}."
            )
    if group1 is not None and group2 is not None:
        if str(group1) == str(group2):
            raise DataError(
                f"Both groups are {group1!r}. Choose two different values of {condition_key!r}."
            )
        return str(group1), str(group2)
    if len(present) != 2:
        raise DataError(
            f"{condition_key!r} has {len(present)} value{'' if len(present) == 1 else 's'} ({', '.join(present[:10]) or 'none'}). Set group1 and group2 to the two that are compared."
        )
    if group1 is not None:
        return str(group1), next(p for p in present if p != str(group1))
    if group2 is not None:
        return next(p for p in present if p != str(group2)), str(group2)
    controls = [p for p in present if _CONTROL.fullmatch(p)]
    if len(controls) != 1:
        raise DataError(
            f"Neither or both of {present[0]!r} and {present[1]!r} mean control. Set group1 (the condition of "
            "interest) and group2 (what it is compared with)."
        )
    return next(p for p in present if p != controls[0]), controls[0]


def cells_of_types(
    obs: pd.DataFrame,
    condition_key: str,
    pair: tuple[str, str],
    donor_key: str | None,
    label_key: str | None,
    wanted: Sequence[str] | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Cells (positions) of each cell type in the two groups, and a note for each type with too few."""
    for name in (donor_key, label_key):
        if name is not None:
            require_column(obs, name)
    group = obs[condition_key].astype(str).to_numpy()
    compared = np.isin(group, pair) & obs[condition_key].notna().to_numpy()
    if donor_key is not None:
        missing = int((obs[donor_key].isna().to_numpy() & compared).sum())
        if missing:
            raise DataError(
                f"{donor_key!r} is missing for {missing:,} cells. Name their donors, or exclude those cells."
            )
    if label_key is None:
        types = np.full(len(obs), "all cells")
    else:
        types = obs[label_key].astype(str).to_numpy()
        compared &= obs[label_key].notna().to_numpy()
    present = sorted(set(types[compared]))
    warn_similar(present, str(label_key))
    unknown = [t for t in wanted or () if t not in present]
    if unknown:
        raise DataError(
            f"There are no cells of type {unknown[0]!r}. There are: {', '.join(present[:30])}."
        )
    plan, notes = {}, []
    for name in wanted or present:
        cells = np.flatnonzero(compared & (types == name))
        sizes = [int((group[cells] == g).sum()) for g in pair]
        if min(sizes) < MIN_CELLS:
            notes.append(
                f"{name}: omitted, {sizes[0]} {pair[0]} and {sizes[1]} {pair[1]} cells are too few."
            )
        else:
            plan[name] = cells
    if not plan:
        raise DataError(f"No cell type has {MIN_CELLS} cells in both {pair[0]!r} and {pair[1]!r}.")
    return plan, notes


def plan_tasks(name: str, block: CellTypeBlock, options: RobustnessOptions) -> Iterator[Task]:
    """All tasks of one cell type, every layer with the same runs."""
    counts = [("cells", r, options.permutations) for r in options.ratios]
    null = options.null_permutations
    counts.append(("null_cells", 1.0, null))
    for layer in options.layers:
        for kind, ratio, total in counts:
            seeds = [run_seed(options.seed, kind, name, ratio, i) for i in range(total)]
            for first in range(0, total, RUNS_PER_TASK):
                last = min(first + RUNS_PER_TASK, total)
                yield Task(kind, name, layer, ratio, first, tuple(seeds[first:last]), None)
        for kind, weights in _donor_runs(name, block, options):
            seed = run_seed(options.seed, kind, name, 1.0, 0)
            for first in range(0, len(weights), RUNS_PER_TASK):
                part = weights[first : first + RUNS_PER_TASK]
                yield Task(kind, name, layer, 1.0, first, (seed,) * len(part), part)


def _donor_runs(
    name: str, block: CellTypeBlock, options: RobustnessOptions
) -> Iterator[tuple[str, np.ndarray]]:
    """Which samples (donor x group) take part in each run, as 0/1 rows."""
    first = sum(g == 0 for g, _ in block.samples)
    second = len(block.samples) - first
    if options.donors is not None:
        seed = run_seed(options.seed, "donors", name, 1.0, 0)
        take = parse_design(options.donors)
        yield "donors", donor_combinations(first, second, take, options.max_combinations, seed)
    if options.null_permutations and second >= 4:
        seed = run_seed(options.seed, "null_donors", name, 1.0, 0)
        yield "null_donors", donor_splits(second, options.null_permutations, seed)


def missing_donor_runs(name: str, block: CellTypeBlock, options: RobustnessOptions) -> list[str]:
    """A sentence for every type of donor run this cell type cannot have."""
    if options.donor_key is None:
        return []
    have = [sum(g == k for g, _ in block.samples) for k in (0, 1)]
    notes = []
    if options.donors is not None:
        take = parse_design(options.donors)
        if have[0] < take[0] or have[1] < take[1]:
            notes.append(
                f"{name}: no donor combinations; {have[0]} and {have[1]} donors have {options.min_cells} "
                f"cells, {options.donors} were requested."
            )
    if options.null_permutations and have[1] < 4:
        notes.append(
            f"{name}: no null of split donors; {options.group2} has {have[1]} donors, 4 are needed."
        )
    return notes
