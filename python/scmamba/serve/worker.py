"""A worker: takes one job after the other and runs each in a separate process, which it watches.

``python -m scmamba.serve.worker SETTINGS_JSON NAME PARENT``, with the address of the queue's database on its standard input if there is one.
The worker loads the libraries and the model once; for each job it forks, so that the job starts at once, may be ended at any moment
whatever it is doing, frees its memory, and can read only its own files. A result is written completely or not at all.

The worker itself computes nothing: threads of OpenMP and numba would not survive the fork.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..utils.errors import DataError, ScMambaError
from .confinement import confine, die_with_parent, first_to_go, limit_memory
from .disk import has_room, sync_folder
from .jobs import Queue, Unavailable
from .memory import job_memory, resident
from .postgres import PostgresQueue, open_queue
from .references import References
from .results import write_result
from .settings import Settings
from .uploads import sync
from .validation import check_content, plain
from .verbs import TASKS, has_own_reference, needs_model

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import Model

_BEAT = 1.0  # seconds between two beats
_TICK = 0.05
_REPORTS, _LONGEST = 100, 1000  # messages of a verb that a job keeps, and their characters
_AGAIN = 5.0  # seconds until a worker that found no room for a job takes the next one
_INSIST = 120.0  # seconds of retries to record the end of a job in an unavailable queue


@lru_cache(maxsize=2)
def kept_model(name: str) -> Model:
    """A model on the processor, open from its first job to the worker's end: opening it takes longer than a small job."""
    from ..model import load_model

    return load_model(name, device="cpu")


def open_upload(path: Path) -> AnnData:
    """Read an upload that was inspected before.

    Raises
    ------
    DataError
        Only reading it reveals what is wrong.
    """
    try:
        adata = _open(path)
    except (ScMambaError, MemoryError):
        raise
    except Exception as error:  # readers raise many kinds for damaged files
        reason = plain(str(error).replace(str(path), "the upload").partition("\n")[0], 200)
        raise DataError(
            f"The upload cannot be read ({type(error).__name__}: {reason}); save the object again and upload it."
        ) from error
    check_content(adata)
    return adata


def _open(path: Path) -> AnnData:
    import anndata

    with open(path, "rb") as file:
        start = file.read(6)
    if start == b"SCMB1\n":
        from ..wire.scmb import to_adata

        return to_adata(path)
    from . import read_10x

    if start.startswith(b"PK\x03\x04"):
        from .validation import memory_limit

        return read_10x.to_adata(path, read_10x.limit_of(path, memory_limit()))
    import h5py

    with h5py.File(path, "r") as file:
        is_10x = "matrix" in file and "X" not in file
    return read_10x.from_h5(path) if is_10x else anndata.read_h5ad(path)


def open_reference(settings: Settings, name: str, user: str) -> AnnData:
    """Labelled cells the user sent before."""
    path = References(settings.data).path(name, user)
    if path is None:
        raise ScMambaError("The reference was deleted before the job began.")
    return open_upload(path)


# -- the process of one job ----------------------------------------------------------------------------


def compute(job: dict[str, Any], settings: Settings, target: Path) -> tuple[str, str]:
    """One job from its upload to its result in the folder ``target``; returns its state and message."""
    try:
        adata = open_upload(Path(job["upload"]))
        options = dict(json.loads(job["options"]))
        if needs_model(job["task"], options):
            options["model"] = _on_gpu(kept_model(job["model"]))
        if has_own_reference(options):
            options["reference"] = open_reference(settings, options["reference"], job["user"])
        result = TASKS[job["task"]].run(adata, options)
        target.mkdir()
        write_result(result, job["task"], target)
        return "done", "done"
    except ScMambaError as error:
        return "failed", plain(str(error).replace(str(settings.data), "the server's folder"), 2000)
    except MemoryError:
        return "failed", _memory_message(settings)
    except OSError as error:
        if error.errno in (28, 122):
            return "failed", "The server's disk is full; please inform its operator."
        traceback.print_exc()
        return "failed", f"The job failed inside the server: {type(error).__name__}."
    except Exception as error:  # the job fails alone, with its reason
        traceback.print_exc()
        reason = plain(str(error).replace(str(settings.data), "the server's folder"), 300)
        return "failed", f"The job failed inside the server: {type(error).__name__}: {reason}"


def _on_gpu(model: Model) -> Model:
    import torch

    if hasattr(model, "network") and torch.cuda.is_available():
        model.network.to(torch.device("cuda"))
    return model


def _memory_message(settings: Settings) -> str:
    return (
        f"The job needs more memory than this server gives one ({job_memory(settings) / 2**30:.1f} GiB). "
        "Send fewer cells at once."
    )


def _child(job: dict[str, Any], settings: Settings, work: Path, pipe: int, threads: int) -> None:
    """The forked process: confined, then the job; reports progress and result through the pipe."""
    from ..utils import progress as _progress

    first_to_go()
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, 4096)
    said = [0.0]

    def listen(description: str, done: int, total: int) -> None:
        if time.monotonic() - said[0] > 0.2:
            said[0] = time.monotonic()
            _say(pipe, {"done": done / max(total, 1), "message": description})

    for name in ("tmp", "cache"):
        (work / name).mkdir()
    os.environ |= {
        "TMPDIR": str(work / "tmp"),
        "MPLCONFIGDIR": str(work / "tmp"),
        "SCMAMBA_CACHE": str(work / "cache"),
    }
    tempfile.tempdir = str(work / "tmp")
    warnings.filterwarnings(
        "ignore", "Could not obtain multiprocessing lock"
    )  # numba's; no fork follows
    with contextlib.suppress(ImportError):  # for what is imported later
        import numba

        config: Any = numba.config
        config.CACHE_DIR = str(work / "cache")
    os.chdir(work)
    _set_threads(threads)
    if not Path("/proc/driver/nvidia").exists():  # a driver's reservations are no memory
        limit_memory(job_memory(settings))
    if settings.confine:
        files = [Path(job["upload"])]
        reference = dict(json.loads(job["options"])).get("reference")
        if reference is not None:
            found = References(settings.data).path(reference, job["user"])
            files += [found] if found else []
        confine(read=[*files, *_shared_folders()], write=[work])
    _progress.listener = listen
    _progress.speaker = lambda text: _say(pipe, {"report": text[:_LONGEST]})
    _progress.speak_warnings()
    state, message = compute(job, settings, work / "result")
    _say(pipe, {"state": state, "message": message})


def _say(pipe: int, what: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(pipe, json.dumps(what).encode() + b"\n")


def _shared_folders() -> list[Path]:
    """Folders that all jobs read: models, and compiled kernels."""
    from ..model.hub import model_folder

    return [p for p in (model_folder(), _kernel_folder(), *_function_folders()) if p.is_dir()]


def _kernel_folder() -> Path:
    from ..ops.cpu.jit import cache_folder

    return Path(os.environ.get("NUMBA_CACHE_DIR") or cache_folder())


def _function_folders() -> list[Path]:
    from .. import data, deg, doublets
    from ..utils.compiled_code import functions_folder

    return [functions_folder(Path(str(p.__file__)).parent) for p in (data, deg, doublets)]


def _set_threads(number: int) -> None:
    import torch

    torch.set_num_threads(number)


# -- the worker -----------------------------------------------------------------------------------------


def run_job(
    queue: Queue,
    settings: Settings,
    job: dict[str, Any],
    worker: str,
    goes_on: Callable[[], bool] = lambda: True,
    threads: int = 0,
) -> None:
    """One job in a separate process, from its upload to its end in the queue.

    Parameters
    ----------
    queue, settings
        Of the server.
    job
        Row of the queue, claimed by ``worker``.
    worker
        Name of this worker.
    goes_on
        False once the server has gone.
    threads
        Threads of torch in the job; 0: as now.
    """
    import torch

    folder = settings.data / "jobs" / job["id"]
    for old in folder.glob("work-*"):  # of an attempt that was killed
        shutil.rmtree(old, ignore_errors=True)
    try:
        if needs_model(job["task"], json.loads(job["options"])):
            kept_model(job["model"])
        work = Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    except ScMambaError as error:
        _end(queue, job, worker, "failed", plain(error, 2000))
        return
    except FileNotFoundError:  # deleted in the meantime
        _end(queue, job, worker, "failed", "The job was deleted.")
        return
    except OSError:  # no room for its folder: it waits, uncounted
        traceback.print_exc()
        _insist(lambda: queue.give_back(worker))
        time.sleep(_AGAIN)
        return
    threads = threads or torch.get_num_threads()
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    here = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            die_with_parent(here)
            _child(job, settings, work, writer, threads)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    try:
        watched = _Watched(queue, settings, job, worker, pid, reader, goes_on)
        state, message = watched.until_end()
    finally:
        os.close(reader)
    try:
        _conclude(queue, settings, job, worker, work, (state, message, watched.messages))
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Watched:
    """The process of a job while it runs: beats, progress, time and memory."""

    def __init__(
        self,
        queue: Queue,
        settings: Settings,
        job: dict[str, Any],
        worker: str,
        pid: int,
        reader: int,
        goes_on: Callable[[], bool],
    ) -> None:
        self.queue, self.settings, self.job, self.worker = queue, settings, job, worker
        self.pid, self.reader, self.goes_on = pid, reader, goes_on
        os.set_blocking(reader, False)
        self._text = b""
        self._last: dict[str, Any] = {}
        self._progress: dict[str, Any] = {}
        self.messages: list[str] = []

    def until_end(self) -> tuple[str, str]:
        """State and message: ``done``, ``failed``, ``died``, ``lost`` (no longer this worker's) or ``stopped``."""
        began, beat, limit = time.monotonic(), 0.0, job_memory(self.settings)
        before = resident(self.pid)
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._read()
            if ended:
                return self._outcome(status)
            now = time.monotonic()
            if now - began > self.settings.max_seconds:
                self._kill()
                return "failed", (
                    f"The job took longer than this server's {self.settings.max_seconds} seconds. "
                    "Send fewer cells at once."
                )
            if resident(self.pid) - before > limit:
                self._kill()
                return "failed", _memory_message(self.settings)
            if not self.goes_on():
                self._kill()
                return "stopped", ""
            if now - beat > _BEAT:
                beat = now
                if not self._beat():
                    self._kill()
                    return "lost", ""
            time.sleep(_TICK)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.reader, 65536):
                self._text += part
        *lines, self._text = self._text.split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if "state" in said:
                    self._last = said
                elif "report" in said:
                    if len(self.messages) < _REPORTS:
                        self.messages.append(plain(said["report"], _LONGEST))
                else:
                    self._progress = said

    def _outcome(self, status: int) -> tuple[str, str]:
        if self._last.get("state") in ("done", "failed") and status == 0:
            return str(self._last["state"]), plain(self._last["message"], 2000)
        return "died", f"its process ended with status {status}"

    def _beat(self) -> bool:
        with contextlib.suppress(Unavailable):  # for a moment; the supervisor waits thirty seconds
            done, message = self._progress.get("done"), self._progress.get("message")
            return self.queue.beat(
                self.job["id"],
                self.worker,
                float(done) if isinstance(done, (int, float)) else None,
                plain(message, 200) if message is not None else None,
                self.messages,
            )
        return True

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _conclude(
    queue: Queue,
    settings: Settings,
    job: dict[str, Any],
    worker: str,
    work: Path,
    outcome: tuple[str, str, list[str]],
) -> None:
    """Put the result in its place, on the disk, and end the job in the queue."""
    state, message, reported = outcome
    folder = settings.data / "jobs" / job["id"]
    if state == "died":
        _insist(lambda: queue.bury(worker))
    elif state == "stopped":
        _insist(lambda: queue.give_back(worker))
    elif state == "failed":
        _end(queue, job, worker, "failed", message, reported)
    elif state == "done":
        # The result stands before the job is called done: killed in between, the job runs again and ends once.
        try:
            settle(work / "result", folder / "result")
        except OSError as error:
            full = "The server's disk is full; please inform its operator."
            _end(
                queue,
                job,
                worker,
                "failed",
                full if error.errno in (28, 122) else "The result could not be kept.",
            )
            return
        if not _end(queue, job, worker, "done", message, reported):
            shutil.rmtree(folder / "result", ignore_errors=True)


def settle(result: Path, target: Path) -> None:
    """Move a folder of files to its place; what it holds, and its name, are on the disk afterwards."""
    for file in result.iterdir():
        with open(file, "rb") as opened:
            sync(opened.fileno(), result)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(result, target)
    sync_folder(target.parent)
    sync_folder(target.parent.parent)


def _end(
    queue: Queue,
    job: dict[str, Any],
    worker: str,
    state: str,
    message: str,
    reported: list[str] | None = None,
) -> bool:
    if ended := _insist(lambda: queue.finish(job["id"], worker, state, message, reported)):
        return True
    # An answer of the database may be lost after it has recorded the end.
    now = _insist(lambda: queue.get(job["id"])) if ended is False else None
    return now is not None and (now["state"], now["worker"]) == (state, worker)


def _insist(act: Callable[[], Any]) -> Any:
    """The answer of the queue, with retries while it is unavailable; ``None`` after two minutes."""
    until = time.monotonic() + _INSIST
    while time.monotonic() < until:
        with contextlib.suppress(Unavailable):
            return act()
        time.sleep(1)
    return None


def preload(settings: Settings) -> int:
    """Load what jobs need, with one thread; returns the number of threads a job gets."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    import anndata  # noqa: F401

    from .. import annotation, deg, doublets, embedding, imputation, training  # noqa: F401
    from ..ops.cpu.jit import kernels
    from ..utils.compiled_code import tolerate_bad_cache

    with contextlib.suppress(ImportError):
        from numba.core.caching import FunctionCache
        from numba.core.registry import cpu_target

        # A job may read compiled kernels and write none.
        setattr(FunctionCache, "_guard_against_spurious_io_errors", tolerate_bad_cache)  # noqa: B010
        for module in ("kernels", "vector", "amx", "lookup_kernels"):
            kernels(module)
        # Compiled functions find their cache when they are imported.
        from ..data import csr_remap  # noqa: F401
        from ..deg import continuous, discrete, twogroup  # noqa: F401

        # Otherwise every job reads what numba knows of numpy and Python anew, half a second of it.
        cpu_target.target_context.refresh()
        cpu_target.typing_context.refresh()
    import joblib.parallel  # noqa: F401
    import sklearn.neighbors  # noqa: F401

    with contextlib.suppress(ScMambaError):
        kept_model(settings.model)
    return threads


def warm(settings: Settings, threads: int) -> None:
    """Fill the cache of compiled kernels in a separate process, once for each version: jobs cannot write there.

    It computes with simulated cells, nothing that anybody sent.
    """
    made = "-".join(folder.name.rpartition("-")[2] for folder in _function_folders())
    mark = _kernel_folder() / f"warmed-{__version__}-{made}"
    if mark.exists():
        return
    here = os.getpid()
    if os.fork() != 0:
        return
    try:
        die_with_parent(here)
        os.nice(10)
        _set_threads(threads)
        lock = os.open(mark.with_name("warming"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one process is enough
        from ..datasets import brain_cohort
        from ..deg import find_markers
        from ..embedding import embed
        from ..imputation import impute

        cells, model = brain_cohort(24, n_donors=2, seed=0), kept_model(settings.model)
        embed(cells.copy(), model=model, verbose=False)
        impute(cells.copy(), model=model, verbose=False)
        find_markers(cells, "disease", "AD")
        cells.X = cells.X.astype("float64")  # as R sends counts
        find_markers(cells, "disease", "AD")
        mark.touch()
    except OSError:
        pass
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)


def hold_lock(settings: Settings, name: str) -> int:
    """A lock by which servers of this machine see that the worker lives."""
    folder = settings.data / "workers"
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def next_job(queue: Queue, settings: Settings, name: str) -> dict[str, Any] | None:
    """The next job of a worker; none while the disk is full, since its result would find no room.

    Parameters
    ----------
    queue, settings
        Of the server.
    name
        Name of this worker.
    """
    return queue.claim(name) if has_room(settings.data) else None


def main() -> None:
    """Work until stopped or until the server is gone."""
    settings, name, parent = Settings.load(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    die_with_parent(parent)
    url = sys.stdin.readline().strip()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    os.umask(0o077)
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # so that the fork can use the GPU
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # no filter is loaded from anywhere
    lock = hold_lock(settings, name)
    threads = preload(settings)
    warm(settings, threads)
    queue = PostgresQueue(settings.data, url) if url else open_queue(settings.data)
    while os.getppid() == parent:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)  # the process that warmed the cache
        try:
            job = next_job(queue, settings, name)
        except Unavailable:
            time.sleep(1)
            continue
        if job is None:
            time.sleep(0.2)
        else:
            run_job(queue, settings, job, name, lambda: os.getppid() == parent, threads)
    os.close(lock)


if __name__ == "__main__":
    main()
