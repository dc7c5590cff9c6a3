"""The table of times: which row is divided by which, and rows without a measurement."""

from __future__ import annotations

import json

import pandas as pd
from benchmarks import verbs_speed


def row(who: str, cpu: float, runs: int = 3, verb: str = "find_doublets") -> dict:
    return {
        "verb": verb,
        "who": who,
        "cells": 1000,
        "threads": 1,
        "runs": runs,
        "seconds": 2 * cpu,
        "cpu_seconds": cpu,
        "peak_mib": 512.4,
    }


def test_ratios_to_the_times_of_others_by_hand():
    rows = [row("here", 2.0), row("3916bff", 9.0), row("peer", 1.0)]
    head, _, line = verbs_speed.summarize(pd.DataFrame(rows)).splitlines()
    found = dict(zip([c.strip() for c in head.split("|")], [c.strip() for c in line.split("|")]))
    assert found["verb"] == "find_doublets" and found["here: s"] == "4.00"
    assert found["3916bff / here"] == "4.5" and found["here / peer"] == "2.0"
    assert found["peer"] == "Scrublet" and found["3916bff: s"] == "18.00"


def test_rows_without_a_measurement_give_the_reason():
    rows = [row("here", 2.0, verb="impute"), row("3916bff", 300.0, runs=0, verb="impute")]
    rows[1] |= {"seconds": 300.0, "cpu_seconds": None, "peak_mib": None}
    line = verbs_speed.summarize(pd.DataFrame(rows)).splitlines()[-1]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1] == "impute" and "over 300" in cells and "not run" in cells
    assert "MAGIC" in cells


def test_rows_are_read_in_the_order_of_the_verbs(tmp_path, monkeypatch):
    monkeypatch.setattr(verbs_speed, "KEPT", tmp_path)
    for verb in ("find_markers", "impute", "a verb of yesterday"):
        path = verbs_speed.kept_path(verb, "here", 1000, 1)
        path.write_text(json.dumps(row("here", 1.0, verb=verb)))
    assert verbs_speed.kept_rows()["verb"].tolist() == ["impute", "find_markers"]


def test_one_process_measures_a_warm_call(tmp_path, monkeypatch):
    monkeypatch.setattr(verbs_speed, "KEPT", tmp_path)
    monkeypatch.setattr(verbs_speed, "REFERENCE", 60)
    verbs_speed.make_data([80], None, "cell_type")
    found = verbs_speed.run_one("find_markers, 19 donors as covariate", "here", 80, 2, 30.0)
    assert found["runs"] == 2 and 0 < found["seconds"] < 30 and found["peak_mib"] > 50
