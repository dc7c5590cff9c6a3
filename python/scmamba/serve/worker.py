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
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import DataError, ScMambaError
from .._files import atomic_path
from .check import check_content, plain
from .jobs import Queue, Unavailable
from .postgres import open_queue
from .references import References
from .settings import Settings

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import Model


class Cancelled(BaseException):
    """The job is no longer this worker's."""


def _impute(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.impute(adata, verbose=True, **options)


def _embed(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.embed(adata, verbose=True, **options)


def _annotate(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.annotate(adata, verbose=True, **options).to_adata(adata)


def _doublets(adata: AnnData, options: dict[str, Any]) -> AnnData:
    import scmamba

    return scmamba.detect_doublets(adata, verbose=True, **options)


#: Task -> the verb, and the options a user may set with their kinds.
TASKS: dict[str, tuple[Callable[[AnnData, dict[str, Any]], AnnData], dict[str, tuple[type, ...]]]] = {
    "impute": (
        _impute,
        {"method": (str,), "adapt": (bool, int), "passes": (int,), "min_value": (int, float), "to_counts": (bool,), "seed": (int,),
         "force": (bool,), "batch_size": (int,), "layer": (str,), "gene_column": (str,)},
    ),
    "embed": (_embed, {"force": (bool,), "batch_size": (int,), "layer": (str,), "gene_column": (str,)}),
    "annotate": (
        _annotate,
        {"reference": (str,), "labels": (str, list), "donor": (str,), "network": (bool, int), "markers": (dict,), "error_rate": (float,),
         "seed": (int,), "force": (bool,), "layer": (str,), "gene_column": (str,)},
    ),
    "doublets": (
        _doublets,
        {"sample": (str,), "method": (str,), "expected_rate": (float, int), "identification_rate": (float, int), "labels": (str,),
         "seed": (int,), "layer": (str,)},
    ),
}  # fmt: skip


@lru_cache(maxsize=2)
def kept_model(name: str) -> Model:
    """A model, open from its first job to the worker's end: opening it takes longer than a small job's answer."""
    from ..model import load_model

    return load_model(name)


#: What options that are numbers may be.
_RANGES = {"seed": (0, 2**32 - 1), "passes": (1, 1000), "batch_size": (1, 65_536), "min_value": (0, 1e6), "adapt": (0, 100_000),
           "network": (0, 100_000), "error_rate": (0, 1), "expected_rate": (0, 1), "identification_rate": (0, 1)}  # fmt: skip


def _beyond(name: str, value: Any) -> str | None:
    """Why a value of the right kind cannot be, or ``None``."""
    if isinstance(value, (int, float)):
        low, high = _RANGES.get(name, (-1e9, 1e9))
        return None if low <= value <= high else f"option '{name}' is {value}; it must lie between {low:g} and {high:g}"
    if isinstance(value, dict):
        fits = all(isinstance(g, str) or isinstance(g, list) and all(isinstance(x, str) for x in g) for g in value.values())
        return None if fits else f"option '{name}' must give a list of gene names for each type"
    if isinstance(value, list) and not all(isinstance(v, str) for v in value):
        return f"option '{name}' must be a list of names"
    return None


def check_options(task: str, options: Any) -> str | None:
    """Why these options cannot be, or ``None``."""
    if not isinstance(options, dict):
        return "options must be one JSON object"
    known = TASKS[task][1]
    for name, value in options.items():
        if name not in known:
            return f"'{task}' has no option '{name}'; it has {', '.join(known)}"
        if isinstance(value, bool) and bool not in known[name]:
            return f"option '{name}' cannot be true or false"
        if value is not None and not isinstance(value, known[name]):
            return f"option '{name}' is {type(value).__name__}; it must be {' or '.join(k.__name__ for k in known[name])}"
        if problem := _beyond(name, value):
            return problem
    return None


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
        raise DataError(f"The upload cannot be read ({type(error).__name__}: {reason}); save the object anew and send it again.") from error
    check_content(adata)
    return adata


def _open(path: Path) -> AnnData:
    import anndata

    with open(path, "rb") as file:
        start = file.read(6)
    if start == b"SCMB1\n":
        from .wire import to_adata

        return to_adata(path)
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


def write_result(adata: AnnData, task: str, folder: Path) -> None:
    """``result.h5ad`` and the additions alone in the plain form, ``result.scmb``."""
    from ..interop.slots import layer_slots
    from .wire import write

    arrays: dict[str, np.ndarray] = {}
    if task == "impute":
        slots = layer_slots(adata, "scmamba")
        arrays |= {"x": np.asarray(slots["x"]), "i": np.asarray(slots["i"]), "p": np.asarray(slots["p"])}
    if task == "embed":
        arrays["embedding"] = np.asarray(adata.obsm["X_scmamba"], dtype=np.float64)
    columns = {str(c): _plain(adata.obs[c]) for c in adata.obs.columns if str(c).startswith("scmamba_")}
    header = {"task": task, "genes": int(adata.n_vars), "cells": list(map(str, adata.obs_names)), "obs": columns,
              "provenance": json.loads(json.dumps(dict(adata.uns["scmamba"][task]), default=_plain_value))}  # fmt: skip
    write(folder / "result.scmb", header, arrays)
    adata.write_h5ad(folder / "result.h5ad")


def _plain(column: Any) -> list[Any]:
    import pandas as pd

    return [None if pd.isna(v) else _plain_value(v) for v in column]


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def run_job(queue: Queue, settings: Settings, job: dict[str, Any], worker: str) -> None:
    """One job from its upload to its result."""
    from .. import _progress

    folder = settings.data / "jobs" / job["id"]
    lost = threading.Event()
    stop = threading.Event()
    deadline = time.time() + settings.max_seconds
    shown: dict[str, Any] = {"done": None, "message": None}

    def heart() -> None:
        while not stop.wait(1.0):
            with contextlib.suppress(Unavailable):  # for a moment; after thirty seconds the job is another's, which the next beat tells
                if not queue.beat(job["id"], worker, shown["done"], shown["message"]):
                    lost.set()

    def listen(description: str, done: int, total: int) -> None:
        shown["done"], shown["message"] = done / max(total, 1), description
        if lost.is_set():
            raise Cancelled
        if time.time() > deadline:
            raise ScMambaError(f"The job took longer than this server's {settings.max_seconds} seconds. Send fewer cells at once.")

    pulse = threading.Thread(target=heart, daemon=True)
    pulse.start()
    _progress.listener = listen
    _progress.speaker = lambda text: None
    try:
        adata = open_upload(Path(job["upload"]))
        options = dict(json.loads(job["options"]))
        if job["task"] in ("impute", "embed"):
            options["model"] = kept_model(job["model"])
        if "reference" in options:
            options |= {"reference": open_reference(settings, options["reference"], job["user"]), "model": kept_model(job["model"])}
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
        queue.finish(job["id"], worker, "failed", "The job needs more memory than this server gives one. Send fewer cells at once.")
    except Exception as error:  # the job fails alone, with its reason, and the worker goes on
        traceback.print_exc()
        queue.finish(job["id"], worker, "failed", f"The job failed inside the server: {type(error).__name__}: {plain(error, 300)}")
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
