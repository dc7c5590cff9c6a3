"""Tests between donors against edgeR, limma-voom and DESeq2: false positives, power, replication.

    python -m benchmarks.donor_tests --data FOLDER -o benchmarks/results

``--data`` is a folder with ``kang2018_ctrl_8donors_1287genes.h5ad``, ``kang2018_ifnb_8donors_2cond.h5ad`` and
``velmeshev2019_pfc_3types.h5ad`` (raw counts; without it only the simulated cohorts run). The peers need R with edgeR, limma
and DESeq2 (Debian: r-bioc-edger r-bioc-limma r-bioc-deseq2). All tests see the same sums of the same cells; every test
filters genes as its manual recommends.

* Null: control donors split in halves, each split once, in random order. Share of genes with p < .05, and of runs with a
  call at FDR 5%. The prior of the quasi-likelihood test was chosen on Kang's donors and on simulated cohorts of seeds 300 and
  301; Velmeshev's donors and the cohorts here (seeds from 100) had no part in it.
* Power: simulated cohorts with known effects (``brain_cohort``). True genes called at FDR 5%, what share of the calls is
  false, and how many true genes are ranked before 5% of the list is false ("at real FDR 5%"), which compares rankings.
* Replication: Kang's donors in two halves, stimulated against control. Share of the calls of one half that the other has.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import scmamba
from scmamba.deg import compare

OURS = ("quasi_likelihood", "voom", "moderated_t", "mixed")
PEERS = ("edgeR", "limma_voom", "DESeq2")
ALPHA = 0.05
#: Cell types of the simulated cohorts: from many to few cells per donor.
SIMULATED = ("Oligodendrocyte", "Astrocyte", "Microglia", "Endothelial", "Excitatory", "OPC")


class Task:
    """One comparison of one cell type: written for R, tested here."""

    def __init__(self, name: str, cells: ad.AnnData, kind: str, slow: bool = True, **about) -> None:
        """``cells.obs`` has ``donor`` and ``group`` (a, b); with ``slow`` the peers and the mixed model run too."""
        self.name, self.cells, self.kind, self.about, self.slow = name, cells, kind, about, slow
        self.results: dict[str, pd.DataFrame] = {}
        self.seconds: dict[str, float] = {}

    def run_here(self) -> bool:
        for test in OURS if self.slow else OURS[:3]:
            start = time.perf_counter()
            try:
                found = compare(
                    self.cells,
                    "group",
                    "donor",
                    group1="a",
                    group2="b",
                    test=test,
                    paired=False,
                    verbose=False,
                )
            except scmamba.utils.errors.DataError:
                return False
            self.seconds[test] = time.perf_counter() - start
            table = found.table.set_index("gene")
            self.results[test] = table[["p_val", "p_val_adj"]].set_axis(["p", "fdr"], axis=1)
        self.samples = found.samples["all cells"]
        if not self.slow:
            self.cells = None  # many splits: release their cells
        return True

    def write(self, folder: Path) -> None:
        keys = self.cells.obs["group"].astype(str) + "_" + self.cells.obs["donor"].astype(str)
        wanted = [
            ("a" if g == 0 else "b") + "_" + d
            for g, d in zip(self.samples["group"], self.samples["donor"])
        ]
        code = pd.Categorical(keys, categories=wanted).codes
        sums = np.stack(
            [np.asarray(self.cells.X[code == i].sum(axis=0)).ravel() for i in range(len(wanted))],
            axis=1,
        )
        table = pd.DataFrame(sums.astype(int), index=self.cells.var_names, columns=wanted)
        table[table.sum(axis=1) > 0].to_csv(folder / f"{self.name}.counts.tsv", sep="\t")
        pd.DataFrame({"group": [w[0] for w in wanted]}, index=wanted).to_csv(
            folder / f"{self.name}.design.tsv", sep="\t"
        )

    def read(self, folder: Path) -> None:
        path = folder / f"{self.name}.peers.tsv"
        if not path.exists():
            return
        table = pd.read_csv(path, sep="\t", index_col=0)
        seconds = pd.read_csv(folder / f"{self.name}.time.tsv", sep="\t")
        for peer in PEERS:
            self.results[peer] = (
                table[[f"{peer}.p", f"{peer}.fdr"]]
                .set_axis(["p", "fdr"], axis=1)
                .dropna(subset=["p"])
            )
            self.seconds[peer] = float(seconds[peer].iloc[0])

    def rows(self) -> list[dict]:
        first = int((self.samples["group"] == 0).sum())
        head = {
            "kind": self.kind,
            "task": self.name,
            "donors1": first,
            "donors2": len(self.samples) - first,
        }
        head["cells_per_donor"] = float(self.samples["cells"].median())
        out = []
        for test, table in self.results.items():
            row = (
                head
                | self.about_plain()
                | {"test": test, "seconds": self.seconds.get(test, np.nan)}
            )
            called = table["fdr"].fillna(1) < ALPHA
            row |= {
                "tested": len(table),
                "called": int(called.sum()),
                "p05": float((table["p"] < 0.05).mean()),
            }
            row["p001"] = float((table["p"] < 0.001).mean())
            truth = self.about.get("truth")
            if truth is not None:
                real = truth.reindex(table.index).to_numpy() != 0
                order = np.argsort(table["p"].to_numpy(), kind="stable")
                false_share = np.cumsum(~real[order]) / np.arange(1, real.size + 1)
                within = np.flatnonzero(false_share <= ALPHA)
                row["true_called"] = int((called.to_numpy() & real).sum())
                row["false_called"] = int((called.to_numpy() & ~real).sum())
                row["true_at_real_fdr"] = (
                    int(real[order][: within[-1] + 1].sum()) if within.size else 0
                )
                row["null_p05"] = float((table["p"].to_numpy()[~real] < 0.05).mean())
            out.append(row)
        return out

    def about_plain(self) -> dict:
        return {k: v for k, v in self.about.items() if k != "truth"}


def _split(cells: ad.AnnData, donors: list[str], first: tuple[str, ...]) -> ad.AnnData:
    part = cells[cells.obs["donor"].isin(donors)].copy()
    part.obs["group"] = np.where(part.obs["donor"].isin(first), "a", "b")
    return part


def null_tasks(data: Path, runs: int, slow: int) -> Iterator[Task]:
    """Donors of one condition of one study, split in halves."""
    for file, column, value, types in (
        ("kang2018_ctrl_8donors_1287genes.h5ad", None, None, 4),
        ("velmeshev2019_pfc_3types.h5ad", "diagnosis", "Control", 3),
        ("velmeshev2019_pfc_3types.h5ad", "diagnosis", "ASD", 3),
    ):
        whole = _load(data / file, column, value)
        for kind in whole.obs["type"].value_counts().index[:types]:
            cells = whole[whole.obs["type"] == kind].copy()
            count = cells.obs["donor"].value_counts()
            donors = sorted(count.index[count >= 10])
            half = len(donors) // 2
            if half < 3:
                continue
            rng = np.random.default_rng(1)
            every = list(itertools.combinations(donors, half))
            if len(donors) % 2 == 0:  # the other half gives the same split
                every = [c for c in every if donors[0] in c]
            study = file.split("2")[0] + (f" {value}" if value else "")
            for n, i in enumerate(rng.permutation(len(every))[:runs]):
                name = f"null_{study}_{kind}_{i}".replace(" ", "-").replace("/", "-")
                part = _split(cells, donors, every[i])
                yield Task(name, part, "null", n < slow, study=study, type=str(kind))


def _load(path: Path, column: str | None, value: str | None) -> ad.AnnData:
    whole = ad.read_h5ad(path)
    obs = whole.obs
    if "demuxlet_call" in obs:
        whole = whole[obs["demuxlet_call"] == "SNG"].copy()
        obs = whole.obs
    if column is not None:
        name = column if column in obs else next(c for c in obs if value in set(obs[c].astype(str)))
        whole = whole[obs[name].astype(str) == value].copy()
        obs = whole.obs
    donor = next(c for c in ("donor", "ind", "individual", "sample", "donor_id") if c in obs)
    label = next(c for c in ("cell_type", "cell", "celltype", "type", "cluster") if c in obs)
    whole.obs["donor"], whole.obs["type"] = obs[donor].astype(str), obs[label].astype(str)
    whole.var_names_make_unique()
    return whole


def power_tasks(seeds: int, n_genes: int, n_types: int) -> list[Task]:
    """Simulated cohorts; types of different abundance, so different numbers of cells per donor."""
    tasks = []
    for each, per_donor in ((6, 700), (10, 700), (20, 500)):
        for seed in range(seeds):
            cohort = scmamba.datasets.brain_cohort(
                n_cells=2 * each * per_donor, n_donors=2 * each, n_genes=n_genes, seed=100 + seed
            )
            for kind in SIMULATED[:n_types]:
                cells = cohort[cohort.obs["cell_type"] == kind].copy()
                cells.obs["group"] = np.where(cells.obs["disease"] == "AD", "a", "b")
                truth = cohort.varm["true_log2fc"][kind]
                tasks.append(
                    Task(
                        f"power_{each}_{seed}_{kind}",
                        cells,
                        "power",
                        size=f"{each}v{each}",
                        type=kind,
                        truth=truth,
                    )
                )
    return tasks


def replication_tasks(data: Path, splits: int) -> list[Task]:
    """Kang: stimulated against control in each half of the donors."""
    whole = _load(data / "kang2018_ifnb_8donors_2cond.h5ad", None, None)
    column = next(c for c in ("condition", "stim", "group_id", "group") if c in whole.obs)
    whole.obs["group"] = np.where(whole.obs[column].astype(str).str.startswith("stim"), "a", "b")
    donors = sorted(whole.obs["donor"].unique())
    tasks = []
    for kind in whole.obs["type"].value_counts().index[:4]:
        cells = whole[whole.obs["type"] == kind].copy()
        halves = [c for c in itertools.combinations(donors, 4) if donors[0] in c][:: 35 // splits][
            :splits
        ]
        for i, half in enumerate(halves):
            for side, chosen in (("first", half), ("second", [d for d in donors if d not in half])):
                part = cells[cells.obs["donor"].isin(chosen)].copy()
                name = f"halves_{kind}_{i}_{side}".replace(" ", "-").replace("+", "")
                tasks.append(Task(name, part, "halves", type=str(kind), split=i, side=side))
    return tasks


def replication(tasks: list[Task]) -> pd.DataFrame:
    """Share of one half's calls that the other half has, mean over both directions."""
    rows = []
    done = {(t.about["type"], t.about["split"], t.about["side"]): t for t in tasks if t.results}
    for (kind, split, side), one in done.items():
        other = done.get((kind, split, "second" if side == "first" else "first"))
        if other is None:
            continue
        for test in one.results:
            a, b = one.results[test], other.results[test]
            mine = a.index[a["fdr"].fillna(1) < ALPHA]
            theirs = set(b.index[b["fdr"].fillna(1) < ALPHA])
            rows.append(
                {
                    "type": kind,
                    "test": test,
                    "called": len(mine),
                    "again": sum(g in theirs for g in mine),
                }
            )
    return pd.DataFrame(rows)


def null_summary(null: pd.DataFrame) -> pd.DataFrame:
    """The splits of every study and test, all cell types together."""
    table = null.groupby(["study", "test"]).agg(
        runs=("called", "size"),
        p05=("p05", "mean"),
        p001=("p001", "mean"),
        runs_with_calls=("called", lambda x: (x > 0).mean()),
        mean_called=("called", "mean"),
    )
    return table.reset_index()


def report(rows: pd.DataFrame, halves: pd.DataFrame, chosen: str) -> str:
    """The tables of the result page; ``chosen``: the options that determine them."""
    parts = [
        "# Tests between donors",
        "Written by `python -m benchmarks.donor_tests`. `quasi_likelihood`, `voom` and "
        "`moderated_t` are tests of `scmamba.deg.compare`, as is `mixed`; edgeR 3.40 (QL), limma 3.54 (voom), DESeq2 1.38.",
        f"`{chosen}`: means over few cohorts and splits, so differences of a few genes are chance. The peers and `mixed` ran on "
        'fewer splits than the others (column "runs").',
    ]
    order = [t for t in (*OURS, *PEERS) if t in set(rows["test"])]
    null = rows[rows["kind"] == "null"]
    if len(null):
        table = null.groupby(["study", "type", "test"]).agg(
            runs=("called", "size"),
            p05=("p05", "mean"),
            p001=("p001", "mean"),
            runs_with_calls=("called", lambda x: (x > 0).mean()),
            mean_called=("called", "mean"),
        )
        parts += [
            "## Donors of one condition split in halves: everything called is false",
            _markdown(null_summary(null), 3),
            "### By cell type",
            _markdown(table.reset_index(), 3),
        ]
    power = rows[rows["kind"] == "power"]
    for column, title in (
        ("true_called", "True genes called at FDR 5%"),
        ("fdp", "Share of the calls that is false"),
        ("true_at_real_fdr", "True genes before 5% of the list is false"),
        ("null_p05", "Null genes with p < .05"),
    ):
        if not len(power):
            break
        sums = (
            power.groupby(["size", "type", "test"])
            .agg(
                cells=("cells_per_donor", "mean"),
                true_called=("true_called", "mean"),
                false_called=("false_called", "mean"),
                true_at_real_fdr=("true_at_real_fdr", "mean"),
                null_p05=("null_p05", "mean"),
            )
            .reset_index()
        )
        sums["fdp"] = sums["false_called"] / (sums["false_called"] + sums["true_called"])
        wide = sums.pivot(index=["size", "type"], columns="test", values=column)[order]
        wide.insert(0, "cells per donor", sums.groupby(["size", "type"])["cells"].mean().round(0))
        wide = wide.reindex(sorted(wide.index, key=lambda k: (int(k[0].split("v")[0]), k[1])))
        parts += [f"## Simulated cohorts: {title}", _markdown(wide.reset_index(), 3)]
    if len(halves):
        table = halves.groupby(["type", "test"])[["called", "again"]].mean()
        table["share"] = table["again"] / table["called"]
        parts += [
            "## Kang, stimulated v control, halves of the donors",
            _markdown(table.reset_index(), 3),
        ]
    seconds = rows.groupby("test")["seconds"].median().reindex(order)
    parts += ["## Seconds for one cell type (median)", _markdown(seconds.round(2).reset_index(), 2)]
    return "\n\n".join(parts) + "\n"


def _markdown(table: pd.DataFrame, digits: int) -> str:
    def text(value: object) -> str:
        return f"{value:.{digits}g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * table.shape[1]]
    return "\n".join(
        lines
        + ["| " + " | ".join(text(v) for v in row) + " |" for row in table.itertuples(index=False)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", "-o", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--runs", type=int, default=10, help="splits of the controls per cell type")
    parser.add_argument(
        "--slow-runs",
        type=int,
        default=2,
        help="of these, splits for the peers and the mixed model",
    )
    parser.add_argument("--splits", type=int, default=4, help="splits of Kang's donors in halves")
    parser.add_argument("--seeds", type=int, default=2, help="simulated cohorts per size")
    parser.add_argument("--genes", type=int, default=3000)
    parser.add_argument("--types", type=int, default=6, help="cell types of the simulated cohorts")
    parser.add_argument("--minutes", type=float, default=600, help="time limit of the peers")
    parser.add_argument("--rscript", default="Rscript")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    parts = [power_tasks(options.seeds, options.genes, options.types) if options.seeds else []]
    if options.data is not None:
        parts.append(null_tasks(options.data, options.runs, options.slow_runs))
        parts.append(replication_tasks(options.data, options.splits) if options.splits else [])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = [task for part in parts for task in part if task.run_here()]
        if not options.no_peers:
            for task in tasks:
                if task.slow:
                    task.write(folder)
            program = [options.rscript, str(Path(__file__).with_suffix(".R")), name]
            try:
                subprocess.run(program, check=True, timeout=options.minutes * 60)
            except subprocess.TimeoutExpired:
                print("The peers ran out of time; tables hold what they finished.")
            for task in tasks:
                task.read(folder)
    rows = pd.DataFrame([row for task in tasks for row in task.rows()])
    halves = replication([t for t in tasks if t.kind == "halves"])
    options.output.mkdir(parents=True, exist_ok=True)
    rows.round(5).to_csv(options.output / "donor_tests.csv", index=False)
    names = ("runs", "slow_runs", "splits", "seeds", "genes", "types")
    chosen = " ".join(f"--{n.replace('_', '-')} {getattr(options, n)}" for n in names)
    text = report(rows, halves, chosen)
    (options.output / "donor_tests.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
