"""Outputs never eat what is there, and a target that cannot be written is refused before the work."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from conftest import small_model
from typer.testing import CliRunner

import scmamba
from scmamba.cli import app
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import ScMambaError


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("outputs") / "cells.h5ad"
    adata = brain_cohort(80, n_genes=400, n_donors=4, seed=2)
    adata.obs["scmamba_type"] = adata.obs["cell_type"]
    adata.obs["truth"] = adata.obs["cell_type"].where(np.arange(80) % 2 == 0)
    adata.obs["chance"] = np.linspace(0, 1, 80)
    adata.obs[" a, b"] = np.where(np.arange(80) % 2, " x ", "y,z")
    adata.write_h5ad(path)
    return path


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def markers(cells: Path, *more: object) -> tuple[int, str]:
    return run("find-markers", cells, "--groupby", "disease", "--group1", "AD", *more)


@pytest.mark.parametrize("place", ["a folder", "no/such/x.csv", "cells.h5ad/x.csv", "-o ''"])
def test_targets_that_cannot_be_written(cells, tmp_path, place, monkeypatch):
    read = []
    monkeypatch.setattr("scmamba.cli.deg.read_cells_file", lambda path: read.append(path))
    target = {"a folder": tmp_path, "-o ''": ""}.get(place, tmp_path / place)
    code, text = markers(cells, "-o", target, "--overwrite")
    assert code == 1 and ("folder" in text) and not read, "refused before the file is read"


def test_two_outputs_of_one_name(cells, tmp_path):
    target = tmp_path / "a.h5ad"
    code, text = run("annotate", cells, "-o", target, "--markers", "panel", "--table", target)
    assert code == 1 and "target of two outputs" in text and not target.exists()


@pytest.mark.parametrize("name", ["o.rds", "o.csv", "o.h5ad.gz", "o.zarr"])
def test_names_of_other_formats(cells, tmp_path, name):
    for command in ("find-doublets", "annotate"):
        code, text = run(command, cells, "-o", tmp_path / name)
        assert code == 1 and "writes an .h5ad file" in text and not list(tmp_path.iterdir())


def test_links_are_followed(cells, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "t.csv").write_text("old")
    (tmp_path / "t.csv").symlink_to(tmp_path / "store" / "t.csv")
    assert markers(cells, "-o", tmp_path / "t.csv")[0] == 1
    assert markers(cells, "-o", tmp_path / "t.csv", "--overwrite")[0] == 0
    assert (tmp_path / "t.csv").is_symlink()
    assert (tmp_path / "store" / "t.csv").read_text().startswith("gene,p_val")
    (tmp_path / "gone.csv").symlink_to("/no/such/folder/t.csv")
    code, text = markers(cells, "-o", tmp_path / "gone.csv")
    assert code == 1 and "/no/such/folder does not exist" in text


def test_reports_and_figures_leave_other_files(cells, tmp_path):
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    command = ("evaluate", "annotation", cells, "--truth", "cell_type", "-o", folder)
    code, text = run(*command)
    assert code == 1 and "not empty" in text
    for _ in range(2):
        assert run(*command, "--overwrite")[0] == 0
    assert (folder / "mine.txt").read_text() == "mine" and (folder / "report.md").is_file()
    (folder / "report.md").rename(tmp_path / "kept")
    plots = (
        "annotate",
        cells,
        "-o",
        tmp_path / "a.h5ad",
        "--reference",
        "human-brain",
        "--overwrite",
    )
    assert run(*plots, "--plots", folder)[0] == 0
    assert (folder / "mine.txt").read_text() == "mine" and (folder / "map.png").is_file()


def test_a_folder_of_other_files_is_no_checkpoint(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ScMambaError, match="'thesis.txt', which is no part of a checkpoint"):
        scmamba.save_checkpoint(small_model(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years"
    for _ in range(2):
        scmamba.save_checkpoint(small_model(), tmp_path / "model")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ScMambaError, match="is a file"):
        scmamba.save_checkpoint(small_model(), tmp_path / "file")


def test_groups_with_spaces_at_their_ends(cells, tmp_path):
    for group in (" x ", "y,z"):
        command = ("find-markers", cells, "--groupby", " a, b", "--group1", group, "--overwrite")
        code, text = run(*command, "-o", tmp_path / "t.csv")
        assert code == 0, text


def test_cells_without_a_known_type_are_not_scored(cells, tmp_path):
    known = ad.read_h5ad(cells).obs["truth"]
    command = (
        "annotate",
        cells,
        "-o",
        tmp_path / "a.h5ad",
        "--reference",
        "human-brain",
        "--overwrite",
    )
    code, text = run(*command, "--truth", "truth", "--quiet")
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line.split()[-1:]}
    assert code == 0 and "nan" not in rows
    assert {t: int(rows[t]) for t in known.dropna().unique()} == known.value_counts().loc[
        lambda n: n > 0
    ].to_dict()


@pytest.mark.parametrize("column", ["cell_type", "age", "truth"])
def test_probabilities_are_numbers_up_to_one(cells, column):
    command = ("evaluate", "annotation", cells, "--truth", "cell_type", "--confidence")
    code, text = run(*command, column)
    assert code == 1 and f"'{column}' holds no probability" in text
    assert run(*command, "chance")[0] == 0


def test_the_manifest_lists_what_a_report_wrote(cells, tmp_path):
    run("evaluate", "annotation", cells, "--truth", "cell_type", "-o", tmp_path / "r")
    listed = json.loads((tmp_path / "r" / ".scmamba-files.json").read_text())["files"]
    assert "report.md" in listed
