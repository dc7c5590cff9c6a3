"""R's formulas: recorded matrices of R's ``model.matrix``, names of columns, and refused formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scmamba.deg import build_design
from scmamba.deg import design as design_module
from scmamba.utils.errors import DataError

FOLDER = Path(__file__).resolve().parents[2] / "data" / "reference"


def _recorded() -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    found = {}
    for block in (FOLDER / "formulas.txt").read_text().strip().split("\n\n"):
        formula, names, *rows = block.split("\n")
        found[formula] = (
            tuple(names.split("\t")),
            np.array([[float(x) for x in row.split("\t")] for row in rows]),
        )
    return found


RECORDED = _recorded()


@pytest.fixture()
def table() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "formulas.csv")


@pytest.mark.parametrize("formula", RECORDED)
def test_the_matrix_is_that_of_r(formula, table, monkeypatch):
    monkeypatch.setattr(  # R's model.matrix keeps aliased columns
        design_module,
        "drop_aliased",
        lambda matrix, names, terms: design_module.Design(matrix, tuple(names), terms),
    )
    names, matrix = RECORDED[formula]
    found = build_design(formula, table)
    assert found.names == names
    np.testing.assert_allclose(found.matrix, matrix, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["percent.mt", "C", "Q", "age at death", "10x-lot", "a/b", "if", "T"]
)
def test_any_column_name(name, table):
    table = table[["sex"]].assign(**{name: np.arange(12.0) ** 2})
    for written in (name, f"`{name}`"):
        found = build_design(f"~ sex + {written}", table)
        assert found.matrix[:, 2].tolist() == table[name].tolist(), written
    assert found.columns(name) == [2] == found.columns(f"`{name}`")


def test_an_expression_has_priority_over_a_column_name(table):
    """``a-b`` is a column only if a and b are not columns themselves."""
    table = table.assign(**{"Q-age": 1.0 + np.arange(12)})
    assert build_design("~ Q-age", table).names == ("(Intercept)", "Q")
    alone = build_design("~ Q-age", table.drop(columns=["Q", "age"]))
    assert alone.names == ("(Intercept)", "`Q-age`")


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("~ age age", "expected an operator, found 'age'"),
        ("~ (age", r"expected '\)', found"),
        ("~ sex +", "expected a column, found 'the end'"),
        ("~ `age", "backtick is not closed"),
        ("~ sex ? age", "'\\?' has no meaning"),
        ("~ height", "names 'height', which is no column"),
        ("age ~ sex", "left-hand side"),
        ("~", "is empty"),
        ("~ 0 + sex", "no intercept"),
        ("~ sex - 1", "no intercept"),
        ("~ -1 + sex", "no intercept"),
        ("~ 3 + sex", "3 in the formula .* is no term"),
        ("~ ns(age)", "the function ns is not available here"),
        ("~ offset(age)", "is an offset"),
        ("~ scale(sex)", "'sex' in the formula .* is not numeric"),
        ("~ scale(age, centre = FALSE)", "takes x, center, scale, not 'centre'"),
        ("~ scale(age, scale = 2)", "must be TRUE or FALSE"),
        ("~ poly(age, 12)", "whole number from 1 to 11"),
        ("~ log(Q - 1)", r"log\(Q - 1\) .* not a finite number for 12 of 12"),
        ("~ relevel(factor(lot), ref = '7')", "no level '7'. Levels: 2.5, 9, 10"),
        ("~ factor(sex, levels = c('M'))", "names no level 'F'"),
        ("~ sex^age", "whole number after"),
        (
            "~ sex + (1 | orig.ident)",
            r"random effect.*deg\.compare\(adata, condition_key, 'orig\.ident'",
        ),
        ("~ sex + (1 + age | orig.ident)", "only intercepts"),
    ],
)
def test_invalid_formulas_are_refused(formula, message, table):
    with pytest.raises(DataError, match=message) as caught:
        build_design(formula, table)
    assert "\x1b" not in str(caught.value)


def test_values_that_cannot_be_used(table):
    with pytest.raises(DataError, match="age .* not a finite number for 1 of 12"):
        build_design("~ age", table.assign(age=[np.inf, *range(11)]))
    with pytest.raises(DataError, match="'age' is missing for 1 of 12"):
        build_design("~ I(age^2)", table.assign(age=[np.nan, *range(11)]))
    twice = pd.concat([table[["sex"]], table[["sex"]]], axis=1)
    with pytest.raises(DataError, match="2 columns named 'sex'"):
        build_design("~ sex", twice)
    with pytest.raises(DataError, match="same value"):
        build_design("~ factor(age)", table.assign(age=1.0))
