"""Samples: the cells of one donor and condition, summed; the unit of every test between donors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..utils.columns import require_column
from ..utils.errors import DataError
from .design import Design, build_design
from .formula import quoted

#: Columns of a table of samples that covariates may not take.
OWN_COLUMNS = ("group", "donor", "cells", "total")
_ROWS = 1 << 15  # cells summed at once


@dataclass(frozen=True)
class Samples:
    """Sums over the cells of each donor and group.

    Attributes
    ----------
    table
        One row per sample: ``group`` (0: group 1, 1: group 2), ``donor``, ``cells``, and the covariates.
    sums
        (samples, genes) sums of the counts, or of expm1 of log values.
    covariates
        Names of the covariates in ``table``.
    """

    table: pd.DataFrame
    sums: np.ndarray
    covariates: tuple[str, ...] = ()

    def take(self, rows: np.ndarray) -> Samples:
        """Some of the samples."""
        return replace(
            self, table=self.table.iloc[rows].reset_index(drop=True), sums=self.sums[rows]
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of samples of group 1 and of group 2."""
        group = self.table["group"].to_numpy()
        return int((group == 0).sum()), int((group == 1).sum())


def sample_table(
    obs: pd.DataFrame,
    group: np.ndarray,
    donor_key: str,
    covariates: Sequence[str],
    min_cells: int,
) -> tuple[pd.DataFrame, np.ndarray, tuple[str, ...]]:
    """The donor x group samples with enough cells.

    Parameters
    ----------
    obs
        The cell table.
    group
        (cells,) 0 or 1, -1 for cells of neither group.
    donor_key
        Column of ``obs`` with the donors.
    covariates
        Columns of ``obs`` that are constant within a sample.
    min_cells
        Samples with fewer cells are omitted.

    Returns
    -------
    table, code, names
        Table of the samples, number of every cell's sample (-1: none), names of the covariates in the table.

    Raises
    ------
    DataError
        An unknown column, a missing donor, a covariate that is missing, infinite, or varies within a donor.
    """
    donors = require_column(obs, donor_key, "to name the donors")
    missing = int((donors.isna().to_numpy() & (group >= 0)).sum())
    if missing:
        raise DataError(
            f"{donor_key!r} is missing for {missing:,} cells. Name their donors, or exclude those cells."
        )
    frame = pd.DataFrame({"group": group, "donor": donors.astype(str).to_numpy()})
    names = []
    for name in covariates:
        column = require_column(obs, name, "to use as a covariate")
        # Named like a column of ours: kept apart from it.
        names.append(f"{name} (covariate)" if name in OWN_COLUMNS else name)
        frame[names[-1]] = _checked(column, name, group)
    chosen = frame[group >= 0].groupby(["group", "donor"], sort=True)
    table = chosen.size().rename("cells").reset_index()
    for name in names:
        varied = chosen[name].nunique()
        if (varied > 1).any():
            raise DataError(
                f"{name!r} varies within donor {varied[varied > 1].index[0][1]}: it is no covariate of donors."
            )
        first = chosen[name].first()
        table[name] = first.array if hasattr(first, "array") else first.to_numpy()
    table = table[table["cells"] >= min_cells].reset_index(drop=True)
    number = {
        (g, d): i for i, (g, d) in enumerate(zip(table["group"], table["donor"], strict=True))
    }
    code = np.array([number.get(k, -1) for k in zip(frame["group"], frame["donor"], strict=True)])
    return table, code, tuple(names)


def _checked(column: pd.Series, name: str, group: np.ndarray) -> Any:
    """Values of a covariate that is known and finite for every cell compared."""
    used = column[group >= 0]
    if missing := int(used.isna().sum()):
        raise DataError(
            f"The covariate {name!r} is missing for {missing:,} cells. Fill it in, or exclude those donors."
        )
    if column.dtype.kind == "c":
        raise DataError(
            f"The covariate {name!r} holds complex numbers; give real numbers or categories."
        )
    numeric = pd.api.types.is_numeric_dtype(column) and column.dtype != bool
    infinite = int((~np.isfinite(used.to_numpy(dtype=np.float64))).sum()) if numeric else 0
    if infinite:
        raise DataError(
            f"The covariate {name!r} is infinite for {infinite:,} cells. Correct it, or exclude those donors."
        )
    return column.to_numpy()


def sum_cells(values: sp.csr_matrix, code: np.ndarray, n: int, *, logs: bool = False) -> np.ndarray:
    """(n, genes) sums over the cells with each ``code`` (-1: none); of expm1 of the values with ``logs``."""
    out = np.zeros((n, values.shape[1]))
    for start in range(0, values.shape[0], _ROWS):
        part = values[start : start + _ROWS]
        own = code[start : start + _ROWS]
        cells = np.flatnonzero(own >= 0)
        if cells.size == 0:
            continue
        data = part.data.astype(np.float64)
        part = sp.csr_matrix(
            (np.expm1(data) if logs else data, part.indices, part.indptr), part.shape
        )
        member = sp.csr_matrix((np.ones(cells.size), (own[cells], cells)), (n, part.shape[0]))
        out += (member @ part).toarray()
    return out


def without_empty(samples: Samples) -> tuple[Samples, list[str]]:
    """The samples that have counts, and a sentence for those that have none."""
    empty = samples.sums.sum(axis=1) <= 0
    if not empty.any():
        return samples, []
    names = ", ".join(samples.table["donor"][empty])
    note = (
        f"{'Donors' if empty.sum() > 1 else 'Donor'} {names}: omitted, no counts of these genes were found in "
        f"{'their' if empty.sum() > 1 else 'its'} cells."
    )
    return samples.take(np.flatnonzero(~empty)), [note]


def require_two(samples: Samples, min_cells: int) -> None:
    """Refuse groups of fewer than two samples."""
    first, second = samples.sizes
    if min(first, second) < 2:
        raise DataError(
            f"The groups have {first} and {second} donors with at least {min_cells} cells; two in "
            "each are needed. Lower min_cells, or add donors: with these data donor and group effects cannot be separated."
        )


def warn_notes(notes: Sequence[str], stacklevel: int = 3) -> None:
    """Give every note as a warning."""
    for note in notes:
        warnings.warn(note, stacklevel=stacklevel + 1)


def sample_design(
    samples: Samples, paired: bool | None, interaction: str | None = None
) -> tuple[Design, int]:
    """``~ group + covariates (+ donor)`` with group 1 against group 2, and the column that is tested: the group, or its interaction.

    Parameters
    ----------
    samples
        The samples.
    paired
        Compare within donors; None: where every donor has both groups.
    interaction
        A covariate on which the difference may depend; None: the group itself is tested.

    Raises
    ------
    DataError
        Nothing can be paired, a covariate is confounded with the group, no degrees of freedom are left, or the interaction
        has more than two values that are no numbers, or cannot be estimated.
    """
    table = samples.table
    own = {"group": "condition", "donor": "donor"}
    for key in own:
        while own[key] in samples.covariates:  # a name that no covariate has
            own[key] += "_"
    frame = table[list(samples.covariates)].copy()
    frame[own["group"]] = (table["group"] == 0).astype(np.float64)
    frame[own["donor"]] = table["donor"]
    twice = table["donor"].duplicated(keep=False)
    if paired is None:
        paired = bool(twice.all())
    if paired and not twice.any():
        raise DataError("No donor has both groups, so nothing can be paired. Use paired=False.")
    terms = [own["group"], *samples.covariates, *([own["donor"]] if paired else [])]
    formula = "~ " + " + ".join(quoted(t) for t in terms)
    both = f"{quoted(own['group'])}:{quoted(str(interaction))}"
    design = build_design(formula if interaction is None else f"{formula} + {both}", frame)
    if samples.covariates:
        _refuse_confounded(samples, frame, own["group"])
    if design.matrix.shape[0] - design.matrix.shape[1] < 1:
        raise DataError(
            f"{len(table)} samples leave no degrees of freedom for {design.matrix.shape[1]} coefficients. Use fewer covariates."
        )
    if interaction is None:
        return design, design.columns(own["group"])[0]
    if len(design.terms[both]) > 1:
        raise DataError(
            f"The interaction with {interaction!r} has {len(design.terms[both])} coefficients. Choose a column with two values or "
            "with numbers, or compare the cells of two values."
        )
    if design.terms[both][0] in design.aliased:
        raise DataError(
            f"The interaction with {interaction!r} cannot be tested: each of its values is needed in both groups."
        )
    return design, design.columns(both)[0]


def _refuse_confounded(samples: Samples, frame: pd.DataFrame, group: str) -> None:
    """Refuse covariates from which the group follows: they would be dropped, and nothing adjusted for."""
    names = [*samples.covariates, group]
    design = build_design("~ " + " + ".join(quoted(n) for n in names), frame)
    if group in design.aliased:
        raise DataError(
            f"The condition cannot be tested: it is a linear combination of {', '.join(map(repr, samples.covariates))}, so "
            "their effects cannot be separated in these donors. Remove the covariate that is confounded with it."
        )
