"""UMAP is compiled once per machine and gives the same numbers; folders of machine code are private to the user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scmamba.utils.compiled_code import is_ours, private_folder

PROGRAM = """
import json, sys, numba
import numpy as np
from numba.core.event import install_recorder
with install_recorder("numba:compile") as compiled:
    if sys.argv[1] == "plain":
        import umap
    else:
        from pathlib import Path
        from scmamba.utils.compiled_code import import_umap
        umap = import_umap(Path(sys.argv[1]))
    distances = np.sort(np.random.default_rng(0).uniform(size=(40, 6)).astype("float32"), axis=1)
    widths, nearest = umap.umap_.smooth_knn_dist(distances, 5.0)
    numbers = widths.tolist() + nearest.tolist()
print(json.dumps([len(compiled.buffer), numbers, numba.njit is numba.core.decorators.njit]))
"""


def run(where: str | Path) -> tuple[int, list, bool]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(where)],
        env={k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"},
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(json.loads(done.stdout))


@pytest.mark.versions
def test_umap_is_compiled_by_the_first_process_only(tmp_path):
    first, second = run(tmp_path), run(tmp_path)
    assert first[0] > 100 and second[0] < first[0] / 10
    assert first[1] == second[1]
    assert first[2] and second[2]  # numba's decorators are restored
    assert run("plain")[1] == first[1]


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = private_folder("umap-1")
    assert folder == tmp_path / "scmamba" / "umap-1" and is_ours(folder)
    folder.chmod(0o777)
    other = private_folder("umap-1")
    assert other != folder and is_ours(other)
    (tmp_path / "link").symlink_to(other)
    assert not is_ours(tmp_path / "link")


FUNCTIONS = """
from scmamba.utils.compiled_code import compiled

@compiled(nogil=True)
def twice(x):
    return 2 * x
"""
CALL = """
import resource, sys
if "full" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from package_of_functions.functions import twice
print(twice(21), sum(twice.stats.cache_hits.values()), twice.stats.cache_path)
"""


def call(top, *how, **variables) -> tuple[int, int, Path]:
    """The result of the compiled function in a new process, whether its machine code was read, and from where."""
    package = top / "package_of_functions"
    if not package.is_dir():
        package.mkdir()
        (package / "functions.py").write_text(FUNCTIONS)
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    found = os.pathsep.join([str(top), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-B", "-c", CALL, *how],
        capture_output=True, text=True,
        env={**kept, "XDG_CACHE_HOME": str(top / "cache"), "PYTHONPATH": found, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result, hits, place = done.stdout.split()
    return int(result), int(hits), Path(place)


def test_compiled_functions_are_kept_in_a_folder_of_the_user(tmp_path):
    first, second = call(tmp_path), call(tmp_path)
    assert first[:2] == (42, 0) and second[:2] == (42, 1)
    assert second[2].is_relative_to(tmp_path / "cache" / "scmamba")
    assert not (tmp_path / "package_of_functions" / "__pycache__").exists()
    package = tmp_path / "package_of_functions"
    (package / "others.py").write_text("# a function may call those of other files of the package")
    assert call(tmp_path)[:2] == (42, 0)


def test_a_damaged_or_full_cache_of_functions_costs_a_compilation(tmp_path):
    place = call(tmp_path)[2]
    for file in place.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert call(tmp_path)[:2] == (42, 0)
    full = tmp_path / "full"
    full.mkdir()
    assert call(full, "full")[:2] == (42, 0)


def test_functions_compile_without_a_home_and_beside_sources_that_cannot_be_changed(tmp_path):
    """As for a service without a home folder, of a package that root installed."""
    (tmp_path / "package_of_functions").mkdir()
    (tmp_path / "package_of_functions" / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "package_of_functions" / "__pycache__").touch()  # not a folder
    variables = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "TMPDIR": str(tmp_path)}
    result, _, place = call(tmp_path, **variables)
    assert result == 42 and place.is_relative_to(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_another_user_is_not_read(tmp_path):
    place = call(tmp_path)[2].parent
    os.chown(place, 65534, 65534)
    result, hits, other = call(tmp_path)
    assert (result, hits) == (42, 0) and not other.is_relative_to(place)
