"""The benchmark of calibration: scores by hand, the split, and rows that are measured once."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from benchmarks import calibration
from scipy import sparse


def test_scores_by_hand():
    truth = np.array(["a", "a", "a", "b", "b", "c", "c", "c"])
    calls = np.array(["a", "b", "Unassigned", "b", "b", "a", "Unassigned", "Unassigned"])
    found = calibration.scores(truth, calls, {"a", "b"})
    assert found["known"] == 5 and found["absent"] == 3
    assert found["error"] == pytest.approx(2 / 5)  # b for a, and a for the absent c
    assert found["error, known types"] == pytest.approx(1 / 4)
    assert found["coverage"] == pytest.approx(4 / 5)
    assert found["refused"] == pytest.approx(2 / 3)
    none = calibration.scores(truth, np.full(8, "Unassigned"), {"a", "b"})
    assert none["error"] == 0 and none["coverage"] == 0 and none["refused"] == 1


def test_no_query_set_is_both_development_and_held_out():
    for without_labels in (True, False):
        pairs = [p for p in calibration.PAIRS.values() if (p.reference is None) == without_labels]
        parts = {
            part: {p.query for p in pairs if p.part == part}
            for part in (calibration.DEV, calibration.OUT)
        }
        assert not parts[calibration.DEV] & parts[calibration.OUT]
        assert len(parts[calibration.OUT]) >= 4
    assert all(p.query is not p.reference for p in calibration.PAIRS.values())
    for name in calibration.PAIRS:  # as the text says
        assert f"``{name}``" in calibration.__doc__


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> list[str]:
    """A pair of small sets; the types that were absent from each reference are noted."""
    kinds = np.repeat(["a", "b", "c"], 12)

    def read(data: Path) -> ad.AnnData:
        cells = ad.AnnData(sparse.csr_matrix(np.ones((36, 3))))
        cells.obs["kind"] = kinds
        return cells

    seen: list[str] = []

    def calls(known, query, cache):
        absent = set(kinds) - set(known.obs["kind"])
        seen.append("".join(absent))
        other = sorted(set(known.obs["kind"]))[0]
        return {calibration.STRICT: np.where(np.isin(kinds, list(absent)), other, kinds)}

    monkeypatch.setattr(calibration, "by_labels", calls)
    pair = calibration.Pair(calibration.DEV, read, read)
    monkeypatch.setattr(calibration, "PAIRS", {"tiny": pair})
    monkeypatch.setattr(calibration, "TABLE", tmp_path / "calibration.tsv")
    return seen


def test_each_type_is_removed_in_turn_and_rows_are_measured_once(tiny, monkeypatch):
    monkeypatch.setattr("sys.argv", ["calibration", "--data", "."])
    calibration.main()
    assert tiny == ["", "a", "b", "c"]
    table = calibration.read_table()
    assert table["removed"].tolist() == ["", "a", "b", "c"]
    assert table["error"].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=1e-4)
    assert table["refused, removed"].dropna().tolist() == [0, 0, 0]
    table = table[table["removed"] != "b"]
    table.to_csv(calibration.TABLE, sep="\t", index=False)
    calibration.main()
    assert tiny[4:] == ["b"]  # an interrupted run continues
    assert sorted(calibration.read_table()["removed"]) == ["", "a", "b", "c"]
    monkeypatch.setattr("sys.argv", ["calibration", "--data", ".", "--again", "--full"])
    calibration.main()
    assert tiny[5:] == [""]
    page = (calibration.TABLE.parent / "calibration.md").read_text()
    assert "| tiny | development | 36 | 0 |" in page


def test_the_reference_without_labels_lacks_a_removed_type():
    from scmamba.annotation.brain_reference import load_reference

    shipped = load_reference()
    slim = calibration.without_type(shipped, "Inhibitory neuron")
    kinds = set(slim.table["type"])
    assert not kinds & {"Inhibitory neuron", "Midbrain GABAergic neuron"}
    assert len(slim.table) == slim.rates.shape[1] < len(shipped.table)
    assert calibration.without_type(shipped, "").table.equals(
        pd.DataFrame(shipped.table).reset_index(drop=True)
    )
