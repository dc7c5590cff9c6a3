"""Cores and thread pools: limits of the system, one BLAS thread for small fits, pools restored afterwards."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from scmamba.annotation import annotate
from scmamba.doublets import find_doublets
from scmamba.utils import control_groups, threads
from scmamba.utils.threads import (
    available_cores,
    run_in_threads,
    single_blas_thread,
    single_thread,
    threads_for,
    within_cores,
)


def pool_sizes(kind: str) -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == kind}


class Recorder(dict):
    """A mapping that records the number of BLAS threads whenever a verb reads it."""

    def items(self):
        self.seen = pool_sizes("blas")
        return super().items()


@pytest.fixture()
def system(tmp_path, monkeypatch) -> Path:
    """Control groups of a job on a machine with 64 cores, which it may all use."""
    (tmp_path / "cgroup").write_text("0::/slurm/job7\n")
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "_GROUPS", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    (tmp_path / "fs" / "slurm" / "job7").mkdir(parents=True)
    return tmp_path


def test_the_block_has_one_thread_and_the_number_is_restored():
    with threadpool_limits(2, user_api="blas"):
        assert pool_sizes("blas") == {2}
        with single_blas_thread():
            assert pool_sizes("blas") == {1}
        assert pool_sizes("blas") == {2}


def test_small_fits_get_one_thread_of_both_pools():
    with threadpool_limits(2):
        with single_thread():
            assert pool_sizes("blas") == pool_sizes("openmp") == {1}
        assert pool_sizes("blas") == pool_sizes("openmp") == {2}


def test_annotation_and_doublets_run_with_one_blas_thread(cohort):
    panel = Recorder({"Astrocyte": ["AQP4", "GFAP"], "Microglia": ["CSF1R", "P2RY12"]})
    rates = Recorder({"all": 0.1})
    with threadpool_limits(2, user_api="blas"):
        annotate(cohort.copy(), markers=panel, verbose=False)
        find_doublets(cohort.copy(), expected_rate=rates, verbose=False)
        assert pool_sizes("blas") == {2}
    assert panel.seen == rates.seen == {1}


def test_cores_are_those_of_the_cpu_affinity(system, monkeypatch):
    assert available_cores() == 64
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert available_cores() == 2


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", 64), ("400000 100000", 4), ("150000 100000", 2), ("20000 100000", 1)],
)
def test_cores_within_the_quota_of_the_group_and_at_least_one(system, text, cores):
    (system / "fs/slurm/job7/cpu.max").write_text(text)
    assert available_cores() == cores
    (system / "fs/slurm/cpu.max").write_text("300000 100000")
    assert available_cores() == min(cores, 3)


def test_cores_of_version_1_of_control_groups(system):
    (system / "cgroup").write_text("4:memory:/x\n3:cpu:/docker/abc\n")
    folder = system / "fs" / "cpu" / "docker" / "abc"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("50000")
    (folder / "cpu.cfs_quota_us").write_text("-1")  # no quota
    assert available_cores() == 64
    (folder / "cpu.cfs_quota_us").write_text("100000")
    assert available_cores() == 2


def test_pools_stay_within_the_quota_and_are_restored(system):
    (system / "fs/slurm/job7/cpu.max").write_text("200000 100000")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with threadpool_limits(3):
            with within_cores():
                assert pool_sizes("blas") == {2}
                assert torch.get_num_threads() == 2
                assert numba.get_num_threads() <= 2
                with single_blas_thread():
                    assert pool_sizes("blas") == {1}
            assert pool_sizes("blas") == {3}
            assert torch.get_num_threads() == 3
        with threadpool_limits(1), within_cores():  # smaller pools are not enlarged
            assert pool_sizes("blas") == {1}
    finally:
        torch.set_num_threads(before)


def test_no_file_is_read_if_all_cores_may_be_used(system, monkeypatch):
    looked_up: list[int] = []
    monkeypatch.setattr(threads, "_pools", looked_up.append)
    with within_cores():
        assert looked_up == []


def test_small_loops_get_one_thread_and_large_ones_no_more_than_the_cores(system, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 3)
    assert [threads_for(steps) for steps in (9.9e6, 1e7)] == [1, 3]
    (system / "fs/slurm/job7/cpu.max").write_text("200000 100000")
    assert threads_for(1e12) == 2


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
@pytest.mark.parametrize("count", [1, 3])
def test_every_index_is_worked_on_once(n, count):
    seen = np.zeros(n, dtype=int)
    by: set[int] = set()

    def kernel(lo, hi, out, step):
        out[lo:hi] += step
        by.add(threading.get_ident())

    run_in_threads(kernel, n, count, seen, 2)
    assert (seen == 2).all()
    assert len(by) <= count and (threading.get_ident() in by) == (count == 1)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_loop_before_its_last_parts(error):
    started = []

    def kernel(lo, hi):
        started.append(lo)
        time.sleep(0.02)
        if lo == 0:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        run_in_threads(kernel, 1000, 2)
    assert len(started) < 16
