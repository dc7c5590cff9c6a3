"""Fuzz the server: hostile uploads into the reader, hostile uploads and requests over HTTP, and its own OpenAPI.

    python -m benchmarks.serve_fuzz --minutes 30 --out benchmarks/results/serve_fuzz.txt

Three parts run at once for the time given, each against the code as it is:

reader  atheris (libFuzzer) over what the confined process does with an upload (``serve.check.look``) and, for what it lets through, over
        what a worker does (``serve.worker.open_upload``). A finding is anything but an answer or a sentence: another exception, a
        process that dies, hangs or takes more than its memory.
http    the same files and mutations over HTTP against a real server with a real worker, with bodies cut off, lengths that lie and options
        that make no sense. A finding is a 5xx answer, no answer, or a server that no longer lives.
schema  schemathesis against the server's own OpenAPI. A finding is a 5xx answer.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
REPO = HERE.parents[1]
#: Limits of a child of the reader's part, so that a decompression bomb fails there as in the server.
MEMORY = 6 << 30


# -- seeds and mutations --------------------------------------------------------------------------------------------------------------


def seeds(folder: Path) -> list[Path]:
    """Small real files of every type that the server reads."""
    import anndata as ad
    import h5py
    import pandas as pd
    from scipy import sparse

    from scmamba.genes import Vocabulary
    from scmamba.wire import scmb as wire

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (12, 20)).astype(np.float32)
    obs = pd.DataFrame(
        {"donor": pd.Categorical(["a", "b"] * 6), "depth": counts.sum(1)},
        index=[f"c{i}" for i in range(12)],
    )
    var = pd.DataFrame(index=list(Vocabulary.published().symbols[:20]))
    csr = sparse.csr_matrix(counts)
    for name, x in (("dense", counts), ("csr", csr), ("csc", sparse.csc_matrix(counts))):
        adata = ad.AnnData(x, obs=obs.copy(), var=var.copy())
        if name == "csr":
            adata.layers["counts"], adata.obsm["X_pca"], adata.uns["nested"] = (
                csr.copy(),
                np.ones((12, 2)),
                {"a": {"b": np.arange(3)}},
            )
            adata.raw = adata.copy()
        adata.write_h5ad(folder / f"{name}.h5ad", compression="gzip" if name == "csc" else None)
    with h5py.File(folder / "tenx.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"], group["shape"] = (
            np.array([f"b{i}-1" for i in range(12)], dtype="S"),
            np.array([20, 12], dtype="i4"),
        )
        group["data"], group["indices"], group["indptr"] = (
            csr.data.astype("i4"),
            csr.indices,
            csr.indptr,
        )
        features = group.create_group("features")
        features["name"] = features["id"] = np.array(var.index.to_list(), dtype="S")
        features["feature_type"], features["genome"] = (
            np.array(["Gene Expression"] * 20, dtype="S"),
            np.array(["GRCh38"] * 20, dtype="S"),
        )
    header = {
        "genes": var.index.tolist(),
        "cells": obs.index.tolist(),
        "obs": {"donor": obs["donor"].astype(str).tolist()},
    }
    slots = {"p": csr.indptr, "i": csr.indices, "x": csr.data.astype(float)}
    wire.write(folder / "plain.scmb", header, slots)
    more = {"levels": {"sex": ["f", "m"]}, "flags": ["odd"]}
    columns = {
        "obs/depth": counts.sum(1).astype(float),
        "obs/sex": np.arange(12, dtype="i4") % 2,
        "obs/odd": np.ones(12, "i4"),
    }
    wire.write(
        folder / "layer.scmb",
        {**header, **more},
        {**slots, **{f"layer/{k}": v for k, v in slots.items()}, **columns},
    )
    for name in ("folder", "folder_gz"):
        lines = "".join(
            f"{g + 1} {c + 1} {int(counts[c, g])}\n" for c, g in zip(*counts.nonzero(), strict=True)
        )
        parts = {
            "matrix.mtx": f"%%MatrixMarket matrix coordinate integer general\n20 12 {csr.nnz}\n{lines}",
            "features.tsv": "".join(
                f"ENSG{i}\t{g}\tGene Expression\n" for i, g in enumerate(var.index)
            ),
            "barcodes.tsv": "".join(f"b{i}-1\n" for i in range(12)),
        }
        with zipfile.ZipFile(
            folder / f"{name}.zip",
            "w",
            zipfile.ZIP_STORED if name == "folder" else zipfile.ZIP_DEFLATED,
        ) as archive:
            for part, text in parts.items():
                packed = gzip.compress(text.encode()) if name == "folder_gz" else text.encode()
                archive.writestr(part + (".gz" if name == "folder_gz" else ""), packed)
    return sorted(folder.iterdir())


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few edits: bits, false numbers, pieces removed, doubled or overwritten, JSON of the plain form altered."""
    if data.startswith(b"SCMB1\n") and rng.random() < 0.6:
        return bent(data, rng)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 4, 16))):
        if not out:
            break
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(
                (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**9, rng.getrandbits(64))
            )
            out[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        elif kind == 2:
            del out[at : at + rng.randrange(1, 200)]
        elif kind == 3:
            out[at:at] = out[at : at + rng.randrange(1, 200)]
        elif kind == 4:
            n = rng.randrange(1, 64)
            out[at : at + n] = bytes(n)
        elif kind == 5 and rng.random() < 0.2:
            del out[at:]
        else:
            a = rng.randrange(len(out))
            out[at : at + 16] = out[a : a + 16]
    return bytes(out)


def bent(data: bytes, rng: random.Random) -> bytes:
    """The plain form with a value of its header replaced and its length corrected, so that the reader continues."""
    length = int.from_bytes(data[6:14], "little")
    try:
        header = json.loads(data[14 : 14 + length])
    except (ValueError, RecursionError):
        return data[: rng.randrange(1, len(data))]
    odd = [
        None,
        True,
        -1,
        0,
        10**9,
        10**400,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "\ud800",
        "a\0b",
        [],
        {},
        [[]] * 50,
        "../etc/passwd",
        {"name": "p"},
        [1, 2],
        ["x"] * 100,
    ]
    for _ in range(rng.choice((1, 1, 2, 3))):
        spots: list[tuple[object, object]] = []
        stack: list[object] = [header]
        while stack:
            node = stack.pop()
            keys = (
                list(node)
                if isinstance(node, dict)
                else range(len(node))
                if isinstance(node, list)
                else ()
            )
            for key in keys:
                spots.append((node, key))
                stack.append(node[key])  # type: ignore[index]
        if spots:
            node, key = rng.choice(spots)
            node[key] = copy.deepcopy(rng.choice(odd))  # type: ignore[index]  # nesting it in itself would never end
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(header).encode()
        data = b"SCMB1\n" + len(text).to_bytes(8, "little") + text + data[14 + length :]
    return data


# -- the reader -----------------------------------------------------------------------------------------------------------------------


def read_one(path: Path) -> str:
    """The server's treatment of a file; exceptions other than its two types of refusal are raised."""
    from scmamba.serve.validation import look
    from scmamba.serve.worker import open_upload
    from scmamba.utils.errors import ScMambaError

    try:
        look(path, 1_000_000, 100_000, 1 << 30)
    except (ScMambaError, MemoryError):
        return "refused"
    try:
        adata = open_upload(path)
        np.asarray(adata.X.sum(axis=0))  # touch every value
        if hasattr(adata.X, "tocsc"):
            adata.X.tocsc().tocsr()
    except (ScMambaError, MemoryError):
        return "the job fails with its sentence"
    return "read"


def atheris_child(folder: Path, seconds: int) -> None:
    """One libFuzzer process; records its counts in ``folder/tally.json``."""
    import atheris

    with atheris.instrument_imports(
        include=["scmamba.serve.validation", "scmamba.serve.read_10x", "scmamba.wire.scmb"]
    ):
        import scmamba.serve.read_10x
        import scmamba.serve.validation
        import scmamba.wire.scmb
    import resource
    import warnings

    import anndata  # noqa: F401
    import scanpy  # noqa: F401

    import scmamba.serve.worker  # noqa: F401

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tally: Counter[str] = Counter()
    current, wrote = folder / "current", [0.0]

    def one(data: bytes) -> None:
        current.write_bytes(data)
        # Seconds of processor time, because the machine may be busy. The signal ends this process, also within the HDF5 library.
        signal.setitimer(signal.ITIMER_PROF, 20)
        tally[read_one(current)] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        if time.time() - wrote[0] > 5:
            wrote[0] = time.time()
            (folder / f"tally-{os.getpid()}.json").write_text(json.dumps(tally))

    def mutate(data: bytes, limit: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, limit)
        return mutated(data, rng)[:limit]

    corpus, found = folder / "corpus", folder / "found"
    for place in (corpus, found):
        place.mkdir(exist_ok=True)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-artifact_prefix={found}/",
            f"-max_total_time={seconds}",
            "-max_len=65536",
            "-timeout=1000",
            "-rss_limit_mb=5000",
            "-verbosity=0",
            "-print_final_stats=0",
            "-len_control=0",
        ],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def fuzz_reader(folder: Path, minutes: float) -> dict[str, object]:
    """Restart libFuzzer until the time is over; each crash is judged as by the server."""
    folder.mkdir(parents=True)
    seeds(folder / "corpus")
    end, deaths = time.time() + 60 * minutes, list[dict[str, Any]]()
    while (left := int(end - time.time())) > 5:
        command = [sys.executable, str(HERE), "--atheris", str(folder), "--minutes", str(left / 60)]
        died = subprocess.run(command, capture_output=True, text=True)
        if died.returncode != 0:
            kept = folder / f"death-{len(deaths)}"
            kept.write_bytes((folder / "current").read_bytes())
            deaths.append(
                {
                    "file": kept.name,
                    "status": died.returncode,
                    "said": _last_lines(died.stderr),
                    "confined": confined(kept),
                }
            )
            print(deaths[-1], file=sys.stderr, flush=True)
    tally: Counter[str] = Counter()
    for file in folder.glob("tally-*.json"):
        tally.update(json.loads(file.read_text()))
    # A confined process that dies or is stopped has done its work: the server answers 422. If it had accepted the file, a worker would die.
    contained = [
        d
        for d in deaths
        if not d["confined"].startswith("status 0")
        and "Uncaught Python exception" not in str(d["said"])
    ]
    return {
        "inputs": dict(tally),
        "kept as new ways through the code": len(list((folder / "corpus").iterdir())),
        "died or were stopped in the confined process, so refused": dict(
            Counter(d["confined"] for d in contained)
        ),
        "findings": [d for d in deaths if d not in contained],
    }


def _last_lines(text: str) -> list[str]:
    return [
        line
        for line in text.splitlines()
        if "Error" in line or "File" in line or "ERROR" in line or "Uncaught" in line
    ][-8:]


def confined(path: Path) -> str:
    """The exit of the confined process that inspects the file in the real server."""
    command = [
        sys.executable,
        "-m",
        "scmamba.serve.validation",
        str(path),
        "1000000",
        "100000",
        "0",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        return "stopped after ten minutes"
    return f"status {result.returncode}: {result.stdout.strip()[:200]}"


# -- over HTTP ------------------------------------------------------------------------------------------------------------------------


class Server:
    """A server process on a free port."""

    def __init__(self, data: Path, max_upload: float = 0.05) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.data = f"http://127.0.0.1:{self.port}", data
        command = [
            sys.executable,
            "-m",
            "scmamba.serve",
            "--tokens",
            "none",
            "--data",
            str(data),
            "--port",
            str(self.port),
            "--jobs-per-user",
            "1000000",
            "--requests-per-minute",
            "10000000",
            "--max-seconds",
            "3600",
            "--max-upload",
            str(max_upload),
        ]
        self.log = open(data.parent / "server.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, start_new_session=True, stderr=self.log, stdout=self.log
        )
        for _ in range(12_000):  # twenty minutes and more: the machine may be busy
            if self.process.poll() is not None:
                break
            if self.alive():
                return
            time.sleep(0.1)
        raise SystemExit(
            f"the server did not start: {(data.parent / 'server.log').read_text()[-500:]}"
        )

    def alive(self) -> bool:
        try:
            return urllib.request.urlopen(self.url + "/v2/health/live", timeout=10).status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


ODD = [
    None,
    True,
    False,
    -1,
    0,
    1,
    7,
    10**9,
    10**40,
    1.5,
    -0.0,
    1e300,
    "",
    "x",
    "\ud800",
    "a\0b",
    "../etc/passwd",
    [],
    ["a"],
    {},
    {"a": ["APOE"]},
]


def odd_options(rng: random.Random) -> str:
    """Options of all tasks with valid and invalid values."""
    names = [
        "adapt_steps",
        "passes",
        "min_value",
        "to_counts",
        "seed",
        "force",
        "batch_size",
        "layer",
        "gene_column",
        "method",
        "markers",
        "sample",
        "error_rate",
        "expected_rate",
        "labels",
        "reference",
        "network",
        "model",
        "__class__",
        "groupby",
        "group1",
        "ratios",
        "layers",
        "genes",
        "resume",
    ]
    options: dict[str, Any] = {"adapt_steps": 0, "force": True} if rng.random() < 0.7 else {}
    if rng.random() < 0.2:
        options = {"groupby": "donor", "group1": "a"}
    options |= {rng.choice(names): rng.choice(ODD) for _ in range(rng.choice((0, 0, 1, 1, 2)))}
    text = json.dumps(options)
    return text if rng.random() < 0.9 else text[: rng.randrange(len(text))]


def ask(port: int, rng: random.Random, body: bytes) -> int | str:
    """One upload over a raw socket, sometimes cut off or with a false length; the status, or the failure."""
    task = rng.choice(["impute", "embed", "annotate", "doublets", "markers", "robustness"])
    path = f"/v2/models/brain-mini/{task}?" + urllib.parse.urlencode(
        {"options": odd_options(rng).encode("utf-8", "surrogatepass")}
    )
    kind, claimed = rng.randrange(20), len(body)
    if kind == 0:
        claimed = rng.choice((claimed + 100, 10**12, claimed // 2))
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    head.append("Transfer-Encoding: chunked" if kind == 1 else f"Content-Length: {claimed}")
    if kind == 2:
        head.append("X-Odd: " + "a" * rng.choice((100, 10_000, 200_000)))
    if kind == 3:
        head.append(
            "Content-Type: "
            + rng.choice(
                ("multipart/form-data; boundary=x", "application/json", "\xff\xfe", "text/html")
            )
        )
    if kind == 1:
        body = b"%x\r\n" % len(body) + body + b"\r\n" + rng.choice((b"0\r\n\r\n", b"", b"zz\r\n"))
    if kind == 4:
        body = body[: len(body) // 2]
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=100) as line:
            line.sendall("\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body)
            if kind in (0, 1, 4):
                line.shutdown(socket.SHUT_WR)
            answer = line.recv(64)
    except ConnectionError as error:
        return type(error).__name__  # it may close before it has read all of a refused request
    except TimeoutError:
        return "no answer"
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else "closed"


def fuzz_http(server: Server, folder: Path, minutes: float, seed: int) -> dict[str, object]:
    """Mutated uploads until the time is over, then wait until every accepted job has ended."""
    rng, files = random.Random(seed), [p.read_bytes() for p in seeds(folder / "seeds")]
    answers: Counter[str] = Counter()
    findings: list[str] = []
    end, n = time.time() + 60 * minutes, 0
    while time.time() < end:
        body = rng.choice(files)
        if rng.random() < 0.8:
            body = mutated(body, rng)
        answer = ask(server.port, rng, body)
        answers[str(answer)] += 1
        if answer == "no answer" or (isinstance(answer, int) and answer >= 500):
            (folder / f"http-{n}").write_bytes(body)
            findings.append(f"upload {n}: {answer}")
        n += 1
        if n % 20 == 0 and not server.alive():
            findings.append(f"after upload {n} the server does not live")
            break
    jobs = ended(server)
    waiting = sum(j["state"] in ("queued", "running") for j in jobs)
    inside = Counter(
        j["message"][:150]
        for j in jobs
        if "inside the server" in j["message"] or "worker died" in j["message"]
    )
    states = Counter(j["state"] for j in jobs)
    return {
        "answers": dict(answers),
        "jobs": dict(states),
        "jobs still waiting at the end": waiting,
        "jobs failed by no sentence of ours": dict(inside),
        "findings": findings,
    }


def ended(server: Server) -> list[dict[str, str]]:
    """All jobs, once none is queued or running (or after ninety seconds)."""
    from scmamba.serve.jobs import FINAL, Queue

    queue, jobs = Queue(server.data), list[dict[str, str]]()
    for _ in range(90):
        with queue._open() as db:
            jobs = [
                dict(row)
                for row in db.execute("SELECT id, task, state, message FROM jobs").fetchall()
            ]
        if all(j["state"] in FINAL for j in jobs):
            break
        time.sleep(1)
    return jobs


def fuzz_schema(server: Server, minutes: float, seed: int) -> dict[str, object]:
    """schemathesis with new seeds until the time is over."""
    end, runs, cases, findings = time.time() + 60 * minutes, 0, 0, list[str]()
    while time.time() < end:
        result = schemathesis(
            server.url,
            examples=30,
            seed=seed + runs,
            seconds=max(10, min(300, int(end - time.time()))),
        )
        runs += 1
        cases += sum(
            int(word)
            for line in result.stdout.splitlines()
            if "generated" in line
            for word in line.split()
            if word.isdigit()
        )
        if result.returncode != 0:
            findings.append(result.stdout[-3000:])
    return {"runs": runs, "cases": cases, "findings": findings}


def schemathesis(
    url: str, *, examples: int, seed: int, seconds: int
) -> subprocess.CompletedProcess[str]:
    """One run against the server's own OpenAPI, looking for 5xx."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        url + "/openapi.json",
        "--checks",
        "not_a_server_error",
        "--max-examples",
        str(examples),
        "--seed",
        str(seed),
        "--no-color",
        "--request-timeout",
        "100",
        "--max-time",
        str(seconds),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds + 300)


# -- all of it ------------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--atheris", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.atheris:
        atheris_child(a.atheris, int(a.minutes * 60))
        return
    from concurrent.futures import ThreadPoolExecutor

    from benchmarks.machine import machine  # not where this file runs as a program of libFuzzer

    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPO / "python"), os.environ.get("PYTHONPATH")])
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir(mode=0o700)  # the server refuses a folder that others can read
        server = Server(folder / "data")
        try:
            with ThreadPoolExecutor() as pool:
                parts = {
                    "reader": pool.submit(fuzz_reader, folder / "reader", a.minutes),
                    "http": pool.submit(fuzz_http, server, folder, a.minutes, a.seed),
                    "schema": pool.submit(fuzz_schema, server, a.minutes, a.seed),
                }
                report: dict[str, dict[str, Any]] = {}
                for part, future in parts.items():
                    try:
                        report[part] = future.result()
                    except Exception as error:
                        report[part] = {
                            "findings": [f"this part broke off: {type(error).__name__}: {error}"]
                        }
                    print(part, report[part], file=sys.stderr, flush=True)
        finally:
            server.stop()
        if a.out:
            for file in [
                *folder.glob("reader/death-*"),
                *folder.glob("http-*"),
                folder / "server.log",
            ]:
                print(f"kept {file.name}", file=sys.stderr)
                (Path(tempfile.gettempdir()) / f"serve_fuzz_{file.name}").write_bytes(
                    file.read_bytes()
                )
    text = (
        "\n".join(
            [
                f"benchmarks/serve_fuzz.py --minutes {a.minutes:g} --seed {a.seed}: {machine()}",
                json.dumps(report, indent=1),
            ]
        )
        + "\n"
    )
    print(text)
    if a.out:
        a.out.write_text(text)
    sys.exit(any(part["findings"] for part in report.values()))


if __name__ == "__main__":
    main()
