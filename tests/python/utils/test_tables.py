"""Tables for spreadsheets: text that begins like a formula stays text."""

from __future__ import annotations

import pandas as pd
import pytest

from scmamba.utils.tables import write_csv


@pytest.mark.parametrize("kind", ["object", "category", "string", None])
def test_formulas_become_text_and_numbers_stay(kind, tmp_path):
    cells = ["=HYPERLINK(1)", "+x", "-x", "@x", "\tx", "Microglia", "-3.5", "x=1", None]
    frame = pd.DataFrame(
        {"type": pd.Series(cells, dtype=kind).array, "=n": range(-4, 5)},
        index=["=c0", *(f"c{i}" for i in range(1, 9))],
    )
    write_csv(frame, tmp_path / "t.csv")
    back = pd.read_csv(tmp_path / "t.csv", index_col=0)
    assert back["type"].fillna("").tolist() == [
        "'=HYPERLINK(1)",
        "'+x",
        "'-x",
        "'@x",
        "'\tx",
        "Microglia",
        "-3.5",
        "x=1",
        "",
    ]
    assert back["'=n"].tolist() == list(range(-4, 5)) and back.index[0] == "'=c0"
    assert frame.index[0] == "=c0" and frame["type"].iloc[0] == cells[0], (
        "the table itself is unchanged"
    )
