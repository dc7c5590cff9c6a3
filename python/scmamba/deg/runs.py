"""One robustness task: sums over the cells of its runs, tests, and what they share with the full data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..utils.columns import as_text
from .between_donors import PRIOR_COUNT
from .count_tests import OF_COUNTS, test_cells
from .linear import moderated_t
from .markers import MIN_CELLS, Rules, Screen, benjamini_hochberg, pair_tests
from .subsample import Task, cell_subsample, null_cells
from .twogroup import HurdleTest, Sums, combine_sums, sample_sums, subset_sums

DIRECTIONS = ("up", "down")
BULK_CELLS = 10  # genes expressed by fewer cells are not tested between donors


class Criteria(NamedTuple):
    """When a gene counts as differentially expressed."""

    rules: Rules
    alpha: float
    min_log2fc: float
    adjust: str
    min_degs: int
    n_features: int
    donor_test: str = "moderated_t"


class CellTypeBlock(NamedTuple):
    """One cell type in one layer: log values genes-major, and each cell's group, stratum and donor sample."""

    values: sp.csc_matrix
    centre: np.ndarray
    group: np.ndarray  # (cells,) 0 or 1
    strata: np.ndarray  # (cells,) number of the donor x group; 0 and 1 without donors
    sample: np.ndarray  # (cells,) position in ``samples``, -1 if the donor has too few cells
    samples: tuple[tuple[int, str], ...]  # (group, donor) with enough cells, group 0 first
    counts: sp.csr_matrix | None = None  # cells x genes, for tests of counts between donors


class Ranking(NamedTuple):
    """Genes of one direction by evidence, strongest first; the first ``n_called`` are significant."""

    genes: np.ndarray
    n_called: int


class Outcome(NamedTuple):
    """One test, and beside it the per-donor test of the same cells where there are donors (else -1)."""

    n_tested: int
    n_nominal: int  # genes with p < 0.05
    up: Ranking
    down: Ranking
    note: str = ""
    bulk_tested: int = -1
    bulk_nominal: int = -1
    bulk_up: int = -1
    bulk_down: int = -1
    bulk_ranks: tuple[Ranking, Ranking] | None = None  # up, down


def make_block(
    values: sp.csc_matrix,
    obs: pd.DataFrame,
    groupby: str,
    pair: tuple[str, str],
    donor: str | None,
    min_cells: int,
    counts: sp.csr_matrix | None = None,
) -> CellTypeBlock:
    """Cells of one cell type with their labels as numbers."""
    group = (obs[groupby].astype(str).to_numpy() == pair[1]).astype(np.int64)
    n = np.diff(values.indptr)
    centre = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel() / np.maximum(n, 1)
    if donor is None:
        return CellTypeBlock(values, centre, group, group, np.full(group.size, -1), ())
    keys = list(zip(group.tolist(), as_text(obs[donor]), strict=True))
    every = sorted(set(keys))
    strata = np.array([every.index(k) for k in keys])
    enough = np.bincount(strata, minlength=len(every)) >= min_cells
    samples = tuple(k for k, good in zip(every, enough, strict=True) if good)
    position = np.where(enough, np.cumsum(enough) - 1, -1)
    return CellTypeBlock(values, centre, group, strata, position[strata], samples, counts)


def full_test(block: CellTypeBlock, criteria: Criteria) -> Outcome:
    """The test on all cells, and the per-donor test beside it."""
    member = np.column_stack([block.group == 0, block.group == 1]).astype(np.uint8)
    first, second = subset_sums(block.values, block.centre, member)
    outcome = _tests([(first, second)], block.centre, criteria)[0]
    if len(block.samples) < 2:
        return outcome
    label = np.array([g for g, _ in block.samples])
    names = [d for _, d in block.samples]
    if criteria.donor_test in OF_COUNTS:
        return _of_counts(outcome, block, block.sample, label, names, criteria)
    parts = _sample_sums(block)
    return _with_bulk(outcome, parts, label, names, criteria)


def run_task(
    task: Task,
    block: CellTypeBlock,
    full: Outcome,
    reference: Outcome,
    matched: dict[str, int],
    criteria: Criteria,
) -> pd.DataFrame:
    """All runs of a task.

    ``reference`` is the full test of the first layer, ``matched`` the number of DEGs every layer has.
    """
    rows: list[dict[str, Any]] = []
    parts = [] if task.weights is None else _sample_sums(block)
    pairs = _pairs(task, block, parts)
    outcomes = _tests([p[:2] for p in pairs], block.centre, criteria)
    beside = _runs_per_donor(task, block, parts, criteria)
    for i, ((first, second, label), outcome) in enumerate(zip(pairs, outcomes, strict=True)):
        head = {
            "kind": task.kind,
            "cell_type": task.cell_type,
            "layer": task.layer,
            "ratio": task.ratio,
            "run": task.first + i,
            "seed": task.seeds[i],
            "donors": label,
            "n_cells1": first.n,
            "n_cells2": second.n,
            "n_tested": outcome.n_tested,
            "note": outcome.note,
        }
        if task.kind.startswith("null"):
            if task.kind == "null_donors":
                outcome = _null_bulk(outcome, task, i, block, parts, criteria)
            rows.append(head | {"direction": "both"} | _null_columns(outcome))
        else:
            for way in DIRECTIONS:
                columns = _overlap_columns(way, outcome, full, reference, matched[way], criteria)
                columns |= _per_donor_columns(way, beside[i] if beside else None, full, criteria)
                rows.append(head | {"direction": way} | columns)
    return pd.DataFrame(rows)


def _pairs(task: Task, block: CellTypeBlock, parts: list[Sums]) -> list[tuple[Sums, Sums, str]]:
    """The two groups' sums of every run, from one pass over the matrix."""
    if task.weights is None:
        if task.kind == "cells":
            members = [cell_subsample(block.group, task.ratio, s) for s in task.seeds]
        else:
            members = [null_cells(block.strata, s) for s in task.seeds]
        sums = subset_sums(block.values, block.centre, np.concatenate(members, axis=1))
        return [(sums[2 * i], sums[2 * i + 1], "") for i in range(len(task.seeds))]
    group = np.array([g for g, _ in block.samples])
    names = np.array([d for _, d in block.samples])
    first, second = _sides(task, group)
    one, two = combine_sums(parts, first), combine_sums(parts, second)
    labels = [
        f"{'+'.join(names[a > 0])} v {'+'.join(names[b > 0])}"
        for a, b in zip(first, second, strict=True)
    ]
    return list(zip(one, two, labels, strict=True))


def _sides(task: Task, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(runs, samples) 0/1 for either side of every donor run."""
    assert task.weights is not None
    if task.kind == "donors":
        return task.weights * (group == 0), task.weights * (group == 1)
    first = np.zeros((len(task.weights), group.size), dtype=np.uint8)
    first[:, group == 1] = task.weights
    second = (1 - first) * (group == 1).astype(np.uint8)
    return first, second


def _sample_sums(block: CellTypeBlock) -> list[Sums]:
    """Sums of every donor x group sample."""
    member = np.zeros((block.group.size, len(block.samples)), dtype=np.uint8)
    inside = np.flatnonzero(block.sample >= 0)
    member[inside, block.sample[inside]] = 1
    return subset_sums(block.values, block.centre, member)


def _tests(
    pairs: Sequence[tuple[Sums, Sums]], centre: np.ndarray, criteria: Criteria
) -> list[Outcome]:
    """Filter, test, adjust, rank every pair. Too few cells or no varying gene: an outcome with a note."""
    large = [p for p in pairs if min(p[0].n, p[1].n) >= MIN_CELLS]
    done = iter(pair_tests(large, centre, criteria.rules))
    nothing = Ranking(np.zeros(0, np.int64), 0)
    out = []
    for first, second in pairs:
        if min(first.n, second.n) < MIN_CELLS:
            note = f"{first.n} and {second.n} cells: fewer than {MIN_CELLS}"
            out.append(Outcome(0, 0, nothing, nothing, note))
            continue
        screen, test, note = next(done)
        out.append(
            Outcome(0, 0, nothing, nothing, note)
            if test is None
            else _outcome(screen, test, criteria)
        )
    return out


def _outcome(screen: Screen, test: HurdleTest, criteria: Criteria) -> Outcome:
    if criteria.adjust == "bh":
        significant = benjamini_hochberg(test.p) < criteria.alpha
    else:
        significant = test.p * criteria.n_features < criteria.alpha
    change = screen.change[screen.passed]
    return Outcome(
        int(screen.passed.size),
        int((test.p < 0.05).sum()),
        _rank(screen.passed, test.log_p, significant, change, criteria.min_log2fc),
        _rank(screen.passed, test.log_p, significant, -change, criteria.min_log2fc),
    )


def _rank(
    genes: np.ndarray,
    log_p: np.ndarray,
    significant: np.ndarray,
    change: np.ndarray,
    threshold: float,
) -> Ranking:
    """Genes changed in this direction, by p, then by fold change."""
    mine = np.flatnonzero(change > threshold)
    order = mine[np.lexsort((-change[mine], log_p[mine]))]
    return Ranking(genes[order], int(significant[mine].sum()))


def _overlap_columns(
    way: str, outcome: Outcome, full: Outcome, reference: Outcome, k: int, criteria: Criteria
) -> dict[str, Any]:
    """Shares of genes in common with the full data; NaN if there is too little to compare."""
    mine: Ranking = getattr(outcome, way)
    whole: Ranking = getattr(full, way)
    truth: Ranking = getattr(reference, way)
    called = mine.genes[: mine.n_called]
    common = int(np.isin(called, whole.genes[: whole.n_called]).sum())
    common_ref = int(np.isin(called, truth.genes[: truth.n_called]).sum())
    top = int(np.isin(mine.genes[:k], whole.genes[:k]).sum())
    ran = outcome.note == ""
    enough = ran and whole.n_called >= criteria.min_degs
    return {
        "n_full": whole.n_called,
        "n_called": mine.n_called,
        "n_common": common,
        "overlap": common / whole.n_called if enough else np.nan,
        "precision": common / mine.n_called if enough and mine.n_called else np.nan,
        "precision_reference": common_ref / mine.n_called
        if ran and truth.n_called >= criteria.min_degs and mine.n_called
        else np.nan,
        "n_matched": k,
        "overlap_matched": top / k if ran and k >= criteria.min_degs else np.nan,
    }


def _runs_per_donor(
    task: Task, block: CellTypeBlock, parts: list[Sums], criteria: Criteria
) -> list[Outcome]:
    """The per-donor test of every run, on the run's own cells; empty for null runs and without donors."""
    if task.kind.startswith("null") or len(block.samples) < 2:
        return []
    group = np.array([g for g, _ in block.samples])
    names = [d for _, d in block.samples]
    no_genes = Ranking(np.zeros(0, np.int64), 0)
    nothing = Outcome(0, 0, no_genes, no_genes)
    if criteria.donor_test in OF_COUNTS:
        codes = _samples_of_runs(task, block)
        return [_of_counts(nothing, block, code, group, names, criteria) for code in codes]
    if task.weights is not None:
        out = []
        for row in task.weights:
            keep = np.flatnonzero(row)
            mine = [parts[i] for i in keep]
            out.append(_with_bulk(nothing, mine, group[keep], [names[i] for i in keep], criteria))
        return out
    member = np.stack(
        [cell_subsample(block.group, task.ratio, s).any(axis=1) for s in task.seeds], axis=1
    )
    linear, expressed, sizes = sample_sums(block.values, block.sample, len(names), member)
    out = []
    for run in range(len(task.seeds)):
        keep = np.flatnonzero(sizes[run] > 0)
        means = linear[run][keep] / sizes[run][keep, None]
        cells = expressed[run]
        out.append(_bulk(nothing, means, cells, group[keep], [names[i] for i in keep], criteria))
    return out


def _per_donor_columns(
    way: str, outcome: Outcome | None, full: Outcome, criteria: Criteria
) -> dict[str, Any]:
    """Share of the per-donor test's genes of the full data that it finds again in the run."""
    at = DIRECTIONS.index(way)
    if outcome is None or outcome.bulk_ranks is None or full.bulk_ranks is None:
        return {}
    mine, whole = outcome.bulk_ranks[at], full.bulk_ranks[at]
    wanted = whole.genes[: whole.n_called]
    common = int(np.isin(mine.genes[: mine.n_called], wanted).sum())
    enough = whole.n_called >= criteria.min_degs
    return {
        "pseudobulk_full": whole.n_called,
        "pseudobulk_called": mine.n_called,
        "pseudobulk_overlap": common / whole.n_called if enough else np.nan,
    }


def _null_columns(outcome: Outcome) -> dict[str, Any]:
    """Everything called here is false."""
    ran = outcome.note == ""
    bulk = outcome.bulk_tested > 0
    return {
        "n_nominal": outcome.n_nominal,
        "n_called": outcome.up.n_called + outcome.down.n_called,
        "rate_nominal": outcome.n_nominal / outcome.n_tested
        if ran and outcome.n_tested
        else np.nan,
        "pseudobulk_rate": outcome.bulk_nominal / outcome.bulk_tested if bulk else np.nan,
        "pseudobulk_called": outcome.bulk_up + outcome.bulk_down if bulk else np.nan,
    }


def _null_bulk(
    outcome: Outcome,
    task: Task,
    run: int,
    block: CellTypeBlock,
    parts: list[Sums],
    criteria: Criteria,
) -> Outcome:
    """The per-donor test of one split of the second group's donors."""
    group = np.array([g for g, _ in block.samples])
    keep = np.flatnonzero(group == 1)
    first, _ = _sides(task, group)
    label = 1 - first[run][keep].astype(np.int64)
    names = [block.samples[i][1] for i in keep]
    if criteria.donor_test in OF_COUNTS:
        number = np.full(group.size + 1, -1)
        number[keep] = np.arange(keep.size)
        return _of_counts(outcome, block, number[block.sample], label, names, criteria)
    return _with_bulk(outcome, [parts[i] for i in keep], label, names, criteria)


def _with_bulk(
    outcome: Outcome, parts: list[Sums], label: np.ndarray, names: list[str], criteria: Criteria
) -> Outcome:
    """Moderated t-tests on the donors' log2 means (label 0 v 1), within donors if all have both labels."""
    means = np.stack([p.linear / p.n for p in parts])
    cells = np.sum([p.expressed for p in parts], axis=0)
    return _bulk(outcome, means, cells, label, names, criteria)


def _samples_of_runs(task: Task, block: CellTypeBlock) -> list[np.ndarray]:
    """(cells,) number of the sample of every cell of every run; -1 for cells that take no part."""
    if task.weights is None:
        members = [cell_subsample(block.group, task.ratio, s).any(axis=1) for s in task.seeds]
        return [np.where(member, block.sample, -1) for member in members]
    return [
        np.where(np.append(row > 0, False)[block.sample], block.sample, -1) for row in task.weights
    ]


def _of_counts(
    outcome: Outcome,
    block: CellTypeBlock,
    code: np.ndarray,
    label: np.ndarray,
    names: list[str],
    criteria: Criteria,
) -> Outcome:
    """A test of the counts of the donors (label 0 v 1), as by ``compare``; as it was, if the layer has no counts."""
    if block.counts is None:
        return outcome
    cells = np.flatnonzero(code >= 0)
    tested = test_cells(criteria.donor_test, block.counts[cells], code[cells], label, names)
    if tested is None:
        return outcome
    called = tested.adjusted < criteria.alpha
    order = tested.p / tested.weights
    up, down = (
        _rank(tested.kept, order, called, sign * tested.change, criteria.min_log2fc)
        for sign in (1.0, -1.0)
    )
    return outcome._replace(
        bulk_tested=int(tested.kept.size),
        bulk_nominal=int((tested.p < 0.05).sum()),
        bulk_up=up.n_called,
        bulk_down=down.n_called,
        bulk_ranks=(up, down),
    )


def _bulk(
    outcome: Outcome,
    means: np.ndarray,
    cells: np.ndarray,
    label: np.ndarray,
    names: list[str],
    criteria: Criteria,
) -> Outcome:
    """The same from (samples, genes) means and the number of cells that express each gene."""
    if min((label == 0).sum(), (label == 1).sum()) < 2:
        return outcome
    kept = np.flatnonzero(((means > 0).sum(axis=0) > 1) & (cells >= BULK_CELLS))
    columns = [np.ones(label.size), (label == 0).astype(float)]
    distinct = sorted(set(names))
    if len(names) == 2 * len(distinct):
        columns += [np.array([n == d for n in names], dtype=float) for d in distinct[1:]]
    design = np.column_stack(columns)
    if kept.size == 0 or design.shape[0] <= design.shape[1]:
        return outcome
    table = moderated_t(np.log2(means[:, kept] * 100 + PRIOR_COUNT).T, design, 1)
    called = (table["p_val_adj"] < criteria.alpha).to_numpy()
    change, p = table["log2FC"].to_numpy(), table["p_val"].to_numpy()
    up, down = (_rank(kept, p, called, sign * change, criteria.min_log2fc) for sign in (1.0, -1.0))
    return outcome._replace(
        bulk_tested=int(kept.size),
        bulk_nominal=int((table["p_val"] < 0.05).sum()),
        bulk_up=up.n_called,
        bulk_down=down.n_called,
        bulk_ranks=(up, down),
    )
