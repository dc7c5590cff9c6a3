"""A hundred files that are small to send and large to open: does a job ever use more memory than it may, and how does each file end?

    python -m benchmarks.serve_bombs

One real server with two workers and ``--max-memory 1`` (GiB of one job). Twenty-five kinds of files, each in four sizes: what they unpack
to is 0.3, 0.9, 1.1 and 4 times what the inspection of an upload lets through (a third of a job's memory), so that some pass it and the job
opens them. Four users send them, to the tasks in turn. Meanwhile the memory of the server, of the processes that inspect uploads, and
of those of the jobs is read from ``/proc`` (VmHWM, the most so far) a hundred times a second. Written to
``benchmarks/results/serve_bombs.{json,md}``:

- how each file ended: refused when it was sent, done, or refused by its job with a sentence (memory, time, damage);
- the most memory of a job beyond that of the worker it was forked from, of an inspecting process, and of the server.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.machine import machine
from scmamba.genes import Vocabulary
from scmamba.serve.tokens import Tokens

RESULTS = Path(__file__).parent / "results"
MIB = 1 << 20
#: Bytes of memory of one job, and of a process that inspects an upload (its address space).
LIMIT, INSPECTION = 1 << 30, 2 << 30
#: What a file unpacks to, in parts of what is let through.
PARTS = (0.3, 0.9, 1.1, 4.0)
SECONDS = 120  # of one job
USERS = 4
#: Tasks in turn, with their options.
TASKS: dict[str, dict[str, Any]] = {
    "embed": {"force": True},
    "doublets": {},
    "impute": {"force": True, "adapt_steps": 0},
    "annotate": {"force": True},
    "markers": {"groupby": "donor", "group1": "a"},
}
Make = Callable[[Path, int], None]


# -- files ------------------------------------------------------------------------------------------------------------------------------


def names(n: int) -> list[str]:
    """Names of genes of the model, then invented ones."""
    known = list(Vocabulary.published().symbols[:n])
    return known + [f"GENE{i}" for i in range(len(known), n)]


def frame(file: h5py.File, table: str, n: int, index: list[str] | None = None) -> h5py.Group:
    """A table of an .h5ad file; without names its index is an array of zeros that takes no room in the file."""
    group = file.create_group(table)
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "dataframe", "0.2.0"
    group.attrs["_index"], group.attrs["column-order"] = "_index", np.array([], dtype="S1")
    if index is None:
        group.create_dataset("_index", (n,), "i1", chunks=(min(n, 1 << 20),))
    else:
        group.create_dataset("_index", data=np.array(index, dtype="S16"), compression="gzip")
    return group


def whole(file: h5py.File, n: int = 12, m: int = 30) -> None:
    """A valid small file of counts, with 2 MiB that cannot be packed: they raise what its arrays may claim."""
    rng = np.random.default_rng(0)
    file.create_dataset("X", data=rng.poisson(1.0, (n, m)).astype("f4"))
    obs = frame(file, "obs", n, [f"c{i}" for i in range(n)])
    obs.attrs["column-order"] = np.array(["donor"], dtype="S8")
    obs.create_dataset("donor", data=np.array(["a", "b"] * (n // 2), dtype="S1"))
    frame(file, "var", m, names(m))
    pad(file)


def pad(file: h5py.File) -> None:
    """Bytes that cannot be packed."""
    noise = np.random.default_rng(1).integers(0, 255, 2 * MIB, dtype="u1")
    file.create_group("uns").create_dataset("noise", data=noise)


def hdf5(fill: Callable[[h5py.File, int], None], *, base: bool = True) -> Make:
    """A kind of HDF5 file, from a function that puts so many bytes into it."""

    def make(path: Path, size: int) -> None:
        with h5py.File(path, "w") as file:
            if base:
                whole(file)
            fill(file, size)

    return make


def packed(group: h5py.Group, name: str, shape: tuple[int, ...], kind: str) -> h5py.Dataset:
    """Zeros, packed by gzip to a thousandth."""
    rows = max(
        1, min(shape[0], (8 * MIB) // max(1, int(np.prod(shape[1:]) * np.dtype(kind).itemsize)))
    )
    data = group.create_dataset(
        name, shape, kind, chunks=(rows, *shape[1:]), compression="gzip", compression_opts=9
    )
    for first in range(0, shape[0], rows):
        last = min(shape[0], first + rows)
        data[first:last] = np.zeros((last - first, *shape[1:]), kind)
    return data


def dense(kind: str, *, written: bool) -> Make:
    """X of zeros: written and packed, or never written."""

    def fill(file: h5py.File, size: int) -> None:
        m = 2000
        n = max(1, size // (m * np.dtype(kind).itemsize))
        if written:
            packed(file, "X", (n, m), kind)
        else:
            file.create_dataset("X", (n, m), kind, chunks=(min(n, 1024), m))
        frame(file, "obs", n, [f"c{i}" for i in range(n)] if n < 200_000 else None)
        frame(file, "var", m, names(m))
        pad(file)

    return hdf5(fill, base=False)


def sparse(rows: int, genes: int, kind: str = "csr_matrix") -> Make:
    """A sparse X whose values were never written: all are zeros of the first gene."""

    def fill(file: h5py.File, size: int) -> None:
        values = max(1, size // 12)
        lines = rows if kind == "csr_matrix" else genes
        x = file.create_group("X")
        x.attrs["encoding-type"], x.attrs["encoding-version"] = kind, "0.1.0"
        x.attrs["shape"] = (rows, genes)
        x.create_dataset("data", (values,), "f8", chunks=(min(values, 1 << 18),))
        x.create_dataset("indices", (values,), "i4", chunks=(min(values, 1 << 18),))
        indptr = x.create_dataset("indptr", (lines + 1,), "i8", chunks=(min(lines + 1, 1 << 16),))
        indptr[lines] = values
        frame(file, "obs", rows, [f"c{i}" for i in range(rows)])
        frame(file, "var", genes, None if genes > 40_000 else names(genes))
        pad(file)

    return hdf5(fill, base=False)


def empty_sparse(file: h5py.File, size: int) -> None:
    """A million cells (or as many as fit) times a hundred thousand genes, with one value."""
    rows = max(1, min(1_000_000, size // 9))
    x = file.create_group("X")
    x.attrs["encoding-type"], x.attrs["encoding-version"] = "csr_matrix", "0.1.0"
    x.attrs["shape"] = (rows, 100_000)
    x["data"], x["indices"] = np.ones(1, "f4"), np.zeros(1, "i4")
    indptr = x.create_dataset("indptr", (rows + 1,), "i8", chunks=(min(rows + 1, 1 << 16),))
    indptr[rows] = 1
    frame(file, "obs", rows)
    frame(file, "var", 100_000)
    pad(file)


def elsewhere(place: str) -> Make:
    """Zeros in another slot than X."""

    def fill(file: h5py.File, size: int) -> None:
        width = max(1, size // (12 * 8))
        shape = (12, width) if place != "obsp" else (12, 12)
        group = file.require_group(place)
        for k in range(max(1, size // (int(np.prod(shape)) * 8))):
            packed(group, f"a{k}", shape, "f8")
            if k == 2000:
                break

    return hdf5(fill)


def many_arrays(file: h5py.File, size: int) -> None:
    """Thousands of arrays of a megabyte that were never written."""
    for k in range(min(9000, max(1, size // MIB))):
        file["uns"].create_dataset(f"a{k}", (MIB // 8,), "f8", chunks=(MIB // 8,))


def records(file: h5py.File, size: int) -> None:
    """Records with one text each, all the same one of 100 kB."""
    kind = np.dtype([("text", h5py.string_dtype()), ("n", "i4")])
    data = np.empty(max(1, size // 100_000), kind)
    data["text"], data["n"] = "a" * 100_000, 0
    table = file["uns"].create_dataset("records", (len(data),), kind)
    table[:1] = data[:1]


def long_texts(file: h5py.File, size: int) -> None:
    """Texts of a million characters, all blank."""
    packed(file["uns"], "texts", (max(1, size // 1_000_000),), "S1000000")


def categories(file: h5py.File, size: int) -> None:
    """A column of categories whose codes or categories are millions."""
    group = file["uns"].create_group("column")
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "categorical", "0.2.0"
    group.attrs["ordered"] = False
    packed(group, "codes", (max(1, size // 2),), "i2")
    group.create_dataset("categories", data=np.array(["a"], dtype="S1"))


def attributes(file: h5py.File, size: int) -> None:
    """Attributes of 60 kB on thousands of groups."""
    for k in range(min(2000, max(1, size // 60_000))):
        file["uns"].create_group(f"g{k}").attrs["a"] = np.zeros(60_000, "u1")


def tenx(file: h5py.File, size: int) -> None:
    """A 10x .h5 file whose values were never written."""
    group, genes, values = file.create_group("matrix"), 2000, max(1, size // 8)
    group["shape"] = np.array([genes, 12], "i4")
    group["barcodes"] = np.array([f"b{i}-1" for i in range(12)], "S")
    for name in ("data", "indices"):
        group.create_dataset(name, (values,), "i4", chunks=(min(values, 1 << 18),))
    group["indptr"] = np.array([0] * 12 + [values], "i8")
    features = group.create_group("features")
    features["name"] = features["id"] = np.array(names(genes), "S")
    features["feature_type"] = np.array(["Gene Expression"] * genes, "S")
    group.create_dataset(
        "noise", data=np.random.default_rng(1).integers(0, 255, 2 * MIB, dtype="u1")
    )


Text = Callable[[int], Iterator[bytes]]


def folder10x(matrix: Text, *, twice: bool = True, features: Text | None = None) -> Make:
    """A zipped 10x folder; the parts are given by functions of the size. ``twice``: packed by gzip as well."""

    def make(path: Path, size: int) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            name = "matrix.mtx.gz" if twice else "matrix.mtx"
            with archive.open(name, "w", force_zip64=True) as entry:
                target: Any = gzip.GzipFile(fileobj=entry, mode="wb") if twice else entry
                for text in matrix(size):
                    target.write(text)
                if twice:
                    target.close()
            with archive.open("features.tsv", "w", force_zip64=True) as entry:
                for text in (features or twenty_genes)(size):
                    entry.write(text)
            archive.writestr("barcodes.tsv", b"".join(f"b{i}-1\n".encode() for i in range(12)))
            noise = np.random.default_rng(1).integers(0, 255, 2 * MIB, dtype="u1").tobytes()
            archive.writestr("noise", noise, zipfile.ZIP_STORED)

    return make


def lines(line: bytes, number: int) -> Iterator[bytes]:
    """One line many times, in blocks."""
    block = max(1, MIB // len(line))
    for first in range(0, number, block):
        yield line * min(block, number - first)


def head(values: int) -> bytes:
    """The head of a matrix of 20 genes and 12 cells."""
    return f"%%MatrixMarket matrix coordinate integer general\n20 12 {values}\n".encode()


def repeated(line: bytes) -> Text:
    """A matrix of this line alone."""

    def text(size: int) -> Iterator[bytes]:
        number = max(1, size // len(line))
        yield head(number)
        yield from lines(line, number)

    return text


def blank_lines(size: int) -> Iterator[bytes]:
    """One entry and blank lines."""
    yield head(1) + b"1 1 1\n"
    yield from lines(b"\n", size)


def one_entry(size: int) -> Iterator[bytes]:
    """A valid small matrix."""
    yield head(1) + b"1 1 1\n"


def twenty_genes(size: int) -> Iterator[bytes]:
    """Twenty genes of the model."""
    yield b"".join(f"E{i}\t{g}\tGene Expression\n".encode() for i, g in enumerate(names(20)))


def tabs(size: int) -> Iterator[bytes]:
    """Twenty genes; after the last one there are only tabs."""
    yield next(twenty_genes(size)).removesuffix(b"\n")
    yield from lines(b"\t", size)
    yield b"\n"


def plain(header: Callable[[int], bytes]) -> Make:
    """The plain form with this header and one value."""

    def make(path: Path, size: int) -> None:
        text = header(size)
        values = (
            np.array([0, 1], "<i4").tobytes()
            + np.zeros(1, "<i4").tobytes()
            + np.ones(1, "<f8").tobytes()
        )
        path.write_bytes(b"SCMB1\n" + len(text).to_bytes(8, "little") + text + values)

    return make


_ARRAYS = (
    b'"arrays":[{"name":"p","kind":"int32","shape":[2]},{"name":"i","kind":"int32","shape":[1]},'
    b'{"name":"x","kind":"float64","shape":[1]}]'
)


def lists_of_nothing(size: int) -> bytes:
    """Millions of empty lists: three bytes each, and sixty in memory."""
    many = b",".join([b"[]"] * (size // 60))
    return b'{"genes":["APOE"],"cells":["a"],"more":[' + many + b"]," + _ARRAYS + b"}"


def claimed_array(size: int) -> bytes:
    """An array that the file does not hold."""
    more = f'{{"name":"layer/x","kind":"float64","shape":[{size // 8}]}}'.encode()
    return b'{"genes":["APOE"],"cells":["a"],' + _ARRAYS[:-1] + b"," + more + b"]}"


KINDS: dict[str, Make] = {
    "X of zeros, packed": dense("f4", written=True),
    "X of single bytes, packed": dense("i1", written=True),
    "X never written": dense("f8", written=False),
    "sparse X never written": sparse(12, 2000),
    "sparse X by columns never written": sparse(12, 2000, "csc_matrix"),
    "sparse X of 100,000 cells never written": sparse(100_000, 2000),
    "a million cells without values": hdf5(empty_sparse, base=False),
    "layers of zeros": elsewhere("layers"),
    "obsm of zeros": elsewhere("obsm"),
    "varm of zeros": elsewhere("varm"),
    "obsp: thousands of small arrays": elsewhere("obsp"),
    "uns: thousands of arrays never written": hdf5(many_arrays),
    "uns: records with one text": hdf5(records),
    "uns: texts of a million blanks": hdf5(long_texts),
    "uns: categories": hdf5(categories),
    "uns: attributes": hdf5(attributes),
    "10x .h5 never written": hdf5(tenx, base=False),
    "10x folder: one entry millions of times": folder10x(repeated(b"1 1 1\n")),
    "10x folder: the same, packed once": folder10x(repeated(b"1 1 1\n"), twice=False),
    "10x folder: blank lines": folder10x(blank_lines, twice=False),
    "10x folder: blank lines, packed twice": folder10x(blank_lines),
    "10x folder: long numbers": folder10x(repeated(b"1 1 " + b"0" * 50 + b"1\n")),
    "10x folder: tabs": folder10x(one_entry, features=tabs),
    "plain form: lists of nothing": plain(lists_of_nothing),
    "plain form: an array it does not hold": plain(claimed_array),
}


# -- the server -------------------------------------------------------------------------------------------------------------------------


@dataclass
class Peaks:
    """The most memory of each kind of process, in bytes."""

    server: int
    jobs: dict[int, int] = field(default_factory=dict)  # of a job beyond that of its worker
    looks: dict[int, int] = field(default_factory=dict)
    own: int = 0
    over: bool = False

    def watch(self) -> None:
        """Until it is over."""
        while not self.over:
            self.own = max(self.own, most(self.server))
            for pid in children(self.server):
                if "validation" in command(pid):
                    self.looks[pid] = max(self.looks.get(pid, 0), most(pid))
                elif "serve.worker" in command(pid):
                    base = resident(pid)
                    for job in children(pid):
                        self.jobs[job] = max(self.jobs.get(job, 0), most(job) - base)
            time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Processes that it started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def command(pid: int) -> str:
    """Its command line."""
    with contextlib.suppress(OSError):
        return (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        )
    return ""


def _status(pid: int, name: str) -> int:
    with contextlib.suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{pid}/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
    return 0


def most(pid: int) -> int:
    """The most memory it has held."""
    return _status(pid, "VmHWM")


def resident(pid: int) -> int:
    """The memory it holds."""
    return _status(pid, "VmRSS")


class Server:
    """A server process on a free port."""

    def __init__(self, folder: Path) -> None:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.data, self.log = f"http://127.0.0.1:{port}", folder / "data", folder / "log"
        tokens = Tokens(self.data)
        self.tokens = [tokens.add(f"user{user}", 1) for user in range(USERS)]
        options = ["--max-memory", str(LIMIT / 2**30), "--max-seconds", str(SECONDS)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scmamba.serve", "--data", self.data, "--port", str(port),
                 "--workers", "2", "--requests-per-minute", "100000", *options],
                stdout=log, stderr=log,
            )  # fmt: skip
        for _ in range(3000):
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                self.ask(0, "GET", "/v2/health/ready")
                return
            time.sleep(0.2)
        raise SystemExit(f"the server did not start: {self.log.read_text()}")

    def ask(self, user: int, method: str, path: str, body: bytes | None = None) -> Any:
        """The answer as JSON."""
        access = {"Authorization": f"Bearer {self.tokens[user]}"}
        request = urllib.request.Request(self.url + path, body, access, method=method)
        with urllib.request.urlopen(request, timeout=900) as answer:
            return json.loads(answer.read())

    def end(self, user: int, task: str, file: Path) -> dict[str, str]:
        """Send a file and wait for the end of its job: ``state`` and ``message``."""
        query = urllib.parse.urlencode({"options": json.dumps(TASKS[task])})
        try:
            job = self.ask(user, "POST", f"/v2/models/brain-mini/{task}?{query}", file.read_bytes())
        except urllib.error.HTTPError as error:
            said = json.loads(error.read())["detail"]
            return {"state": f"refused ({error.code})", "message": said}
        while True:
            now = self.ask(user, "GET", f"/v2/jobs/{job['id']}")
            if now["state"] in ("done", "failed", "cancelled"):
                self.ask(user, "DELETE", f"/v2/jobs/{job['id']}")
                return {"state": now["state"], "message": now["message"]}
            time.sleep(0.2)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(60)


def run(folder: Path, kinds: list[str], parts: tuple[float, ...] = PARTS) -> dict[str, Any]:
    """Send all of them to a new server; ``folder`` is kept."""
    server = Server(folder)
    peaks, began = Peaks(server.process.pid), os.getloadavg()[0]
    watcher = threading.Thread(target=peaks.watch, daemon=True)
    watcher.start()
    free: queue.Queue[int] = queue.Queue()
    for user in range(USERS):
        free.put(user)

    def send(turn: int, kind: str, part: float) -> dict[str, Any]:
        user = free.get()
        try:
            path, size = folder / f"file{user}", int(part * LIMIT / 3)
            KINDS[kind](path, size)
            task = list(TASKS)[turn % len(TASKS)]
            about = {"kind": kind, "part": part, "task": task, "bytes": path.stat().st_size}
            found = {**about, "unpacked": size, **server.end(user, task, path)}
            print(json.dumps(found)[:200], flush=True)
            return found
        finally:
            free.put(user)

    try:
        with ThreadPoolExecutor(USERS) as pool:
            files = [
                pool.submit(send, turn, kind, part)
                for turn, (kind, part) in enumerate((k, p) for k in kinds for p in parts)
            ]
        answers = [file.result() for file in files]
        ready = server.ask(0, "GET", "/v2/health/ready")
        restarts = _metric(server)
    finally:
        peaks.over = True
        watcher.join()
        server.stop()
    return {
        "files": answers,
        "limit_mib": LIMIT // MIB,
        "inspection_mib": INSPECTION // MIB,
        "most_of_a_job_mib": round(max(peaks.jobs.values(), default=0) / MIB),
        "most_of_an_inspection_mib": round(max(peaks.looks.values(), default=0) / MIB),
        "most_of_the_server_mib": round(peaks.own / MIB),
        "jobs_watched": len(peaks.jobs),
        "ready": bool(ready["ready"]),
        "worker_restarts": restarts,
        "load_average": [round(began, 1), round(os.getloadavg()[0], 1)],
    }


def _metric(server: Server) -> int:
    with urllib.request.urlopen(server.url + "/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = re.search(r"^scmamba_worker_restarts_total (\d+)", text, re.M)
    assert found is not None, text
    return int(found[1])


def ended(file: dict[str, Any]) -> str:
    """How a file ended, in one word or two."""
    if file["state"].startswith("refused"):
        return "refused when sent"
    if file["state"] == "done":
        return "done"
    odd = (
        file["state"] != "failed"
        or "inside the server" in file["message"]
        or "died" in file["message"]
    )
    return "other" if odd or not file["message"] else "refused by its job"


def verdict(answer: dict[str, Any]) -> list[str]:
    """What did not hold; empty if all did."""
    rules = {
        "no job used more memory than it may": answer["most_of_a_job_mib"] <= answer["limit_mib"],
        "no inspection used more memory than it may": answer["most_of_an_inspection_mib"]
        <= answer["inspection_mib"],
        "every file was refused with a sentence or done": all(
            ended(f) != "other" for f in answer["files"]
        ),
        "the server stayed ready, with its worker": answer["ready"]
        and answer["worker_restarts"] == 0,
        "jobs were watched": answer["jobs_watched"] > 0,
    }
    return [rule for rule, kept in rules.items() if not kept]


def report(answer: dict[str, Any]) -> str:
    """As Markdown."""
    files, broken = answer["files"], verdict(answer)
    counts = Counter(ended(f) for f in files)
    lines = [
        "# Files that are small to send and large to open",
        "",
        f"{len(files)} files of {len(dict.fromkeys(f['kind'] for f in files))} kinds, one after the other, to one server with one worker "
        f"(`python -m benchmarks.serve_bombs`). A job may use {answer['limit_mib']:,} MiB, an inspection {answer['inspection_mib']:,} MiB. "
        f"{answer['machine']}; load average {answer['load_average'][0]} to {answer['load_average'][1]}.",
        "",
        f"- {', '.join(f'{n} {how}' for how, n in sorted(counts.items()))}",
        f"- most memory of a job beyond its worker's: {answer['most_of_a_job_mib']:,} MiB ({answer['jobs_watched']} jobs); of an inspection: "
        f"{answer['most_of_an_inspection_mib']:,} MiB; of the server: {answer['most_of_the_server_mib']:,} MiB",
        f"- workers that were replaced: {answer['worker_restarts']}; ready at the end: {'yes' if answer['ready'] else 'no'}",
        f"- not kept: {'; '.join(broken) or 'nothing'}",
        "",
        "Unpacked size in parts of what the inspection lets through:",
        "",
        "| kind | " + " | ".join(f"{p:g}" for p in dict.fromkeys(f["part"] for f in files)) + " |",
        "|---|" + "---|" * len(dict.fromkeys(f["part"] for f in files)),
    ]
    for kind in dict.fromkeys(f["kind"] for f in files):
        cells = [f"{ended(f)}, {f['bytes'] / 1e6:.1f} MB" for f in files if f["kind"] == kind]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--machine", default=machine())
    parser.add_argument("--out", type=Path, default=RESULTS / "serve_bombs")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        answer = run(Path(folder), list(KINDS)) | {"machine": a.machine}
    a.out.with_suffix(".json").write_text(json.dumps(answer, indent=1) + "\n")
    a.out.with_suffix(".md").write_text(report(answer))
    print(report(answer))
    if broken := verdict(answer):
        raise SystemExit(f"not kept: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
