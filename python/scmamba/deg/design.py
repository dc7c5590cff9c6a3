"""Design matrices as R builds them: treatment contrasts, R's level order, aliased columns dropped."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..utils.errors import DataError

INTERCEPT = "(Intercept)"

# R sorts levels by the Unicode collation: blanks and punctuation before digits, digits before letters, lower
# case before upper case only when everything else ties.
_PUNCTUATION = " _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$"


@dataclass(frozen=True)
class Design:
    """A full-rank design: ``matrix`` (cells, k) float64, its column ``names``, and ``terms`` (term -> names).

    ``aliased`` lists the columns that were linear combinations of earlier ones and were dropped.
    """

    matrix: np.ndarray
    names: tuple[str, ...]
    terms: Mapping[str, tuple[str, ...]]
    aliased: tuple[str, ...] = ()

    def columns(self, term: str | Sequence[str]) -> list[int]:
        """Positions of a term, of one coefficient, or of a list of coefficients.

        Raises
        ------
        DataError
            If the name is neither, is the intercept, or was dropped as aliased.
        """
        asked = [term] if isinstance(term, str) else list(term)
        wanted: list[str] = []
        for name in asked:
            wanted += (
                [name]
                if name in self.names or name in self.aliased
                else self.terms.get(name, (name,))
            )
        unknown = [n for n in wanted if n not in self.names and n not in self.aliased]
        if unknown:
            raise DataError(
                f"{unknown[0]!r} is no term or coefficient of the model. "
                f"Terms: {', '.join(self.terms) or 'none'}; coefficients: {', '.join(self.names)}."
            )
        if INTERCEPT in wanted:
            raise DataError("The intercept cannot be tested: every model here keeps one.")
        kept = [self.names.index(n) for n in wanted if n in self.names]
        if not kept:
            raise DataError(
                f"{', '.join(wanted)} cannot be tested: it is a linear combination of the columns before it "
                "(for example a batch that is the group under another name). Remove one of them from the "
                "formula."
            )
        return kept


def r_sort_key(text: str) -> tuple[object, ...]:
    """Key that sorts strings as ``levels(factor(x))`` does in a UTF-8 R session (not ASCII order)."""
    plain = unicodedata.normalize("NFKD", text)
    base = [c for c in plain if not unicodedata.combining(c)]

    def weight(c: str) -> tuple[int, str]:
        if c in _PUNCTUATION:
            return 0, chr(_PUNCTUATION.index(c))
        return (1, c) if c.isdigit() else (2, c.casefold())

    return tuple(weight(c) for c in base), plain.casefold(), tuple(c.isupper() for c in base)


def factor(values: pd.Series) -> pd.Series:
    """The column as a categorical with R's levels; a categorical keeps its own order, unused levels go."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return pd.Series(
            values.array.remove_unused_categories(), index=values.index, name=values.name
        )
    text = (
        values.map({True: "TRUE", False: "FALSE"}) if values.dtype == bool else values.astype(str)
    )
    return pd.Series(
        pd.Categorical(text, sorted(set(text), key=r_sort_key)),
        index=values.index,
        name=values.name,
    )


def build_design(formula: str, data: pd.DataFrame) -> Design:
    """The design of a one-sided R formula, for example ``"~ group + cngeneson"``.

    Strings, booleans and categoricals become factors with treatment contrasts against their first level.

    Raises
    ------
    DataError
        For an unknown column, missing values, a one-level factor, or a formula without intercept.
    """
    import formulaic

    text = formula if formula.lstrip().startswith("~") else "~ " + formula
    try:
        parsed = formulaic.Formula(text)
    except Exception as error:
        raise DataError(f"The formula {formula!r} cannot be read: {error}") from error
    frame = _clean_columns(sorted(str(v) for v in parsed.required_variables), data, formula)
    try:
        built = formulaic.model_matrix(text, frame, na_action="raise")
    except Exception as error:
        raise DataError(f"The design of {formula!r} cannot be built: {error}") from error
    names = [_r_name(c) for c in built.columns]
    if not names or names[0] != INTERCEPT:
        raise DataError(
            f"The formula {formula!r} has no intercept. The method needs one: remove '0 +' or '- 1'."
        )
    terms = {
        str(term): tuple(names[i] for i in indices)
        for term, indices in built.model_spec.term_indices.items()
        if str(term) != "1"
    }
    return drop_aliased(np.ascontiguousarray(built.to_numpy(dtype=np.float64)), names, terms)


def _clean_columns(needed: Sequence[str], data: pd.DataFrame, formula: str) -> pd.DataFrame:
    """The columns a formula names, checked for what R refuses, strings turned into factors."""
    frame = {}
    for name in needed:
        if name not in data:
            raise DataError(
                f"The formula {formula!r} names {name!r}, which is no column of the cell table. "
                f"It has: {', '.join(map(str, list(data.columns)[:20]))}."
            )
        column = data[name]
        missing = int(column.isna().sum())
        if missing:
            raise DataError(
                f"{name!r} is missing for {missing:,} of {len(column):,} cells. The model needs a value for "
                "every cell: fill them in, or leave those cells out."
            )
        if pd.api.types.is_numeric_dtype(column) and column.dtype != bool:
            frame[name] = column.astype(np.float64)
            continue
        frame[name] = factor(column)
        levels = frame[name].cat.categories
        if len(levels) < 2:
            raise DataError(
                f"{name!r} has the same value ({levels[0] if len(levels) else 'none'}) in every cell: a "
                "factor needs two levels or more. Leave it out of the formula, or check how the cells were "
                "chosen."
            )
    return pd.DataFrame(frame, index=data.index)


def _r_name(column: str) -> str:
    """``group[T.B]:age`` (formulaic) as ``groupB:age`` (R)."""
    return INTERCEPT if column == "Intercept" else re.sub(r"\[T\.(.*?)\]", r"\1", column)


def drop_aliased(
    matrix: np.ndarray,
    names: Sequence[str],
    terms: Mapping[str, tuple[str, ...]],
    tol: float = 1e-7,
) -> Design:
    """Drop every column of which less than ``tol`` of its length lies outside the span of those before it.

    This is the limited pivoting of R's default QR: of two collinear columns the later goes.
    """
    basis: list[np.ndarray] = []
    kept, gone = [], []
    for j, name in enumerate(names):
        rest = matrix[:, j].copy()
        for _ in range(
            2
        ):  # twice is enough: the second pass removes what rounding left of the first
            for q in basis:
                rest -= q * (q @ rest)
        length, size = np.linalg.norm(rest), np.linalg.norm(matrix[:, j])
        if length < tol * (size if size > 0 else 1.0) or length == 0:
            gone.append(name)
        else:
            kept.append(j)
            basis.append(rest / length)
    return Design(
        np.ascontiguousarray(matrix[:, kept]),
        tuple(names[j] for j in kept),
        dict(terms),
        tuple(gone),
    )
