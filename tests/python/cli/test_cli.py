"""The command line, run as a command."""

from __future__ import annotations

import subprocess
import sys

import anndata as ad
import pytest
from conftest import small_model
from typer.testing import CliRunner

from scmamba._version import __version__
from scmamba.cli.main import app
from scmamba.model import load_model, save_checkpoint

run = CliRunner().invoke


@pytest.fixture()
def folder(tmp_path, cohort):
    cohort[:12].write_h5ad(tmp_path / "in.h5ad")
    save_checkpoint(small_model("expressed"), tmp_path / "model")
    return tmp_path


def test_impute_embed_and_refusals(folder):
    command = [
        str(folder / "in.h5ad"),
        "-o",
        str(folder / "out.h5ad"),
        "--model",
        str(folder / "model"),
        "-q",
    ]
    result = run(app, ["impute", *command, "--passes", "2", "--adapt-steps", "0"])
    assert result.exit_code == 0, result.output
    assert "scmamba" in ad.read_h5ad(folder / "out.h5ad").layers
    again = run(app, ["impute", *command])
    assert again.exit_code == 1 and "exists already" in again.output
    embedded = run(app, ["embed", *command, "--overwrite"])
    assert embedded.exit_code == 0 and ad.read_h5ad(folder / "out.h5ad").obsm[
        "X_scmamba"
    ].shape == (12, 8)
    wrong = run(
        app,
        [
            "impute",
            str(folder / "nothing.h5ad"),
            "-o",
            str(folder / "x.h5ad"),
            "--model",
            str(folder / "model"),
        ],
    )
    assert (
        wrong.exit_code == 1
        and "There is no file" in wrong.output
        and "Traceback" not in wrong.output
    )


def test_pretrain_then_finetune_each_in_one_line(folder):
    data = str(folder / "in.h5ad")
    first = [
        "pretrain",
        data,
        "-o",
        str(folder / "pre"),
        "--steps",
        "2",
        "--d-model",
        "8",
        "--layers",
        "1",
        "--reads",
        "expressed",
        "-q",
    ]
    assert run(app, first).exit_code == 0
    second = [
        "finetune",
        data,
        "-o",
        str(folder / "tuned"),
        "--model",
        str(folder / "pre"),
        "--steps",
        "2",
        "-q",
    ]
    result = run(app, second)
    assert result.exit_code == 0, result.output
    assert (
        load_model(folder / "tuned").config.name == "tuned"
        and "in.h5ad" in load_model(folder / "tuned").card
    )


def test_convert_checkpoint(reference, tmp_path):
    official = reference.official
    options = [
        "--vocabulary",
        str(official / "vocab.txt"),
        "--labels",
        str(official / "celltype.json"),
    ]
    result = run(
        app,
        [
            "convert-checkpoint",
            str(official / "celltype.ckpt"),
            "-o",
            str(tmp_path / "m"),
            *options,
        ],
    )
    assert result.exit_code == 0 and "8 classes" in result.output
    assert load_model(tmp_path / "m").labels[7] == "Pericyte"


def test_info_and_help_run_as_a_program():
    text = subprocess.run(
        [sys.executable, "-m", "scmamba", "info"], capture_output=True, text=True, check=True
    ).stdout
    assert f"scmamba: {__version__}" in text and "reference: available" in text
    helped = subprocess.run(
        [sys.executable, "-m", "scmamba", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for verb in (
        "impute",
        "embed",
        "pretrain",
        "finetune",
        "convert-checkpoint",
        "models",
        "find-markers",
        "robustness",
        "cohort",
    ):
        assert verb in helped
