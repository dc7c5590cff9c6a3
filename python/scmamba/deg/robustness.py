"""The paper's Fig. 7 as one call: do the same genes come back from fewer cells, or from other donors?

Every run is a two-group hurdle test (Seurat's filters, MAST's numbers), so a run is a handful of sums over
its cells. Runs are grouped into tasks that share one pass over the matrix; tasks go through joblib and are as
much at home on a Dask or Ray cluster as here. Beside the overlap stands what it hides: the false positives of
the same pipeline when nothing differs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..utils.errors import DataError
from ..utils.progress import progress
from .markers import MIN_CELLS, rules_for
from .report import RobustnessResult
from .runs import CellTypeBlock, Criteria, Outcome, full_test, make_block, run_task
from .store import TaskStore, fingerprint
from .subsample import Task, donor_combinations, donor_splits, parse_design, run_seed
from .values import as_csr, normalise, recognise, resolve_layer

RATIOS = (0.10, 0.20, 0.35, 0.50, 0.75, 0.90)
RUNS_PER_TASK = 25
_CONTROL = re.compile(
    r"(control|controls|ctrl|ctl|con|normal|healthy|nc|hc|wt|wildtype|unstimulated|vehicle)", re.I
)
_log = logging.getLogger(__name__)


def robustness(
    adata: Any,
    groupby: str,
    donor: str | None = None,
    cell_type: str | None = None,
    *,
    group1: str | None = None,
    group2: str | None = None,
    layers: Sequence[str] = ("counts", "scmamba"),
    cell_types: Sequence[str] | None = None,
    ratios: Sequence[float] = RATIOS,
    permutations: int = 100,
    donors: str | None = "3v3",
    max_combinations: int = 200,
    null_permutations: int = 20,
    alpha: float = 0.05,
    min_log2fc: float = 0.25,
    adjust: str = "bonferroni",
    seurat: str = "5",
    min_degs: int = 10,
    min_cells: int = 10,
    seed: int = 0,
    n_jobs: int | None = None,
    resume: str | Path | None = None,
    verbose: bool = True,
) -> RobustnessResult:
    """How robust are the DEGs of a comparison, with and without imputation (paper, Fig. 7), and how true?

    For every cell type and layer the genes that differ between ``group1`` and ``group2`` in all cells are
    compared with those of random subsamples of the cells, at every ratio, and of combinations of donors. Then
    the same pipeline runs where nothing differs: on random halves of every donor's cells, and on the donors
    of ``group2`` split in two.

    Parameters
    ----------
    adata
        Raw counts in X (normalised here to log1p of 10,000 per cell) or log values, and the imputed log
        values in a layer. What each layer was taken for is in the result's ``settings["scales"]``.
    groupby, group1, group2
        Column of ``obs`` and its values, e.g. disease and control. If the column has two values they may be
        left out: the one called control, normal, ctrl ... is ``group2``.
    donor, cell_type
        Columns of ``obs``. Without ``donor`` there are no donor runs; without ``cell_type`` all cells are
        one.
    layers
        The first is the reference that the others are compared with. ``"counts"`` means X unless there is
        such a layer.
    ratios, permutations
        Subsampled shares of each group's cells, and random subsamples per share.
    donors, max_combinations
        Donors per group (``"3v3"``) of the combinations; if there are more combinations, so many at random.
    null_permutations
        Runs of each null. 0 leaves them out, and with them the answer to the question of false positives.
    alpha, min_log2fc, adjust
        A DEG has adjusted p < ``alpha`` (``"bonferroni"`` over all genes, as Seurat, or ``"bh"``) and a
        log2 fold change beyond ``min_log2fc``.
    seurat
        Filters and fold change of this version of Seurat.
    min_degs
        Overlaps are missing where the full data have fewer DEGs.
    min_cells
        Cells a donor needs to take part in donor runs.
    n_jobs
        Workers; inside ``joblib.parallel_config(backend="dask")`` the same call uses the cluster.
    resume
        Folder that keeps finished tasks: an interrupted call goes on where it stopped.

    Raises
    ------
    DataError
        For unknown columns, layers or groups, missing donors, or a folder of another analysis.
    """
    _check(ratios, permutations, adjust, donors)
    pair = _groups(adata.obs, groupby, group1, group2)
    plan, skipped = _cells_of_types(adata.obs, groupby, pair, donor, cell_type, cell_types)
    source = _Layers(adata, layers)
    settings: dict[str, Any] = {
        "groupby": groupby,
        "group1": pair[0],
        "group2": pair[1],
        "donor": donor,
        "cell_type": cell_type,
        "layers": list(layers),
        "scales": source.scales,
        "cell_types": list(plan),
        "ratios": [float(r) for r in ratios],
        "permutations": permutations,
        "donors": donors,
        "max_combinations": max_combinations,
        "null_permutations": null_permutations,
        "alpha": alpha,
        "min_log2fc": min_log2fc,
        "adjust": adjust,
        "seurat": str(seurat),
        "min_degs": min_degs,
        "min_cells": min_cells,
        "seed": seed,
        "n_cells": int(adata.n_obs),
        "n_genes": int(adata.n_vars),
    }
    rules = rules_for(seurat)
    criteria = Criteria(rules, alpha, min_log2fc, adjust, min_degs, adata.n_vars)
    columns = [c for c in (groupby, donor, cell_type) if c is not None]
    store = TaskStore(
        resume, settings, fingerprint(adata.obs[columns], source.raw) if resume else ""
    )
    rows, full, notes = [], [], list(skipped)
    with progress("DEG robustness", len(plan), verbose) as advance:
        for name, cells in plan.items():
            blocks = {
                layer: make_block(
                    source.values(layer, cells),
                    adata.obs.iloc[cells],
                    groupby,
                    pair,
                    donor,
                    min_cells,
                )
                for layer in layers
            }
            outcomes = {layer: full_test(block, criteria) for layer, block in blocks.items()}
            full += [
                row
                for layer in layers
                for row in _full_rows(name, layer, blocks[layer], outcomes[layer])
            ]
            tasks = list(_tasks(name, blocks[layers[0]], settings))
            notes += _short_of_donors(name, blocks[layers[0]], settings)
            rows += _execute(tasks, blocks, outcomes, criteria, n_jobs, store)
            advance(1)
    return RobustnessResult.build(
        pd.concat(rows, ignore_index=True), pd.DataFrame(full), settings, notes
    )


def _check(ratios: Sequence[float], permutations: int, adjust: str, donors: str | None) -> None:
    if donors is not None:
        parse_design(donors)
    if adjust not in ("bonferroni", "bh"):
        raise DataError(
            f"adjust={adjust!r} is not known. Choose 'bonferroni' (Seurat's column) or 'bh'."
        )
    bad = [r for r in ratios if not 0 < r <= 1]
    if bad:
        raise DataError(
            f"The ratio {bad[0]} is no share of the cells: give numbers above 0 and up to 1."
        )
    if permutations < 0:
        raise DataError(f"permutations={permutations}: give 0 or more.")


class _Layers:
    """The layers by name: recognised once, cut to cells and normalised when asked for."""

    def __init__(self, adata: Any, layers: Sequence[str]) -> None:
        if len(set(layers)) != len(layers) or not layers:
            raise DataError("Name each layer once, and at least one.")
        self.raw: dict[str, Any] = {}
        self.scales: dict[str, str] = {}
        for layer in layers:
            matrix, where = resolve_layer(adata, layer)
            self.raw[layer] = as_csr(matrix)
            self.scales[layer] = recognise(self.raw[layer].data, where)
            if self.raw[layer].nnz and not self.raw[layer].data.min() >= 0:
                raise DataError(
                    f"{where} holds negative or missing values. Robustness needs log-normalised values, "
                    "which are 0 or more: undo any scaling or centring."
                )
            _log.info("layer %s (%s): taken as %s", layer, where, self.scales[layer])

    def values(self, layer: str, cells: np.ndarray) -> sp.csc_matrix:
        """Log values of some cells, genes-major."""
        part = self.raw[layer][cells]
        return (normalise(part) if self.scales[layer] == "counts" else part).tocsc()


def _groups(
    obs: pd.DataFrame, groupby: str, group1: str | None, group2: str | None
) -> tuple[str, str]:
    """The two values compared; found by name if the column has just two."""
    if groupby not in obs:
        raise DataError(
            f"There is no column {groupby!r} in obs. It has: {', '.join(map(str, obs.columns[:20]))}."
        )
    present = sorted(obs[groupby].dropna().astype(str).unique())
    for asked in (group1, group2):
        if asked is not None and str(asked) not in present:
            raise DataError(
                f"{groupby!r} has no cells of {asked!r}. It has: {', '.join(present[:20])}."
            )
    if group1 is not None and group2 is not None:
        if str(group1) == str(group2):
            raise DataError(
                f"Both groups are {group1!r}. Choose two different values of {groupby!r}."
            )
        return str(group1), str(group2)
    if len(present) != 2:
        raise DataError(
            f"{groupby!r} has {len(present)} values ({', '.join(present[:10])}). Say which two to compare: group1 and group2."
        )
    if group1 is not None:
        return str(group1), next(p for p in present if p != str(group1))
    if group2 is not None:
        return next(p for p in present if p != str(group2)), str(group2)
    controls = [p for p in present if _CONTROL.fullmatch(p)]
    if len(controls) != 1:
        raise DataError(
            f"Which of {present[0]!r} and {present[1]!r} is the control? Say group1 (the condition of "
            "interest) and group2 (what it is compared with)."
        )
    return next(p for p in present if p != controls[0]), controls[0]


def _cells_of_types(
    obs: pd.DataFrame,
    groupby: str,
    pair: tuple[str, str],
    donor: str | None,
    cell_type: str | None,
    wanted: Sequence[str] | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Cells (positions) of each cell type in the two groups, and a note for each type with too few."""
    for name in (donor, cell_type):
        if name is not None and name not in obs:
            raise DataError(
                f"There is no column {name!r} in obs. It has: {', '.join(map(str, obs.columns[:20]))}."
            )
    group = obs[groupby].astype(str).to_numpy()
    compared = np.isin(group, pair) & obs[groupby].notna().to_numpy()
    if donor is not None:
        missing = int((obs[donor].isna().to_numpy() & compared).sum())
        if missing:
            raise DataError(
                f"{donor!r} is missing for {missing:,} cells. Name their donors, or leave them out."
            )
    if cell_type is None:
        kinds = np.full(len(obs), "all cells")
    else:
        kinds = obs[cell_type].astype(str).to_numpy()
        compared &= obs[cell_type].notna().to_numpy()
    present = sorted(set(kinds[compared]))
    unknown = [t for t in wanted or () if t not in present]
    if unknown:
        raise DataError(
            f"There are no cells of type {unknown[0]!r}. There are: {', '.join(present[:30])}."
        )
    plan, notes = {}, []
    for name in wanted or present:
        cells = np.flatnonzero(compared & (kinds == name))
        sizes = [int((group[cells] == g).sum()) for g in pair]
        if min(sizes) < MIN_CELLS:
            notes.append(
                f"{name}: left out, {sizes[0]} {pair[0]} and {sizes[1]} {pair[1]} cells are too few."
            )
        else:
            plan[name] = cells
    if not plan:
        raise DataError(f"No cell type has {MIN_CELLS} cells in both {pair[0]!r} and {pair[1]!r}.")
    return plan, notes


def _tasks(name: str, block: CellTypeBlock, settings: dict[str, Any]) -> Iterator[Task]:
    """All tasks of one cell type, every layer with the same runs."""
    counts = [("cells", r, settings["permutations"]) for r in settings["ratios"]]
    null = settings["null_permutations"]
    counts.append(("null_cells", 1.0, null))
    for layer in settings["layers"]:
        for kind, ratio, total in counts:
            seeds = [run_seed(settings["seed"], kind, name, ratio, i) for i in range(total)]
            for first in range(0, total, RUNS_PER_TASK):
                last = min(first + RUNS_PER_TASK, total)
                yield Task(kind, name, layer, ratio, first, tuple(seeds[first:last]), None)
        for kind, weights in _donor_runs(name, block, settings):
            seed = run_seed(settings["seed"], kind, name, 1.0, 0)
            for first in range(0, len(weights), RUNS_PER_TASK):
                part = weights[first : first + RUNS_PER_TASK]
                yield Task(kind, name, layer, 1.0, first, (seed,) * len(part), part)


def _donor_runs(
    name: str, block: CellTypeBlock, settings: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Which samples (donor x group) take part in each run, as 0/1 rows."""
    first = sum(g == 0 for g, _ in block.samples)
    second = len(block.samples) - first
    if settings["donors"] is not None:
        seed = run_seed(settings["seed"], "donors", name, 1.0, 0)
        take = parse_design(settings["donors"])
        yield "donors", donor_combinations(first, second, take, settings["max_combinations"], seed)
    if settings["null_permutations"] and second >= 4:
        seed = run_seed(settings["seed"], "null_donors", name, 1.0, 0)
        yield "null_donors", donor_splits(second, settings["null_permutations"], seed)


def _short_of_donors(name: str, block: CellTypeBlock, settings: dict[str, Any]) -> list[str]:
    """A sentence for every kind of donor run this cell type cannot have."""
    if settings["donor"] is None:
        return []
    have = [sum(g == k for g, _ in block.samples) for k in (0, 1)]
    notes = []
    if settings["donors"] is not None:
        take = parse_design(settings["donors"])
        if have[0] < take[0] or have[1] < take[1]:
            notes.append(
                f"{name}: no donor combinations; {have[0]} and {have[1]} donors have {settings['min_cells']} "
                f"cells, {settings['donors']} was asked for."
            )
    if settings["null_permutations"] and have[1] < 4:
        notes.append(
            f"{name}: no null of split donors; {settings['group2']} has {have[1]} donors, 4 are needed."
        )
    return notes


def _full_rows(
    name: str, layer: str, block: CellTypeBlock, outcome: Outcome
) -> list[dict[str, Any]]:
    """The DEGs of all cells, and what a per-donor test of the same comparison finds."""
    common = {
        "cell_type": name,
        "layer": layer,
        "n_cells1": int((block.group == 0).sum()),
        "n_cells2": int((block.group == 1).sum()),
        "n_tested": outcome.n_tested,
        "pseudobulk_tested": outcome.bulk_tested,
    }
    return [
        common
        | {
            "direction": way,
            "n_degs": ranking.n_called,
            "pseudobulk_degs": bulk,
            "note": outcome.note,
        }
        for way, ranking, bulk in (
            ("up", outcome.up, outcome.bulk_up),
            ("down", outcome.down, outcome.bulk_down),
        )
    ]


def _execute(
    tasks: list[Task],
    blocks: dict[str, CellTypeBlock],
    outcomes: dict[str, Outcome],
    criteria: Criteria,
    n_jobs: int | None,
    store: TaskStore,
) -> list[pd.DataFrame]:
    """Run what is not stored yet, a few tasks per worker at a time, and store every batch as it comes."""
    done = {task: found for task in tasks if (found := store.load(task)) is not None}
    todo = [task for task in tasks if task not in done]
    reference = next(iter(outcomes.values()))
    matched = {
        way: min(getattr(o, way).n_called for o in outcomes.values()) for way in ("up", "down")
    }
    batch = max(1, 2 * joblib.effective_n_jobs(n_jobs))
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        results = joblib.Parallel(n_jobs=n_jobs)(
            joblib.delayed(run_task)(
                t, blocks[t.layer], outcomes[t.layer], reference, matched, criteria
            )
            for t in part
        )
        for task, table in zip(part, results, strict=True):
            store.save(task, table)
            done[task] = table
    return [done[task] for task in tasks]
