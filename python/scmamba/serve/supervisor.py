"""Keeps the workers running, queues again what dead ones held, and clears away what is old."""

from __future__ import annotations

import logging
import secrets
import subprocess
import sys
import threading
import time

from .jobs import Queue
from .references import References
from .settings import Settings

_log = logging.getLogger("scmamba.serve")


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
        self._workers = [self._spawn(name) for name in self._names]
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

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "scmamba.serve.worker", self.settings.dump(), name])

    def _watch(self) -> None:
        cleared = 0.0
        while not self._stop.wait(0.5):
            for i, worker in enumerate(self._workers):
                if worker.poll() is not None and not self._stop.is_set():
                    self.restarts += 1
                    _log.warning("a worker ended with status %s and is started again", worker.returncode)
                    self.queue.rescue(dead=self._names[i])
                    self._names[i] = secrets.token_hex(6)
                    self._workers[i] = self._spawn(self._names[i])
            self.queue.rescue()
            if time.time() - cleared > 600:
                cleared = time.time()
                from .app import discard

                for job in self.queue.forget(time.time() - 86400 * self.settings.keep_days):
                    discard(self.settings, job)
                References(self.settings.data).forget(time.time() - 86400 * self.settings.keep_days)
