"""Compiled loops leave the threads of torch alone, and work in forked processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import scmamba

PACKAGE = Path(scmamba.__file__).parent


@pytest.mark.parametrize("first", ["torch", "deg"])
def test_a_test_does_not_change_torchs_threads(first):
    code = """
import sys
import numpy as np, anndata as ad
if sys.argv[1] == "torch":
    import torch
import scmamba.deg
adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (40, 30)).astype("float32"))
adata.obs["group"] = ["a", "b"] * 20
scmamba.deg.find_markers(adata, "group", "a")
import torch
print(torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", code, first],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split()[-1] == "1"


def test_a_forked_process_can_test_too():
    """A server forks its jobs; threads of a library's pool do not exist in the forked process, which waits for them."""
    code = """
import os, signal
import numpy as np, scipy.sparse as sp
import scmamba.deg.twogroup as twogroup
from scmamba.utils import threads
threads._SMALL = 1
matrix = sp.random(400, 50, 0.3, "csr", random_state=0)
group = np.arange(400) % 2
def sums():
    return np.stack([part.squares for part in twogroup.group_sums(matrix, group, 2)[0]])
assert threads.threads_for(1e9) == 2
first = sums()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if np.array_equal(sums(), first) else 1)
print(os.waitpid(child, 0)[1])
"""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["0"], result.stderr


def test_no_loop_is_parallel_by_numba_itself():
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "prange" not in text and "parallel=True" not in text, file
