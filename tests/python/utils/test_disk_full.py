"""A full disk and a killed run: one sentence, exit status 1, no partial output, and no temporary files after the next run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import small_model
from typer.testing import CliRunner

import scmamba
from scmamba.cli.main import app
from scmamba.datasets import brain_cohort
from scmamba.model import save_checkpoint
from scmamba.utils.atomic import IN_USE, atomic_path, no_room, temporary_folder
from scmamba.utils.errors import ScMambaError
from scmamba.utils.result_folder import result_folder


@contextmanager
def limited(size: int):
    """Limit the size of files; writing more fails as on a full disk (EFBIG; Python ignores SIGXFSZ)."""
    resource = pytest.importorskip("resource", reason="not on Windows")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("full")
    cells = brain_cohort(60, n_donors=4, n_genes=1500, seed=3)
    cells.write_h5ad(made / "x.h5ad")
    cells = scmamba.embed(cells, model=small_model("expressed"), force=True, verbose=False)
    cells.write_h5ad(made / "embedded.h5ad")
    save_checkpoint(small_model("expressed"), made / "small")
    return made


#: Command, and the allowed size of a file in bytes: less than its result needs.
COMMANDS = {
    "impute x.h5ad -o o.h5ad --model small --force --method masked --passes 1 --adapt-steps 0": 30_000,
    "embed x.h5ad -o o.h5ad --model small --force": 30_000,
    "find-doublets x.h5ad -o o.h5ad --model small": 30_000,
    "annotate x.h5ad -o o.h5ad --reference human-brain --model small --force": 30_000,
    "cohort o.h5ad --cells 100": 50_000,
    "convert x.h5ad o.rds": 50_000,
    "find-markers x.h5ad --groupby disease --group1 AD --logfc-threshold 0 --min-pct 0 -o o.csv": 20_000,
    "report embedded.h5ad -o o.html": 500,
    "vocab build x.h5ad -o o.tsv --min-fraction 0 --cache cache": 20_000,
    "pretrain x.h5ad -o o --force --recipe small --d-model 8 --steps 1 --batch-size 2 --genes-per-step 20 --cache cache": 100_000,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_ends_with_a_sentence(folder, command, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "cache").mkdir(exist_ok=True)
    if "--cache" in command:  # the cache has the files of an earlier run
        from scmamba.data import Collection

        _ = Collection(
            ["x.h5ad"], cache="cache", force=True, min_coverage=0.0, verbose=False
        ).totals
    if command.startswith("find-markers"):  # compiled code has its own cache
        CliRunner().invoke(app, command.split())
        (folder / "o.csv").unlink()
    before = sorted(path.name for path in folder.iterdir())
    with limited(COMMANDS[command]):
        done = CliRunner().invoke(app, command.split())
    output = " ".join(done.output.split())
    assert isinstance(done.exception, SystemExit), (repr(done.exception), output)
    assert done.exit_code == 1 and "was not written" in output, output
    assert "ulimit -f" in output or "disk holding . is full" in output, output
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("verb", ["impute", "embed"])
def test_a_process_on_a_full_disk_ends_with_status_1(folder, verb):
    """No segmentation fault of HDF5 when the interpreter ends."""
    command = f"{verb} x.h5ad -o o.h5ad --model small --force" + (
        " --method masked --passes 1 --adapt-steps 0" if verb == "impute" else ""
    )
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)); "
        "from scmamba.cli.main import app; sys.argv[0] = 'scmamba'; app()"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *command.split()],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    output = " ".join(done.stderr.split())
    assert done.returncode == 1 and "Error: o.h5ad" in output and "Traceback" not in output, output
    assert not [path for path in folder.iterdir() if path.name.startswith((".o", "o."))]


def test_causes_are_found_in_the_chain():
    target = Path("there/x.h5ad")
    for error in (
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        RuntimeError("Can't write: errno = 28, error message = 'x'"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ):
        outer = RuntimeError("while writing key 'X'")
        outer.__cause__ = error
        assert "disk holding there is full; x.h5ad was not written" in no_room(outer, target)
    assert "ulimit" in no_room(OSError(errno.EFBIG, "x"), target)
    for other in (PermissionError(errno.EACCES, "no"), ValueError("28")):
        assert no_room(other, target) == ""


KILLED = """
import sys, time
from pathlib import Path
from scmamba.utils.atomic import atomic_path
from scmamba.utils.result_folder import result_folder
target = Path(sys.argv[1])
if sys.argv[2] == "folder":
    target.mkdir()
    (target / "kept").write_text("mine")
with (atomic_path(target) if sys.argv[2] == "file" else result_folder(target, overwrite=True)) as path:
    (path if sys.argv[2] == "file" else path / "table").write_bytes(b"x" * 10_000)
    print("writing", flush=True)
    time.sleep(600)
"""


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_run_removes_files_of_a_killed_one(tmp_path, kind):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "out"), kind],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        (left,) = hidden(tmp_path)
        # While the process lives, no other process removes its files.
        with atomic_path(tmp_path / "other.txt") as path:
            path.write_text("y")
        assert hidden(tmp_path) == [left] and (tmp_path / left / IN_USE).is_file()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert hidden(tmp_path) == [left]
    (tmp_path / ".mine").mkdir()  # a hidden folder of another program
    if kind == "file":
        with atomic_path(tmp_path / "out") as path:
            path.write_text("z")
        assert (tmp_path / "out").read_text() == "z"
    else:
        with result_folder(tmp_path / "out", overwrite=True) as path:
            (path / "table").write_text("z")
        assert (tmp_path / "out" / "table").read_text() == "z"
        assert (tmp_path / "out" / "kept").read_text() == "mine"
    assert hidden(tmp_path) == [".mine"]


def test_files_of_a_killed_imputation_are_removed_by_the_next(folder, tmp_path):
    """The real command, killed while it writes."""
    (tmp_path / "x.h5ad").write_bytes((folder / "x.h5ad").read_bytes())
    command = [sys.executable, "-B", "-m", "scmamba", "impute", "x.h5ad", "-o", "o.h5ad", "--force"]
    command += ["--model", str(folder / "small"), "--method", "masked", "-q", "--adapt-steps", "0"]
    process = subprocess.Popen([*command, "--passes", "400"], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not hidden(tmp_path) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and len(hidden(tmp_path)) == 1
    subprocess.run([*command, "--passes", "1"], cwd=tmp_path, check=True)
    assert sorted(os.listdir(tmp_path)) == ["o.h5ad", "x.h5ad"]


def test_folders_without_locks_are_never_removed(tmp_path, monkeypatch):
    """Windows and some network disks cannot lock: there nothing is marked and nothing removed."""
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with temporary_folder(tmp_path / "a") as first:
        assert not (first / IN_USE).exists()
        monkeypatch.undo()
        with temporary_folder(tmp_path / "b"):
            pass
        assert first.is_dir()
    assert hidden(tmp_path) == []
    with (
        pytest.raises(ScMambaError, match="does not exist"),
        temporary_folder(tmp_path / "n" / "x"),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_for_the_output_of_a_command():
    """``scmamba ... > file`` on a full disk: status 1, no traceback."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "scmamba", "genes", "GFAP", "-n", "2"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "could not be written" in " ".join(done.stderr.split())
