"""The tutorials run from the first cell to the last, as on the site, and show what their text states."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tutorials
from documents import ROOT

pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tutorials.write_data(folder)
    return folder


@pytest.fixture(scope="module")
def kernel() -> Iterator[tutorials.Kernel]:
    """One process for all: most of the time of a tutorial was that of imports."""
    made = tutorials.Kernel()
    yield made
    made.close()


def output_of(notebook) -> str:
    """Everything that the cells printed or returned as text."""
    parts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            parts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(parts)


def pictures_of(notebook) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


#: Tutorial -> pictures, and what the output of its cells contains.
SHOWN = {
    "annotate_brain": (4, ["Unassigned", "CL:0000129", "precision"]),
    "blood": (2, ["by Scrublet", "logistic regression: right among all", "NMI"]),
    "clean": (2, ["two cells", "median counts"]),
    "compare": (5, ["CompareResult: AD v Control", "80% power", "inflates significance"]),
    "first_hour": (3, ["scmamba_subtype", "Microglia", "How to cite"]),
    "impute": (1, ["test between donors, counts"]),
    "server": (0, ["brain-mini", "True", "'done'"]),
    "train": (0, ["my-imputer", "sha256"]),
}


def test_every_tutorial_is_tested():
    assert sorted(SHOWN) == tutorials.names()


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_a_tutorial_runs(name, data, kernel, tmp_path):
    for file in data.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    notebook = tutorials.run(name, tmp_path, kernel)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 5 and all(cell.execution_count for cell in code)
    pictures, words = SHOWN[name]
    assert pictures_of(notebook) == pictures
    printed = output_of(notebook)
    assert [word for word in words if word not in printed] == []
    assert "Traceback" not in printed and "Warning:" not in printed


def test_a_tutorial_starts_without_names_and_settings_of_the_one_before(
    kernel, monkeypatch, tmp_path
):
    cells = [
        "import matplotlib, os, scmamba\nprint(sorted(set(dir()) & {'left'}), os.getcwd())",
        "print(scmamba.settings.verbosity, matplotlib.rcParams['figure.dpi'] == 7)",
        "left = scmamba.settings.verbosity = 1\nmatplotlib.rcParams['figure.dpi'] = 7",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    monkeypatch.setattr(tutorials, "read", lambda name: copy.deepcopy(made))
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        printed = output_of(tutorials.run("made", folder, kernel)).split("\n")
        assert printed[:2] == [f"[] {folder}", ""] and printed[2] == "2 False"


def test_blocks_of_other_languages_stay_text():
    notebook = tutorials.read("server")
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "subprocess.Popen" in code and "ScMambaServer" not in code
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "ScMambaAnnotate(seu, backend = server)" in text


def test_files_that_tutorials_read_are_written(data):
    needed = set()
    for name in tutorials.names():
        text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text()
        needed |= {f for f in re.findall(r"\]\((\w+\.h5ad)\)", text)}
    assert needed == {path.name for path in data.iterdir()}
