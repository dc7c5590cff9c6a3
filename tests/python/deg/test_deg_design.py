"""Design matrices as R's model.matrix builds them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scmamba.deg import build_design
from scmamba.deg.design import Design, drop_aliased
from scmamba.deg.variables import factor, r_sort_key
from scmamba.utils.errors import DataError


@pytest.fixture()
def data() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "group": ["b", "a", "B", "a", "b", "B"],
            "age": [1, 2, 3, 4, 5, 7],
            "sick": [True, False, True, True, False, False],
            "kind": pd.Categorical(["z", "y", "z", "y", "z", "z"], ["z", "none", "y"]),
        },
        index=list("uvwxyz"),
    )


def test_treatment_contrasts(data):
    design = build_design("~ group + age + sick", data)
    assert design.names == ("(Intercept)", "groupb", "groupB", "age", "sickTRUE")
    expected = [
        [1, 1, 0, 1, 1],
        [1, 0, 0, 2, 0],
        [1, 0, 1, 3, 1],
        [1, 0, 0, 4, 1],
        [1, 1, 0, 5, 0],
        [1, 0, 1, 7, 0],
    ]
    np.testing.assert_array_equal(design.matrix, expected)
    assert design.matrix.dtype == np.float64 and design.matrix.flags.c_contiguous
    assert design.aliased == ()
    assert dict(design.terms) == {
        "group": ("groupb", "groupB"),
        "age": ("age",),
        "sick": ("sickTRUE",),
    }
    assert design.columns("group") == [1, 2] and design.columns("groupB") == [2]
    assert design.columns(["age", "group"]) == [3, 1, 2]
    np.testing.assert_array_equal(
        build_design("group", data).matrix, build_design(" ~ group", data).matrix
    )


def test_interactions_and_own_order_of_levels(data):
    design = build_design("~ kind * age", data)
    assert design.names == ("(Intercept)", "kindy", "age", "kindy:age")
    np.testing.assert_array_equal(design.matrix[:, 1], [0, 1, 0, 1, 0, 0])
    np.testing.assert_array_equal(design.matrix[:, 3], [0, 2, 0, 4, 0, 0])
    assert factor(data["kind"]).cat.categories.tolist() == ["z", "y"]
    assert factor(data["group"]).cat.categories.tolist() == ["a", "b", "B"]
    assert factor(data["sick"]).tolist() == ["TRUE", "FALSE", "TRUE", "TRUE", "FALSE", "FALSE"]
    assert factor(data["sick"]).cat.categories.tolist() == ["FALSE", "TRUE"]
    got = factor(data["group"])
    assert got.index.tolist() == list("uvwxyz") and got.name == "group"
    assert (
        factor(data["kind"]).index.tolist() == list("uvwxyz")
        and factor(data["kind"]).name == "kind"
    )


def test_order_of_r():
    """sort() of R 4.2.2 in a UTF-8 locale: punctuation, digits, letters; case and accents last."""
    for a, b in [
        ("_", "1"),
        ("9", "a"),
        ("a", "A"),
        ("A", "b"),
        ("B", "c"),
        ("a b", "ab"),
        ("a-b", "a.b"),
        ("e", "f"),
        ("é", "f"),
        ("a1", "b"),
        ("d10", "d2"),
        ("AD", "Control"),
    ]:
        assert r_sort_key(a) < r_sort_key(b), (a, b)
    assert sorted(["é", "e", "E"], key=r_sort_key)[-1] != "e"


def test_what_r_refuses(data):
    with pytest.raises(DataError, match="'gap' is missing for 1 of 6 cells"):
        build_design("~ gap", data.assign(gap=[1, 2, 3, 4, 5, np.nan]))
    with pytest.raises(DataError, match="'gap' is missing for 2 of 6 cells"):
        build_design("~ gap", data.assign(gap=["a", "b", None, None, "a", "b"]))
    with pytest.raises(DataError, match=r"same value \(x\) in every cell"):
        build_design("~ one", data.assign(one="x"))
    assert build_design("~ one", data.assign(one=1.0)).aliased == ("one",)
    with pytest.raises(DataError, match="no column of the cell table"):
        build_design("~ weight", data)
    with pytest.raises(DataError, match="no intercept"):
        build_design("~ age - 1", data)
    with pytest.raises(DataError, match="cannot be read"):
        build_design("~ age +* group", data)


def test_the_later_of_two_collinear_columns_is_dropped(data):
    twin = data.assign(twin=(data["group"] == "B").astype(float) - 2)
    late = build_design("~ group + twin", twin)
    assert late.names == ("(Intercept)", "groupb", "groupB") and late.aliased == ("twin",)
    early = build_design("~ twin + group", twin)
    # formulaic, like R, keeps the order of the formula
    assert early.names == ("(Intercept)", "twin", "groupb") and early.aliased == ("groupB",)
    assert early.columns("group") == [2]  # the remaining columns of the term
    with pytest.raises(DataError, match="groupB cannot be tested: it is a linear combination"):
        early.columns("groupB")
    with pytest.raises(DataError, match="intercept cannot be tested"):
        early.columns(["group", "(Intercept)"])
    with pytest.raises(
        DataError, match="'age' is no term.*Terms: twin, group; coefficients: .Intercept., twin"
    ):
        early.columns("age")
    assert np.linalg.matrix_rank(early.matrix) == 3 == early.matrix.shape[1]


def test_the_tolerance_is_that_of_r():
    """1e-7 of the length of the column, like lm and the model fits in R."""
    a = np.array([1.0, -1.0, 2.0, -2.0])
    b = np.array([1.0, 1.0, -1.0, -1.0])
    for noise, gone in ((3e-7, ()), (3e-8, ("c",))):
        c = 1000 * (a + noise * b)
        design = drop_aliased(np.column_stack([np.ones(4), a, c]), ["i", "a", "c"], {"c": ("c",)})
        assert design.aliased == gone
    zero = drop_aliased(np.column_stack([np.ones(4), np.zeros(4), a]), ["i", "z", "a"], {})
    assert zero.names == ("i", "a") and zero.aliased == ("z",)
    np.testing.assert_array_equal(zero.matrix, np.column_stack([np.ones(4), a]))
    assert isinstance(zero, Design)
