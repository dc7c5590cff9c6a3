"""A worker's one job, and the supervisor that keeps workers: how each ends, and what is left on disk."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

pytest.importorskip("fastapi")

from serving import plain_bytes

from scmamba.serve import supervisor, worker
from scmamba.serve.jobs import Queue, Unavailable
from scmamba.serve.references import References
from scmamba.serve.settings import Settings
from scmamba.serve.supervisor import Supervisor, share
from scmamba.serve.uploads import Uploads
from scmamba.utils import progress as _progress
from scmamba.utils.errors import DataError, ScMambaError
from scmamba.wire.tables import Tables, read_tables


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A queue with one job, and a function that runs it as a worker does with a task of the test's own."""
    queue, settings = Queue(tmp_path), Settings(tmp_path, max_seconds=1000)
    (tmp_path / "upload").write_bytes(plain_bytes())

    class Desk:
        job = queue.add("ann", "markers", "brain-mini", {"groupby": "a"}, tmp_path / "upload")
        folder = tmp_path / "jobs" / job

        def run(self, task, name="markers", worker_name="w", **changes):
            monkeypatch.setitem(worker.TASKS, name, (task, {}))
            claimed = queue.claim(worker_name)
            worker.run_job(
                queue, Settings(tmp_path, **{"max_seconds": 1000, **changes}), claimed, worker_name
            )
            return queue.get(self.job)

    desk = Desk()
    desk.queue, desk.settings, desk.data = queue, settings, tmp_path
    desk.folder.mkdir(parents=True)
    return desk


def table(adata, options) -> Tables:
    return Tables(
        {
            "t": pd.DataFrame(
                {"sum": np.asarray(adata.X.sum(axis=0)).ravel()}, index=adata.var_names
            )
        },
        options,
    )


def test_a_job_gets_its_upload_and_its_options_and_leaves_its_result(desk):
    ended = desk.run(table)
    assert (ended["state"], ended["message"], ended["done"]) == ("done", "done", 1)
    got = read_tables(desk.folder / "result" / "result.scmb")
    assert got.frames["t"]["sum"].tolist() == [1.0, 1.0, 0.0] and got.about == {"groupby": "a"}
    assert sorted(f.name for f in desk.folder.iterdir()) == ["result"]
    assert _progress.listener is None and _progress.speaker is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ScMambaError("too few genes\x07"), "too few genes?"),
        (DataError("x" * 3000), "x" * 2000),
        (MemoryError(), "needs more memory than this server gives"),
        (KeyError("k"), "failed inside the server: KeyError: 'k'"),
    ],
)
def test_a_job_that_fails_says_why(desk, error, words, capsys):
    def task(adata, options):
        raise error

    ended = desk.run(task)
    assert (
        ended["state"] == "failed" and words in ended["message"] and len(ended["message"]) <= 2000
    )
    assert list(desk.folder.iterdir()) == [] and _progress.listener is None
    assert ("Traceback" in capsys.readouterr().err) == isinstance(error, KeyError)


def test_a_file_that_cannot_be_read_fails_with_its_sentence(desk):
    (desk.data / "upload").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    ended = desk.run(table)
    assert (
        ended["state"] == "failed"
        and "cannot be read" in ended["message"]
        and str(desk.data) not in ended["message"]
    )


def test_a_cancelled_job_stops_at_its_next_step_and_leaves_nothing(desk):
    steps = []

    def task(adata, options):
        desk.queue.cancel(desk.job)
        with _progress.progress("Imputing", 10_000) as advance:
            for _ in range(10_000):
                steps.append(advance(1))
                time.sleep(0.01)
        return table(adata, {})

    ended = desk.run(task)
    assert ended["state"] == "cancelled" and len(steps) < 2000 and list(desk.folder.iterdir()) == []


def test_a_result_nobody_waits_for_any_more_is_removed(desk):
    def task(adata, options):
        desk.queue.cancel(desk.job)  # too late for the next beat to see
        return table(adata, {})

    assert desk.run(task)["state"] == "cancelled" and list(desk.folder.iterdir()) == []


def test_progress_reaches_the_queue(desk):
    seen = []

    def task(adata, options):
        with _progress.progress("Reading cells", 4) as advance:
            advance(1)
            until = time.monotonic() + 30
            while not seen and time.monotonic() < until:
                now = desk.queue.get(desk.job)
                if now["message"]:
                    seen.append((now["done"], now["message"]))
                time.sleep(0.05)
        return table(adata, {})

    assert desk.run(task)["state"] == "done" and seen == [(0.25, "Reading cells")]


def test_a_job_that_takes_too_long_fails(desk):
    def task(adata, options):
        with _progress.progress("Imputing", 3) as advance:
            advance(1)
        return table(adata, {})

    ended = desk.run(task, max_seconds=-1)
    assert ended["state"] == "failed" and "longer than this server's -1 seconds" in ended["message"]


def test_tasks_of_the_model_get_the_model_named_in_the_address(tmp_path, monkeypatch):
    queue, got = Queue(tmp_path), []
    (tmp_path / "upload").write_bytes(plain_bytes())
    monkeypatch.setattr(worker, "kept_model", lambda name: f"model {name}")
    monkeypatch.setattr(worker, "write_result", lambda result, task, folder: None)
    kept = References(tmp_path)
    (tmp_path / "reference").write_bytes(plain_bytes(cells=4))
    reference = kept.add("ann", tmp_path / "reference")
    sent = [
        ("ann", "impute", {"seed": 1}),
        ("ann", "doublets", {}),
        ("ann", "annotate", {}),
        ("ann", "annotate", {"reference": reference}),
        ("bob", "annotate", {"reference": reference}),
    ]
    jobs = [
        queue.add(user, task, "m1", options, tmp_path / "upload") for user, task, options in sent
    ]
    for task in ("impute", "doublets", "annotate"):
        monkeypatch.setitem(worker.TASKS, task, (lambda adata, options: got.append(options), {}))
    for job in jobs:
        (tmp_path / "jobs" / job).mkdir(parents=True)
        claimed = {**queue.get(job)}
        with queue._open() as db:
            db.execute("UPDATE jobs SET state='running', worker='w' WHERE id=?", (job,))
        worker.run_job(queue, Settings(tmp_path), claimed, "w")
    assert (
        got[:3] == [{"seed": 1, "model": "model m1"}, {}, {}] and len(got) == 4
    )  # bob's never began
    assert got[3]["model"] == "model m1" and got[3]["reference"].shape == (4, 3)
    assert queue.get(jobs[4])["state"] == "failed" and "deleted" in queue.get(jobs[4])["message"]


def test_every_kind_of_file_is_opened(tmp_path):
    matrix = sparse.csr_matrix(np.array([[1.0, 0, 2], [0, 3, 0]]))
    ad.AnnData(matrix, var=pd.DataFrame(index=["A", "B", "C"])).write_h5ad(tmp_path / "a")
    with h5py.File(tmp_path / "b", "w") as file:
        group, features = file.create_group("matrix"), file.create_group("matrix/features")
        group["shape"], group["barcodes"] = np.array([3, 2]), np.array(["x", "y"], "S")
        group["indptr"], group["indices"], group["data"] = (
            matrix.indptr,
            matrix.indices,
            matrix.data.astype("i4"),
        )
        features["id"], features["name"] = (
            np.array(["E1", "E2", "E3"], "S"),
            np.array(["A", "A", "C"], "S"),
        )
        features["feature_type"], features["genome"] = (
            np.array(["Gene Expression"] * 3, "S"),
            np.array(["h"] * 3, "S"),
        )
    assert worker.open_upload(tmp_path / "a").X.toarray().tolist() == [[1, 0, 2], [0, 3, 0]]
    found = worker.open_upload(tmp_path / "b")
    assert found.X.toarray().tolist() == [[1, 0, 2], [0, 3, 0]] and found.var_names.tolist() == [
        "A",
        "A-1",
        "C",
    ]
    with h5py.File(tmp_path / "a", "r+") as file:
        file["X/indices"][0] = 77
    with pytest.raises(DataError, match="contradicts itself"):
        worker.open_upload(tmp_path / "a")


# -- the supervisor ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "workers", "expected"),
    [
        ({}, 1, [{}]),
        (
            {"CUDA_VISIBLE_DEVICES": "3,5"},
            3,
            [{"CUDA_VISIBLE_DEVICES": g, "OMP_NUM_THREADS": "2"} for g in "353"],
        ),
        ({"CUDA_VISIBLE_DEVICES": ""}, 2, [{"OMP_NUM_THREADS": "4"}] * 2),
        ({"OMP_NUM_THREADS": "1"}, 2, [{}] * 2),
        ({}, 20, [{"OMP_NUM_THREADS": "1"}] * 20),
        ({"gpus": "2"}, 3, [{"CUDA_VISIBLE_DEVICES": g, "OMP_NUM_THREADS": "2"} for g in "010"]),
    ],
)
def test_each_worker_has_its_share(monkeypatch, tmp_path, told, workers, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for k in range(int(told.pop("gpus", 0))):
        (tmp_path / f"0000:0{k}").mkdir()
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(supervisor, "_GPUS", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [share(i, workers) for i in range(workers)] == expected


@pytest.fixture
def staff(tmp_path, monkeypatch):
    """A supervisor whose workers are real processes that wait."""
    monkeypatch.setattr(Supervisor, "_spawn", lambda self, i: subprocess.Popen(["sleep", "600"]))
    queue = Queue(tmp_path)
    kept = Supervisor(Settings(tmp_path, workers=2, keep_days=2.0), queue)
    yield kept
    kept.stop()


def wait_for(condition) -> None:
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def test_dead_workers_are_started_again_and_their_jobs_queued(staff):
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    staff.start()
    names, first = list(staff._names), list(staff._workers)
    assert staff.alive() == 2 and staff.restarts == 0 and len(set(names)) == 2
    staff.queue.claim(names[1])
    first[1].kill()
    wait_for(
        lambda: (
            staff.restarts == 1 and staff.alive() == 2 and staff.queue.get(job)["state"] == "queued"
        )
    )
    assert (
        staff._names[0] == names[0]
        and staff._names[1] not in names
        and staff._workers[0] is first[0]
    )
    staff.stop()
    assert staff.alive() == 0 and staff.restarts == 1
    staff._look()  # told to stop, it starts none
    assert staff.alive() == 0


def test_what_an_earlier_servers_workers_held_is_queued_at_the_start(staff):
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    staff.queue.claim("earlier")
    with staff.queue._open() as db:
        db.execute("UPDATE jobs SET beat=5")
    staff.start()
    assert staff.queue.get(job)["state"] == "queued"


def test_a_worker_that_hears_nothing_is_killed(staff):
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    staff._names, staff._workers = ["w0", "w1"], [staff._spawn(0), staff._spawn(1)]
    staff.queue.claim("w1")
    staff._look()
    assert staff.alive() == 2 and staff.queue.get(job)["worker"] == "w1"
    with staff.queue._open() as db:
        db.execute("UPDATE jobs SET beat=?", (time.time() - 125,))
    stuck, other = staff._workers[1], staff._workers[0]
    staff._look()
    assert (
        stuck.wait(20) == -9 and other.poll() is None and staff.queue.get(job)["state"] == "queued"
    )


def test_the_supervisor_outlives_a_queue_that_is_away(staff, monkeypatch):
    looks = []

    def look():
        looks.append(1)
        raise Unavailable("away")

    monkeypatch.setattr(staff, "_look", look)
    staff.start()
    wait_for(lambda: len(looks) >= 2)
    assert staff._thread.is_alive() and isinstance(staff._thread, threading.Thread)


def test_what_is_old_is_cleared_away(staff, tmp_path):
    now, day = time.time(), 86_400
    jobs = {
        name: staff.queue.add("ann", "embed", "m", {}, tmp_path / f"upload-{name}")
        for name in ("old", "new", "waiting")
    }
    for name, finished in (("old", now - 2.1 * day), ("new", now - 1.9 * day), ("waiting", None)):
        (tmp_path / f"upload-{name}").write_text("x")
        (tmp_path / "jobs" / jobs[name] / "result").mkdir(parents=True)
        with staff.queue._open() as db:
            db.execute(
                "UPDATE jobs SET finished=?, created=? WHERE id=?",
                (finished, now - 9 * day, jobs[name]),
            )
    parts, references = Uploads(staff.settings), References(tmp_path)
    names = {age: parts.create("ann", "5") for age in (0.9, 1.1)}
    for age, name in names.items():
        for file in (tmp_path / "parts").glob(f"*/{name}*"):
            os.utime(file, (now - age * day,) * 2)
    kept = {}
    for age in (1.9, 2.1):
        (tmp_path / "reference").write_text("x")
        kept[age] = references.add("ann", tmp_path / "reference")
        os.utime(references.path(kept[age], "ann"), (now - age * day,) * 2)
    staff._clear()
    assert (
        staff.queue.get(jobs["old"]) is None
        and staff.queue.get(jobs["new"])
        and staff.queue.get(jobs["waiting"])
    )
    assert [(tmp_path / f"upload-{n}").exists() for n in jobs] == [False, True, True]
    assert [(tmp_path / "jobs" / j).exists() for j in jobs.values()] == [False, True, True]
    assert {f.name for f in (tmp_path / "parts").glob("*/*")} == {
        names[0.9],
        names[0.9] + ".length",
    }
    assert references.path(kept[1.9], "ann") and references.path(kept[2.1], "ann") is None
