"""Tables as R gets them: arrays and lists of text, whatever pandas calls its classes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scmamba.wire.slots import frame_slots

TIME = pd.to_datetime(["2020-01-01", None, "1970-01-02"])
#: Column -> kind, values and levels in R.
COLUMNS = {
    "whole": (np.array([1, 2**40, 3]), "number", [1, 2**40, 3], None),
    "short": (np.array([1, 2, 3], dtype="uint8"), "integer", [1, 2, 3], None),
    "single": (np.array([0.5, np.nan, 2], dtype="float32"), "number", [0.5, np.nan, 2], None),
    "missing": (pd.array([1, None, 3], dtype="Int64"), "number", [1, np.nan, 3], None),
    "flag": ([True, False, True], "flag", [1, 0, 1], None),
    "unsure": (pd.array([True, None, False], dtype="boolean"), "flag", [1, np.nan, 0], None),
    "text": (["b", None, "a"], "text", [0, -1, 1], ["b", "a"]),
    "string": (pd.array(["b", None, "b"], dtype="string"), "text", [0, -1, 0], ["b"]),
    "mixed": (pd.Series(["a", 1, None], dtype=object), "text", [0, 1, -1], ["a", "1"]),
    "type": (pd.Categorical(["v", None, "u"], ["u", "v", "w"]), "factor", [1, -1, 0], list("uvw")),
    "stage": (pd.Categorical([3, 1, 3], [1, 3], ordered=True), "ordered", [1, 0, 1], ["1", "3"]),
    "time": (TIME, "time", [1577836800, np.nan, 86400], None),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_each_type_of_column_has_one_form(name):
    column, kind, values, levels = COLUMNS[name]
    found = frame_slots(pd.DataFrame({name: column}))
    assert (found["names"], found["rows"], found["length"]) == ([name], None, 3)
    (slots,) = found["columns"]
    assert slots["kind"] == kind and slots.get("levels") == levels
    assert type(slots["values"]) is np.ndarray
    assert slots["values"].dtype == (
        np.int32 if kind in ("integer", "text", "factor", "ordered") else np.float64
    )
    np.testing.assert_array_equal(slots["values"], values)
    assert slots.get("missing", False) == (name == "missing")


def test_names_of_rows_and_repeated_names_of_columns():
    table = pd.DataFrame([[1.0, 2.0]], columns=["x", "x"], index=["cell"])
    found = frame_slots(table)
    assert found["names"] == ["x", "x"] and found["rows"] == ["cell"]
    assert [column["values"].tolist() for column in found["columns"]] == [[1], [2]]


def test_tables_without_rows_or_columns():
    assert frame_slots(pd.DataFrame(index=["a", "b"])) == {
        "names": [],
        "rows": ["a", "b"],
        "length": 2,
        "columns": [],
    }
    empty = frame_slots(pd.DataFrame({"a": pd.Series([], dtype=object)}))
    assert empty["length"] == 0 and empty["columns"][0]["values"].shape == (0,)
