"""Many users on one server that is killed repeatedly: does every accepted job end exactly once, visible to its owner only?

    python -m benchmarks.serve_chaos --clients 50 --minutes 10 --kills 20 --data FOLDER

Every client is a user with a token of its own and sends its own cells, one job after the other, of the four tasks in turn. In between
the server and its workers are killed (SIGKILL) and the server started again on the same folder. Checked, and written to
``benchmarks/results/serve_chaos.{json,md}``:

- every accepted job ended, exactly once by a trigger in the database (not the server's code);
- every result holds exactly the cells that were sent, and the bytes of the same user's earlier answer to the same file and task;
- no user could read, fetch or cancel a job of another, and no list of jobs held one.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
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
from scmamba.client import Client
from scmamba.serve.jobs import FINAL
from scmamba.serve.tokens import Tokens
from scmamba.utils.errors import ScMambaError
from scmamba.wire import scmb as wire

MACHINE = "2 cores of an Intel Xeon with AVX-512/AMX, 24 GiB, CPU only"
#: Task -> options and number of cells of a job.
TASKS: dict[str, tuple[dict[str, Any], int]] = {
    "impute": ({"adapt_steps": 0, "force": True}, 6),
    "embed": ({"force": True}, 6),
    "annotate": ({"force": True}, 40),
    "doublets": ({}, 60),
}
#: Sets with human gene names; slices of them are sent.
SETS = ("velmeshev2019_pfc_3types.h5ad", "kang2018_ctrl_8donors_1287genes.h5ad", "pbmc3k_10x.h5ad")


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
        self.killed: list[
            tuple[float, str, float]
        ] = []  # when, which processes, seconds until the server answered again
        self.start()

    def start(self) -> float:
        """Seconds until it answers."""
        began = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        while time.monotonic() < began + 1200:  # on a busy machine
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(self.url + "/v2/health/live", timeout=2),
            ):
                return time.monotonic() - began
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise SystemExit(f"the server did not start; see {self.log}")

    def workers(self) -> list[int]:
        """Their process ids."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [
                p.pid
                for p in psutil.Process(self.process.pid).children()
                if "scmamba.serve.worker" in p.cmdline()
            ]
        return []

    def kill(self, what: str, draw: random.Random, since: float) -> None:
        """One kill: 'worker' (one of them), 'server' (its workers live on without it), or 'both'."""
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
        seconds = 0.0
        if what != "worker":
            self.process.wait()
            seconds = self.start()
        self.killed.append((round(time.monotonic() - since, 1), what, round(seconds, 1)))

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
            i: (u, s, n) for i, u, s, n in db.execute("SELECT id, user, state, attempts FROM jobs")
        }
        ends: dict[str, int] = {}
        for (job,) in db.execute("SELECT id FROM ended"):
            ends[job] = ends.get(job, 0) + 1
    jobs = ledger.accepted
    return {
        "accepted": len(jobs),
        "lost": sum(job not in states for job in jobs),
        "of_another_user": sum(
            states[job][0] != user for job, user in jobs.items() if job in states
        ),
        "not_ended": sum(states[job][1] not in FINAL for job in jobs if job in states),
        "ended_once": sum(ends.get(job, 0) == 1 for job in jobs),
        "ended_more_than_once": sum(n > 1 for n in ends.values()),
        "done": sum(states[job][1] == "done" for job in jobs if job in states),
        "failed": sum(states[job][1] == "failed" for job in jobs if job in states),
        "begun_again_after_a_kill": sum(states[job][2] > 1 for job in jobs if job in states),
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


def run(
    clients: int,
    seconds: float,
    kills: int,
    workers: int,
    source: Path | None,
    folder: Path,
    seed: int = 0,
    drain: float = 1800,
) -> dict[str, Any]:
    """The whole experiment; ``folder`` is new and is kept. Times in seconds; ``drain`` is the time limit for the last jobs."""
    patience, client_module._PATIENT = (
        client_module._PATIENT,
        400,
    )  # under other load a server may need minutes to start
    data, files, results = folder / "serve", folder / "files", folder / "results"
    for new in (data, files, results):
        new.mkdir(parents=True)
    data.chmod(0o700)  # the server refuses a folder that others can read
    tokens = Tokens(data)
    keys = [tokens.add(f"user{i}", 1) for i in range(clients)]
    uploads = slices(files, clients, source)
    victim, ledger, draw = (
        Victim(data, workers, folder / "server.log"),
        Ledger(),
        random.Random(seed),
    )
    watch_ends(data)
    began, loads = time.monotonic(), [os.getloadavg()[0]]
    try:
        until, work = began + seconds, be_a_client
        people = [
            threading.Thread(
                target=work,
                args=(i, victim.url, keys[i], uploads[i], until, ledger, results, began),
                daemon=True,
            )
            for i in range(clients)
        ]
        for person in people:
            person.start()
        moments = [(0.05 + 0.85 * (n + draw.random()) / kills) * seconds for n in range(kills)]
        for n, moment in enumerate(moments):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            victim.kill(("worker", "server", "worker", "both")[n % 4], draw, began)
            loads.append(os.getloadavg()[0])
            print(
                f"{time.monotonic() - began:5.0f} s: killed {victim.killed[-1][1]}, {len(ledger.times)} jobs done",
                flush=True,
            )
        ends = time.monotonic() + drain
        for person in people:
            person.join(timeout=max(1.0, ends - time.monotonic()))
        took = time.monotonic() - began
        stuck = sum(person.is_alive() for person in people)
        answer = {
            "clients": clients,
            "seconds": round(took),
            "workers": workers,
            "machine": MACHINE,
            **audit(data, ledger),
            "clients_stuck": stuck,
            "kills": [dict(zip(("at_s", "what", "back_after_s"), k)) for k in victim.killed],
            "load_average": [round(min(loads), 1), round(max(loads), 1)],
            "looks_at_others_jobs": ledger.prying,
            "wrong": ledger.wrong,
            "failures": ledger.failed,
            "refused": ledger.refused,
            "latency": table(ledger, took),
        }
    finally:
        victim.stop()
        client_module._PATIENT = patience
    return answer


def verdict(answer: dict[str, Any]) -> list[str]:
    """The broken guarantees; empty if there are none."""
    n = answer["accepted"]
    rules = {
        "every accepted job is still known": answer["lost"] == 0,
        "every accepted job has ended": answer["not_ended"] == 0 and answer["clients_stuck"] == 0,
        "every accepted job ended exactly once": answer["ended_once"] == n
        and answer["ended_more_than_once"] == 0,
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
    broken = verdict(answer)
    lines = [
        f"# {answer['clients']} users and a server that is killed",
        "",
        f"{answer['clients']} clients at once for {answer['seconds'] / 60:.1f} minutes on {answer['machine']}, {answer['workers']} "
        f"workers; {len(kinds)} times SIGKILL: {kinds.count('worker')} of one worker, {kinds.count('server')} of the server, "
        f"{kinds.count('both')} of the server and all workers. Slices of real data (see the script). Other work ran on "
        f"the machine: load average {answer['load_average'][0]} to {answer['load_average'][1]} on its 2 cores.",
        "",
        f"- accepted jobs: {answer['accepted']}; lost: {answer['lost']}; not ended: {answer['not_ended']}; ended exactly once: "
        f"{answer['ended_once']}; more than once: {answer['ended_more_than_once']}",
        f"- done: {answer['done']}; failed: {answer['failed']}; begun again after a kill: {answer['begun_again_after_a_kill']}",
        f"- jobs in the queue unknown to their sender: {answer['in_the_queue_unknown_to_any_client']}; refused: {len(answer['refused'])}",
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kills", type=int, default=20)
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
    a = parser.parse_args()
    # A worker whose server was killed last may still be writing while the folder is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        answer = run(
            a.clients, 60 * a.minutes, a.kills, a.workers, a.data, Path(folder), drain=60 * a.drain
        )
        a.output.with_suffix(".json").write_text(json.dumps(answer, indent=1) + "\n")
        a.output.with_suffix(".md").write_text(report(answer))
    print(report(answer))
    if broken := verdict(answer):
        raise SystemExit(f"not kept: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
