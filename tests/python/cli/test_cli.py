"""The command line, run as commands."""

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


def test_info_and_version_run_as_a_program():
    program = [sys.executable, "-m", "scmamba"]
    text = subprocess.run([*program, "info"], capture_output=True, text=True, check=True).stdout
    assert f"scmamba: {__version__}" in text and "reference: available" in text
    result = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"scmamba {__version__}\n"


def test_help_lists_every_command_and_does_not_import_torch():
    program = "import sys; from typer.testing import CliRunner; from scmamba.cli.main import app; "
    program += "print(CliRunner().invoke(app, ['--help']).output, 'torch' in sys.modules)"
    helped = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert helped.endswith("False\n")
    commands = {line.split()[1] for line in helped.splitlines() if line.startswith("│ ")}
    verbs = "impute embed annotate find-doublets find-markers robustness prepare genes"
    models = "models fetch-model pack-model convert-checkpoint pretrain finetune vocab"
    rest = "cohort convert evaluate report info serve"
    assert set(f"{verbs} {models} {rest}".split()) <= commands
    assert not {"deg", "doublets"} & commands, "former names are hidden"


@pytest.mark.parametrize(("old", "new"), [("deg", "find-markers"), ("doublets", "find-doublets")])
def test_former_names_of_commands_warn_and_work(old, new, tmp_path):
    line = [str(tmp_path / "none.h5ad"), "-o", str(tmp_path / "x")]
    line += ["--groupby", "g", "--group1", "A"] if old == "deg" else []
    former, today = run(app, [old, *line]), run(app, [new, *line])
    assert former.exit_code == today.exit_code == 1 and "There is no file" in today.output
    assert f"scmamba {old} was renamed to scmamba {new}" in former.output
    assert "renamed" not in today.output


def test_the_server_starts_from_the_command_line(tmp_path):
    helped = subprocess.run(
        [sys.executable, "-m", "scmamba", "serve", "--help"], capture_output=True, text=True
    )
    assert helped.returncode == 0 and "--max-upload" in helped.stdout
    wrong = subprocess.run(
        [sys.executable, "-m", "scmamba", "serve", "--data", str(tmp_path), "--model", "none"],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode == 2 and "no model 'none'" in wrong.stderr
