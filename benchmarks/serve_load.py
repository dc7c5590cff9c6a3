"""Strangers and neighbors at once on one server: are the others still answered, and is everything given back?

    python -m benchmarks.serve_load --data FOLDER

One real server with one worker, on loopback, with tokens. At once: half-open connections (half a head and silence), event streams,
uploads that bring 16 kB a second, and small jobs of 20 users. Meanwhile one more user sends a request for its jobs and one for the
health of the server, one after the other. Written to ``benchmarks/results/serve_load.{json,md}``:

- seconds until each of those requests was answered, before and under the load;
- the server's memory and open files before, at most, and after the load;
- the size of ``audit.log`` and of stderr; how each job ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import machine
from scmamba.serve.tokens import Tokens

RESULTS = Path(__file__).parent / "results"
USERS = 20
SLOW = 16_384  # bytes a second of a slow upload
_SETTLE = 90.0  # seconds the server has to give everything back


@dataclass
class Load:
    """What is done to the server, and what was seen."""

    port: int
    tokens: list[str]
    half_open: int
    streams: int
    slow: int
    jobs: int
    ended: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    streamed: int = 0
    sent: int = 0
    opened: int = 0

    def head(self, method: str, path: str, user: int, length: int | None = None) -> bytes:
        """The head of a request."""
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {self.tokens[user]}",
            "Connection: close",
        ]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def request(
        self, method: str, path: str, user: int, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self.head(method, path, user, len(body)) + body)
            raw = await reader.read()
        finally:
            writer.close()
        head, _, rest = raw.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, rest

    async def held(self, until: asyncio.Event) -> None:
        """A half-open connection, opened again whenever the server closes it."""
        while not until.is_set():
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                self.opened += 1
                try:
                    writer.write(b"GET / HTTP/1.1\r\nHo")
                    await _first(reader.read(), until)
                finally:
                    writer.close()
            await asyncio.sleep(1.0)

    async def stream(self, job: str, user: int, until: asyncio.Event) -> None:
        """An event stream of a job."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self.head("GET", f"/v2/jobs/{job}/events", user))
            if b" 200 " in await reader.readline():
                self.streamed += 1
            await _first(reader.read(), until)
        finally:
            writer.close()

    async def upload(self, user: int, body: bytes, until: asyncio.Event) -> None:
        """An upload that brings little."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(self.head("POST", "/v2/models/brain-mini/embed", user, 64 << 20))
            while not until.is_set():
                writer.write(body[:SLOW])
                await writer.drain()
                self.sent += SLOW
                await asyncio.sleep(1.0)
        except OSError:
            pass
        finally:
            writer.close()

    async def job(self, user: int, body: bytes) -> str:
        """Send a job; its id."""
        status, answer = await self.request(
            "POST", "/v2/models/brain-mini/embed?options=%7B%22force%22%3Atrue%7D", user, body
        )
        if status != 202:
            self.refused += 1
            return ""
        return str(json.loads(answer)["id"])

    async def follow(self, user: int, job: str, patience: float) -> None:
        """Wait for the end of a job."""
        last, until = "not ended", time.monotonic() + patience
        while job and time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError, IndexError):
                status, answer = await self.request("GET", f"/v2/jobs/{job}", user)
                last = json.loads(answer)["state"] if status == 200 else f"status {status}"
                if last in ("done", "failed", "cancelled"):
                    break
            await asyncio.sleep(2.0)
        self.ended[last] = self.ended.get(last, 0) + 1


async def _first(waiting: Any, until: asyncio.Event) -> None:
    """Until an answer has ended, or the load is over."""
    tasks = [asyncio.ensure_future(waiting), asyncio.ensure_future(until.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def probe(load: Load, user: int, seconds: float) -> list[float]:
    """Seconds until each of one user's requests was answered; an answer that is no 200 counts as infinite."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        for path in ("/v2/jobs", "/v2/health/live"):
            began = time.monotonic()
            try:
                status, _ = await asyncio.wait_for(load.request("GET", path, user), 30)
            except (OSError, IndexError, TimeoutError, asyncio.TimeoutError):
                status = 0
            found.append(time.monotonic() - began if status == 200 else float("inf"))
        await asyncio.sleep(0.1)
    return found


@dataclass
class Usage:
    """Memory (MiB) and open files of the server process."""

    process: psutil.Process
    before: tuple[float, int] = (0.0, 0)
    most: tuple[float, int] = (0.0, 0)

    def now(self) -> tuple[float, int]:
        """As it is."""
        return self.process.memory_info().rss / 2**20, self.process.num_fds()

    async def watch(self, until: asyncio.Event) -> None:
        """The most of both, until the load is over."""
        while not until.is_set():
            now = self.now()
            self.most = max(self.most[0], now[0]), max(self.most[1], now[1])
            await asyncio.sleep(0.5)


async def attack(load: Load, usage: Usage, seconds: float, body: bytes) -> dict[str, Any]:
    """All of it at once; the results."""
    quiet, over = await probe(load, USERS, 10), asyncio.Event()
    usage.before = usage.most = usage.now()
    others = [asyncio.create_task(usage.watch(over))]
    others += [asyncio.create_task(load.held(over)) for _ in range(load.half_open)]
    ids = await asyncio.gather(*(load.job(k % USERS, body) for k in range(load.jobs)))
    streams = [(job, k % USERS) for k, job in enumerate(ids) if job]
    for k in range(load.streams):
        job, user = streams[k % len(streams)]
        others.append(asyncio.create_task(load.stream(job, user, over)))
    others += [asyncio.create_task(load.upload(k % USERS, body, over)) for k in range(load.slow)]
    began = os.getloadavg()[0]
    under = await probe(load, USERS, seconds)
    await asyncio.gather(*(load.follow(k % USERS, job, 300) for k, job in enumerate(ids)))
    over.set()
    await asyncio.gather(*others, return_exceptions=True)
    until = time.monotonic() + _SETTLE
    while usage.now()[1] > usage.before[1] + 10 and time.monotonic() < until:
        await asyncio.sleep(1)
    after = usage.now()
    return {
        "quiet": _seconds(quiet),
        "under_load": _seconds(under),
        "memory_mib": [round(v[0], 1) for v in (usage.before, usage.most, after)],
        "open_files": [v[1] for v in (usage.before, usage.most, after)],
        "jobs_ended": load.ended,
        "jobs_refused": load.refused,
        "streams_open": load.streamed,
        "half_open_connections_made": load.opened,
        "slow_bytes": load.sent,
        "load_average": [round(began, 1), round(os.getloadavg()[0], 1)],
    }


def _seconds(times: list[float]) -> dict[str, float | int]:
    answered = np.array([t for t in times if np.isfinite(t)])
    found = {f"p{q}": round(float(np.percentile(answered, q)), 3) for q in (50, 99)}
    lost = len(times) - len(answered)
    return {
        "requests": len(times),
        "lost": lost,
        **found,
        "longest": round(float(answered.max()), 3),
    }


def cells(folder: Path) -> bytes:
    """A small file: 12 simulated nuclei."""
    from scmamba.datasets import brain_cohort

    file = folder / "cells.h5ad"
    brain_cohort(12, n_donors=2, n_genes=2000, seed=0).write_h5ad(file)
    return file.read_bytes()


def start(data: Path, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The server and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "scmamba.serve", "--data", str(data), "--port", str(port)]
    limits = ["--streams-per-user", "100", "--requests-per-minute", "6000", "--max-connections"]
    with open(log, "wb") as errors:
        process = subprocess.Popen([*command, *limits, "1200"], stderr=errors, stdout=errors)
    for _ in range(1200):
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2),
        ):
            return process, port
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise SystemExit(f"the server did not start; see {log}")


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    quiet, load = found["quiet"], found["under_load"]
    memory, files, asked = found["memory_mib"], found["open_files"], found["asked"]
    row = "| {} | {requests} | {lost} | {p50} | {p99} | {longest} |"
    return "\n".join(
        [
            "# A server under strangers and neighbors",
            "",
            f"{asked['half_open']} half-open connections (each opened again when it was closed), {asked['streams']} event streams, "
            f"{asked['slow']} slow uploads and {asked['jobs']} jobs at once, on one server with one worker (`python -m "
            f"benchmarks.serve_load`), which takes 1,200 connections. Machine: {found['machine']}. Load average {found['load_average'][0]} to "
            f"{found['load_average'][1]}, that of the server and of its clients included.",
            "",
            "Seconds until requests of one more user were answered (a lost one got no 200 within 30 seconds):",
            "",
            "| | requests | lost | p50 | p99 | longest |",
            "|---|---|---|---|---|---|",
            row.format("before", **quiet),
            row.format("under the load", **load),
            "",
            f"- jobs: {found['jobs_ended']}, refused when sent: {found['jobs_refused']}; event streams answered: {found['streams_open']}; "
            f"half-open connections made in all: {found['half_open_connections_made']}",
            f"- memory of the server (MiB): {memory[0]} before, {memory[1]} at most, {memory[2]} after",
            f"- open files of the server: {files[0]} before, {files[1]} at most, {files[2]} after",
            f"- audit.log: {found['audit_bytes']:,} bytes; stderr: {found['stderr_bytes']:,} bytes",
            "",
        ]
    )


def main() -> None:
    """Run once and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, help="empty folder for the server; temporary by default"
    )
    parser.add_argument("--seconds", type=float, default=60, help="of requests under the load")
    parser.add_argument("--half-open", type=int, default=1500)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--slow", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--machine", default=machine())
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_load")
    a = parser.parse_args()
    data = a.data or Path(tempfile.mkdtemp())
    data.mkdir(mode=0o700, exist_ok=True)
    made = Tokens(data)
    tokens = [made.add(f"user{k}", 1) for k in range(USERS + 1)]
    log = data.with_name(data.name + ".log")
    process, port = start(data, log)
    try:
        load = Load(port, tokens, a.half_open, a.streams, a.slow, a.jobs)
        found = asyncio.run(
            attack(load, Usage(psutil.Process(process.pid)), a.seconds, cells(data))
        )
    finally:
        process.terminate()
        process.wait(60)
    found |= {
        "asked": {"half_open": a.half_open, "streams": a.streams, "slow": a.slow, "jobs": a.jobs},
        "machine": a.machine,
        "audit_bytes": (data / "audit.log").stat().st_size,
        "stderr_bytes": log.stat().st_size,
    }
    a.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    a.out.with_suffix(".md").write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()
