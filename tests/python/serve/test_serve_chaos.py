"""The benchmark with many users and a server on bad days, in small: the same guarantees with a few users and one event of each kind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("psutil")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def chaos():
    from benchmarks import serve_chaos

    return serve_chaos


@pytest.mark.slow
def test_every_accepted_job_ends_once_and_is_visible_to_its_owner_only(chaos, tmp_path):
    answer = chaos.run(
        clients=4,
        seconds=6,
        plan=chaos.Plan(kills=2, restarts=1),
        workers=2,
        source=None,
        folder=tmp_path,
    )
    assert [k["what"] for k in answer["kills"]] == ["worker", "server"]
    assert len(answer["restarts"]) == 1
    assert answer["accepted"] >= 4 and answer["failures"] == []
    assert chaos.verdict(answer) == []
    assert "not kept: nothing" in chaos.report(answer)


@pytest.mark.slow
def test_jobs_survive_a_full_disk_and_a_wrong_clock(tmp_path):
    """In a separate process with mounts of its own."""
    probe = ["unshare", "--mount", "--propagation", "private", "true"]
    tools = all(shutil.which(tool) for tool in ("unshare", "mkfs.ext4", "cc"))
    if os.geteuid() != 0 or not tools or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("a full disk and a wrong clock need root, mkfs.ext4 and a C compiler")
    counts = "--clients 3 --minutes 0.25 --kills 0 --restarts 0 --full-disks 1 --clock-steps 2"
    command = [sys.executable, "-m", "benchmarks.serve_chaos", *counts.split()]
    done = subprocess.run(
        [*command, "--output", tmp_path / "answer"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["accepted"] >= 3 and answer["failed_otherwise"] == []
    assert [len(answer[k]) for k in ("full_disks", "clock_steps")] == [2, 2]
    assert not Path("/etc/ld.so.preload").exists()


def test_the_benchmark_detects_faults(chaos):
    fine = dict(
        accepted=3,
        lost=0,
        of_another_user=0,
        not_ended=0,
        ended_once=3,
        ended_more_than_once=0,
        failed_without_room=0,
        failed_otherwise=[],
        full_disks=[],
        deaths=0,
        clients_stuck=0,
        wrong=[],
        refused=[],
        in_the_queue_unknown_to_any_client=0,
    )
    assert chaos.verdict(fine) == []
    for change in (
        dict(lost=1),
        dict(not_ended=1),
        dict(ended_once=2),
        dict(of_another_user=1),
        dict(wrong=["x"]),
        dict(refused=["x"]),
        dict(in_the_queue_unknown_to_any_client=1),
        dict(ended_more_than_once=1),
        dict(failed_otherwise=["x"]),
        dict(failed_without_room=1),
        dict(deaths=1),
        dict(clients_stuck=1),
    ):
        assert len(chaos.verdict(fine | change)) == 1
    assert chaos.verdict(fine | dict(failed_without_room=1, full_disks=[1])) == []


def test_the_plan_of_the_benchmark(chaos):
    import random

    plan = chaos.Plan(kills=20, restarts=20, full_disks=2, clock_steps=2)
    moments = plan.moments(900, random.Random(0))
    kinds = [what for _, what in moments]
    assert [kinds.count(k) for k in ("SIGTERM", "clock step", "full disk")] == [
        20,
        2,
        2,
    ]  # fmt: skip
    assert sum(kinds.count(k) for k in ("worker", "server", "both")) == 20
    assert [at for at, _ in moments] == sorted(at for at, _ in moments)
    assert all(0 < at < 900 for at, _ in moments)
