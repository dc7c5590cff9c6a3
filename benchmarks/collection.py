"""Shuffled reading of a large collection: cells per second and peak memory, next to AnnLoader and scDataset on the same files.

    python -m benchmarks.collection                     # 1,000,000 cells, about 9 GB on disk, removed afterwards
    python -m benchmarks.collection --cells 40000 --seconds 5

Four h5ad files (CSR, float32, not compressed) over the 19,306 genes of the vocabulary are written in chunks from simulated nuclei. Then
each reader runs in a separate process, one after the other, 64 cells a batch, the files pushed out of the page cache before: scMamba a
whole epoch (its cells come normalized and mapped to the vocabulary), the others a fixed time (theirs are the raw rows). Memory is the peak
resident set of the process, imports included. Seconds are wall time; the last column divides by processor time instead, for machines that
have other things to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

ROOT = Path(__file__).resolve().parents[1]
FILES, CHUNK, BATCH = 4, 10_000, 64


def write_files(folder: Path, cells: int) -> list[Path]:
    """Simulated nuclei drawn repeatedly in different orders, in chunks, so that writing needs little memory too."""
    import anndata as ad

    from scmamba.datasets import brain_cohort
    from scmamba.genes import Vocabulary, match_genes

    vocabulary = Vocabulary.published()
    cohort = brain_cohort(5000, n_donors=20, seed=0)
    match = match_genes(cohort.var_names.tolist(), vocabulary)
    place = sparse.csr_matrix(
        (np.ones(len(match.matched), np.float32), (match.matched, match.positions[match.matched])),
        shape=(cohort.n_vars, len(vocabulary)),
    )
    base = sparse.csr_matrix(sparse.csr_matrix(cohort.X, dtype=np.float32) @ place)
    base.sort_indices()
    rng = np.random.default_rng(0)
    paths = []
    for f in range(FILES):
        path, n = folder / f"part{f}.h5ad", cells // FILES
        drawn = rng.integers(0, len(cohort), n)
        obs = cohort.obs.iloc[drawn][["donor", "disease", "cell_type"]].reset_index(drop=True)
        obs.index = pd.Index([f"{f}-{i}" for i in range(n)])
        empty = sparse.csr_matrix((n, len(vocabulary)), dtype=np.float32)
        ad.AnnData(empty, obs=obs, var=pd.DataFrame(index=list(vocabulary))).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            group = file["X"]
            for name, kind in (("data", "f4"), ("indices", "i4")):
                del group[name]
                group.create_dataset(
                    name, shape=(0,), maxshape=(None,), chunks=(65536,), dtype=kind
                )
            starts = np.concatenate([[0], np.cumsum(np.diff(base.indptr)[drawn])]).astype(np.int64)
            group["indptr"][...] = starts
            for start in range(0, n, CHUNK):
                rows = base[drawn[start : start + CHUNK]]
                for name in ("data", "indices"):
                    group[name].resize((starts[start] + rows.nnz,))
                    group[name][starts[start] :] = getattr(rows, name)
        paths.append(path)
    return paths


# ------------------------------------------------------------------------------------------------------------ readers


def scmamba(paths: list[str], folder: str) -> Iterator[int]:
    from scmamba.data.collection import Collection

    found = Collection(paths, cache=folder, verbose=False)
    found.totals  # noqa: B018  one pass over the files, as training does once
    yield 0
    for block in found.batches(BATCH, seed=0):
        yield len(block)


def first_look(paths: list[str], folder: str) -> Iterator[int]:
    """The pass that scMamba makes once over every file: totals, detected genes, checks."""
    from scmamba.data.collection import Collection

    found = Collection(paths, cache=folder, verbose=False)
    yield 0
    yield int((found.totals >= 0).sum())


def _backed(paths: list[str]):
    import anndata as ad
    from anndata.experimental import AnnCollection

    return AnnCollection(
        [ad.read_h5ad(path, backed="r") for path in paths], join_vars="inner", join_obs="inner"
    )


def annloader(paths: list[str], folder: str) -> Iterator[int]:
    import warnings

    from anndata.experimental import AnnLoader

    warnings.simplefilter("ignore")
    loader = AnnLoader(_backed(paths), batch_size=BATCH, shuffle=True)
    yield 0
    for batch in loader:
        yield batch.X.shape[0]


def scdataset(paths: list[str], folder: str, block: int, fetch: int) -> Iterator[int]:
    from scdataset import BlockShuffling, scDataset

    strategy = BlockShuffling(block_size=block)
    cells = scDataset(
        _backed(paths),
        strategy,
        batch_size=BATCH,
        fetch_factor=fetch,
        seed=0,
        fetch_callback=lambda data, rows: data[np.asarray(rows)].X,
    )
    yield 0
    for batch in cells:
        yield batch.shape[0]


READERS = {
    "scMamba, first pass": first_look,
    "scMamba Collection.batches": scmamba,
    "scDataset, block 64, fetch 128": lambda p, f: scdataset(p, f, 64, 128),
    "scDataset, its defaults (block 8, fetch 16)": lambda p, f: scdataset(p, f, 8, 16),
    "AnnLoader on AnnCollection, backed": annloader,
}


def measure(name: str, paths: list[str], folder: str, seconds: float) -> dict:
    """One reader, in this process."""
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    reader = READERS[name](paths, folder)
    next(reader)
    started, used, cells = time.perf_counter(), time.process_time(), 0
    for number in reader:
        cells += number
        if not name.startswith("scMamba") and time.perf_counter() - started > seconds:
            break
    wall, cpu = time.perf_counter() - started, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "reader": name,
        "cells": cells,
        "seconds": wall,
        "cells_per_s": cells / wall,
        "cells_per_cpu_s": cells / cpu,
        "peak_mb": peak,
    }


def table(result: dict) -> str:
    lines = [
        f"# Reading {result['cells']:,} cells shuffled, 64 at a time",
        "",
        f"`python -m benchmarks.collection` on {result['machine']}, load {result['load']:.1f} before the first reader; {FILES} h5ad files, "
        f"{result['gigabytes']:.1f} GB, {result['values_per_cell']:,.0f} values a cell, 19,306 genes. One process each.",
        "",
        "| reader | cells read | wall s | cells/s | cells per CPU s | peak memory MB |",
        "|---|---|---|---|---|---|",
    ]
    for r in result["readers"]:
        numbers = [r["cells"], r["seconds"], r["cells_per_s"], r["cells_per_cpu_s"], r["peak_mb"]]
        lines.append(f"| {r['reader']} | " + " | ".join(f"{v:,.0f}" for v in numbers) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="How long the other readers run."
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "benchmark-collection")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        paths = [str(p) for p in sorted(given.folder.glob("part*.h5ad"))]
        print(json.dumps(measure(given.one, paths, str(given.folder), given.seconds)))
        return
    from benchmarks.machine import machine  # this file also runs by its path

    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    try:
        paths = write_files(given.folder, given.cells)
        os.sync()
        values = sum(int(h5py.File(p, "r")["X/indptr"][-1]) for p in paths)
        result = {
            "cells": given.cells,
            "machine": machine(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        }
        result |= {
            "gigabytes": sum(p.stat().st_size for p in paths) / 1e9,
            "values_per_cell": values / given.cells,
            "readers": [],
        }
        for name in READERS:
            command = [
                sys.executable,
                __file__,
                "--one",
                name,
                "--folder",
                str(given.folder),
                "--seconds",
                str(given.seconds),
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            if done.returncode:
                print(f"{name}: {done.stderr[-400:]}", file=sys.stderr)
                continue
            result["readers"].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(json.dumps(result["readers"][-1]), flush=True)
    finally:
        shutil.rmtree(given.folder, ignore_errors=True)
    (given.results / "collection.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.results / "collection.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
