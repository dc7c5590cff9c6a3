"""``compare``: differences between two conditions in every cell type, with the donor as the unit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..utils.columns import require_adata
from ..utils.errors import DataError
from ..utils.progress import progress
from ..utils.threads import within_cores
from .columns import as_list
from .comparison_result import CompareResult, describe, p_of_calls
from .count_tests import (
    LN2,
    OF_COUNTS,
    Tested,
    between_cells,
    effective_library,
    test_of_counts,
    usable_genes,
)
from .design import Design
from .likelihood_ratio import DispersionFit, average_test
from .linear import moderated_t
from .markers import two_groups
from .mixed import Strata, fit_mixed, p_beyond
from .options import CompareOptions
from .plan import cells_of_types, condition_pair
from .quasi_likelihood import (
    QLFit,
    average_level,
    minimal_change,
    minimal_quasi_change,
    test_coefficient,
)
from .samples import OWN_COLUMNS, Samples, sample_design, sample_table, sum_cells, without_empty
from .shrinkage import shrink
from .values import layer_source
from .voom import voom_weights, weighted_moderated_t

_POWER_GENES = 1000  # a median needs no more
_BATCH = re.compile(
    r"batch|lot|library|lane|run|pool|chemistry|site|center|centre|plate|seq|brain_?bank", re.I
)


@within_cores()
def compare(
    adata: Any,
    condition_key: str,
    donor_key: str,
    label_key: str | None = None,
    *,
    group1: str | None = None,
    group2: str | None = None,
    covariates: str | Sequence[str] | None = None,
    interaction: str | None = None,
    cell_types: Sequence[str] | None = None,
    test: str = "likelihood_ratio",
    layer: str | None = None,
    paired: bool | None = None,
    alpha: float = 0.05,
    min_log2fc: float = 0.0,
    min_cells: int = 10,
    min_total: float = 15.0,
    verbose: bool = True,
) -> CompareResult:
    """Genes that differ between two conditions in every cell type, with donors, not cells, as the unit.

    Counts are summed over the cells of each donor and type, normalized (TMM), and compared by the ``test``. The result
    states the numbers of donors and cells, what fold change this number of donors can find, which genes depend on one
    donor, and which columns are confounded with the condition.

    Parameters
    ----------
    adata
        AnnData with raw counts in X (or ``layer``).
    condition_key
        Column of ``obs`` with the condition.
    donor_key
        Column of ``obs`` with the donors. A donor with cells in both groups gives one sample in each.
    label_key
        Column of ``obs`` with the cell types; None: all cells are one type.
    group1
        Value of ``condition_key``, the condition of interest.
    group2
        What it is compared with. If the column has two values both may be omitted: the one called control, normal, ctrl
        or the like is ``group2``.
    covariates
        Columns of ``obs`` that are constant within a sample (age, sex, post-mortem interval, batch).
    interaction
        Column of ``obs`` with numbers or two values that is constant within a sample (sex, age): tests whether the difference
        between the conditions depends on it. ``log2FC`` is then the log2 ratio of the fold changes, with its second value
        over the first, or per unit.
    cell_types
        The types to compare; None: all with enough cells.
    test
        ``"likelihood_ratio"``: negative-binomial likelihood-ratio test, averaged over the posterior of each gene's
        dispersion between donors, with the dispersion between cells measured in the cells; its false discovery rate is weighted
        by how much a gene varies between donors for its expression (column ``weight``). ``"quasi_likelihood"``: F-test (McCarthy et al.
        2012; Lund et al. 2012; Chen et al. 2025) with a prior of gene variances of any shape (Ignatiadis and Sen 2025).
        ``"wald"``: Wald test with shrunken dispersions (Love et al. 2014). ``"voom"``: precision weights and moderated t-test (Law
        et al. 2014). ``"moderated_t"``: as :func:`scmamba.deg.pseudobulk`. ``"mixed"``: negative-binomial mixed model of the
        cells with a random intercept for every donor (of every donor and group in a paired design).
    layer
        Layer with the raw counts; None: X.
    paired
        Compare within donors; None: where every donor has both groups.
    alpha
        False discovery rate of the genes called, within each cell type.
    min_log2fc
        Minimal effect (log2): genes are tested for a larger fold change than this (McCarthy and Smyth 2009).
    min_cells
        Donors with fewer cells of a type are omitted in that type.
    min_total
        Genes with a smaller sum of counts over the samples of a type are omitted.
    verbose
        Draw a progress bar.

    Returns
    -------
    CompareResult
        ``table`` (one row per cell type and gene), ``summary`` (one row per type), ``samples``, ``notes``, ``warnings``,
        ``sentence(gene, cell_type)``, ``volcano(cell_type)``, ``heatmap(cell_type)`` and ``save(folder)``.

    Raises
    ------
    DataError
        Values that are not counts, unknown columns or groups, a covariate that is missing, infinite, varies within a
        donor, or is confounded with the condition, or no type with two donors in each group.
    OptionError
        An option is outside of its range.

    Examples
    --------
    >>> from scmamba import datasets, deg
    >>> adata = datasets.brain_cohort(n_cells=1500, n_donors=8, n_genes=300, seed=1)
    >>> result = deg.compare(adata, "disease", "donor", "cell_type", cell_types=["Oligodendrocyte"], verbose=False)
    >>> list(result.summary["cell_type"]), list(result.table.columns[:4])
    (['Oligodendrocyte'], ['cell_type', 'gene', 'log2FC', 'lfc_se'])
    """
    require_adata(adata, "compare()")
    options = CompareOptions.from_mapping(
        {
            "condition_key": condition_key,
            "donor_key": donor_key,
            "label_key": label_key,
            "group1": group1,
            "group2": group2,
            "covariates": covariates,
            "interaction": interaction,
            "cell_types": None if cell_types is None else as_list(cell_types),
            "test": test,
            "layer": layer,
            "paired": paired,
            "alpha": alpha,
            "min_log2fc": min_log2fc,
            "min_cells": min_cells,
            "min_total": min_total,
        }
    )
    return Comparison(adata, options).run(verbose)


@dataclass(frozen=True)
class TypeData:
    """Samples of one cell type with their effective library sizes and the dispersion between cells."""

    samples: Samples
    library: np.ndarray
    extra: np.ndarray  # (genes, samples)
    cells: tuple[sp.csr_matrix, np.ndarray] | None = (
        None  # counts, number of the sample; mixed model only
    )


class Comparison:
    """One comparison: everything is checked before the first sum.

    Parameters
    ----------
    adata
        The cells.
    options
        The options of :func:`compare`.
    """

    def __init__(self, adata: Any, options: CompareOptions) -> None:
        self.options = options
        self.obs = adata.obs
        self.pair = condition_pair(
            self.obs, str(options.condition_key), options.group1, options.group2
        )
        self.plan, notes = cells_of_types(
            self.obs,
            str(options.condition_key),
            self.pair,
            options.donor_key,
            options.label_key,
            options.cell_types,
        )
        self.notes: list[str] = list(notes)
        self.refusals: list[str] = []  # why types with enough donors were not tested
        self.group = two_groups(self.obs, str(options.condition_key), *self.pair)
        self.covariates = as_list(options.covariates)
        if options.interaction is not None and options.interaction not in self.covariates:
            self.covariates = [*self.covariates, options.interaction]
        self.interaction = options.interaction
        if self.interaction in OWN_COLUMNS:
            self.interaction = f"{self.interaction} (covariate)"
        source = layer_source(adata, options.layer)
        self.values, self.genes, self.sentence = source.matrix, source.genes, source.values
        if source.totals is None:
            raise DataError(
                f"{source.values}, but compare() needs raw counts, which show how precisely each donor was measured. Name "
                "the layer that holds them, such as layer='counts'."
            )

    def run(self, verbose: bool) -> CompareResult:
        """Test every cell type."""
        tables, rows, samples, levels = [], [], {}, {}
        with progress("Comparing donors", len(self.plan), verbose) as advance:
            for name, cells in self.plan.items():
                data = self._data(name, cells)
                if data is not None and (design := self._design(name, data)) is not None:
                    tested = self._tested(data, *design)
                    table = self._table(name, data, tested)
                    tables.append(table)
                    rows.append(self._summary(name, data, tested, table))
                    samples[name] = data.samples.table.assign(library=data.library)
                    levels[name] = self._log_cpm(data, tested.kept)
                advance(1)
        if not tables and self.refusals:
            raise DataError(self.refusals[0])
        if not tables:
            raise DataError(
                f"No cell type has two donors with at least {self.options.min_cells} cells in both {self.pair[0]!r} "
                f"and {self.pair[1]!r}. Lower min_cells, or add donors: with these data donor and group effects cannot be separated."
            )
        table = pd.concat(tables, ignore_index=True)
        return CompareResult(
            table,
            pd.DataFrame(rows),
            samples,
            levels,
            self.options.params()
            | {"group1": self.pair[0], "group2": self.pair[1], "values": self.sentence},
            tuple(self.notes),
            tuple(confounded(self.obs, self.group, str(self.options.donor_key), self.covariates)),
        )

    def _data(self, name: str, cells: np.ndarray) -> TypeData | None:
        """Sums of one type; None where too few donors have cells; a note gives the numbers."""
        options = self.options
        obs, group = self.obs.iloc[cells], self.group[cells]
        table, code, names = sample_table(
            obs, group, str(options.donor_key), self.covariates, options.min_cells
        )
        part = self.values[cells]
        sums = sum_cells(part, code, len(table)) if len(table) else np.zeros((0, part.shape[1]))
        samples, notes = without_empty(Samples(table, sums, names))
        self.notes += [f"{name}: {note}" for note in notes]
        if min(samples.sizes) < 2:
            self.notes.append(
                f"{name}: not tested, {samples.sizes[0]} {self.pair[0]} and {samples.sizes[1]} {self.pair[1]} donors "
                f"have at least {options.min_cells} cells; two in each are needed."
            )
            return None
        library = effective_library(samples)
        extra = np.zeros((part.shape[1], 1))
        of_mixed: tuple[Any, np.ndarray] | None = None
        number = _renumbered(code, table, samples)
        if options.test in OF_COUNTS:
            extra = between_cells(part, number, len(samples.table))
        elif options.test == "mixed":
            of_mixed = part[number >= 0], number[number >= 0]
        return TypeData(samples, library, extra, of_mixed)

    def _design(self, name: str, data: TypeData) -> tuple[Design, int] | None:
        """Design and column of the condition; None, with a note, where the donors of this type do not suffice for it."""
        try:
            return sample_design(data.samples, self.options.paired, self.interaction)
        except DataError as error:
            self.refusals.append(str(error))
            self.notes.append(f"{name}: not tested. {error}")
            return None

    def _tested(self, data: TypeData, design: Design, column: int) -> Tested:
        """The test that the options name."""
        kept = usable_genes(data.samples, float(self.options.min_total))
        test, minimum = self.options.test, self.options.min_log2fc
        counts = np.ascontiguousarray(data.samples.sums[:, kept].T)
        offset = np.log(data.library)
        level = average_level(counts, offset)
        if test in OF_COUNTS:
            given = counts, design.matrix, offset, data.extra[kept]
            return test_of_counts(str(test), kept, given, column, minimum * LN2)
        if test == "mixed":
            return _mixed(data, kept, level, design.matrix, column, minimum)
        if test == "voom":
            levels, weights = voom_weights(counts, design.matrix, data.library)
            voom = weighted_moderated_t(levels, weights, design.matrix, column, minimum)
            df = np.full(kept.size, voom.df)
            return Tested(kept, voom.change, voom.se, voom.statistic, df, voom.p, level)
        table = moderated_t(self._log_cpm(data, kept).to_numpy().T, design.matrix, column)
        t, change = table["t"].to_numpy(), table["log2FC"].to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            se = np.where(t != 0, change / t, np.nan)
        return Tested(kept, change, se, t, table["df"].to_numpy(), table["p_val"].to_numpy(), level)

    def _log_cpm(self, data: TypeData, kept: np.ndarray) -> pd.DataFrame:
        """(samples, genes) log2 counts per million with a prior count of 2."""
        prior = 2.0 * data.library / data.library.mean()
        values = (data.samples.sums[:, kept] + prior[:, None]) / (data.library + 2 * prior)[:, None]
        return pd.DataFrame(np.log2(values * 1e6), columns=self.genes[kept])

    def _table(self, name: str, data: TypeData, tested: Tested) -> pd.DataFrame:
        """The genes of one type, the most certain first."""
        shrunken = shrink(tested.change, tested.se)
        adjusted = tested.adjusted
        levels = self._log_cpm(data, tested.kept).to_numpy()
        higher, lower, of = donors_beyond(levels, data.samples, self.options.paired)
        table = pd.DataFrame(
            {
                "cell_type": name,
                "gene": self.genes[tested.kept],
                "log2FC": tested.change,
                "lfc_se": tested.se,
                "log2FC_shrunk": shrunken.mean,
                "ci_low": shrunken.low,
                "ci_high": shrunken.high,
                "mean_log2": tested.level,
                "statistic": tested.statistic,
                "df": tested.df,
                "p_val": tested.p,
                "weight": tested.weights,
                "p_val_adj": adjusted,
                "donors_higher": higher,
                "donors_lower": lower,
                "donors": of,
            }
        )
        if self.interaction is not None:  # these numbers are those of the difference itself
            table = table.drop(columns=["donors_higher", "donors_lower", "donors"])
        called = np.flatnonzero(adjusted < self.options.alpha)
        table["driven_by"] = ""
        for row, donor in self._driven_by(data, tested, called).items():
            table.loc[row, "driven_by"] = donor
        table["sentence"] = ""
        for row in called.tolist():
            table.loc[row, "sentence"] = describe(table.loc[row], *self.pair, self.interaction)
        return table.sort_values("p_val", kind="stable")

    def _driven_by(self, data: TypeData, tested: Tested, called: np.ndarray) -> dict[int, str]:
        """Called genes that lose their evidence (p > 0.05) or their direction without one donor."""
        if called.size == 0:
            return {}
        donors = data.samples.table["donor"].to_numpy()
        found: dict[int, str] = {}
        for donor in pd.unique(donors):
            rest = np.flatnonzero(donors != donor)
            few = data.samples.take(rest)
            if min(few.sizes) < 2:
                continue
            try:
                design, column = sample_design(few, self.options.paired, self.interaction)
            except (
                DataError
            ):  # without this donor a covariate is constant, or no degree of freedom is left
                continue
            p, change = self._without(data, tested, called, rest, design.matrix, column)
            lost = (p > 0.05) | (np.sign(change) != np.sign(tested.change[called]))
            for gene in map(int, called[lost]):
                found[gene] = f"{found[gene]}, {donor}" if gene in found else str(donor)
        return found

    def _without(
        self,
        data: TypeData,
        tested: Tested,
        called: np.ndarray,
        rest: np.ndarray,
        design: np.ndarray,
        column: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """p and change of some genes over some samples.

        The likelihood-ratio and quasi-likelihood tests keep the variances that they fitted to all samples; for all other
        tests p is that of a moderated t-test.
        """
        library = data.library[rest]
        if tested.fit is None:
            counts = data.samples.sums[np.ix_(rest, tested.kept)].T
            levels = np.log2((counts + 0.5) / (library + 1) * 1e6)
            table = moderated_t(levels, design, column).iloc[called]
            return table["p_val"].to_numpy(), table["log2FC"].to_numpy()
        minimum = self.options.min_log2fc * LN2
        if isinstance(tested.fit, DispersionFit):
            found = average_test(tested.fit.part(called, rest, design, column), minimum)
            return found.p, found.change
        own = test_coefficient(tested.fit.part(called, rest, design), column, minimum)
        return own.p, own.change

    def _summary(
        self, name: str, data: TypeData, tested: Tested, table: pd.DataFrame
    ) -> dict[str, Any]:
        """Numbers of donors and cells, genes called, and the fold change that is found with 80% power."""
        first, second = data.samples.sizes
        cells = data.samples.table.groupby("group")["cells"].sum()
        alpha = self.options.alpha
        p = p_of_calls(float(alpha))
        top = np.flatnonzero(tested.level >= np.quantile(tested.level, 0.75))
        median, median_top = (
            self._least(tested, p, genes) for genes in (np.arange(tested.level.size), top)
        )
        called = table["p_val_adj"] < alpha
        return {
            "cell_type": name,
            "donors1": first,
            "donors2": second,
            "cells1": int(cells.get(0, 0)),
            "cells2": int(cells.get(1, 0)),
            "tested": len(table),
            "up": int((called & (table["log2FC"] > 0)).sum()),
            "down": int((called & (table["log2FC"] < 0)).sum()),
            "driven_by_one_donor": int((table["driven_by"] != "").sum()),
            "log2fc_80_power": median,
            "log2fc_80_power_top": median_top,
        }

    def _least(self, tested: Tested, p: float, genes: np.ndarray) -> float:
        """Median over genes of the log2 fold change that is found with 80% power at p."""
        if not isinstance(tested.fit, QLFit):
            least = minimal_change(tested.se[genes], tested.df[genes], p)
        else:
            some = genes[np.linspace(0, genes.size - 1, min(genes.size, _POWER_GENES)).astype(int)]
            least = minimal_quasi_change(tested.fit, tested.se * LN2, p, some) / LN2
        return float(np.nanmedian(least)) + self.options.min_log2fc


def _mixed(
    data: TypeData,
    kept: np.ndarray,
    level: np.ndarray,
    design: np.ndarray,
    column: int,
    minimum: float,
) -> Tested:
    """The mixed model of the cells: a random intercept for every sample."""
    assert data.cells is not None
    counts, number = data.cells
    depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    depth *= (data.library / data.samples.sums.sum(axis=1))[number]
    some = np.flatnonzero(depth > 0)
    strata = Strata(number[some], np.ascontiguousarray(design), np.arange(len(design)))
    fit = fit_mixed(counts[some][:, kept].tocsc(), depth[some], strata, column)
    change, se = fit.coef[:, column] / LN2, fit.se(column) / LN2
    p = fit.p if minimum == 0 else p_beyond(change, se, fit.df, minimum)
    return Tested(kept, change, se, fit.lr, np.full(kept.size, fit.df), p, level)


def _renumbered(code: np.ndarray, table: pd.DataFrame, samples: Samples) -> np.ndarray:
    """Sample numbers after some samples were omitted."""
    kept = {k: i for i, k in enumerate(zip(samples.table["group"], samples.table["donor"]))}
    new = np.array([kept.get(k, -1) for k in zip(table["group"], table["donor"])] + [-1])
    result: np.ndarray = new[code]
    return result


def donors_beyond(
    levels: np.ndarray, samples: Samples, paired: bool | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """How many donors of group 1 are above and below the median of group 2 (paired: themselves in group 2).

    Parameters
    ----------
    levels
        (samples, genes) log expression.
    samples
        The samples.
    paired
        As in :func:`compare`.

    Returns
    -------
    (genes,) numbers above and below, and of how many donors. Equal donors, such as those without counts, are neither.
    """
    group, donor = samples.table["group"].to_numpy(), samples.table["donor"].to_numpy()
    twice = samples.table["donor"].duplicated(keep=False).to_numpy()
    if paired or (paired is None and twice.all()):
        both = [d for d in pd.unique(donor) if (donor == d).sum() == 2]
        first = np.array([np.flatnonzero((donor == d) & (group == 0))[0] for d in both])
        second = np.array([np.flatnonzero((donor == d) & (group == 1))[0] for d in both])
        difference = levels[first] - levels[second]
    else:
        difference = levels[group == 0] - np.median(levels[group == 1], axis=0)
    # Donors without counts have the same level up to rounding.
    return (difference > 1e-9).sum(axis=0), (difference < -1e-9).sum(axis=0), len(difference)


def confounded(
    obs: pd.DataFrame, group: np.ndarray, donor_key: str, covariates: Sequence[str]
) -> list[str]:
    """A sentence for every batch-like column of ``obs`` whose values never occur in both groups."""
    used = obs[group >= 0]
    found = []
    for name in obs.columns:
        if name in covariates or name == donor_key or not _BATCH.search(str(name)):
            continue
        column = used[name]
        if isinstance(column, pd.DataFrame) or not 2 <= column.nunique() <= 50:
            continue
        groups = pd.Series(group[group >= 0]).groupby(column.astype(str).to_numpy()).nunique()
        if (groups == 1).all():
            found.append(
                f"obs[{name!r}] is confounded with the condition: none of its {len(groups)} values occurs in both "
                "groups, so differences between them cannot be separated from differences between the conditions."
            )
    return found
