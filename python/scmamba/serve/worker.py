"""A worker: takes one job after the other, in a process of its own, so that what kills it kills nothing else.

``python -m scmamba.serve.worker SETTINGS_JSON NAME``. Killed at any moment, its job is queued again; a result appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.atomic import atomic_path
from ..utils.errors import DataError, ScMambaError
from .jobs import Queue, Unavailable
from .postgres import open_queue
from .references import References
from .results import write_result
from .settings import Settings
from .validation import check_content, plain
from .verbs import TASKS, WITH_MODEL

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import Model


class Cancelled(BaseException):
    """The job is no longer this worker's."""


@lru_cache(maxsize=2)
def kept_model(name: str) -> Model:
    """A model, open from its first job to the worker's end: opening it takes longer than a small job's answer."""
    from ..model import load_model

    return load_model(name)


def open_upload(path: Path) -> AnnData:
    """An upload that was looked at before.

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
            f"The upload cannot be read ({type(error).__name__}: {reason}); save the object anew and send it again."
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
    if start.startswith(b"PK\x03\x04"):
        from .read_10x import limit_of
        from .read_10x import to_adata as from_folder
        from .validation import memory_limit

        return from_folder(path, limit_of(path, memory_limit()))
    import h5py

    with h5py.File(path, "r") as file:
        is_10x = "matrix" in file and "X" not in file
    if is_10x:
        import scanpy

        adata = scanpy.read_10x_h5(path)
        adata.var_names_make_unique()
        return adata
    return anndata.read_h5ad(path)


def open_reference(settings: Settings, name: str, user: str) -> AnnData:
    """Labelled cells the user sent before."""
    path = References(settings.data).path(name, user)
    if path is None:
        raise ScMambaError("The reference was deleted before the job began.")
    return open_upload(path)


def run_job(queue: Queue, settings: Settings, job: dict[str, Any], worker: str) -> None:
    """One job from its upload to its result."""
    from ..utils import progress as _progress

    folder = settings.data / "jobs" / job["id"]
    lost = threading.Event()
    stop = threading.Event()
    deadline = time.time() + settings.max_seconds
    shown: dict[str, Any] = {"done": None, "message": None}

    def heart() -> None:
        while not stop.wait(1.0):
            with contextlib.suppress(
                Unavailable
            ):  # for a moment; after thirty seconds the job is another's, which the next beat tells
                if not queue.beat(job["id"], worker, shown["done"], shown["message"]):
                    lost.set()

    def listen(description: str, done: int, total: int) -> None:
        shown["done"], shown["message"] = done / max(total, 1), description
        if lost.is_set():
            raise Cancelled
        if time.time() > deadline:
            raise ScMambaError(
                f"The job took longer than this server's {settings.max_seconds} seconds. Send fewer cells at once."
            )

    pulse = threading.Thread(target=heart, daemon=True)
    pulse.start()
    _progress.listener = listen
    _progress.speaker = lambda text: None
    try:
        adata = open_upload(Path(job["upload"]))
        options = dict(json.loads(job["options"]))
        if job["task"] in WITH_MODEL:
            options["model"] = kept_model(job["model"])
        if "reference" in options:
            options |= {
                "reference": open_reference(settings, options["reference"], job["user"]),
                "model": kept_model(job["model"]),
            }
        result = TASKS[job["task"]][0](adata, options)
        # The result stands before the job is called done: killed in between, the job runs again and ends once.
        with atomic_path(folder / "result") as temporary:
            temporary.mkdir(parents=True)
            write_result(result, job["task"], temporary)
        if not queue.finish(job["id"], worker, "done", "done"):
            shutil.rmtree(folder / "result", ignore_errors=True)
    except Cancelled:
        pass
    except ScMambaError as error:
        queue.finish(job["id"], worker, "failed", plain(error, 2000))
    except MemoryError:
        queue.finish(
            job["id"],
            worker,
            "failed",
            "The job needs more memory than this server gives one. Send fewer cells at once.",
        )
    except Exception as error:  # the job fails alone, with its reason, and the worker goes on
        traceback.print_exc()
        queue.finish(
            job["id"],
            worker,
            "failed",
            f"The job failed inside the server: {type(error).__name__}: {plain(error, 300)}",
        )
    finally:
        stop.set()
        _progress.listener = None
        _progress.speaker = None


def main() -> None:
    """Work until told to stop or until the server is gone."""
    settings = Settings.load(sys.argv[1])
    parent = os.getppid()
    if settings.max_memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (settings.max_memory, settings.max_memory))
    worker = sys.argv[2]
    queue = open_queue(settings.data)
    while os.getppid() == parent:
        job = queue.claim(worker)
        if job is None:
            time.sleep(0.2)
        else:
            run_job(queue, settings, job, worker)


if __name__ == "__main__":
    main()
