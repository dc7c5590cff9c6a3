"""Keeps the workers running, queues again what dead ones held, and clears away what is old."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from pathlib import Path

from .job_files import discard
from .jobs import Queue, Unavailable
from .references import References
from .settings import Settings

_log = logging.getLogger("scmamba.serve")
#: One folder for each GPU, where the NVIDIA driver is loaded.
_GPUS = "/proc/driver/nvidia/gpus"


def share(i: int, workers: int) -> dict[str, str]:
    """What worker ``i`` finds in its environment: a GPU of its own, in turn where there are fewer, and its part of the cores.

    One worker alone has everything, as a direct call has.
    """
    if workers == 1:
        return {}
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (
        [g for g in told.split(",") if g]
        if told is not None
        else [str(k) for k, _ in enumerate(Path(_GPUS).glob("*"))]
    )
    found = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    return found


class Supervisor:
    """One thread that looks at the workers twice a second."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.settings, self.queue, self.restarts = settings, queue, 0
        self._workers: list[subprocess.Popen[bytes]] = []
        self._names: list[str] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the workers and the thread."""
        self.queue.rescue()
        self._names = [secrets.token_hex(6) for _ in range(self.settings.workers)]
        self._workers = [self._spawn(i) for i in range(len(self._names))]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the workers; what they held is queued again by the next server."""
        self._stop.set()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(5)
            except subprocess.TimeoutExpired:
                worker.kill()

    def alive(self) -> int:
        """Workers that run."""
        return sum(worker.poll() is None for worker in self._workers)

    def _spawn(self, i: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **share(i, self.settings.workers)}
        return subprocess.Popen(
            [sys.executable, "-m", "scmamba.serve.worker", self.settings.dump(), self._names[i]],
            env=environment,
        )

    def _watch(self) -> None:
        cleared = 0.0
        while not self._stop.wait(0.5):
            try:
                self._look()
                if time.time() - cleared > 600:
                    cleared = time.time()
                    self._clear()
            except Unavailable as error:
                _log.warning("%s", error)  # and look again: this thread must not end

    def _look(self) -> None:
        """Start dead workers again, and end those that a library holds for ever: they hear nothing else."""
        for name in set(self.queue.silent()) & set(self._names):
            self._workers[self._names.index(name)].kill()
        for i, worker in enumerate(self._workers):
            if worker.poll() is not None and not self._stop.is_set():
                self.restarts += 1
                _log.warning(
                    "a worker ended with status %s and is started again", worker.returncode
                )
                self.queue.rescue(dead=self._names[i])
                self._names[i] = secrets.token_hex(6)
                self._workers[i] = self._spawn(i)
        self.queue.rescue()

    def _clear(self) -> None:
        """Remove what is old."""
        from .uploads import KEPT, Uploads

        for job in self.queue.forget(time.time() - 86400 * self.settings.keep_days):
            discard(self.settings, job)
        Uploads(self.settings).forget(time.time() - KEPT)
        References(self.settings.data).forget(time.time() - 86400 * self.settings.keep_days)
