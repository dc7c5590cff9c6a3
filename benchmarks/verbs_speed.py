"""Time and memory of each verb: this version, an earlier commit, and its peer, each in a separate process.

    python -m benchmarks.verbs_speed [--cells 1000 5000] [--only VERB ...] [--against COMMIT] [--threads N] [--repeat 3]
        [--budget 40] [--limit 600] [--peers-python PATH] [--h5ad FILE --label COLUMN] [--report]

Cells are simulated nuclei (``scmamba.datasets.brain_cohort``, 10,000 genes), or those of ``--h5ad``. A process reads its cells, calls
the verb once on 200 of them, so that imports and compiling are excluded, and then on all of them up to ``--repeat`` times, as long as
the calls together took less than ``--budget`` seconds; the median counts. Seconds are those on the clock, CPU seconds those that all
threads spent, memory is the largest resident size of the process from its start. ``--against 3916bff`` runs the code of that commit in
a worktree beside. Peers run where they are installed, in this Python or in ``--peers-python``; otherwise the row says so.

Rows are kept in ``.cache/verbs_speed`` with the load of the machine before and after; a row that exists is not measured again.
``--report`` only writes ``results/verbs_speed.tsv`` and ``.md``. The floor of a verb is what one more call spends inside the
network's matrix products and selective scans, the work that no other program order avoids.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.machine import peak_memory

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEPT = ROOT / ".cache" / "verbs_speed"
REFERENCE = 1000  # labeled cells of the reference
WARM = 200  # cells of the first call
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


# --- verbs, of this version and of 0.1.0 ------------------------------------------------------------------------------
def is_former() -> bool:
    """Whether this is the code of 0.1.0, in which some functions and options had other names."""
    import scmamba

    return not hasattr(scmamba, "find_doublets")


def impute(cells: Any, reference: Any) -> None:
    import scmamba

    scmamba.impute(cells, verbose=False)


def embed(cells: Any, reference: Any) -> None:
    import scmamba

    scmamba.embed(cells, verbose=False)


def annotate_reference(cells: Any, reference: Any) -> None:
    import scmamba

    key = "labels" if is_former() else "label_key"
    scmamba.annotate(cells, reference=reference, cache=False, verbose=False, **{key: "cell_type"})


def annotate_reference_without_network(cells: Any, reference: Any) -> None:
    import scmamba

    options = (
        {"labels": "cell_type", "network": False}
        if is_former()
        else {"label_key": "cell_type", "finetune_steps": 0}
    )
    scmamba.annotate(cells, reference=reference, cache=False, verbose=False, **options)


def annotate_markers(cells: Any, reference: Any) -> None:
    import scmamba

    scmamba.annotate(cells, markers="panel", verbose=False)


def doublets(cells: Any, reference: Any) -> None:
    import scmamba

    find = scmamba.detect_doublets if is_former() else scmamba.find_doublets
    find(cells, verbose=False)


def markers(cells: Any, reference: Any, covariates: str | None = None) -> None:
    from scmamba import deg

    options = {"latent_vars" if is_former() else "covariates": covariates}
    deg.find_markers(cells, "half", "a", "b", **options)


def markers_wilcoxon(cells: Any, reference: Any) -> None:
    from scmamba import deg

    deg.find_markers(cells, "half", "a", "b", test="wilcox", min_pct=0, logfc_threshold=0)


def markers_donors(cells: Any, reference: Any) -> None:
    markers(cells, reference, "nineteen")


# --- peers ------------------------------------------------------------------------------------------------------------
def magic(cells: Any, reference: Any) -> None:
    import magic as package

    package.MAGIC(verbose=0, random_state=0, n_jobs=os.cpu_count()).fit_transform(
        logs(cells).X.toarray()
    )


def scrublet(cells: Any, reference: Any) -> None:
    import scanpy as sc

    sc.pp.scrublet(cells, random_state=0, verbose=False, threshold=0.25)


def celltypist(cells: Any, reference: Any) -> None:
    import celltypist as package

    model = package.train(
        logs(reference),
        labels="cell_type",
        n_jobs=os.cpu_count(),
        feature_selection=True,
        check_expression=True,
    )
    package.annotate(logs(cells), model=model, majority_voting=False)


def score_genes(cells: Any, reference: Any) -> None:
    import scanpy as sc

    from scmamba.datasets.marker_panels import brain_markers

    values = logs(cells)
    for kind, genes in brain_markers().items():
        known = [g for g in genes if g in values.var_names]
        if known:
            sc.tl.score_genes(values, known, score_name=kind)


def rank_genes(cells: Any, reference: Any) -> None:
    import scanpy as sc

    values = logs(cells)
    values.obs["half"] = values.obs["half"].astype("category")
    sc.tl.rank_genes_groups(values, "half", groups=["a"], reference="b", method="wilcoxon")


def illico(cells: Any, reference: Any) -> None:
    import illico as package

    threads = int(os.environ.get("NUMBA_NUM_THREADS", 0)) or len(os.sched_getaffinity(0))
    package.asymptotic_wilcoxon(
        logs(cells), is_log1p=True, group_keys="half", reference="b", n_threads=threads
    )


def logs(cells: Any) -> Any:
    """log1p(CP10k), the input of these packages."""
    import scanpy as sc

    copy = cells.copy()
    copy.X = copy.X.astype(np.float32)
    sc.pp.normalize_total(copy, target_sum=1e4)
    sc.pp.log1p(copy)
    return copy


Function = Callable[[Any, Any], None]
#: Verb -> its function, and name, module and function of its peer.
VERBS: dict[str, tuple[Function, tuple[str, str, Function] | None]] = {
    "impute": (impute, ("MAGIC", "magic", magic)),
    "embed": (embed, None),
    "annotate by a reference": (annotate_reference, ("CellTypist", "celltypist", celltypist)),
    "annotate by a reference, no network": (annotate_reference_without_network, None),
    "annotate by markers": (annotate_markers, ("scanpy score_genes", "scanpy", score_genes)),
    "find_doublets": (doublets, ("Scrublet", "scanpy", scrublet)),
    "find_markers": (markers, ("scanpy wilcoxon", "scanpy", rank_genes)),
    "find_markers, 19 donors as covariate": (markers_donors, None),
    "find_markers, rank sums": (markers_wilcoxon, ("illico", "illico", illico)),
}
DISTRIBUTIONS = {"magic": "magic-impute"}


# --- one process ------------------------------------------------------------------------------------------------------
def data_path(cells: int) -> Path:
    return KEPT / f"cells_{cells}.h5ad"


def make_data(sizes: list[int], h5ad: str | None, label: str) -> None:
    """The first cells are the reference, the others the queries; groups and donors of the tests are drawn."""
    import anndata as ad

    from scmamba.datasets import brain_cohort

    KEPT.mkdir(parents=True, exist_ok=True)
    if all(data_path(n).exists() for n in [0, *sizes]):
        return
    if h5ad is None:
        cohort = brain_cohort(REFERENCE + max(sizes), n_donors=8, seed=0)
    else:
        cohort = ad.read_h5ad(h5ad)
        cohort.obs["cell_type"] = cohort.obs[label].astype(str)
    rng = np.random.default_rng(0)
    order = rng.permutation(cohort.n_obs)
    types = cohort.obs["cell_type"].astype(str)
    cohort.obs["half"] = np.where(types.isin(sorted(set(types))[::2]), "a", "b")
    cohort.obs["nineteen"] = [f"d{k}" for k in rng.integers(0, 19, cohort.n_obs)]
    for n, rows in [(0, order[:REFERENCE]), *((n, order[REFERENCE:][:n]) for n in sizes)]:
        cohort[np.sort(rows)].copy().write_h5ad(data_path(n))


def run_one(verb: str, who: str, cells: int, repeat: int, budget: float) -> dict[str, Any]:
    """Measure in this process."""
    import anndata as ad

    own, peer = VERBS[verb]
    if who == "peer":
        assert peer is not None
        own = peer[2]
    query, reference = ad.read_h5ad(data_path(cells)), ad.read_h5ad(data_path(0))
    step = max(1, query.n_obs // WARM)
    own(query[::step].copy(), reference[: 2 * WARM].copy())
    seconds, cpu = [], []
    while len(seconds) < repeat and sum(seconds) < budget:
        copy = query.copy()
        start, spent = time.perf_counter(), time.process_time()
        own(copy, reference)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - spent)
    peak = peak_memory()  # before the floor is measured
    floor = floor_of(own, query, reference) if who == "here" else None
    return {
        "verb": verb,
        "runs": len(seconds),
        "seconds": statistics.median(seconds),
        "cpu_seconds": statistics.median(cpu),
        "peak_mib": peak,
        "floor_seconds": floor,
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0)),
    }


def floor_of(verb: Function, cells: Any, reference: Any) -> float:
    """CPU seconds of one more call that go into the network's matrix products and selective scans; 0 without a network."""
    from scmamba.nn import bimamba

    spent, names = [0.0], ("linear", "selective_scan")
    former = {name: getattr(bimamba, name) for name in names}

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            start = time.process_time()
            result = function(*given, **options)
            spent[0] += time.process_time() - start
            return result

        return call

    try:
        for name in names:
            setattr(bimamba, name, timed(former[name]))
        verb(cells.copy(), reference)
    finally:
        for name in names:
            setattr(bimamba, name, former[name])
    return spent[0]


# --- all of them ------------------------------------------------------------------------------------------------------
def source_of(commit: str) -> Path:
    """The Python code of a commit, in a separate worktree."""
    folder = KEPT / f"code_{commit}"
    if not folder.exists():
        command = ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(folder), commit]
        subprocess.run(command, check=True, capture_output=True)
    return folder / "python"


def kept_path(verb: str, who: str, cells: int, threads: int) -> Path:
    name = "".join(c if c.isalnum() else "_" for c in f"{verb} {who}")
    return KEPT / f"{name}__{cells}__{threads}.json"


def measure(verb: str, who: str, cells: int, options: argparse.Namespace) -> None:
    """One row in a separate process, unless it was measured before."""
    path = kept_path(verb, who, cells, options.threads)
    if path.exists():
        return
    python, code = sys.executable, ROOT / "python"
    if who == "peer":
        python = options.peers_python or python
        module = VERBS[verb][1][1]  # type: ignore[index]
        found = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
        if found.returncode:
            print(f"{verb}, {VERBS[verb][1][0]}: not installed", flush=True)  # type: ignore[index]
            return
    elif who != "here":
        code = source_of(who)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(code), str(ROOT)])}
    if options.threads:
        environment |= dict.fromkeys(POOLS, str(options.threads))
    command = [python, "-W", "ignore", "-m", "benchmarks.verbs_speed", "--one", verb, who]
    command += [str(cells), str(options.repeat), str(options.budget)]
    load = os.getloadavg()[0]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=options.limit,
            env=environment,
            cwd=KEPT,
        )
    except subprocess.TimeoutExpired:
        row: dict[str, Any] = {"verb": verb, "runs": 0, "seconds": options.limit}
    else:
        if done.returncode:
            print(f"{verb}, {who}, {cells}: failed: {done.stderr.strip()[-400:]}", flush=True)
            return
        row = json.loads(done.stdout.splitlines()[-1])
    row |= {"who": who, "cells": cells, "load_before": load, "load_after": os.getloadavg()[0]}
    path.write_text(json.dumps(row))
    print(f"{verb}, {who}, {cells}: {row}", flush=True)


def kept_rows() -> pd.DataFrame:
    rows = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*__*.json"))]
    table = pd.DataFrame(rows)
    place = {verb: k for k, verb in enumerate(VERBS)}
    table["place"] = table["verb"].map(place)
    table = table.dropna(subset="place").sort_values(["place", "cells", "threads", "who"])
    return table.drop(columns="place").reset_index(drop=True)


def summarize(table: pd.DataFrame) -> str:
    """A Markdown table: one line for each verb, number of cells and number of threads."""
    former = [w for w in table["who"].unique() if w not in ("here", "peer")]
    head = ["verb", "cells", "threads", "here: s", "CPU s", "MiB", "floor: CPU s"]
    for commit in former:
        head += [f"{commit}: s", "CPU s", "MiB", f"{commit} / here"]
    head += ["peer", "peer: s", "CPU s", "MiB", "here / peer"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (verb, cells, threads), part in table.groupby(["verb", "cells", "threads"], sort=False):
        own = {row["who"]: row for _, row in part.iterrows()}
        here, peer = own.get("here"), VERBS[verb][1]
        line = [verb, f"{cells:,}", f"{threads:.0f}", *_figures(here), _floor(here)]
        for commit in former:
            line += [*_figures(own.get(commit)), _ratio(own.get(commit), here)]
        line.append("none" if peer is None else peer[0])
        line += [*_figures(own.get("peer"), peer is not None), _ratio(here, own.get("peer"))]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def _figures(row: Any, expected: bool = True) -> list[str]:
    if row is None:
        return ["not run" if expected else "", "", ""]
    if not row["runs"]:
        return [f"over {row['seconds']:.0f}", "", ""]
    return [f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['peak_mib']:.0f}"]


def _floor(row: Any) -> str:
    found = None if row is None else row.get("floor_seconds")
    return "" if found is None or np.isnan(found) else f"{found:.2f}" if found else "no network"


def _ratio(above: Any, below: Any) -> str:
    """Ratio of CPU seconds, which depend least on other load."""
    if above is None or below is None or not above["runs"] or not below["runs"]:
        return ""
    return f"{above['cpu_seconds'] / below['cpu_seconds']:.1f}"


def machine() -> str:
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(names)} x {names[0]}, {memory:.0f} GiB"


def report() -> None:
    table = kept_rows()
    places = HERE / "results"
    table.round(3).to_csv(places / "verbs_speed.tsv", sep="\t", index=False, lineterminator="\n")
    load = table[["load_before", "load_after"]].to_numpy()
    text = [
        "Made by `benchmarks/verbs_speed.py`. Medians of up to three calls in a warm process; ratios are of CPU seconds. Simulated",
        f"nuclei of 10,000 genes; annotation learns from {REFERENCE:,}. Machine: {machine()}; load (1 minute) between",
        f"{load.min():.1f} and {load.max():.1f} while it ran.",
        "",
        summarize(table),
    ]
    (places / "verbs_speed.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, nargs="*", default=[1000, 5000])
    parser.add_argument("--only", nargs="*", default=list(VERBS), help="verbs")
    parser.add_argument("--who", nargs="*", default=["here", "commit", "peer"])
    parser.add_argument("--against", help="a commit to run beside")
    parser.add_argument("--threads", type=int, default=0, help="of each pool; 0: as they come")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--budget", type=float, default=40, help="seconds; no further call after")
    parser.add_argument("--limit", type=float, default=600, help="seconds of a process")
    parser.add_argument("--peers-python", help="a Python with MAGIC and CellTypist")
    parser.add_argument("--h5ad", help="real cells with raw counts")
    parser.add_argument("--label", default="cell_type", help="column of its types")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if options.one:
        verb, who, cells, repeat, budget = options.one
        print(json.dumps(run_one(verb, who, int(cells), int(repeat), float(budget))))
        return
    if not options.report:
        make_data(options.cells, options.h5ad, options.label)
        for cells in options.cells:
            for verb in options.only:
                if "here" in options.who:
                    measure(verb, "here", cells, options)
                if options.against and "commit" in options.who:
                    measure(verb, options.against, cells, options)
                if VERBS[verb][1] is not None and "peer" in options.who:
                    measure(verb, "peer", cells, options)
    report()


if __name__ == "__main__":
    main()
