"""``find_all_markers``: every group of cells against all others, from one pass over the matrix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..utils.columns import require_adata, require_column, warn_similar
from ..utils.errors import DataError
from ..utils.threads import within_cores
from .columns import as_list
from .markers import (
    MIN_CELLS,
    Rules,
    covariates_of,
    marker_table,
    markers_of,
    pair_tests,
    read_as,
    rules_for,
    screen_pair,
    two_groups,
)
from .options import MarkerOptions
from .twogroup import Sums, combine_sums, group_sums
from .values import Scale, Source, has_odd_values, layer_source
from .variables import factor
from .wilcoxon import rank_sum_of_groups


@within_cores()
def find_all_markers(
    adata: Any,
    groupby: str,
    *,
    covariates: str | Sequence[str] | None = None,
    test: Literal["MAST", "wilcox"] = "MAST",
    seurat: Literal["5", "4"] = "5",
    layer: str | None = None,
    scale: Scale = "auto",
    min_pct: float | None = None,
    logfc_threshold: float | None = None,
    only_pos: bool = False,
    min_diff_pct: float = -np.inf,
    fold_change: Literal["expm1", "log"] = "expm1",
    groups: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Genes of each group of cells against all other cells, as Seurat's ``FindAllMarkers``.

    Without covariates all groups take one pass over the matrix: sums over the other cells are sums over the other groups,
    and the cells are ranked once.

    Parameters
    ----------
    adata
        AnnData; X (or ``layer``) holds raw counts, normalized here to log1p of 10,000 per cell, or log values.
    groupby
        Column of ``obs`` with the groups. Cells without a value are omitted.
    covariates
        Columns of ``obs`` added to MAST's model as they are (Seurat's ``latent.vars``).
    test
        ``"MAST"`` (likelihood-ratio test of the hurdle model; Finak et al. 2015) or ``"wilcox"`` (rank-sum test).
    seurat
        Whose fold change, filters and order: ``"5"`` (min.pct 0.01, threshold 0.1) or ``"4"`` (0.1, 0.25).
    layer
        Layer with the values; None: X.
    scale
        ``"counts"`` or ``"log"`` overrides what the values are taken for.
    min_pct
        Minimum fraction of expressing cells in either group (0 to 1); None: the default of ``seurat``.
    logfc_threshold
        Minimum absolute log2 fold change; None: the default of ``seurat``.
    only_pos
        Only genes that are higher in the group.
    min_diff_pct
        Minimum difference between the fractions of expressing cells.
    fold_change
        ``"log"`` repeats Seurat 4.2-4.3 on an object without a recorded normalization.
    groups
        Only these groups have a table; the cells of the others count among the other cells. None: all groups.
    genes
        Test only these (Bonferroni still counts all genes of the object).

    Returns
    -------
    DataFrame with ``cluster`` and ``gene`` and the columns of :func:`find_markers`, groups in the order of their levels, genes of
    a group in Seurat's order.

    Raises
    ------
    DataError
        The column does not exist, no group can be compared, or the values are neither counts nor logs.
    OptionError
        An option is outside of its range, or covariates are given with ``test="wilcox"``.

    See Also
    --------
    find_markers : Two groups.

    Examples
    --------
    >>> from scmamba import datasets, deg
    >>> adata = datasets.brain_cohort(n_cells=300, n_genes=200, seed=1)
    >>> table = deg.find_all_markers(adata, "cell_type", only_pos=True)
    >>> sorted(set(table["cluster"])) == sorted(set(adata.obs["cell_type"].astype(str)))
    True
    """
    options = {
        "groupby": groupby,
        "covariates": covariates,
        "test": test,
        "seurat": str(seurat),
        "layer": layer,
        "scale": scale,
        "min_pct": min_pct,
        "logfc_threshold": logfc_threshold,
        "only_pos": only_pos,
        "min_diff_pct": min_diff_pct,
        "fold_change": fold_change,
    }
    require_adata(adata, "find_all_markers()")
    MarkerOptions.from_mapping(options)
    rules = rules_for(str(seurat), min_pct, logfc_threshold, only_pos, min_diff_pct, fold_change)
    adjusted = covariates_of(test, covariates)
    names, codes = _groups(adata.obs, groupby, groups)
    source = layer_source(adata, layer, scale, in_blocks=True)
    if not adjusted and not has_odd_values(source.matrix):
        tables = _in_one_pass(source, codes, names, rules, test, genes)
    else:
        tables = {
            k: markers_of(
                source,
                source.genes,
                two_groups(adata.obs, groupby, name, None),
                rules,
                test,
                adata.obs,
                adjusted,
                genes,
            )
            for k, name in enumerate(names)
        }
    parts = []
    for k, table in tables.items():
        part = table.reset_index()
        part.insert(0, "cluster", pd.Categorical([names[k]] * len(part), names))
        parts.append(part)
    result = pd.concat(parts, ignore_index=True)
    result.attrs["values"] = source.values
    result.attrs["read_as"] = read_as(source)
    return result


def _groups(
    obs: pd.DataFrame, groupby: str, wanted: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Names of the wanted groups with three cells or more and as many beside them, and (cells,) codes, -1 for a cell without a value."""
    require_column(obs, groupby)
    known = obs[groupby].notna().to_numpy()
    levels = factor(obs[groupby][known])
    codes = np.full(len(obs), -1)
    codes[known] = levels.cat.codes
    names = [str(name) for name in levels.cat.categories]
    warn_similar(names, groupby)
    asked = _asked(names, groupby, wanted)
    sizes = np.bincount(codes[known], minlength=len(names))
    small = [k for k in asked if sizes[k] < MIN_CELLS]
    if len(asked) - len(small) < 1 or len(names) < 2:
        raise DataError(
            f"The column {groupby!r} has {len(names)} groups, {len(asked) - len(small)} of them with at least {MIN_CELLS} "
            "cells; two are needed."
        )
    if small:
        warnings.warn(
            f"No markers for {', '.join(names[k] for k in small[:5])}: fewer than {MIN_CELLS} cells. They count among the "
            "other cells.",
            stacklevel=3,
        )
    # Groups that are compared first: the others are numbered behind them.
    compared = [k for k in asked if sizes[k] >= MIN_CELLS]
    order = compared + [k for k in range(len(names)) if k not in set(compared)]
    place = np.empty(len(names) + 1, dtype=np.int64)
    place[order], place[-1] = np.arange(len(names)), -1
    return [names[k] for k in compared], place[codes]


def _asked(names: list[str], groupby: str, wanted: Sequence[str] | None) -> list[int]:
    """Positions of the groups that get a table, in the order of the levels."""
    if wanted is None:
        return list(range(len(names)))
    chosen = {str(name) for name in as_list(wanted)}
    if unknown := sorted(chosen - set(names)):
        raise DataError(
            f"{groupby!r} has no cells of {unknown[0]!r}. It has: {', '.join(names[:20]) or 'no value'}."
        )
    return [k for k, name in enumerate(names) if name in chosen]


def _in_one_pass(
    source: Source,
    codes: np.ndarray,
    names: list[str],
    rules: Rules,
    test: str,
    genes: Sequence[str] | None,
) -> dict[int, pd.DataFrame]:
    """Tables of the named groups, which are numbered first, without covariates."""
    every = int(codes.max()) + 1
    parts, centre = group_sums(source.matrix, codes, every, totals=source.totals)
    rest = combine_sums(parts, 1 - np.eye(every, dtype=np.int64))
    pairs = list(zip(parts, rest))[: len(names)]
    among = None if genes is None else source.genes.isin(set(genes))
    if test == "wilcox":
        return _by_ranks(source, codes, pairs, centre, rules, among)
    tables, failed = {}, ""
    for k, tested in enumerate(pair_tests(pairs, centre, rules, among)):
        if tested.test is None:
            failed = tested.note
            warnings.warn(f"No markers for {names[k]}: {tested.note}", stacklevel=4)
            continue
        passed = tested.screen.passed
        tables[k] = marker_table(tested.test.p, tested.screen, passed, source.genes, rules)
    if not tables:
        raise DataError(failed)
    return tables


def _by_ranks(
    source: Source,
    codes: np.ndarray,
    pairs: Sequence[tuple[Sums, Sums]],
    centre: np.ndarray,
    rules: Rules,
    among: np.ndarray | None,
) -> dict[int, pd.DataFrame]:
    """The rank-sum test of all pairs; each gene is ranked once, if it passes in any of them."""
    screens = [screen_pair(a, b, centre, rules, among) for a, b in pairs]
    union = np.unique(np.concatenate([screen.passed for screen in screens]))
    known = codes >= 0
    p = rank_sum_of_groups(source.logs(known, union), codes[known], int(codes.max()) + 1)
    return {
        k: marker_table(
            p[k, np.searchsorted(union, screen.passed)], screen, screen.passed, source.genes, rules
        )
        for k, screen in enumerate(screens)
    }
