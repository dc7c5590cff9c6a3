"""Compiled loops and torch share one OpenMP runtime and must not change each other's thread counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


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


def test_small_work_uses_one_thread_and_the_setting_is_restored():
    code = """
from numba import get_num_threads
from scmamba.utils.threads import threads_for
for steps in (9.9e6, 1e7):
    with threads_for(steps) as threads:
        print(threads, get_num_threads())
    print(get_num_threads())
try:
    with threads_for(1):
        raise ValueError
except ValueError:
    print(get_num_threads())
"""
    environment = {**os.environ, "NUMBA_NUM_THREADS": "3"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1", "1", "3", "3", "3", "3", "3"]
