"""Time and memory of each verb beside each peer, every one in a fresh process, on simulated nuclei (10,000 genes) of the cohort.

    python -m benchmarks.verbs_speed [--cells 1000 5000] [--only NAME ...] [--limit 900] [--report]

Each run reads the same .h5ad and calls one function. Seconds are those of the call, without reading and importing; CPU seconds
are what both cores spent on it. Other work on the machine inflates both (threads wait for each other), so run it alone. Memory is the
largest resident size of the process from its start (Python, packages and data included), or of R where it is R. Peers run with the
Pythons named below. A run over ``--limit`` seconds is stopped and marked. Rows are kept in ``.cache/verbs_speed``; ``--report`` makes
the tables from them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / ".cache" / "verbs_speed"
REFERENCE = 1000  # labeled cells that annotation learns from
MACHINE = "2 cores of an Intel Xeon with AVX-512/AMX, 24 GiB, CPU only"


# --- verbs and peers: (cells, reference) -> nothing; imports inside, so that each process pays for its own -----------
def impute(cells: Any, reference: Any, **options: Any) -> None:
    import scmamba

    scmamba.impute(cells, verbose=False, **options)


def embed(cells: Any, reference: Any, **options: Any) -> None:
    import scmamba

    scmamba.embed(cells, verbose=False, **options)


def annotate(cells: Any, reference: Any, finetune_steps: int = 400) -> None:
    import scmamba

    scmamba.annotate(
        cells,
        reference=reference,
        label_key="cell_type",
        finetune_steps=finetune_steps,
        cache=False,
        verbose=False,
    )


def annotate_markers(cells: Any, reference: Any) -> None:
    import scmamba

    scmamba.annotate(cells, markers="panel", verbose=False)


def doublets(cells: Any, reference: Any, **options: Any) -> None:
    import scmamba

    scmamba.find_doublets(cells, verbose=False, **options)


def magic(cells: Any, reference: Any) -> None:
    import magic as package

    package.MAGIC(verbose=0, random_state=0, n_jobs=2).fit_transform(logs(cells).X.toarray())


def scvi(cells: Any, reference: Any, latent: bool = False) -> None:
    model = trained_scvi(cells)
    _ = (
        model.get_latent_representation()
        if latent
        else model.get_normalized_expression(return_numpy=True)
    )


def solo(cells: Any, reference: Any) -> None:
    import scvi as package

    detector = package.external.SOLO.from_scvi_model(trained_scvi(cells))
    detector.train(max_epochs=100, accelerator="cpu", enable_progress_bar=False)
    detector.predict()


def trained_scvi(cells: Any) -> Any:
    import scvi as package

    package.settings.seed = 0
    cells.X = cells.X.astype(np.float32)
    package.model.SCVI.setup_anndata(cells)
    model = package.model.SCVI(cells)
    model.train(
        max_epochs=100,
        early_stopping=True,
        accelerator="cpu",
        enable_progress_bar=False,
        logger=False,
    )
    return model


def scrublet(cells: Any, reference: Any) -> None:
    import scanpy as sc

    sc.pp.scrublet(cells, random_state=0, verbose=False, threshold=0.25)


def doubletdetection(cells: Any, reference: Any) -> None:
    import doubletdetection as package

    detector = package.BoostClassifier(
        n_iters=10, clustering_algorithm="leiden", standard_scaling=True, n_jobs=2, random_state=0
    )
    detector.fit(cells.X.tocsr().astype(float))
    detector.predict(p_thresh=1e-16, voter_thresh=0.5)


def celltypist(cells: Any, reference: Any) -> None:
    import celltypist as package

    model = package.train(
        logs(reference), labels="cell_type", n_jobs=2, feature_selection=True, check_expression=True
    )
    package.annotate(logs(cells), model=model, majority_voting=False)


def logistic_regression(cells: Any, reference: Any) -> None:
    from sklearn.linear_model import LogisticRegression

    LogisticRegression(max_iter=300).fit(
        logs(reference).X, reference.obs["cell_type"].astype(str)
    ).predict(logs(cells).X)


def marker_means(cells: Any, reference: Any) -> None:
    import scanpy as sc

    from scmamba.datasets.marker_panels import brain_markers

    values = logs(cells)
    for kind, genes in brain_markers().items():
        known = [g for g in genes if g in values.var_names]
        if known:
            sc.tl.score_genes(values, known, score_name=kind)


def seurat(cells: Any, reference: Any) -> None:
    """R reads plain files; the time includes reading them, as R's own start and packages are in its memory."""
    from scipy import io, sparse

    with tempfile.TemporaryDirectory() as folder:
        for name, adata in (("reference", reference), ("query", cells)):
            io.mmwrite(f"{folder}/{name}.mtx", sparse.coo_matrix(adata.X.T, dtype=np.int64))
        pd.Series(reference.obs["cell_type"].astype(str)).to_csv(
            f"{folder}/labels.txt", index=False, header=False
        )
        subprocess.run(
            ["Rscript", str(HERE / "annotation_seurat.R"), folder, "0"],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def logs(cells: Any) -> Any:
    """log1p(CP10k), the input of these packages."""
    import scanpy as sc

    copy = cells.copy()
    copy.X = copy.X.astype(np.float32)
    sc.pp.normalize_total(copy, target_sum=1e4)
    sc.pp.log1p(copy)
    return copy


Run = tuple[str, str, Callable[..., None], dict[str, Any]]
#: Name -> verb, whose Python, function, options.
RUNS: dict[str, Run] = {
    "scMamba": ("impute", "own", impute, {}),
    "scMamba, not adapted": ("impute", "own", impute, {"adapt_steps": 0}),
    "scMamba, masked": ("impute", "own", impute, {"method": "masked", "adapt_steps": 0}),
    "MAGIC": ("impute", "peers", magic, {}),
    "scVI, 100 epochs": ("impute", "peers", scvi, {}),
    "scMamba cells": ("embed", "own", embed, {}),
    "scMamba cells, brain-base": ("embed", "own", embed, {"model": "brain-base"}),
    "scVI latent, 100 epochs": ("embed", "peers", scvi, {"latent": True}),
    "scMamba reference": ("annotate by reference", "own", annotate, {}),
    "scMamba reference, finetune_steps=0": (
        "annotate by reference",
        "own",
        annotate,
        {"finetune_steps": 0},
    ),
    "CellTypist": ("annotate by reference", "celltypist", celltypist, {}),
    "Seurat 4 label transfer": ("annotate by reference", "own", seurat, {}),
    "logistic regression": ("annotate by reference", "own", logistic_regression, {}),
    "scMamba markers": ("annotate by markers", "own", annotate_markers, {}),
    "scanpy score_genes": ("annotate by markers", "own", marker_means, {}),
    "scMamba fast": ("find_doublets", "own", doublets, {}),
    "scMamba network": ("find_doublets", "own", doublets, {"method": "network"}),
    "Scrublet": ("find_doublets", "own", scrublet, {}),
    "DoubletDetection": ("find_doublets", "peers", doubletdetection, {}),
    "SOLO": ("find_doublets", "peers", solo, {}),
}


# --- running ------------------------------------------------------------------------------------------
def data_path(cells: int) -> Path:
    return KEPT / f"cells_{cells}.h5ad"


def make_data(sizes: list[int]) -> None:
    """Nuclei of one cohort: the first are the reference, the rest the queries."""
    from scmamba.datasets import brain_cohort

    KEPT.mkdir(parents=True, exist_ok=True)
    if all(data_path(n).exists() for n in [0, *sizes]):
        return
    cohort = brain_cohort(REFERENCE + max(sizes), n_donors=8, seed=0)
    order = np.random.default_rng(0).permutation(cohort.n_obs)
    cohort[np.sort(order[:REFERENCE])].copy().write_h5ad(data_path(0))
    for n in sizes:
        cohort[np.sort(order[REFERENCE : REFERENCE + n])].copy().write_h5ad(data_path(n))


def run_one(name: str, cells: int) -> None:
    import anndata as ad

    verb, _, function, options = RUNS[name]
    query, reference = ad.read_h5ad(data_path(cells)), ad.read_h5ad(data_path(0))
    warm(name)
    started, cpu = time.perf_counter(), cpu_seconds()
    function(query, reference, **options)
    row = {
        "verb": verb,
        "who": name,
        "cells": cells,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": cpu_seconds() - cpu,
    }
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if "Seurat" in name else 0
    row["peak_mib"] = (child or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1024
    kept_path(name, cells).write_text(json.dumps(row))


def warm(name: str) -> None:
    """Import what the run needs before the clock starts."""
    import importlib

    wanted = {
        "own": ["scmamba", "scanpy"],
        "peers": ["scvi", "magic", "doubletdetection"],
        "celltypist": ["celltypist"],
    }
    who = RUNS[name][1]
    only = {"MAGIC": "magic", "DoubletDetection": "doubletdetection"}.get(name)
    if name in ("Scrublet", "scanpy score_genes", "logistic regression"):
        only = "scanpy"
    elif who == "own":
        only = "scmamba"
    elif who == "peers" and only is None:
        only = "scvi"
    for module in wanted[who] if only is None else [only]:
        importlib.import_module(module)


def cpu_seconds() -> float:
    return sum(
        getattr(resource.getrusage(who), kind)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        for kind in ("ru_utime", "ru_stime")
    )


def kept_path(name: str, cells: int) -> Path:
    return KEPT / f"{''.join(c if c.isalnum() else '_' for c in name)}__{cells}.json"


def report() -> None:
    rows = [json.loads(path.read_text()) for path in KEPT.glob("*.json")]
    table = pd.DataFrame(rows)
    place = {name: k for k, name in enumerate(RUNS)}
    table = table.sort_values(
        by=["who", "cells"], key=lambda c: c.map(place) if c.name == "who" else c, kind="stable"
    )
    table.round(1).to_csv(
        HERE / "results" / "verbs_speed.tsv", sep="\t", index=False, lineterminator="\n"
    )
    sizes = sorted(table["cells"].unique())
    head = " | ".join(f"{n:,} cells: seconds | CPU seconds | MiB" for n in sizes)
    lines = [f"| verb | who | {head} |", "|---" * (2 + 3 * len(sizes)) + "|"]
    for name, (verb, _, _, _) in RUNS.items():
        own = table[table["who"] == name].set_index("cells")
        if own.empty:
            continue
        cells = []
        for n in sizes:
            if n not in own.index:
                cells.append("not run | | ")
            elif pd.isna(own.loc[n, "peak_mib"]):
                cells.append(f"over {own.loc[n, 'seconds']:.0f}, stopped | | ")
            else:
                cells.append(
                    f"{own.loc[n, 'seconds']:.1f} | {own.loc[n, 'cpu_seconds']:.1f} | {own.loc[n, 'peak_mib']:.0f}"
                )
        lines.append(f"| {verb} | {name} | " + " | ".join(cells) + " |")
    text = "\n".join([*lines, "", f"References hold {REFERENCE:,} cells. Machine: {MACHINE}."])
    (HERE / "results" / "verbs_speed.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--only", nargs="*", default=list(RUNS))
    parser.add_argument(
        "--limit", type=float, default=900, help="seconds after which a run is stopped"
    )
    parser.add_argument(
        "--peers-python", default=str(HERE.parent / ".cache/peers/doublets/bin/python")
    )
    parser.add_argument(
        "--celltypist-python", default=str(HERE.parent / ".cache/peers/celltypist/bin/python")
    )
    parser.add_argument(
        "--one", nargs=2, metavar=("NAME", "CELLS"), help="internal: one run in this process"
    )
    parser.add_argument("--report", action="store_true", help="only make the tables")
    options = parser.parse_args()
    if options.one:
        run_one(options.one[0], int(options.one[1]))
        return
    pythons = {
        "own": sys.executable,
        "peers": options.peers_python,
        "celltypist": options.celltypist_python,
    }
    if not options.report:
        make_data(options.cells)
    for cells in [] if options.report else options.cells:
        for name in options.only:
            python = pythons[RUNS[name][1]]
            if kept_path(name, cells).exists() or not Path(python).exists():
                continue
            print(
                f"{name}, {cells} cells: {outcome(python, name, cells, options.limit)}", flush=True
            )
    report()


def outcome(python: str, name: str, cells: int, limit: float) -> str:
    call = [python, "-W", "ignore", __file__, "--one", name, str(cells)]
    # Two threads, whatever the library's own guess is; none of them may burn CPU seconds while it waits for the other.
    env = os.environ | {
        "OMP_NUM_THREADS": "2",
        "NUMBA_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=limit, env=env)
    except subprocess.TimeoutExpired:
        row = {
            "verb": RUNS[name][0],
            "who": name,
            "cells": cells,
            "seconds": limit,
            "cpu_seconds": None,
            "peak_mib": None,
        }
        kept_path(name, cells).write_text(json.dumps(row))
        return f"stopped after {limit:.0f} s"
    if done.returncode:
        return "failed: " + done.stderr.strip()[-300:]
    row = json.loads(kept_path(name, cells).read_text())
    return f"{row['seconds']:.1f} s, {row['cpu_seconds']:.1f} CPU s, {row['peak_mib']:.0f} MiB"


if __name__ == "__main__":
    main()
