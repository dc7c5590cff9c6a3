"""Speed and memory of the DEG tests on simulated data, every part in its own process.

    python -m benchmarks.deg [--parts small covariate permutations large seurat] [--out benchmarks/results]

``small``         2,000 cells x 3,000 genes, two groups: zlm + LRT, and find_markers as Seurat 4 and 5
``covariate``     10,000 x 3,000 with a continuous covariate: zlm + LRT
``permutations``  robustness: 100 subsamples at 50% of 4,000 cells x 15,000 genes, raw and a full imputed
layer ``large``         find_markers on 25,000, 50,000 and 100,000 cells x 19,306 genes of sparse counts
``seurat``        Seurat's own FindMarkers with the Wilcoxon and t tests on the data of ``small`` (needs R
with
                  Seurat): a check on the machine, since the R figures below come from another one

Compiled loops are warmed up on a small input first; what that costs once is reported as ``compile``. R's
figures for MAST (one core of an AMD EPYC, MAST 1.32.0, Seurat 4.3.0 and 5.1.0) were recorded once, on another
machine. Writes ``deg_speed.json`` and puts the table into ``docs/deg.md`` between its two markers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.io as sio
import scipy.sparse as sp

HERE = Path(__file__).resolve().parent
R_SECONDS = {
    "zlm + LRT, 2,000 x 3,000": 37.0,
    "find_markers Seurat 4, 2,000 x 3,000": 14.0,
    "find_markers Seurat 5, 2,000 x 3,000": 32.0,
    "zlm + LRT with a covariate, 10,000 x 3,000": 95.0,
}


def simulate(
    cells: int, genes: int, nonzero: float, seed: int = 0, block: int = 2000
) -> ad.AnnData:
    """Negative-binomial counts with about the given share of non-zeros, two groups, a covariate, 10 donors."""
    rng = np.random.default_rng(seed)
    level = np.exp(rng.normal(0, 1.5, genes))
    # Scale the mean so that the share of non-zeros, 1 - (1 + mean)^-1 at size 1, has the given average.
    low, high = 1e-4, 1e3
    for _ in range(60):
        middle = np.sqrt(low * high)
        low, high = (
            (middle, high) if (1 - 1 / (1 + middle * level)).mean() < nonzero else (low, middle)
        )
    level *= low
    group = np.arange(cells) % 2
    effect = np.where(rng.random(genes) < 0.1, np.exp(rng.normal(0, 0.5, genes)), 1.0)
    parts = []
    for start in range(0, cells, block):
        here = group[start : start + block]
        depth = np.exp(rng.normal(0, 0.3, here.size))[:, None]
        mean = depth * level * np.where(here[:, None] == 1, effect, 1.0)
        parts.append(
            sp.csr_matrix(rng.poisson(mean * rng.standard_exponential(mean.shape)).astype(np.int32))
        )
    donor = rng.integers(0, 5, cells) + 5 * group
    obs = pd.DataFrame(
        {
            "group": pd.Categorical(np.where(group == 1, "B", "A")),
            "donor": [f"d{d}" for d in donor],
            "covariate": rng.normal(size=cells),
        },
        index=[f"c{i}" for i in range(cells)],
    )
    return ad.AnnData(
        sp.vstack(parts, format="csr"),
        obs=obs,
        var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]),
    )


def filled_layer(adata: ad.AnnData, seed: int = 1) -> sp.csr_matrix:
    """A substitute for an imputed layer, the worst case for memory: a positive value at every zero."""
    rng = np.random.default_rng(seed)
    totals = np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel()
    parts = []
    for start in range(0, adata.n_obs, 500):
        counts = adata.X[start : start + 500].toarray()
        logs = np.log1p(counts / totals[start : start + 500, None] * 1e4)
        parts.append(
            sp.csr_matrix(
                np.where(counts > 0, logs, rng.gamma(2, 0.1, counts.shape)).astype(np.float32)
            )
        )
    return sp.vstack(parts, format="csr")


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(work: Any, repeats: int) -> tuple[float, float]:
    """Shortest wall time and its processor time (other load on the machine only increases them)."""
    best = (np.inf, np.inf)
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    return best


def part_small() -> list[dict[str, Any]]:
    from scmamba.deg import find_markers, zlm

    adata = simulate(2000, 3000, 0.26)
    rows = []
    jobs = {
        "zlm + LRT, 2,000 x 3,000": lambda: zlm(adata, "~ group").lrt("group"),
        "find_markers Seurat 4, 2,000 x 3,000": lambda: find_markers(
            adata, "group", "B", "A", seurat="4"
        ),
        "find_markers Seurat 5, 2,000 x 3,000": lambda: find_markers(adata, "group", "B", "A"),
    }
    for name, job in jobs.items():
        first = time.perf_counter()
        job()
        first = time.perf_counter() - first
        wall, cpu = timed(job, 5)
        rows.append(
            {"what": name, "seconds": wall, "cpu_seconds": cpu, "compile": max(0.0, first - wall)}
        )
    return rows


def part_covariate() -> list[dict[str, Any]]:
    from scmamba.deg import zlm

    small = simulate(300, 50, 0.26)
    adata = simulate(10_000, 3000, 0.26)
    first = time.perf_counter()
    zlm(small, "~ group + covariate").lrt("group")
    first = time.perf_counter() - first
    wall, cpu = timed(lambda: zlm(adata, "~ group + covariate").lrt("group"), 3)
    return [
        {
            "what": "zlm + LRT with a covariate, 10,000 x 3,000",
            "seconds": wall,
            "cpu_seconds": cpu,
            "compile": first,
        }
    ]


def part_permutations() -> list[dict[str, Any]]:
    from scmamba.deg import robustness

    adata = simulate(4000, 15_000, 0.10)
    adata.layers["scmamba"] = filled_layer(adata)
    before = peak_gb()
    small = adata[:200, :300].copy()
    options: dict[str, Any] = {
        "group1": "B",
        "group2": "A",
        "ratios": (0.5,),
        "donors": None,
        "verbose": False,
    }
    robustness(small, "group", permutations=2, null_permutations=0, min_degs=1, **options)
    wall, cpu = timed(
        lambda: robustness(adata, "group", permutations=100, null_permutations=0, **options), 1
    )
    name = "robustness, 100 subsamples at 50% of 4,000 x 15,000, raw and imputed"
    return [{"what": name, "seconds": wall, "cpu_seconds": cpu, "data_gb": before}]


def part_large() -> list[dict[str, Any]]:
    from scmamba.deg import find_markers

    rows = []
    find_markers(simulate(300, 200, 0.1), "group", "B", "A")
    base = simulate(12_500, 19_306, 0.08)
    for times in (
        2,
        4,
        8,
    ):  # the same cells repeatedly: only their number matters here
        cells = times * base.n_obs
        obs = pd.concat([base.obs] * times, ignore_index=True)
        obs.index = obs.index.astype(str)
        adata = ad.AnnData(sp.vstack([base.X] * times, format="csr"), obs=obs, var=base.var)
        held = (adata.X.data.nbytes + adata.X.indices.nbytes) / 2**30
        wall, cpu = timed(lambda a=adata: find_markers(a, "group", "B", "A"), 1)
        name = f"find_markers Seurat 5, {cells:,} x 19,306, counts"
        rows.append(
            {
                "what": name,
                "seconds": wall,
                "cpu_seconds": cpu,
                "data_gb": held,
                "peak_gb": peak_gb(),
            }
        )
        del adata
    return rows


R_CODE = """
suppressMessages(library(Seurat)); folder <- commandArgs(TRUE)[1]
m <- as(Matrix::readMM(file.path(folder, "counts.mtx")), "dgCMatrix")
dimnames(m) <- list(paste0("g", seq_len(nrow(m))), paste0("c", seq_len(ncol(m))))
s <- NormalizeData(CreateSeuratObject(m), verbose = FALSE)
Idents(s) <- ifelse(seq_len(ncol(m)) %% 2 == 0, "B", "A")
for (test in c("wilcox", "t")) {
  t <- system.time(r <- FindMarkers(s, ident.1 = "B", ident.2 = "A", test.use = test, verbose = FALSE))
  cat("SECONDS", test, t[["elapsed"]], nrow(r), "\\n")
}
"""


def part_seurat() -> list[dict[str, Any]]:
    if shutil.which("Rscript") is None:
        return []
    adata = simulate(2000, 3000, 0.26)
    with tempfile.TemporaryDirectory() as folder:
        sio.mmwrite(Path(folder) / "counts.mtx", adata.X.T.tocoo())
        (Path(folder) / "run.R").write_text(R_CODE)
        done = subprocess.run(
            ["Rscript", str(Path(folder) / "run.R"), folder],
            capture_output=True,
            text=True,
            check=False,
        )
    rows = []
    for line in done.stdout.splitlines():
        if line.startswith("SECONDS"):
            _, test, seconds, genes = line.split()
            name = f"Seurat's FindMarkers, {test} (R, this machine), 2,000 x 3,000"
            rows.append({"what": name, "seconds": float(seconds), "genes_tested": int(genes)})
    return rows or [{"what": "Seurat's FindMarkers", "error": done.stderr.strip()[-200:]}]


PARTS = {
    "small": part_small,
    "covariate": part_covariate,
    "permutations": part_permutations,
    "large": part_large,
    "seurat": part_seurat,
}


def run_part(name: str) -> list[dict[str, Any]]:
    """One part in a separate process, so that its peak memory is its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--inside", name], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table."""
    lines = [
        "| what | seconds | processor seconds | MAST/Seurat in R | times faster | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            continue
        reference = R_SECONDS.get(row["what"])
        cells = [
            row["what"],
            f"{row['seconds']:.2f}" if row["seconds"] < 10 else f"{row['seconds']:.0f}",
            f"{row['cpu_seconds']:.2f}" if "cpu_seconds" in row else "",
            f"{reference:.0f} s" if reference else "",
            f"{reference / row['seconds']:.0f}" if reference else "",
            f"{row['peak_gb']:.1f} GB" if "peak_gb" in row else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_docs(text: str) -> None:
    """Put the table between the markers of docs/deg.md."""
    page = HERE.parent / "docs" / "deg.md"
    if not page.exists():
        return
    head, rest = page.read_text().split("<!-- speed -->\n", 1)
    tail = rest.split("<!-- /speed -->", 1)[1]
    page.write_text(f"{head}<!-- speed -->\n{text}\n<!-- /speed -->{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--inside", choices=list(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        rows = PARTS[args.inside]()
        for row in rows:
            if "cpu_seconds" in row:
                row.setdefault("peak_gb", peak_gb())
        print(json.dumps(rows))
        return
    from benchmarks.machine import machine  # this file also runs by its path

    rows = []
    load = os.getloadavg()[0]
    for name in args.parts:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += run_part(name)
    result = {
        "machine": machine(),
        "load_at_start": load,
        "rows": rows,
        "r_reference_seconds": R_SECONDS,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "deg_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    text = (
        table(rows) + f"\n\nMachine: {result['machine']}; load average when it started {load:.1f}."
    )
    write_docs(text)
    print(text)


if __name__ == "__main__":
    main()
