"""Design matrices as R builds them: treatment contrasts, R's level order, aliased columns dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..utils.errors import DataError
from .formula import Terms, expand_terms, quoted, read_formula
from .variables import Evaluator

INTERCEPT = "(Intercept)"


@dataclass(frozen=True)
class Design:
    """A design matrix of full rank.

    Attributes
    ----------
    matrix
        (cells, k) float64.
    names
        Names of its columns.
    terms
        Term of the formula -> names of its columns.
    aliased
        Columns that were linear combinations of earlier ones and were dropped.
    """

    matrix: np.ndarray
    names: tuple[str, ...]
    terms: Mapping[str, tuple[str, ...]]
    aliased: tuple[str, ...] = ()

    def columns(self, term: str | Sequence[str]) -> list[int]:
        """Positions of a term, of one coefficient, or of a list of coefficients.

        Parameters
        ----------
        term
            Name or names; of a column that is no name in R with or without backticks.

        Raises
        ------
        DataError
            If the name is neither, is the intercept, or was dropped as aliased.
        """
        asked = [term] if isinstance(term, str) else list(term)
        known = {*self.names, *self.aliased, *self.terms}
        asked = [n if n in known else quoted(n.strip("`")) for n in asked]
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


def build_design(formula: str, data: pd.DataFrame, *, random: bool = False) -> Design:
    """The design matrix of a one-sided R formula, with R's columns, order and names.

    Parameters
    ----------
    formula
        Right-hand side of an R formula, such as ``"~ group + scale(age) + percent.mt"``. Operators ``+ - : * / ^`` and
        parentheses; functions ``I scale poly factor as.factor relevel as.numeric log log2 log10 log1p exp sqrt abs``.
        Any column may be named, with or without backticks.
    data
        Table with one row per cell (or sample). Strings, booleans and categoricals become factors with treatment
        contrasts against their first level; levels sort as in R, a categorical keeps its own order.
    random
        Accept random intercepts, ``(1 | donor)``, and leave them out of the matrix; False: refuse them.

    Returns
    -------
    Design
        ``matrix`` (rows, k), its column names, its terms, and the aliased columns that were dropped.

    Raises
    ------
    DataError
        An unknown column or function, missing or non-finite values, a factor with one level, a formula without
        intercept, or a random effect.

    Examples
    --------
    >>> import pandas as pd
    >>> cells = pd.DataFrame({"group": ["B", "A", "B", "A"], "percent.mt": [1.0, 2.0, 3.0, 5.0]})
    >>> build_design("~ group + percent.mt", cells).names
    ('(Intercept)', 'groupB', 'percent.mt')
    """
    terms = formula_terms(formula, data.columns)
    if terms.random and not random:
        raise DataError(
            f"(1 | {terms.random[0]}) in the formula {formula!r} is a random effect, which this model does not fit. "
            f"To take donors as the unit, use scmamba.deg.compare(adata, condition_key, {terms.random[0]!r}, label_key)."
        )
    if not terms.intercept:
        raise DataError(
            f"The formula {formula!r} has no intercept. The method needs one: remove '0 +' or '- 1'."
        )
    evaluator = Evaluator(data, formula)
    values = {label: evaluator.variable(node) for label, node in terms.variables.items()}
    names, columns, by_term = [INTERCEPT], [np.ones(len(data))], {}
    for term in terms.terms:
        block = [("", np.ones(len(data)))]
        for label in (v for v in terms.variables if v in term):
            # R's rule: contrasts if the term without this variable is in the model, all levels otherwise.
            rest = term - {label}
            coded = values[label].columns(contrasts=not rest or rest in terms.terms)
            block = [
                (f"{left}:{name}" if left else name, a * b)
                for name, b in coded
                for left, a in block
            ]
        by_term[terms.label(term)] = tuple(name for name, _ in block)
        names += [name for name, _ in block]
        columns += [column for _, column in block]
    return drop_aliased(np.column_stack(columns), names, by_term)


def formula_terms(formula: str, columns: Collection[str]) -> Terms:
    """A formula read and expanded; see :func:`scmamba.deg.formula.read_formula`."""
    known = [str(c) for c in columns]
    return expand_terms(formula, read_formula(formula, known))


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
