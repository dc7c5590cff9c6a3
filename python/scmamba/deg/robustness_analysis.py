"""The paper's Fig. 7 as one call: are the same genes found from fewer cells, or from other donors?

Every run is a two-group hurdle test (Seurat's filters, MAST's numbers), so a run needs a few sums over its cells. Runs
are grouped into tasks that share one pass over the matrix; joblib runs the tasks on this machine or on a Dask or Ray
cluster. The same pipeline is run where nothing differs, which measures its false positives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..utils.columns import require_adata
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError
from ..utils.layers import layer_names
from ..utils.progress import progress
from ..utils.threads import within_cores
from .columns import as_list
from .count_tests import OF_COUNTS
from .markers import rules_for
from .options import RATIOS, RobustnessOptions
from .plan import cells_of_types, condition_pair, missing_donor_runs, plan_tasks
from .result import RobustnessResult
from .runs import CellTypeBlock, Criteria, Outcome, full_test, make_block, run_task
from .store import TaskStore, fingerprint
from .subsample import Task, parse_design
from .values import Source, layer_source


@renamed_parameters(groupby="condition_key", donor="donor_key", cell_type="label_key")
@within_cores()
def robustness(
    adata: Any,
    condition_key: str,
    donor_key: str | None = None,
    label_key: str | None = None,
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
    donor_test: str = "moderated_t",
    seed: int = 0,
    n_jobs: int | None = None,
    resume: str | Path | None = None,
    verbose: bool = True,
) -> RobustnessResult:
    """How reproducible the DEGs of a comparison are, with and without imputation (the paper's Fig. 7), and how many are false.

    For every cell type and layer the genes that differ between ``group1`` and ``group2`` in all cells are
    compared with those of random subsamples of the cells, at every ratio, and of combinations of donors. Then
    the same pipeline runs where nothing differs: on random halves of every donor's cells, and on the donors
    of ``group2`` split in two.

    Parameters
    ----------
    adata
        AnnData with raw counts in X (normalized to log1p of 10,000 per cell) or log values, and the imputed log
        values in a layer. What each layer was taken for is in the result's ``settings["scales"]``.
    condition_key
        Column of ``obs`` with the condition, such as disease and control.
    donor_key
        Column of ``obs`` with the donors. Without it there are no donor runs.
    label_key
        Column of ``obs`` with the cell types. Without it all cells are one type.
    group1, group2
        The two values compared. If the column has two values they may be omitted: the one called control, normal,
        ctrl or the like is ``group2``.
    layers
        The first is the reference that the others are compared with. ``"counts"`` means X unless there is
        such a layer.
    cell_types
        The types to analyze; all with enough cells if not given.
    ratios
        Shares of each group's cells that subsamples keep, above 0 and up to 1.
    permutations
        Random subsamples per share.
    donors
        Donors per group of the combinations, such as ``"3v3"``; None for no donor runs.
    max_combinations
        If there are more combinations of donors, this many are drawn at random.
    null_permutations
        Runs of each null comparison; 0 omits them, and with them the false-positive rates.
    alpha
        A DEG has an adjusted p below ``alpha``.
    min_log2fc
        A DEG has an absolute log2 fold change above this.
    adjust
        ``"bonferroni"`` over all genes, as Seurat, or ``"bh"`` (Benjamini-Hochberg) over the tested genes.
    seurat
        Filters and fold change of Seurat ``"5"`` or ``"4"``.
    min_degs
        Overlaps are missing (NaN) where all cells give fewer DEGs.
    min_cells
        Cells a donor needs to take part in donor runs.
    donor_test
        Test between donors beside every test over cells. ``"moderated_t"``: moderated t-test of the donors' means, for
        counts and logarithms, fast. ``"likelihood_ratio"`` (the default of :func:`compare`), ``"quasi_likelihood"`` and
        ``"wald"``: negative-binomial tests of the donors' counts, about a second for each run; layers of logarithms have no
        counts, and their per-donor columns are then missing.
    seed
        Seed of the random numbers; the same seed gives the same subsamples in every layer.
    n_jobs
        Worker processes, one if None; inside ``joblib.parallel_config(backend="dask")`` the same call uses the
        cluster.
    resume
        Folder of finished tasks: an interrupted call continues from it.
    verbose
        Draw a progress bar.

    Returns
    -------
    RobustnessResult
        Tables (``runs``, ``nulls``, ``full``), ``summary()``, ``tests()``, ``false_positives()``, ``figures()`` and
        ``save(folder)``.

    Raises
    ------
    DataError
        Unknown columns, layers or groups, missing donors, or a ``resume`` folder of another analysis.
    OptionError
        An option is outside of its range.

    Examples
    --------
    >>> import warnings
    >>> from scmamba import datasets, deg
    >>> adata = datasets.brain_cohort(n_cells=600, n_genes=300, seed=1)
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")  # imputation inflates significance
    ...     result = deg.robustness(
    ...         adata, "disease", "donor", layers=["counts"], donors=None, ratios=[0.5], permutations=3,
    ...         null_permutations=2, verbose=False,
    ...     )
    >>> sorted(set(result.runs["kind"]))
    ['cells']
    """
    options = RobustnessOptions.from_mapping(
        {
            "condition_key": condition_key,
            "donor_key": donor_key,
            "label_key": label_key,
            "group1": group1,
            "group2": group2,
            "layers": as_list(layers),
            "cell_types": None if cell_types is None else as_list(cell_types),
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
            "donor_test": donor_test,
            "seed": seed,
            "n_jobs": n_jobs,
            "resume": resume,
        }
    )
    return Analysis(adata, options).run(verbose)


class Analysis:
    """One robustness analysis: groups, cells of every type and layers, checked before any work.

    Parameters
    ----------
    adata
        The cells.
    options
        The options of :func:`robustness`.
    """

    def __init__(self, adata: Any, options: RobustnessOptions) -> None:
        _check(options)
        require_adata(adata, "robustness()")
        self.adata = adata
        self.pair = condition_pair(
            adata.obs, str(options.condition_key), options.group1, options.group2
        )
        self.plan, self.notes = cells_of_types(
            adata.obs,
            str(options.condition_key),
            self.pair,
            options.donor_key,
            options.label_key,
            options.cell_types,
        )
        self.layers = LayerValues(adata, options.layers)
        if options.donor_test in OF_COUNTS and options.donor_key is not None:
            _require_counts(options, self.layers.scales, self.notes)
        self.options = dataclasses.replace(
            options, group1=self.pair[0], group2=self.pair[1], cell_types=list(self.plan)
        )

    def settings(self) -> dict[str, Any]:
        """The options as they are stored with the result; how and where tasks run makes no difference."""
        values = dataclasses.asdict(self.options)
        for name in ("n_jobs", "resume"):
            del values[name]
        return values | {
            "scales": self.layers.scales,
            "n_cells": int(self.adata.n_obs),
            "n_genes": self.layers.n_genes,
        }

    def run(self, verbose: bool) -> RobustnessResult:
        """All runs of every cell type."""
        options, settings = self.options, self.settings()
        criteria = Criteria(
            rules_for(options.seurat),
            options.alpha,
            options.min_log2fc,
            options.adjust,
            options.min_degs,
            self.layers.n_genes,
            options.donor_test,
        )
        keys = (options.condition_key, options.donor_key, options.label_key)
        columns = [c for c in keys if c is not None]
        store = TaskStore(
            options.resume,
            settings,
            fingerprint(self.adata.obs[columns], self.layers.raw) if options.resume else "",
        )
        rows: list[pd.DataFrame] = []
        full: list[dict[str, Any]] = []
        notes = list(self.notes)
        with progress("DEG robustness", len(self.plan), verbose) as advance:
            for name, cells in self.plan.items():
                blocks = self._blocks(cells)
                outcomes = {layer: full_test(block, criteria) for layer, block in blocks.items()}
                for layer in options.layers:
                    full += _full_rows(name, layer, blocks[layer], outcomes[layer])
                first = blocks[options.layers[0]]
                tasks = list(plan_tasks(name, first, options))
                notes += missing_donor_runs(name, first, options)
                rows += _execute(tasks, blocks, outcomes, criteria, options.n_jobs, store)
                advance(1)
        return RobustnessResult.build(
            pd.concat(rows, ignore_index=True), pd.DataFrame(full), settings, notes
        )

    def _blocks(self, cells: np.ndarray) -> dict[str, CellTypeBlock]:
        obs = self.adata.obs.iloc[cells]
        of_counts = self.options.donor_test in OF_COUNTS
        return {
            layer: make_block(
                self.layers.values(layer, cells),
                obs,
                str(self.options.condition_key),
                self.pair,
                self.options.donor_key,
                self.options.min_cells,
                self.layers.counts(layer, cells) if of_counts else None,
            )
            for layer in self.options.layers
        }


def _check(options: RobustnessOptions) -> None:
    if options.donors is not None:
        parse_design(options.donors)
    bad = [r for r in options.ratios if not 0 < r <= 1]
    if bad:
        raise DataError(
            f"ratios must be shares of the cells, above 0 and up to 1; found {bad[0]:g}."
        )


def _require_counts(options: RobustnessOptions, scales: dict[str, str], notes: list[str]) -> None:
    """Refuse a test of counts without counts, and note the layers that it cannot test."""
    logs = [name for name in options.layers if scales[name] == "log"]
    if options.layers[0] in logs:
        raise DataError(
            f"donor_test={options.donor_test!r} tests raw counts, but the first layer, {options.layers[0]!r}, holds "
            "logarithms. Name the layer with the counts first, or use donor_test='moderated_t'."
        )
    if logs:
        notes.append(
            f"{', '.join(logs)}: no test between donors; {options.donor_test} tests raw counts, and this layer holds logarithms."
        )


class LayerValues:
    """The layers by name: judged once, cut to cells and normalized where needed."""

    def __init__(self, adata: Any, layers: Sequence[str]) -> None:
        if len(set(layers)) != len(layers) or not layers:
            raise DataError("Name each layer once, and at least one.")
        self.sources = {name: _named_source(adata, name) for name in layers}
        genes = [list(source.genes) for source in self.sources.values()]
        if other := [name for name, names in zip(layers, genes, strict=True) if names != genes[0]]:
            raise DataError(
                f"The layers '{layers[0]}' and '{other[0]}' have different genes and cannot be compared."
            )

    @property
    def n_genes(self) -> int:
        """Genes of the layers."""
        return len(next(iter(self.sources.values())).genes)

    @property
    def scales(self) -> dict[str, str]:
        """``"counts"`` or ``"log"`` for each layer."""
        return {n: "log" if s.totals is None else "counts" for n, s in self.sources.items()}

    @property
    def raw(self) -> dict[str, Any]:
        """The matrices as they are read."""
        return {name: source.matrix for name, source in self.sources.items()}

    def values(self, layer: str, cells: np.ndarray) -> sp.csc_matrix:
        """Natural logarithms of some cells, genes-major."""
        return self.sources[layer].logs(cells).tocsc()

    def counts(self, layer: str, cells: np.ndarray) -> sp.csr_matrix | None:
        """Raw counts of some cells; None for a layer of logarithms."""
        source = self.sources[layer]
        return None if source.totals is None else source.matrix[cells]


def _named_source(adata: Any, name: str) -> Source:
    """A layer; the counts may be in X, if X does hold counts."""
    if name != "counts" or name in adata.layers:
        return layer_source(adata, name)
    source = layer_source(adata, "X")
    if source.totals is None:
        raise DataError(
            f"There is no layer 'counts', and {source.values}. Name the layers to compare with layers=...; "
            f"there are {', '.join(layer_names(adata.layers)) or 'none'} and X."
        )
    return source


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
