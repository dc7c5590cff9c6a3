"""The list of skipped tests: in continuous integration an unexpected one fails the run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in ("skips.py", "allowed_skips.tsv"):
        shutil.copy(SCRIPTS / name, tmp_path / "scripts")
    folder = tmp_path / ".cache" / "check" / "skips"
    folder.mkdir(parents=True)

    def listing(*lines, ci="1"):
        (folder / "pytest.tsv").write_text("".join(f"{line}\n" for line in lines))
        environment = {key: value for key, value in os.environ.items() if key != "CI"}
        environment |= {"CI": ci} if ci else {}
        return subprocess.run(
            [sys.executable, str(tmp_path / "scripts" / "skips.py"), "list"],
            capture_output=True,
            text=True,
            env=environment,
        )

    return listing


def test_an_unexpected_skip_fails_in_continuous_integration_only(run):
    line = "test_x::a\tcould not import scanpy"
    here, ci = run(line, ci=""), run(line)
    assert here.returncode == 0 and "NOT EXPECTED" in here.stdout
    assert ci.returncode == 1 and "fails in continuous integration" in ci.stdout


def test_an_expected_skip_is_listed_with_its_reason(run):
    done = run("test_x::a\tno NVIDIA GPU on this machine", "test_y::b\t")
    assert done.returncode == 0
    assert "Skipped tests: 1" in done.stdout and "test_x::a" in done.stdout


def test_a_test_that_ran_elsewhere_was_not_skipped(run):
    done = run("test_x::a\tcould not import scanpy", "test_x::a\t")
    assert done.returncode == 0 and "Skipped tests: 0" in done.stdout
