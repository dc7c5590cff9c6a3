"""The job of a worker, and the supervisor of the workers: how each ends, and which files remain."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
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

from scmamba.serve import confinement, disk, supervisor, worker
from scmamba.serve.jobs import Queue, Unavailable
from scmamba.serve.references import References
from scmamba.serve.settings import Settings
from scmamba.serve.supervisor import Supervisor, share
from scmamba.serve.uploads import Uploads
from scmamba.serve.verbs import Task
from scmamba.utils import progress as _progress
from scmamba.utils.errors import DataError, ScMambaError
from scmamba.wire.tables import Tables, read_tables


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A queue with one job, and a function that runs it as a worker does, with a task of the test."""
    queue, settings = Queue(tmp_path), Settings(tmp_path, max_seconds=1000)
    (tmp_path / "upload").write_bytes(plain_bytes())

    class Desk:
        job = queue.add("ann", "markers", "brain-mini", {"groupby": "a"}, tmp_path / "upload")
        folder = tmp_path / "jobs" / job

        def run(self, task, name="markers", worker_name="w", **changes):
            monkeypatch.setitem(worker.TASKS, name, Task(task, {}))
            claimed = queue.claim(worker_name)
            # Tasks of these tests use the queue, which a confined job cannot.
            chosen = {"max_seconds": 1000, "confine": False, **changes}
            worker.run_job(queue, Settings(tmp_path, **chosen), claimed, worker_name)
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


def test_a_job_reads_its_upload_and_options_and_writes_its_result(desk):
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
def test_a_failed_job_has_the_reason(desk, error, words, capfd):
    def task(adata, options):
        raise error

    ended = desk.run(task)
    assert (
        ended["state"] == "failed" and words in ended["message"] and len(ended["message"]) <= 2000
    )
    assert list(desk.folder.iterdir()) == [] and _progress.listener is None
    assert ("Traceback" in capfd.readouterr().err) == isinstance(error, KeyError)


def test_a_file_that_cannot_be_read_fails_with_its_message(desk):
    (desk.data / "upload").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    ended = desk.run(table)
    assert (
        ended["state"] == "failed"
        and "cannot be read" in ended["message"]
        and str(desk.data) not in ended["message"]
    )


def test_a_cancelled_job_is_ended_whatever_it_is_doing(desk):
    def task(adata, options):
        desk.queue.cancel(desk.job)
        while True:  # no progress, no end
            pass

    began = time.monotonic()
    ended = desk.run(task)
    assert ended["state"] == "cancelled" and list(desk.folder.iterdir()) == []
    assert time.monotonic() - began < 60


def test_the_result_of_a_cancelled_job_is_removed(desk):
    def task(adata, options):
        desk.queue.cancel(desk.job)  # too late for the next beat
        return table(adata, {})

    assert desk.run(task)["state"] == "cancelled" and list(desk.folder.iterdir()) == []


def test_progress_reaches_the_queue(desk):
    def task(adata, options):
        seen = {}
        with _progress.progress("Reading cells", 4) as advance:
            advance(1)
            until = time.monotonic() + 60
            while not seen and time.monotonic() < until:
                now = desk.queue.get(desk.job)
                if now["message"]:
                    seen = {"done": now["done"], "message": now["message"]}
                time.sleep(0.05)
        return table(adata, seen)

    assert desk.run(task)["state"] == "done"
    got = read_tables(desk.folder / "result" / "result.scmb").about
    assert got == {"done": 0.25, "message": "Reading cells"}


def test_a_job_over_the_time_limit_is_ended(desk):
    def task(adata, options):
        while True:
            pass

    ended = desk.run(task, max_seconds=1)
    assert ended["state"] == "failed" and "longer than this server's 1 seconds" in ended["message"]


def test_a_job_over_the_memory_limit_fails_alone(desk):
    def task(adata, options):
        return [np.ones(1 << 26) for _ in range(100)]  # 50 GiB

    ended = desk.run(task, max_memory=1 << 30)
    assert ended["state"] == "failed" and "more memory than this server gives" in ended["message"]


def test_a_job_whose_process_dies_is_queued_again_and_counts_a_death(desk):
    def task(adata, options):
        os.kill(os.getpid(), 9)

    for deaths in (1, 2):
        waits = desk.run(task)
        assert (waits["state"], waits["deaths"]) == ("queued", deaths)
    ended = desk.run(task)
    assert ended["state"] == "failed" and "died 3 times" in ended["message"]


def test_a_job_ends_with_its_server_and_counts_no_death(desk, monkeypatch):
    def task(adata, options):
        while True:
            pass

    monkeypatch.setitem(worker.TASKS, "markers", Task(task, {}))
    claimed = desk.queue.claim("w")
    worker.run_job(desk.queue, desk.settings, claimed, "w", goes_on=lambda: False)
    now = desk.queue.get(desk.job)
    assert (now["state"], now["deaths"]) == ("queued", 0)


def test_a_job_without_room_for_its_folder_waits(desk, monkeypatch):
    def full(**where):
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(worker.tempfile, "mkdtemp", full)
        patch.setattr(worker, "_AGAIN", 0.0)
        waits = desk.run(table)
    assert (waits["state"], waits["deaths"]) == ("queued", 0)
    assert desk.run(table)["state"] == "done"


def test_a_full_disk_begins_no_job(desk, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(worker, "has_room", lambda folder: False)
        assert worker.next_job(desk.queue, desk.settings, "w") is None
    assert worker.next_job(desk.queue, desk.settings, "w")["id"] == desk.job
    usage = disk.shutil.disk_usage(desk.data)
    for free, room in ((disk.LEAST, True), (disk.LEAST - 1, False)):
        monkeypatch.setattr(
            disk.shutil, "disk_usage", lambda f, free=free: usage._replace(free=free)
        )
        assert disk.has_room(desk.data) is room
    monkeypatch.undo()
    assert not disk.has_room(desk.data / "nowhere")


def test_a_result_stays_if_the_answer_of_the_database_is_lost(desk, monkeypatch):
    """As when PostgreSQL is stopped after it has recorded the end of a job."""
    finish, lost = desk.queue.finish, []

    def once(*arguments):
        answer = finish(*arguments)
        if not lost:
            lost.append(answer)
            raise Unavailable("the connection broke")
        return answer

    monkeypatch.setattr(desk.queue, "finish", once)
    assert desk.run(table)["state"] == "done" and lost == [True]
    assert (desk.folder / "result" / "result.scmb").is_file()


@pytest.mark.parametrize("means", ["landlock", "namespaces"])
def test_a_job_can_access_its_own_folder_and_no_network(tmp_path, means):
    program = Path(__file__).parents[1] / "confined_job.py"
    (tmp_path / "home" / "private").mkdir(parents=True)
    source = Path(worker.__file__).parents[2]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": f"{source}{os.pathsep}{program.parent}", "OMP_NUM_THREADS": "1"}
    (tmp_path / "data").mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, program, tmp_path / "data", means],
        env=environment | {"SCMAMBA_TEST_SECRET": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    if ended.get("missing"):
        pytest.skip(f"no {means} in this kernel or container")
    assert ended["state"] == "done", f"{ended['message']}\n{done.stderr}"
    through = ended["through"]
    assert len(through) == 19 and {name for name, got in through.items() if got} == set()


#: Numbers of system calls on x86_64 and on aarch64: unistd_64.h, and unistd.h of asm-generic, of the kernel's headers.
CALLS = {
    "socket": (41, 198),
    "ptrace": (101, 117),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "finit_module": (313, 273),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
SIGNALS = {
    "kill": (62, 129),
    "rt_sigqueueinfo": (129, 138),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}


def refused(program: list[tuple[int, int, int, int]], data: dict[int, int]) -> bool:
    """What the kernel does with a system call: ``data`` is what lies at 0 (number), 4 (machine) and 16 (argument)."""
    at = value = 0
    while True:
        operation, yes, no, operand = program[at]
        if operation == 0x20:
            value = data[operand]
        elif operation == 0x06:
            assert operand in (0x7FFF0000, 0x00050000 | errno.EPERM)
            return operand != 0x7FFF0000
        else:
            holds = {0x15: value == operand, 0x35: value >= operand}[operation]
            at += yes if holds else no
        at += 1


@pytest.mark.parametrize("by_landlock", [True, False])
@pytest.mark.parametrize(
    ("machine", "place", "architecture", "limits"),
    [("x86_64", 0, 0xC000003E, 302), ("aarch64", 1, 0xC00000B7, 261)],
)
def test_which_system_calls_are_refused(
    machine, place, architecture, limits, by_landlock, monkeypatch
):
    monkeypatch.setattr(confinement.platform, "machine", lambda: machine)
    program = confinement._filter(others_signals=by_landlock)
    own, another = os.getpid(), os.getpid() + 1

    def calls(to: int, machine: int = architecture, numbers: range = range(600)) -> set[int]:
        return {n for n in numbers if refused(program, {0: n, 4: machine, 16: to})}

    denied = {numbers[place] for numbers in CALLS.values()}
    signals = set() if by_landlock else {numbers[place] for numbers in SIGNALS.values()}
    assert calls(own) == denied
    assert calls(another) == denied | signals | {limits}
    assert calls(0) == denied | signals, "zero is this process for prlimit, and its group for kill"
    assert calls(own, architecture ^ 1) == set(range(600)), "calls of another architecture"
    x32 = range(0x40000000, 0x40000003)
    assert calls(own, numbers=x32) == set(x32)


@pytest.mark.skipif(not confinement.available(), reason="Linux only")
def test_what_is_said_to_be_active_is_active():
    """In a process of its own, because it cannot be taken back."""
    code = """if True:
        import json
        from scmamba.serve.confinement import available, confine
        found, active = available(), confine()
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
        print(json.dumps([found, active, status["NoNewPrivs"], status["Seccomp"]]))
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    found, active, privileges, calls = json.loads(done.stdout)
    assert set(found) == set(active) - {"no capabilities"}, "as the server prints at its start"
    assert ("no-new-privileges" in active) == (privileges == "1")
    assert ("seccomp" in active) == (calls == "2")


def test_tasks_with_a_model_get_the_model_named_in_the_address(tmp_path, monkeypatch):
    got = []
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
    for task in ("impute", "doublets", "annotate"):
        keep = Task(lambda adata, options: got.append(options), {})
        monkeypatch.setitem(worker.TASKS, task, keep)
    ends = []
    for k, (user, task, options) in enumerate(sent):
        job = {"user": user, "task": task, "model": "m1", "upload": str(tmp_path / "upload")}
        job["options"] = json.dumps(options)
        ends.append(worker.compute(job, Settings(tmp_path), tmp_path / f"result{k}"))
    assert (
        got[:3] == [{"seed": 1, "model": "model m1"}, {}, {}] and len(got) == 4
    )  # bob's job never began
    assert got[3]["model"] == "model m1" and got[3]["reference"].shape == (4, 3)
    assert [state for state, _ in ends] == ["done"] * 4 + ["failed"] and "deleted" in ends[4][1]


def test_every_file_type_is_opened(tmp_path):
    pytest.importorskip("scanpy")
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
    import scanpy

    theirs = scanpy.read_10x_h5(tmp_path / "b")
    theirs.var_names_make_unique()
    assert found.X.toarray().tolist() == [[1, 0, 2], [0, 3, 0]] == theirs.X.toarray().tolist()
    assert found.X.dtype == theirs.X.dtype and found.obs_names.equals(theirs.obs_names)
    pd.testing.assert_frame_equal(found.var, theirs.var, check_like=True)
    with h5py.File(tmp_path / "a", "r+") as file:
        file["X/indices"][0] = 77
    with pytest.raises(DataError, match="contradicts itself"):
        worker.open_upload(tmp_path / "a")


# -- the supervisor ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "workers", "expected"),
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
def test_each_worker_has_its_share(monkeypatch, tmp_path, variables, workers, expected):
    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for k in range(int(variables.pop("gpus", 0))):
        (tmp_path / f"0000:0{k}").mkdir()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(supervisor, "_GPUS", tmp_path)
    monkeypatch.setattr(supervisor, "available_cores", lambda: 8)
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


def test_dead_workers_are_restarted_and_their_jobs_queued(staff):
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
    staff._look()  # after a stop it starts no worker
    assert staff.alive() == 0


def test_jobs_of_an_earlier_servers_workers_are_queued_at_the_start(staff):
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    staff.queue.claim("earlier")
    staff.start()  # on another machine: only a missing beat shows that it is dead
    assert staff.queue.get(job)["state"] == "running"
    own = staff._name()
    with staff.queue._open() as db:
        db.execute("UPDATE jobs SET worker=?", (own,))
    wait_for(lambda: staff.queue.get(job)["state"] == "queued")
    # A living worker holds its lock.
    staff.queue.claim(own)
    lock = worker.hold_lock(staff.settings, own)
    staff._look()
    assert staff.queue.get(job)["worker"] == own
    os.close(lock)
    staff._look()
    assert staff.queue.get(job)["deaths"] == 0 and staff.queue.get(job)["state"] == "queued"


def awake(staff, seconds):
    """Run the supervisor's check as if the given number of seconds had passed, twice per second."""
    for _ in range(int(2 * seconds)):
        staff._looked -= 0.5
        staff._look()


def test_a_worker_without_a_beat_is_killed(staff):
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    other = staff.queue.add("bob", "embed", "m", {}, Path("x"))
    staff._names, staff._workers = ["w0", "w1"], [staff._spawn(0), staff._spawn(1)]
    staff._started, staff._failures = [0.0, 0.0], [0, 0]
    staff.queue.claim("w1")
    staff.queue.claim("elsewhere")
    awake(staff, 28)
    assert staff.alive() == 2 and staff.queue.get(job)["worker"] == "w1"
    staff.queue.beat(other, "elsewhere")
    stuck, first = staff._workers[1], staff._workers[0]
    awake(staff, 4)
    assert stuck.wait(20) == -9 and first.poll() is None
    staff._look()
    assert staff.queue.get(job)["state"] == "queued" and staff.queue.get(job)["deaths"] == 0
    assert staff.queue.get(other)["worker"] == "elsewhere"
    awake(staff, 31)
    assert staff.queue.get(other)["state"] == "queued"


def test_a_suspended_machine_does_not_make_workers_silent(staff, monkeypatch):
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    staff._names, staff._workers = ["w0"], [staff._spawn(0)]
    staff._started, staff._failures = [0.0], [0]
    staff.queue.claim("w0")
    for _ in range(3):
        staff._look()
        staff._looked -= 3600  # an hour in which nothing ran
        real = time.time()
        monkeypatch.setattr(supervisor.time, "time", lambda real=real: real + 7200)  # a clock step
        staff._look()
    assert staff.queue.get(job)["worker"] == "w0" and staff.alive() == 1


def test_jobs_of_the_workers_are_queued_again_at_the_end(staff):
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    staff.start()
    for _ in range(5):
        staff.queue.claim(staff._names[0])
        staff._stop.set()
        staff.stop()
        now = staff.queue.get(job)
        assert (now["state"], now["deaths"]) == ("queued", 0)


@pytest.mark.parametrize("error", [IsADirectoryError("x"), ValueError("x"), Unavailable("away")])
def test_the_supervisor_survives_every_error(staff, monkeypatch, error):
    looks = []

    def look():
        looks.append(1)
        raise error

    monkeypatch.setattr(staff, "_look", look)
    staff.start()
    wait_for(lambda: looks)
    assert staff._thread.is_alive()
    staff._thread, old = None, staff._thread  # a thread that has ended is started again
    staff.ensure()
    assert staff._thread is not None and staff._thread is not old


def test_the_queue_is_copied_each_hour_and_old_files_removed_every_ten_minutes(staff, monkeypatch):
    clock, copied, cleared = [0.0], [], []

    class Rounds(threading.Event):
        """The thread looks every hundred seconds, for 8000 of them."""

        def wait(self, timeout=None):
            clock[0] += 100
            return clock[0] > 8000

    monkeypatch.setattr(staff, "_stop", Rounds())
    monkeypatch.setattr(staff.queue, "backup", lambda: copied.append(clock[0]))
    monkeypatch.setattr(staff, "_clear", lambda: cleared.append(clock[0]))
    with monkeypatch.context() as patch:
        patch.setattr(supervisor.time, "monotonic", lambda: clock[0])
        staff._watch()
    assert copied == [3700, 7400]
    assert cleared == list(range(100, 8001, 700)), "at the start as well"


def test_a_misplaced_folder_is_not_removed(staff, tmp_path):
    odd = tmp_path / "references" / "x" / ".snapshot"
    odd.mkdir(parents=True)
    (tmp_path / "uploads" / "folder").mkdir(parents=True)
    os.utime(odd, (100, 100))
    staff._clear()
    assert odd.is_dir() and (tmp_path / "uploads" / "folder").is_dir()


def test_uploads_left_by_a_killed_server_are_removed(staff, tmp_path):
    (tmp_path / "uploads").mkdir()
    files = {name: tmp_path / "uploads" / name for name in ("stray", "of a job", "arriving")}
    for file in files.values():
        file.write_text("x")
    staff.queue.add("ann", "embed", "m", {}, files["of a job"])
    for name in ("stray", "of a job"):
        os.utime(files[name], (100, 100))
    staff._clear()
    assert {n for n, f in files.items() if f.exists()} == {"of a job", "arriving"}


def test_old_files_are_removed(staff, tmp_path):
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


def test_folders_without_a_job_are_removed_after_the_time_of_jobs(staff, tmp_path):
    """The rest of a deletion that was cut off, or of jobs that a restored queue does not have."""
    job = staff.queue.add("ann", "embed", "m", {}, Path("x"))
    folders = {name: tmp_path / "jobs" / name for name in (job, "a" * 16, "b" * 16, "own notes")}
    for folder in folders.values():
        (folder / "result").mkdir(parents=True)
        if folder.name != "b" * 16:
            os.utime(folder, (100, 100))
    staff._clear()
    assert {n for n, f in folders.items() if f.is_dir()} == {job, "b" * 16, "own notes"}


def test_a_server_without_its_folder_is_not_ready(staff, tmp_path):
    assert staff.healthy()
    away = tmp_path.rename(tmp_path.with_name("away"))
    try:
        assert not staff.healthy()
    finally:
        away.rename(tmp_path)


def test_parts_of_a_backup_that_was_cut_off_are_removed(tmp_path, monkeypatch):
    monkeypatch.delenv("SCMAMBA_QUEUE", raising=False)
    queue = Queue(tmp_path)
    left, new = (tmp_path / f".queue.backup.sqlite.{pid}" for pid in (99998, 99999))
    for file in (left, new):
        file.touch()
    os.utime(left, (100, 100))
    queue.backup()
    assert not left.exists() and new.exists() and (tmp_path / "queue.backup.sqlite").is_file()
