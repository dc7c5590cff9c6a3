"""The progress bar in a notebook, in a real kernel: a bar while the work goes on, a line when it has ended."""

from __future__ import annotations

import os

import pytest
from documents import ROOT

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

SILENCED = "import scmamba; scmamba.settings.verbosity = 1"
START = """\
import time
from scmamba.utils.progress import progress
bar = progress("Counting <b>", 4, unit="cells", each=10)
advance = bar.__enter__()
time.sleep(0.3)
advance(1)
"""
END = "advance(3); bar.__exit__(None, None, None);"
FAILS = """\
try:
    with progress("Breaking", 4) as advance:
        advance(2)
        1 / 0
except ZeroDivisionError:
    pass
"""


def outputs(tmp_path, *cells: str) -> list[list[dict]]:
    """What each cell shows after all have run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(
        env=os.environ
        | {"PYTHONPATH": str(ROOT / "python"), "IPYTHONDIR": str(tmp_path / "ipython")}
    )
    return [cell.outputs for cell in notebook.cells]


def test_a_bar_while_the_work_goes_on(tmp_path):
    ((shown,),) = outputs(tmp_path, START)
    assert shown.output_type == "display_data"
    assert '<progress value="1" max="4">' in shown.data["text/html"]
    assert "Counting &lt;b&gt;: 1/4, about" in shown.data["text/html"]
    assert "cells/s" in shown.data["text/html"]


def test_one_line_when_it_has_ended_or_failed(tmp_path):
    (ended,), nothing, (failed,) = outputs(tmp_path, START, END, FAILS)
    assert list(ended.data) == ["text/plain"]
    assert ended.data["text/plain"].startswith("Counting <b>: 4/4 in ")
    assert nothing == []
    assert list(failed.data) == ["text/plain"]
    assert failed.data["text/plain"].startswith("Breaking: 2/4 in ")


def test_verbosity_silences_it(tmp_path):
    silenced, shown, ended = outputs(tmp_path, SILENCED, START, END)
    assert silenced == shown == ended == []
