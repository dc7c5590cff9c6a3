"""``find_markers``: the table of Seurat's FindMarkers, with MAST's or Wilcoxon's test (MAST spec, A)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import false_discovery_control

from ..data.file_rows import FileRows
from ..utils.columns import require_adata, require_column, warn_similar
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError, OptionError
from ..utils.threads import within_cores
from .columns import as_list
from .hurdle import zlm
from .mixed_model import mixed_of
from .one_factor import MAX_LEVELS, LevelDesign, group_p, level_design
from .options import MarkerOptions
from .twogroup import HurdleTest, Sums, discrete_tests, group_sums, hurdle_test, shared_prior
from .values import Scale, Source, has_odd_values, layer_source
from .variables import factor
from .wilcoxon import rank_sum_p

_RANDOM = re.compile(r"\(\s*1\s*\|\s*`?([^`]+?)`?\s*\)")  # a random intercept

MIN_CELLS = 3


class Rules(NamedTuple):
    """Which genes are tested and how the fold change is taken."""

    seurat: str = "5"
    min_pct: float = 0.01
    logfc_threshold: float = 0.1
    only_pos: bool = False
    min_diff_pct: float = -np.inf
    fold_change: str = "expm1"  # or "log": Seurat 4.2-4.3 where no normalization is recorded


def rules_for(
    seurat: str,
    min_pct: float | None = None,
    logfc_threshold: float | None = None,
    only_pos: bool = False,
    min_diff_pct: float = -np.inf,
    fold_change: str = "expm1",
) -> Rules:
    """The defaults of the Seurat version, with what the caller set."""
    least, change = (0.01, 0.1) if seurat == "5" else (0.1, 0.25)
    return Rules(
        seurat,
        least if min_pct is None else min_pct,
        change if logfc_threshold is None else logfc_threshold,
        only_pos,
        min_diff_pct,
        fold_change,
    )


def round3(fraction: np.ndarray) -> np.ndarray:
    """R's ``round(x, 3)``: the closer of the two neighbors in double arithmetic, the even one on a tie."""
    scaled = 1000.0 * fraction
    low, high = np.floor(scaled) / 1000.0, np.ceil(scaled) / 1000.0
    to_low, to_high = fraction - low, high - fraction
    even_low = np.floor(scaled) % 2 == 0
    return np.where((to_low < to_high) | ((to_low == to_high) & even_low), low, high)


def fold_changes(
    first: Sums, second: Sums, rules: Rules, log_means: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """log2 fold change, group 1 minus group 2, with Seurat's pseudocount of 1."""
    if rules.fold_change == "log":
        assert log_means is not None
        result: np.ndarray = np.log2(log_means[0] + 1) - np.log2(log_means[1] + 1)
        return result
    if rules.seurat == "5":
        return np.log2((first.linear + 1) / first.n) - np.log2((second.linear + 1) / second.n)
    return np.log2(first.linear / first.n + 1) - np.log2(second.linear / second.n + 1)


class Screen(NamedTuple):
    """Detection rates, fold changes and which genes pass the filters."""

    pct1: np.ndarray
    pct2: np.ndarray
    change: np.ndarray
    passed: np.ndarray


def screen_genes(
    first: Sums, second: Sums, rules: Rules, log_means: tuple[np.ndarray, np.ndarray] | None = None
) -> Screen:
    """Apply the filters before the test; the thresholds see the rounded detection rates."""
    pct1, pct2 = round3(first.expressed / first.n), round3(second.expressed / second.n)
    change = fold_changes(first, second, rules, log_means)
    passed = np.maximum(pct1, pct2) >= rules.min_pct
    if np.isfinite(rules.min_diff_pct):
        passed &= np.abs(pct1 - pct2) >= rules.min_diff_pct
    # A fold change that cannot be computed (NaN) is no reason to hide a gene.
    passed &= ~((change if rules.only_pos else np.abs(change)) < rules.logfc_threshold)
    return Screen(pct1, pct2, change, np.flatnonzero(passed))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Adjusted p-values (false discovery rate; Benjamini and Hochberg 1995) in the order of ``p``.

    Parameters
    ----------
    p
        (genes,) p-values without missing ones; may be empty.

    Returns
    -------
    (genes,) adjusted p-values.

    Examples
    --------
    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    p = np.asarray(p, dtype=np.float64)
    return false_discovery_control(p) if p.size else p.copy()


@renamed_parameters(latent_vars="covariates")
@within_cores()
def find_markers(
    adata: Any,
    groupby: str,
    group1: str | Sequence[str],
    group2: str | Sequence[str] | None = None,
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
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Genes that differ between two groups of cells, as Seurat's ``FindMarkers(test.use = "MAST")``.

    The cells of a donor are not independent, and this test treats them as if they were: to compare patients with
    controls use :func:`scmamba.deg.compare`.

    Parameters
    ----------
    adata
        AnnData; X (or ``layer``) holds raw counts, normalized here to log1p of 10,000 per cell, or log
        values.
    groupby
        Column of ``obs`` with the groups.
    group1
        Value of the column, or several that form one group.
    group2
        What it is compared with; None: all other cells with a value.
    covariates
        Columns of ``obs`` added to MAST's model as they are (Seurat's ``latent.vars``). ``"(1 | donor)"`` is a random
        intercept of the donors in that column: p is then that of a negative-binomial mixed model of the raw counts.
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
        Minimum absolute log2 fold change; None: the default of ``seurat``. Genes whose fold change cannot be
        computed stay in the table, with a warning that names them.
    only_pos
        Only genes that are higher in group 1.
    min_diff_pct
        Minimum difference between the fractions of expressing cells.
    fold_change
        ``"log"`` repeats Seurat 4.2-4.3 on an object without a recorded normalization.
    genes
        Test only these (Bonferroni still counts all genes of the object).

    Returns
    -------
    DataFrame indexed by gene with ``p_val, avg_log2FC, pct.1, pct.2, p_val_adj`` as in Seurat (Bonferroni
    over all genes of the object, untested ones included) and ``p_val_bh`` (Benjamini-Hochberg over the tested
    genes), in Seurat's order. Positive ``avg_log2FC``: higher in ``group1``.

    Raises
    ------
    DataError
        A group is unknown or has fewer than three cells, or the values are neither counts nor logs.
    OptionError
        An option is outside of its range, or covariates are given with ``test="wilcox"``.

    Examples
    --------
    >>> from scmamba import datasets, deg
    >>> adata = datasets.brain_cohort(n_cells=300, n_genes=200, seed=1)
    >>> table = deg.find_markers(adata, "cell_type", "Microglia", only_pos=True)
    >>> list(table.columns)
    ['p_val', 'avg_log2FC', 'pct.1', 'pct.2', 'p_val_adj', 'p_val_bh']
    """
    options = MarkerOptions.from_mapping(
        {
            "groupby": groupby,
            "group1": group1,
            "group2": group2,
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
    )
    rules = rules_for(options.seurat, min_pct, logfc_threshold, only_pos, min_diff_pct, fold_change)
    require_adata(adata, "find_markers()")
    group = two_groups(adata.obs, groupby, group1, group2)
    adjusted = covariates_of(test, covariates)
    source = layer_source(adata, layer, scale, in_blocks=True)
    table = markers_of(source, source.genes, group, rules, test, adata.obs, adjusted, genes)
    table.attrs["values"] = source.values
    table.attrs["read_as"] = read_as(source)
    return table


def covariates_of(test: str, covariates: str | Sequence[str] | None) -> list[str]:
    """The covariates as a list.

    Parameters
    ----------
    test, covariates
        As in :func:`find_markers`.

    Raises
    ------
    OptionError
        The rank-sum test takes none.
    """
    adjusted = as_list(covariates)
    if test == "wilcox" and adjusted:
        raise OptionError(
            "test='wilcox' takes no covariates. Use test='MAST', or set covariates=None."
        )
    return adjusted


def read_as(source: Source) -> dict[str, Any]:
    """``scale`` (counts or log) and ``base`` of the values that were tested, for callers that read them once more.

    Parameters
    ----------
    source
        The matrix that was tested.
    """
    return {"scale": "counts" if source.totals is not None else "log", "base": float(source.base)}


def markers_of(
    source: Source,
    names: pd.Index,
    group: np.ndarray,
    rules: Rules,
    test: str = "MAST",
    obs: pd.DataFrame | None = None,
    covariates: Sequence[str] = (),
    genes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """:func:`find_markers` on a recognized matrix; ``group`` (cells,) is 0, 1, or -1 for all other cells."""
    values = source.matrix
    odd = has_odd_values(values)
    levels = None if odd or test != "MAST" else _single_factor(obs, covariates, group)
    if levels is None:
        (first, second), centre = group_sums(
            _only_positive(values) if odd else values, group, 2, totals=source.totals
        )
    else:
        design, member = levels
        parts, centre = group_sums(values, member, len(design.level), totals=source.totals)
        first, second = (
            reduce(Sums.plus, (parts[i] for i in np.flatnonzero(design.group == k))) for k in (0, 1)
        )
    log_means = _log_means(source.logs(), group) if rules.fold_change == "log" else None
    if odd:
        first, second = _with_all_linear(values, group, first, second)
    screen = screen_genes(first, second, rules, log_means)
    passed = screen.passed
    if genes is not None:
        passed = passed[names[passed].isin(set(genes))]
    if passed.size == 0:
        return _empty_table()
    _warn_without_change(names[passed[np.isnan(screen.change[passed])]])
    if test == "wilcox":
        p = rank_sum_p(source.logs(group == 0, passed), source.logs(group == 1, passed))
    elif levels is not None:
        p = group_p([part.take(passed) for part in parts], centre[passed], design)
    elif covariates or odd:
        p = _model_p(source, group, passed, obs, covariates)
    else:
        few = first.take(passed), second.take(passed)
        prior = shared_prior(few[0].plus(few[1]), centre[passed])
        p = hurdle_test(few[0], few[1], prior, centre[passed]).p
    return marker_table(p, screen, passed, names, rules)


class Tested(NamedTuple):
    """Screen and test of a pair of groups; the test follows ``screen.passed``. ``note``: why none."""

    screen: Screen
    test: HurdleTest | None
    note: str


def screen_pair(
    first: Sums, second: Sums, centre: np.ndarray, rules: Rules, among: np.ndarray | None = None
) -> Screen:
    """:func:`screen_genes` from sums of values above zero alone; ``among`` (genes,) limits the genes that pass."""
    means = None
    if rules.fold_change == "log":
        means = tuple((s.total + centre * s.expressed) / s.n for s in (first, second))
    screen = screen_genes(first, second, rules, means)
    return screen if among is None else screen._replace(passed=screen.passed[among[screen.passed]])


def pair_tests(
    pairs: Sequence[tuple[Sums, Sums]],
    centre: np.ndarray,
    rules: Rules,
    among: np.ndarray | None = None,
) -> list[Tested]:
    """Screen and test many pairs of groups from their sums alone; all discrete fits in one sweep."""
    screens = [screen_pair(a, b, centre, rules, among) for a, b in pairs]
    few = [(a.take(s.passed), b.take(s.passed)) for (a, b), s in zip(pairs, screens, strict=True)]
    out = []
    for (a, b), screen, discrete in zip(few, screens, discrete_tests(few), strict=True):
        around = centre[screen.passed]
        try:
            test = hurdle_test(a, b, shared_prior(a.plus(b), around), around, discrete)
            out.append(Tested(screen, test, ""))
        except DataError as error:
            out.append(Tested(screen, None, str(error)))
    return out


def two_groups(
    obs: pd.DataFrame, groupby: str, group1: str | Sequence[str], group2: str | Sequence[str] | None
) -> np.ndarray:
    """(cells,) 0 for group 1, 1 for group 2, -1 for the rest; checked before any work."""
    require_column(obs, groupby)
    column = obs[groupby].astype(str).to_numpy()
    present = sorted(set(column[obs[groupby].notna().to_numpy()]))
    warn_similar(present, groupby)
    member: list[np.ndarray] = []
    if group1 is None:
        raise DataError(
            f"group1 is None; expected a value of {groupby!r}. It has: {', '.join(present[:20]) or 'no value'}."
        )
    for asked in (group1, group2):
        if asked is None:
            member.append(obs[groupby].notna().to_numpy() & ~member[0])
            continue
        wanted = (
            [str(asked)]
            if isinstance(asked, (str, int, float, bool, np.generic))
            else [str(x) for x in asked]
        )
        unknown = [w for w in wanted if w not in present]
        if unknown:
            raise DataError(
                f"{groupby!r} has no cells of {unknown[0]!r}. It has: {', '.join(present[:20]) or 'no value'}."
            )
        member.append(np.isin(column, wanted))
    if (member[0] & member[1]).any():
        raise DataError("The two groups share cells. Choose groups that do not overlap.")
    for number, cells in enumerate(member, start=1):
        if cells.sum() < MIN_CELLS:
            raise DataError(
                f"Group {number} has {int(cells.sum())} cell{'' if cells.sum() == 1 else 's'}; the test "
                f"needs at least {MIN_CELLS} in each group."
            )
    return np.where(member[0], 0, np.where(member[1], 1, -1))


def _model_p(
    source: Source,
    group: np.ndarray,
    passed: np.ndarray,
    obs: pd.DataFrame | None,
    covariates: Sequence[str],
) -> np.ndarray:
    """MAST's hurdle p with covariates: group 1 is the reference level, covariates follow it.

    Cells are put in Seurat's order, group 1 before group 2; the levels of a factor are R's over these cells.
    """
    order = np.concatenate([np.flatnonzero(group == 0), np.flatnonzero(group == 1)])
    data = pd.DataFrame({"condition": np.where(group[order] == 0, "Group1", "Group2")})
    terms, random = ["condition"], []
    for i, name in enumerate(covariates):
        if found := _RANDOM.fullmatch(name.strip()):
            donor = require_column(pd.DataFrame() if obs is None else obs, found[1], "with donors")
            data["random intercept"] = donor.iloc[order].to_numpy()
            random.append("(1 | `random intercept`)")
            continue
        # Own names: a column of the user may be called "condition".
        data[f"covariate{i}"] = _covariate(obs, name, order)
        terms.append(f"covariate{i}")
    if random:
        counts = source._replace(
            matrix=source.matrix.take(order)
            if isinstance(source.matrix, FileRows)
            else source.matrix[order],
            totals=None if source.totals is None else source.totals[order],
        )
        model = mixed_of(counts, "~ " + " + ".join(terms + random), data).take(passed)
        mixed: np.ndarray = model.lrt("conditionGroup2")["p_val"].to_numpy()
        return mixed
    fit = zlm(source.logs(order, passed), "~ " + " + ".join(terms), data, scale="log")
    result: np.ndarray = fit.lrt("conditionGroup2")["p_H"].to_numpy()
    return result


def _single_factor(
    obs: pd.DataFrame | None, covariates: Sequence[str], group: np.ndarray
) -> tuple[LevelDesign, np.ndarray] | None:
    """The design of one covariate that is a factor, and (cells,) the row of each cell there; None for other covariates."""
    if len(covariates) != 1 or _RANDOM.fullmatch(covariates[0].strip()):
        return None
    order = np.concatenate([np.flatnonzero(group == 0), np.flatnonzero(group == 1)])
    levels = _covariate(obs, covariates[0], order)
    if not isinstance(levels.dtype, pd.CategoricalDtype) or levels.nunique() > MAX_LEVELS:
        return None
    design, own = level_design(group[order], levels)
    member = np.full(len(group), -1)
    member[order] = own
    return design, member


def _covariate(obs: pd.DataFrame | None, name: str, order: np.ndarray) -> pd.Series:
    """One covariate of the cells in ``order``: numbers, or a factor with two levels or more."""
    column = require_column(pd.DataFrame() if obs is None else obs, name, "to use as a covariate")
    column = column.iloc[order].reset_index(drop=True)
    if missing := int(column.isna().sum()):
        raise DataError(
            f"The covariate {name!r} is missing for {missing:,} of {len(column):,} cells. The "
            "model needs a value for every cell: fill them in, or exclude those cells."
        )
    if pd.api.types.is_numeric_dtype(column) and column.dtype != bool:
        numbers = column.astype(np.float64)
        if infinite := int((~np.isfinite(numbers)).sum()):
            raise DataError(
                f"The covariate {name!r} is infinite for {infinite:,} of {len(column):,} cells. Correct those "
                "values, or exclude those cells."
            )
        return numbers
    levels = factor(column)
    if levels.nunique() < 2:
        raise DataError(
            f"The covariate {name!r} has the same value in every cell of the two groups. Remove it."
        )
    return levels


def _warn_without_change(genes: pd.Index) -> None:
    """Name the genes whose fold change is not a number."""
    if len(genes):
        shown = ", ".join(map(str, genes[:5])) + (", ..." if len(genes) > 5 else "")
        warnings.warn(
            f"The fold change of {len(genes)} gene{'s' if len(genes) > 1 else ''} cannot be computed ({shown}): "
            "their values are missing or far below zero. They are in the table with avg_log2FC = NaN.",
            stacklevel=4,
        )


def marker_table(
    p: np.ndarray, screen: Screen, passed: np.ndarray, names: pd.Index, rules: Rules
) -> pd.DataFrame:
    """Seurat's columns and order, and the false-discovery rate beside its Bonferroni column."""
    table = pd.DataFrame(
        {
            "p_val": p,
            "avg_log2FC": screen.change[passed],
            "pct.1": screen.pct1[passed],
            "pct.2": screen.pct2[passed],
            "p_val_adj": np.minimum(1.0, p * len(names)),
            "p_val_bh": benjamini_hochberg(p),
        },
        index=pd.Index(names[passed], name="gene"),
    )
    if rules.only_pos:
        table = table[~(table["avg_log2FC"] <= 0)]
    second = (
        -(table["pct.1"] - table["pct.2"]).abs() if rules.seurat == "5" else np.zeros(len(table))
    )
    return table.iloc[np.lexsort((second, table["p_val"]))]


def _empty_table() -> pd.DataFrame:
    columns = ["p_val", "avg_log2FC", "pct.1", "pct.2", "p_val_adj", "p_val_bh"]
    return pd.DataFrame(
        {c: np.zeros(0) for c in columns}, index=pd.Index([], name="gene", dtype=object)
    )


def _only_positive(values: sp.csr_matrix) -> sp.csr_matrix:
    out = values.copy()
    out.data[~(out.data > 0)] = 0
    out.eliminate_zeros()
    return out


def _log_means(values: sp.csr_matrix, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = [np.asarray(values[group == k].mean(axis=0)).ravel() for k in (0, 1)]
    return parts[0], parts[1]


def _with_all_linear(
    values: sp.csr_matrix, group: np.ndarray, first: Sums, second: Sums
) -> tuple[Sums, Sums]:
    """Seurat's means run over all values, negative ones too."""
    linear = sp.csr_matrix(
        (np.expm1(values.data), values.indices, values.indptr), shape=values.shape
    )
    sums = [np.asarray(linear[group == k].sum(axis=0)).ravel() for k in (0, 1)]
    return first._replace(linear=sums[0]), second._replace(linear=sums[1])
