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
    x = np.random.default_rng(0).normal(size=(40, 5)).astype("float32")
    y = umap.UMAP(n_neighbors=5, n_epochs=5, random_state=0, n_jobs=1).fit_transform(x)
print(json.dumps([len(compiled.buffer), y.tolist(), numba.njit is numba.core.decorators.njit]))
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


@pytest.mark.slow
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
