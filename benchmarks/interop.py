"""Time and memory of the bridge to R on 20,000 cells x 15,000 genes with 21 million counts.

    python -m benchmarks.interop [--cells 20000 --genes 15000 --values 21000000] [--anndata2ri]

Seconds are wall-clock, next to those of the processor (other work may be running); memory is the growth of this process's peak over
its memory before the step, next to the size of the matrix in R (12 bytes a value). ``--anndata2ri`` also times anndata2ri's own converter
on the same matrix.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import psutil
from scipy import sparse

from benchmarks.machine import machine
from scmamba.interop import from_seurat, read_seurat, to_seurat
from scmamba.interop.seurat import save_rds

HERE = Path(__file__).resolve().parent


def simulate(cells: int, genes: int, values: int) -> ad.AnnData:
    """Counts with a gene-wise skew, metadata of several types."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1.5, genes)
    per_gene = np.minimum(rng.poisson(values * share / share.sum()), cells)
    per_gene = np.minimum((per_gene * values / per_gene.sum()).astype(int), cells)
    column = np.repeat(np.arange(genes, dtype=np.int32), per_gene)
    row = np.concatenate(
        [rng.choice(cells, n, replace=False, shuffle=False).astype(np.int32) for n in per_gene]
    )
    data = rng.poisson(0.7, len(row)).astype(np.int32) + 1
    counts = sparse.csr_matrix((data, (row, column)), shape=(cells, genes))
    counts.sort_indices()
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(rng.choice(list("ABCDEFGH"), cells)),
            "passed": rng.random(cells) < 0.9,
            "note": rng.choice(["x", "y"], cells).astype(object),
            "score": rng.random(cells),
        },
        index=[f"CELL{i:06d}-1" for i in range(cells)],
    )
    made = ad.AnnData(counts, obs=obs)
    made.var_names = [f"GENE{i}" for i in range(genes)]
    return made


def measured(step: Callable[[], Any]) -> tuple[Any, float, float, float]:
    """Result, seconds, processor seconds, largest growth of memory in MB (sampled every 5 ms)."""
    process, stop = psutil.Process(), threading.Event()
    before = process.memory_info().rss
    peak = [before]

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    started, worked = time.perf_counter(), time.process_time()
    try:
        result = step()
    finally:
        seconds, busy = time.perf_counter() - started, time.process_time() - worked
        stop.set()
        thread.join()
    return result, seconds, busy, (max(peak[0], process.memory_info().rss) - before) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=15_000)
    parser.add_argument("--values", type=int, default=21_000_000)
    parser.add_argument("--anndata2ri", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "interop.tsv")
    arguments = parser.parse_args()
    to_seurat(simulate(50, 60, 600), verbose=False)  # start R and load its packages
    adata = simulate(arguments.cells, arguments.genes, arguments.values)
    rows = []

    def note(name: str, step: Callable[[], Any]) -> Any:
        result, seconds, busy, memory = measured(step)
        rows.append(
            {
                "step": name,
                "seconds": round(seconds, 2),
                "processor_seconds": round(busy, 2),
                "memory_MB": round(memory),
            }
        )
        print(rows[-1], flush=True)
        return result

    seurat = note("AnnData to Seurat, live", lambda: to_seurat(adata, verbose=False))
    back = note("Seurat to AnnData, live", lambda: from_seurat(seurat, verbose=False))
    assert (back.X != adata.X).nnz == 0 and list(back.obs_names) == list(adata.obs_names)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.rds"
        note("saveRDS, not compressed", lambda: save_rds(seurat, path, compress=False))
        del back
        back = note("read_seurat, not compressed", lambda: read_seurat(path, verbose=False))
        assert (back.X != adata.X).nnz == 0
    if arguments.anndata2ri:
        note("anndata2ri: AnnData to SingleCellExperiment", lambda: theirs(adata))
    size = 12 * adata.X.nnz / 1e6
    head = [
        f"{adata.n_obs} cells x {adata.n_vars} genes, {adata.X.nnz} values: {size:.0f} MB as a dgCMatrix",
        f"{machine()}; {r_versions()}",
    ]
    arguments.out.write_text(
        "".join(f"# {line}\n" for line in head) + pd.DataFrame(rows).to_csv(sep="\t", index=False)
    )


def r_versions() -> str:
    from rpy2 import robjects

    line = 'paste0("R ", getRversion(), ", Seurat ", packageVersion("Seurat"))'
    return str(robjects.r(line)[0])


def theirs(adata: ad.AnnData) -> Any:
    import anndata2ri
    import rpy2.robjects as ro

    plain = ad.AnnData(
        adata.X.astype(np.float64), obs=adata.obs[["cell_type", "score"]], var=adata.var
    )
    with (ro.default_converter + anndata2ri.converter).context():
        ro.globalenv["theirs"] = plain
    return None


if __name__ == "__main__":
    main()
