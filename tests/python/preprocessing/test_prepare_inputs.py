"""Folders, donors and panels that people give to ``prepare``: nothing of theirs is deleted, and no donor is lost without a word."""

from __future__ import annotations

import numpy as np
import pytest

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.preprocessing._prepare import _panels
from scmamba.preprocessing.analysis import filter_cells
from scmamba.preprocessing.options import PrepareOptions
from scmamba.preprocessing.steps import STEP_FILES, StepFolder, refuse_step_folder
from scmamba.preprocessing.studies import read_studies
from scmamba.utils.errors import DataError, ScMambaError

pytest.importorskip("harmonypy")
OPTIONS = PrepareOptions(min_total=20, min_cells_per_donor=10)
IDENTITY = {"cells": "a", "options": {}, "donor": "donor", "markers": {}}


def cells(donors=None):
    adata = brain_cohort(160, n_genes=500, n_donors=2, seed=3)
    if donors is not None:
        adata.obs["donor"] = np.array([donors(i) for i in range(160)], dtype=object)
    return adata


@pytest.mark.parametrize("name", ["1_raw.h5ad", "2_batch.npz", "notes.txt"])
def test_files_of_the_user_stay(name, tmp_path):
    (tmp_path / name).write_text("mine")
    StepFolder(tmp_path, IDENTITY, False, False)
    StepFolder(tmp_path, IDENTITY | {"cells": "b"}, True, False)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["settings.json", *STEP_FILES])
@pytest.mark.parametrize("overwrite", [True, False])
def test_files_of_another_program_are_not_replaced(name, overwrite, tmp_path):
    (tmp_path / name).write_text('{"theirs": 1}')
    with pytest.raises(DataError, match=f"{name} was not written by scmamba.prepare"):
        scmamba.prepare(cells(), folder=tmp_path, overwrite=overwrite, verbose=False)
    assert (tmp_path / name).read_text() == '{"theirs": 1}' and len(list(tmp_path.iterdir())) == 1


def test_steps_of_an_earlier_run_are_replaced(tmp_path):
    StepFolder(tmp_path, IDENTITY, False, False)
    for name in STEP_FILES:
        (tmp_path / name).write_text("step")
    with pytest.raises(ScMambaError, match=r"another run \(cells differ\)"):
        StepFolder(tmp_path, IDENTITY | {"cells": "b"}, False, False)
    StepFolder(tmp_path, IDENTITY | {"cells": "b"}, True, False)
    assert [p.name for p in tmp_path.iterdir()] == ["settings.json"]


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        refuse_step_folder(tmp_path / "file")
    with pytest.raises(ScMambaError, match="cannot be made"):
        refuse_step_folder(tmp_path / "file" / "inside")


def test_a_donor_called_na_is_kept_and_cells_without_one_are_counted(capsys):
    adata = cells(lambda i: "NA" if i % 4 == 0 else None if i % 4 == 1 else "b")
    kept = filter_cells(read_studies(adata, "donor"), OPTIONS, True)
    assert kept.obs["donor"].value_counts().to_dict() == {"b": 80, "NA": 40}
    assert "40 cells have no donor and are not kept" in "".join(capsys.readouterr())


def test_cells_without_a_donor_of_two_studies_are_not_one_donor():
    parts = [cells(lambda i: None if i % 3 == 0 else "b") for _ in range(2)]
    kept = filter_cells(read_studies(parts, "donor"), OPTIONS, False)
    assert sorted(kept.obs["donor"].unique()) == ["study1:b", "study2:b"]


@pytest.mark.parametrize("given", [{"a": 1}, (c for c in "a"), 5])
def test_what_is_no_study_is_named(given):
    with pytest.raises(DataError, match=f"found {type(given).__name__}"):
        read_studies(given, "donor")


def test_panels(tmp_path):
    (tmp_path / "p.tsv").write_text("Glia\tGFAP,AQP4\nNeuron\tSNAP25\n")
    expected = {"Glia": ("GFAP", "AQP4"), "Neuron": ("SNAP25",)}
    assert _panels(tmp_path / "p.tsv") == expected
    assert _panels({"Glia": "GFAP, AQP4", "Neuron": "SNAP25"}) == expected
    for given, words in (
        ({"Glia": ["FOO1"]}, "None of the 1 genes of markers"),
        (["GFAP"], "markers is list"),
        ("no.tsv", "There is no file no.tsv"),
    ):
        with pytest.raises(DataError, match=words):
            _panels(given)


def test_too_few_cells_are_said_to_be_too_few():
    with pytest.raises(DataError, match="20 of 20 cells are left, and at least 50 are needed"):
        filter_cells(read_studies(cells()[:20].copy(), "donor"), OPTIONS, False)
