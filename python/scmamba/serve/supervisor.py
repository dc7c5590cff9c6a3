"""Keeps the workers running, queues again what lost ones held, and clears away what is old."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from ..utils.threads import available_cores
from .confinement import available
from .disk import has_room
from .environment import clean_environment
from .job_files import discard, forget_strays
from .jobs import SILENT, Damaged, Queue, Unavailable
from .postgres import VARIABLE
from .references import References
from .settings import Settings

_log = logging.getLogger("scmamba.serve")
#: One folder for each GPU, where the NVIDIA driver is loaded.
_GPUS = "/proc/driver/nvidia/gpus"
_EACH = 0.5  # seconds between two looks
_CLEAR, _BACKUP = 600.0, 3600.0  # seconds between two clearings, and two backups of the queue
_SLOWEST = 30.0  # seconds at most before a worker that cannot start is tried again


def share(i: int, workers: int) -> dict[str, str]:
    """What worker ``i`` finds in its environment: a GPU of its own, in turn if there are fewer, and its part of the cores.

    One worker alone has everything, as a direct call has.
    """
    if workers == 1:
        return {}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = (
        [g for g in given.split(",") if g]
        if given is not None
        else [str(k) for k, _ in enumerate(Path(_GPUS).glob("*"))]
    )
    found = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {}
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, available_cores() // workers))
    return found


def node() -> str:
    """This machine since its start: names of workers begin with it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    text = boot.read_text() if boot.is_file() else ""
    return hashlib.sha256(f"{socket.gethostname()} {text}".encode()).hexdigest()[:8]


class Supervisor:
    """One thread that looks at the workers twice a second, and survives whatever happens to it."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.settings, self.queue, self.restarts = settings, queue, 0
        self._workers: list[subprocess.Popen[bytes]] = []
        self._names: list[str] = []
        self._started: list[float] = []
        self._failures: list[int] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._fine = time.monotonic()
        # Worker -> its beats and the awake time at which they last changed.
        self._beats: dict[str, tuple[float, float]] = {}
        self._awake, self._looked = 0.0, time.monotonic()

    def start(self) -> None:
        """Check the queue, start the workers and the thread."""
        if not self.queue.check():
            self.queue.recover()
        with contextlib.suppress(Unavailable):
            self.queue.backup()
            self._bury_orphans()
        self._names = [self._name() for _ in range(self.settings.workers)]
        self._started = [time.monotonic()] * len(self._names)
        self._failures = [0] * len(self._names)
        self._workers = [self._spawn(i) for i in range(len(self._names))]
        self.ensure()

    def ensure(self) -> None:
        """Start the thread, if it does not run."""
        if not self._stop.is_set() and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the workers; what they held goes back to the queue, uncounted."""
        self._stop.set()
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(5)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        for name in self._names:
            with contextlib.suppress(Unavailable):
                self.queue.give_back(name)
            (self.settings.data / "workers" / name).unlink(missing_ok=True)

    def alive(self) -> int:
        """Number of workers that run."""
        return sum(worker.poll() is None for worker in self._workers)

    def healthy(self) -> bool:
        """Whether the supervisor has seen the queue and the workers within the last minute, and the disk has room."""
        if self.settings.workers and time.monotonic() - self._fine > 60:
            return False
        return has_room(self.settings.data)

    def confinement(self) -> list[str]:
        """How jobs are confined here."""
        return available() if self.settings.confine else []

    @staticmethod
    def _name() -> str:
        return f"{node()}.{secrets.token_hex(6)}"

    def _spawn(self, i: int) -> subprocess.Popen[bytes]:
        environment = {**clean_environment(), **share(i, self.settings.workers)}
        command = [sys.executable, "-m", "scmamba.serve.worker", self.settings.dump()]
        worker = subprocess.Popen(
            [*command, self._names[i], str(os.getpid())], env=environment, stdin=subprocess.PIPE
        )
        if worker.stdin is not None:  # not in the environment, which others of this user can read
            with contextlib.suppress(OSError):
                worker.stdin.write(os.environ.get(VARIABLE, "").encode() + b"\n")
                worker.stdin.close()
        return worker

    def _watch(self) -> None:
        cleared = backed = time.monotonic()
        wait, first = _EACH, True
        while not self._stop.wait(wait):
            wait = _EACH
            try:
                self._look()
                now = time.monotonic()
                if first or now - cleared > _CLEAR:
                    cleared, first = now, False
                    self._clear()
                if now - backed > _BACKUP:
                    backed = now
                    self.queue.backup()
                self._fine = time.monotonic()
            except Damaged as error:
                _log.error("%s", error)
                self._recover()
            except Unavailable as error:
                _log.warning("%s", error)
            except Exception:  # this thread must not end
                _log.exception("the supervisor met an error and continues")
                wait = 5.0

    def _recover(self) -> None:
        try:
            self.queue.recover()
        except Exception:
            _log.exception("the queue could not be restored")

    def _look(self) -> None:
        """Start dead workers again, and queue again what silent ones hold."""
        # Time in which this process ran: neither the sleep of a machine nor a step of its clock makes a worker silent.
        now = time.monotonic()
        self._awake += min(now - self._looked, 4 * _EACH)
        self._looked = now
        for i, worker in enumerate(self._workers):
            if worker.poll() is not None and not self._stop.is_set():
                self._replace(i, worker)
        silent = self._silent()
        for name, beat in silent.items():
            if name in self._names:
                self._workers[self._names.index(name)].kill()  # started again at the next look
            else:
                self.queue.give_back(name, beat)
        self._bury_orphans()

    def _replace(self, i: int, worker: subprocess.Popen[bytes]) -> None:
        """Start a worker again; later, if it cannot start."""
        self.queue.give_back(self._names[i])
        lived = time.monotonic() - self._started[i]
        delay = min(_SLOWEST, 2.0 ** min(self._failures[i], 5) - 1)
        if lived < delay:
            return
        self.restarts += 1
        self._failures[i] = 0 if lived > 60 else self._failures[i] + 1
        _log.warning("a worker ended with status %s and is started again", worker.returncode)
        (self.settings.data / "workers" / self._names[i]).unlink(missing_ok=True)
        self._names[i], self._started[i] = self._name(), time.monotonic()
        self._workers[i] = self._spawn(i)

    def _silent(self) -> dict[str, float]:
        """Workers that hold a job and have not been heard of for thirty seconds, with their last beat."""
        running = {row["worker"]: row["beat"] for row in self.queue.running()}
        for name, beat in running.items():
            if name not in self._beats or self._beats[name][0] != beat:
                self._beats[name] = (beat, self._awake)
        self._beats = {name: seen for name, seen in self._beats.items() if name in running}
        return {
            name: beat
            for name, (beat, since) in self._beats.items()
            if self._awake - since > SILENT
        }

    def _bury_orphans(self) -> None:
        """Queue again at once what workers of this machine held whose server was killed: their locks are free."""
        own = f"{node()}."
        for row in self.queue.running():
            name = str(row["worker"])
            if name.startswith(own) and name not in self._names and self._is_free(name):
                self.queue.give_back(name)

    def _is_free(self, name: str) -> bool:
        place = self.settings.data / "workers" / name
        try:
            handle = os.open(place, os.O_RDWR)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(handle)
        place.unlink(missing_ok=True)
        return True

    def _clear(self) -> None:
        """Remove what is old."""
        from .uploads import KEPT, Uploads

        before = time.time() - 86400 * self.settings.keep_days
        for job in self.queue.forget(before):
            discard(self.settings, job)
        forget_strays(self.settings, self.queue, before)
        uploads = Uploads(self.settings)
        uploads.forget(time.time() - KEPT)
        uploads.forget_strays(self.queue)
        References(self.settings.data).forget(before)
