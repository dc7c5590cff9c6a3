"""Results name the machine on which they were measured."""

from __future__ import annotations

import os
import re
from pathlib import Path

from documents import ROOT


def test_the_words_are_those_of_this_machine():
    from benchmarks.machine import machine

    text = machine()
    assert text.startswith(f"{os.cpu_count()} cores of ")
    if Path("/proc/meminfo").exists():
        (total,) = re.findall(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        (stated,) = re.findall(r"(\d+) GiB", text)
        assert abs(int(stated) - int(total) / 2**20) < 1


def test_a_table_that_is_only_shown_again_keeps_its_machine(tmp_path, monkeypatch):
    from benchmarks import machine

    monkeypatch.setattr(machine, "KEPT", tmp_path / "machines.json")
    assert machine.machine_of("a", measured=False) == "not recorded"
    monkeypatch.setattr(machine, "machine", lambda: "1 core of an abacus")
    machine.machine_of("a", measured=True)
    monkeypatch.setattr(machine, "machine", lambda: "another")
    assert machine.machine_of("a", measured=False) == "1 core of an abacus"
    assert machine.machine_of("b", measured=True) == "another"


def test_no_benchmark_names_a_machine_by_hand():
    named = [
        file.name
        for file in (ROOT / "benchmarks").rglob("*.py")
        if file.name != "machine.py"
        and re.search(r"\b\d+ cores( of|,)|Xeon", file.read_text(encoding="utf-8"))
    ]
    assert named == []
