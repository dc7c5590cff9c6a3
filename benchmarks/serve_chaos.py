"""Many users on one server that is killed, stopped, without room and with a wrong clock: does every accepted job end exactly once?

    python -m benchmarks.serve_chaos --clients 50 --minutes 15 --kills 20 --restarts 20 --full-disks 2 --clock-steps 2 --data FOLDER

Every client is a user with a token of its own and sends its own cells, one job after the other, of the four tasks in turn. In between

- the server and its workers are killed (SIGKILL), and the server is started again on the same folder;
- the server is stopped as by systemd or Slurm (SIGTERM) and started again;
- the disk of the data folder is full for a while: a file system of its own, whose room a file takes;
- the clock of the server, its workers and their jobs is set forward by 45 minutes, then back by 75.

The last two need root (Linux): the benchmark starts itself again with mounts of its own (``unshare``), which nothing else on the machine
sees. The clock is that of ``CLOCK`` below, a library that every program started there loads; the times of files stay those of the kernel.
Checked, and written to ``benchmarks/results/serve_chaos.{json,md}``:

- every accepted job ended, exactly once by a trigger in the database (not the server's code);
- no job failed, but for one that found no room on the full disk, and says so; no restart counted as a death of a worker;
- every result holds exactly the cells that were sent, and the bytes of the same user's earlier answer to the same file and task;
- no user could read, fetch or cancel a job of another, and no list of jobs held one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import psutil

import scmamba.client.client as client_module
from benchmarks.machine import machine
from scmamba.client import Client
from scmamba.serve.jobs import FINAL
from scmamba.serve.tokens import Tokens
from scmamba.utils.errors import ScMambaError
from scmamba.wire import scmb as wire

#: Task -> options and number of cells of a job.
TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "impute": ({"adapt_steps": 0, "force": True}, 6),
    "embed": ({"force": True}, 6),
    "annotate": ({"force": True}, 40),
    "doublets": ({}, 60),
}
#: Sets with human gene names; slices of them are sent.
SETS = ("velmeshev2019_pfc_3types.h5ad", "kang2018_ctrl_8donors_1287genes.h5ad", "pbmc3k_10x.h5ad")
#: Bytes of the file system of the data folder, if its disk is to be full; a sparse file.
DISK = 4 << 30
#: Seconds by which the clock differs from the kernel's after the first step, the second and so on, in turn.
STEPS = (2700, -1800)
_INSIDE = "SCMAMBA_CHAOS_INSIDE"
#: The clock of all programs of the experiment: the kernel's and the seconds in a file that all of them have mapped.
CLOCK = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile const long *shift;
__attribute__((constructor)) static void begin(void) {
  int file = open(PLACE, O_RDONLY | O_CLOEXEC);
  if (file < 0) return;
  void *map = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
  if (map != MAP_FAILED) shift = map;
  close(file);
}
int clock_gettime(clockid_t id, struct timespec *now) {
  int status = syscall(SYS_clock_gettime, id, now);
  if (status == 0 && shift && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
  return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *place) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (place) *place = exact.tv_sec;
  return exact.tv_sec;
}
"""


@dataclass
class Ledger:
    """The observations of all clients; one lock for all."""

    accepted: dict[str, str] = field(default_factory=dict)  # job -> user
    times: list[tuple[str, float, float]] = field(
        default_factory=list
    )  # task, start, seconds from sending to the result
    failed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    prying: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Disk:
    """The file system of the data folder, in a file, mounted where nobody else sees it."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder, self.ballast = folder, folder / "ballast"
        with open(image, "wb") as file:
            file.truncate(DISK)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True)
        shutil.rmtree(folder / "lost+found")

    def fill(self) -> None:
        """Take all room that is left."""
        with open(self.ballast, "ab") as file:
            for size in (1 << 26, 1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)

    def free(self) -> None:
        """Give it back."""
        self.ballast.unlink(missing_ok=True)

    def unmount(self) -> None:
        """When nothing uses it any more; otherwise it ends with the last program that does."""
        subprocess.run(["umount", "-l", self.folder], check=False)


class Clock:
    """The clock of the programs that are started from now on."""

    def __init__(self, folder: Path) -> None:
        place, library = folder / "shift", folder / "clock.so"
        place.write_bytes(bytes(8))
        (folder / "clock.c").write_text(CLOCK)
        command = ["cc", "-shared", "-fPIC", "-O1", f'-DPLACE="{place}"', "-o", library]
        subprocess.run([*command, folder / "clock.c"], check=True)
        with open(place, "r+b") as file:
            self._shift = mmap.mmap(file.fileno(), 8)
        self._step = 0
        # The environment of jobs is cleared, so that LD_PRELOAD would not reach them.
        own = folder / "etc"
        for part in ("upper", "work"):
            (own / part).mkdir(parents=True)
        layers = f"lowerdir=/etc,upperdir={own / 'upper'},workdir={own / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, "/etc"], check=True)
        Path("/etc/ld.so.preload").write_text(f"{library}\n")
        said = [sys.executable, "-S", "-c", "import time; print(time.time())"]
        self._set(STEPS[0])
        found = float(subprocess.run(said, check=True, capture_output=True, text=True).stdout)
        if abs(found - time.time() - STEPS[0]) > 60:
            raise SystemExit("the clock of the programs started here could not be set")
        self._set(0)

    def step(self) -> None:
        """Set it forward, or back."""
        self._set(STEPS[self._step % len(STEPS)])
        self._step += 1

    def _set(self, seconds: int) -> None:
        self._shift[:8] = struct.pack("=q", seconds)


class Victim:
    """The server, killed and started again on the same port and folder."""

    def __init__(self, data: Path, workers: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        self.command = [
            sys.executable,
            "-m",
            "scmamba.serve",
            "--data",
            str(data),
            "--port",
            str(self.port),
            "--workers",
            str(workers),
        ]
        self.failed_starts = 0
        self.start()

    def start(self) -> float:
        """Seconds until it answers; a start that fails is repeated, as by systemd."""
        began = time.monotonic()
        self._spawn()
        while time.monotonic() < began + 1200:  # on a busy machine
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(self.url + "/v2/health/live", timeout=2),
            ):
                return time.monotonic() - began
            if self.process.poll() is not None:
                self.failed_starts += 1
                if self.failed_starts > 100:
                    break
                time.sleep(1)
                self._spawn()
            time.sleep(0.1)
        raise SystemExit(f"the server did not start; see {self.log}")

    def _spawn(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, start_new_session=True
            )

    def workers(self) -> list[int]:
        """Their process ids."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                p.pid
                for p in psutil.Process(self.process.pid).children()
                if "scmamba.serve.worker" in p.cmdline()
            ]
        return []

    def kill(self, what: str, draw: random.Random) -> float:
        """One kill: 'worker' (one of them), 'server' (its workers live on without it), or 'both'; seconds until it answers again."""
        workers = self.workers()
        if what == "worker" and not workers:
            what = "server"
        pids = (
            [draw.choice(workers)]
            if what == "worker"
            else [self.process.pid] + (workers if what == "both" else [])
        )
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if what == "worker":
            return 0.0
        self.process.wait()
        return self.start()

    def restart(self) -> float:
        """As systemd, Slurm or Docker restart it; seconds until it answers again."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(120)
        self.start()
        return time.monotonic() - began

    def stop(self) -> None:
        """As an administrator stops it."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def slices(folder: Path, clients: int, source: Path | None) -> list[dict[str, Path]]:
    """For every client and task a separate file, with cells named after the client."""
    if source is not None:
        sets = [ad.read_h5ad(source / name) for name in SETS]
    else:
        from scmamba.datasets import brain_cohort

        sets = [brain_cohort(400, n_donors=2, seed=1)[:, :6000].copy()]
    out = []
    for i in range(clients):
        data, draw, files = sets[i % len(sets)], np.random.default_rng(i), {}
        for task, (_, cells) in TASKS.items():
            part = data[np.sort(draw.choice(data.n_obs, cells, replace=False))]
            part = ad.AnnData(part.X.copy(), obs=part.obs[[]].copy(), var=part.var[[]].copy())
            part.obs_names = [f"user{i}-{task}-{k}" for k in range(cells)]
            files[task] = folder / f"{i}-{task}.h5ad"
            part.write_h5ad(files[task])
        out.append(files)
    return out


def be_a_client(
    i: int,
    url: str,
    token: str,
    files: dict[str, Path],
    until: float,
    ledger: Ledger,
    folder: Path,
    began: float,
) -> None:
    """One job after the other until the time is over, with occasional attempts to read another user's job."""
    client, draw, seen, user = Client(url, token), random.Random(i), dict[str, str](), f"user{i}"
    turn = i
    while time.monotonic() < until:
        task = list(TASKS)[turn % len(TASKS)]
        turn += 1
        start = time.monotonic()
        try:
            job = client.submit(task, files[task], **TASKS[task][0])
        except ScMambaError as error:
            with ledger.lock:
                ledger.refused.append(f"{user} {task}: {error}")
            time.sleep(1)
            continue
        with ledger.lock:
            ledger.accepted[job] = user
        try:
            client.wait(job, verbose=False)
            result = client.fetch(job, folder / f"{i}.scmb", format="scmb")
        except ScMambaError as error:
            with ledger.lock:
                ledger.failed.append(f"{user} {job} {task}: {error}")
            continue
        problem = check(result, user, task, seen)
        with ledger.lock:
            ledger.times.append((task, start - began, time.monotonic() - start))
            if problem:
                ledger.wrong.append(f"{user} {job}: {problem}")
        if draw.random() < 0.25:
            pry(client, user, draw, ledger)


def check(result: Path, user: str, task: str, seen: dict[str, str]) -> str | None:
    """The fault in a result: other cells than were sent, or another result than before."""
    header, _ = wire.read(result)
    if header["task"] != task or header["cells"] != [
        f"{user}-{task}-{k}" for k in range(TASKS[task][1])
    ]:
        return f"result of {header['task']} with cells {header['cells'][:2]}"
    digest = hashlib.sha256(result.read_bytes()).hexdigest()
    return (
        None
        if seen.setdefault(task, digest) == digest
        else f"{task} gave another answer than before"
    )


def pry(client: Client, user: str, draw: random.Random, ledger: Ledger) -> None:
    """Try to read, fetch and cancel another user's job, and to find one in the list of one's own."""
    with ledger.lock:
        others = [job for job, owner in ledger.accepted.items() if owner != user]
        mine = {job for job, owner in ledger.accepted.items() if owner == user}
    found = []
    if others:
        job = draw.choice(others)
        for method, end in (
            ("GET", ""),
            ("GET", "/result?format=scmb"),
            ("GET", "/events"),
            ("DELETE", ""),
        ):
            try:
                client._request(method, f"/v2/jobs/{job}{end}")
                found.append(f"{method} {end} of another user's job was answered")
            except ScMambaError as error:
                if "no such job" not in str(error):
                    found.append(f"{method} {end}: {error}")
    with contextlib.suppress(ScMambaError):
        # A job may be listed before the response with its id reaches this client, so only jobs of others count.
        listed = {j["id"] for j in client._json("GET", "/v2/jobs")["jobs"]} - mine
        with ledger.lock:
            found += [
                f"{job} is listed for {user}"
                for job in listed
                if ledger.accepted.get(job, user) != user
            ]
    with ledger.lock:
        ledger.prying += 1
        ledger.wrong += found


def watch_ends(data: Path) -> None:
    """A trigger records every time a job reaches a final state: evidence that is independent of the server's code."""
    final = ",".join(f"'{s}'" for s in FINAL)
    with sqlite3.connect(data / "queue.sqlite", timeout=60) as db:
        db.execute("CREATE TABLE ended (id TEXT, was TEXT, is_now TEXT)")
        db.execute(
            f"CREATE TRIGGER ends AFTER UPDATE OF state ON jobs WHEN NEW.state IN ({final}) OR OLD.state IN ({final}) "
            "BEGIN INSERT INTO ended VALUES (NEW.id, OLD.state, NEW.state); END"
        )


def audit(data: Path, ledger: Ledger) -> dict[str, Any]:
    """The accepted jobs in the database."""
    with sqlite3.connect(data / "queue.sqlite", timeout=60) as db:
        states = {
            i: (u, s, n, d, m)
            for i, u, s, n, d, m in db.execute(
                "SELECT id, user, state, attempts, deaths, message FROM jobs"
            )
        }
        ends: dict[str, int] = {}
        for (job,) in db.execute("SELECT id FROM ended"):
            ends[job] = ends.get(job, 0) + 1
    jobs = ledger.accepted
    known = {job: states[job] for job in jobs if job in states}
    failed = [f"{job}: {s[4]}" for job, s in known.items() if s[1] == "failed"]
    return {
        "accepted": len(jobs),
        "lost": sum(job not in states for job in jobs),
        "of_another_user": sum(s[0] != jobs[job] for job, s in known.items()),
        "not_ended": sum(s[1] not in FINAL for s in known.values()),
        "ended_once": sum(ends.get(job, 0) == 1 for job in jobs),
        "ended_more_than_once": sum(n > 1 for n in ends.values()),
        "done": sum(s[1] == "done" for s in known.values()),
        "failed_without_room": sum("disk is full" in f for f in failed),
        "failed_otherwise": [f for f in failed if "disk is full" not in f],
        "begun_again": sum(s[2] > 1 for s in known.values()),
        "most_attempts": max((s[2] for s in known.values()), default=0),
        "deaths": sum(s[3] for s in known.values()),
        "in_the_queue_unknown_to_any_client": len(set(states) - set(jobs)),
    }


def table(ledger: Ledger, seconds: float) -> list[dict[str, Any]]:
    """Latency and throughput by task."""
    rows = []
    for task in [*TASKS, "all"]:
        took = np.array([t for name, _, t in ledger.times if task in (name, "all")])
        if len(took):
            p50, p95, top = np.percentile(took, [50, 95, 100]).round(1).tolist()
            rows.append(
                {
                    "task": task,
                    "jobs": len(took),
                    "p50_s": p50,
                    "p95_s": p95,
                    "max_s": top,
                    "per_minute": round(60 * len(took) / seconds, 1),
                }
            )
    return rows


@dataclass
class Plan:
    """What happens to the server, and how often."""

    kills: int
    restarts: int = 0
    full_disks: int = 0
    clock_steps: int = 0

    def moments(self, seconds: float, draw: random.Random) -> list[tuple[float, str]]:
        """Second -> event, in order."""

        def spread(n: int) -> list[float]:
            return [(0.05 + 0.85 * (k + draw.random()) / n) * seconds for k in range(n)]

        kinds = ("worker", "server", "worker", "both")
        found = [(at, kinds[k % 4]) for k, at in enumerate(spread(self.kills))]
        found += [(at, "SIGTERM") for at in spread(self.restarts)]
        found += [(at, "clock step") for at in spread(self.clock_steps)]
        for k in range(self.full_disks):
            at = (k + 0.5) / self.full_disks * 0.9 * seconds
            found.append((at, "full disk"))
        return sorted(found)


@dataclass
class Scene:
    """Where it happens: the server, its disk and its clock."""

    victim: Victim
    disk: Disk | None
    clock: Clock | None
    full_seconds: float = 40.0
    events: list[dict[str, Any]] = field(default_factory=list)
    loads: list[float] = field(default_factory=lambda: [os.getloadavg()[0]])

    def _free(self, began: float) -> None:
        if self.disk is not None:
            self.disk.free()
        at = round(time.monotonic() - began, 1)
        self.events.append({"at_s": at, "what": "room again", "back_after_s": 0.0})
        print(f"{at:5.0f} s: room again", flush=True)

    def happen(self, what: str, draw: random.Random, began: float) -> None:
        """One event of the plan."""
        seconds = 0.0
        if what == "SIGTERM":
            seconds = self.victim.restart()
        elif self.disk is not None and what == "full disk":
            self.disk.fill()
            # Also if the server does not start until there is room again.
            threading.Timer(self.full_seconds, self._free, [began]).start()
        elif self.clock is not None and what == "clock step":
            self.clock.step()
        else:
            seconds = self.victim.kill(what, draw)
        at = round(time.monotonic() - began, 1)
        self.events.append({"at_s": at, "what": what, "back_after_s": round(seconds, 1)})
        self.loads.append(os.getloadavg()[0])
        print(f"{at:5.0f} s: {what}", flush=True)


def run(
    clients: int,
    seconds: float,
    plan: Plan,
    workers: int,
    source: Path | None,
    folder: Path,
    seed: int = 0,
    drain: float = 1800,
) -> dict[str, Any]:
    """The whole experiment; ``folder`` is new and is kept. Times in seconds; ``drain`` is the time limit for the last jobs."""
    # Under other load a server may need minutes to start.
    patience, client_module._PATIENT = client_module._PATIENT, 400
    data, files, results = folder / "serve", folder / "files", folder / "results"
    for new in (data, files, results):
        new.mkdir(parents=True)
    disk = Disk(data, folder / "disk.img") if plan.full_disks else None
    data.chmod(0o700)  # the server refuses a folder that others can read
    tokens = Tokens(data)
    keys = [tokens.add(f"user{i}", 1) for i in range(clients)]
    uploads, ledger, draw = slices(files, clients, source), Ledger(), random.Random(seed)
    clock = Clock(folder) if plan.clock_steps else None
    victim = Victim(data, workers, folder / "server.log")
    scene = Scene(victim, disk, clock, min(40.0, seconds / 6))
    watch_ends(data)
    try:
        began = time.monotonic()
        people = [
            threading.Thread(
                target=be_a_client,
                args=(
                    i, scene.victim.url, keys[i], uploads[i], began + seconds, ledger, results, began,
                ),
                daemon=True,
            )
            for i in range(clients)
        ]  # fmt: skip
        for person in people:
            person.start()
        for moment, what in plan.moments(seconds, draw):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            scene.happen(what, draw, began)
        ends = time.monotonic() + drain
        for person in people:
            person.join(timeout=max(1.0, ends - time.monotonic()))
        took = time.monotonic() - began
        return {
            "clients": clients,
            "seconds": round(took),
            "workers": workers,
            "machine": machine(),
            **audit(data, ledger),
            "clients_stuck": sum(person.is_alive() for person in people),
            **happened(scene, ledger),
            "latency": table(ledger, took),
        }
    finally:
        scene.victim.stop()
        client_module._PATIENT = patience
        if disk is not None:
            disk.unmount()


def happened(scene: Scene, ledger: Ledger) -> dict[str, Any]:
    """The events, and what the clients noticed of them."""
    without_room = [r for r in ledger.refused if "disk of this server is full" in r]
    return {
        "kills": [e for e in scene.events if e["what"] in ("worker", "server", "both")],
        "restarts": [e for e in scene.events if e["what"] == "SIGTERM"],
        "full_disks": [e for e in scene.events if e["what"] in ("full disk", "room again")],
        "clock_steps": [e for e in scene.events if e["what"] == "clock step"],
        "failed_starts": scene.victim.failed_starts,
        "load_average": [round(min(scene.loads), 1), round(max(scene.loads), 1)],
        "looks_at_others_jobs": ledger.prying,
        "wrong": ledger.wrong,
        "failures": ledger.failed,
        "refused_without_room": len(without_room),
        "refused": [r for r in ledger.refused if r not in without_room],
    }


def verdict(answer: dict[str, Any]) -> list[str]:
    """The broken guarantees; empty if there are none."""
    n = answer["accepted"]
    rules = {
        "every accepted job is still known": answer["lost"] == 0,
        "every accepted job has ended": answer["not_ended"] == 0 and answer["clients_stuck"] == 0,
        "every accepted job ended exactly once": answer["ended_once"] == n
        and answer["ended_more_than_once"] == 0,
        "no job failed": not answer["failed_otherwise"]
        and (answer["failed_without_room"] == 0 or bool(answer["full_disks"])),
        "no restart counted as a death": answer["deaths"] == 0,
        "no job went to another user": answer["of_another_user"] == 0 and not answer["wrong"],
        "no job is in the queue that no client knows of": answer[
            "in_the_queue_unknown_to_any_client"
        ]
        == 0,
        "nothing was refused": not answer["refused"],
    }
    return [rule for rule, kept in rules.items() if not kept]


def report(answer: dict[str, Any]) -> str:
    """As Markdown."""
    kinds = [k["what"] for k in answer["kills"]]
    full = [e for e in answer["full_disks"] if e["what"] == "full disk"]
    broken = verdict(answer)
    lines = [
        f"# {answer['clients']} users and a server on bad days",
        "",
        f"{answer['clients']} clients at once for {answer['seconds'] / 60:.1f} minutes on {answer['machine']}, {answer['workers']} "
        f"workers; {len(kinds)} times SIGKILL: {kinds.count('worker')} of one worker, {kinds.count('server')} of the server, "
        f"{kinds.count('both')} of the server and all workers; {len(answer['restarts'])} restarts by SIGTERM; disk full "
        f"{len(full)} times; clock set {len(answer['clock_steps'])} times (`python -m benchmarks.serve_chaos`). Slices of real data (see the "
        f"script). Load average {answer['load_average'][0]} to {answer['load_average'][1]}, the server's own work included.",
        "",
        f"- accepted jobs: {answer['accepted']}; lost: {answer['lost']}; not ended: {answer['not_ended']}; ended exactly once: "
        f"{answer['ended_once']}; more than once: {answer['ended_more_than_once']}",
        f"- done: {answer['done']}; failed because the disk was full: {answer['failed_without_room']}; failed otherwise: "
        f"{len(answer['failed_otherwise'])}; begun again: {answer['begun_again']}, at most {answer['most_attempts']} starts of one job; "
        f"deaths that were counted: {answer['deaths']}",
        f"- jobs in the queue unknown to their sender: {answer['in_the_queue_unknown_to_any_client']}; refused while the disk was full: "
        f"{answer['refused_without_room']}, otherwise: {len(answer['refused'])}; starts of the server that failed: {answer['failed_starts']}",
        f"- attempts to read jobs of other users: {answer['looks_at_others_jobs']}, answered: {len(answer['wrong'])}",
        f"- not kept: {'; '.join(broken) or 'nothing'}",
        "",
        "Seconds from sending a file to having its result, outages included:",
        "",
        "| task | jobs | p50 | p95 | longest | jobs a minute |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['task']} | {r['jobs']} | {r['p50_s']} | {r['p95_s']} | {r['max_s']} | {r['per_minute']} |"
            for r in answer["latency"]
        ),
    ]
    return "\n".join(lines) + "\n"


def arguments() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--full-disks", type=int, default=2, help="needs root")
    parser.add_argument("--clock-steps", type=int, default=2, help="needs root and a C compiler")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--drain", type=float, default=30, help="minutes the last jobs are waited for"
    )
    parser.add_argument(
        "--data", type=Path, help="folder with the real sets; simulated cells without it"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results" / "serve_chaos"
    )
    parser.add_argument("--log", type=Path, help="keep the server's log here")
    return parser


def main() -> None:
    a = arguments().parse_args()
    if (a.full_disks or a.clock_steps) and _INSIDE not in os.environ:
        os.environ[_INSIDE] = "1"
        again = [sys.executable, "-m", "benchmarks.serve_chaos", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *again])
    plan = Plan(a.kills, a.restarts, a.full_disks, a.clock_steps)
    # A worker whose server was killed last may still be writing while the folder is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            answer = run(
                a.clients, 60 * a.minutes, plan, a.workers, a.data, folder, drain=60 * a.drain
            )
        finally:
            if a.log is not None:
                shutil.copyfile(folder / "server.log", a.log)
        a.output.with_suffix(".json").write_text(json.dumps(answer, indent=1) + "\n")
        a.output.with_suffix(".md").write_text(report(answer))
    print(report(answer))
    if broken := verdict(answer):
        raise SystemExit(f"not kept: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
