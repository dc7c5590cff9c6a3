"""Tests between donors against edgeR, limma-voom and DESeq2: false positives, power, replication.

    python -m benchmarks.donor_tests --data FOLDER -o benchmarks/results

``--data`` is a folder with ``kang2018_ctrl_8donors_1287genes.h5ad``, ``kang2018_ifnb_8donors_2cond.h5ad`` and
``velmeshev2019_pfc_3types.h5ad`` (raw counts; without it only the simulated cohorts run). The peers need R with edgeR, limma
and DESeq2 (Debian: r-bioc-edger r-bioc-limma r-bioc-deseq2). All tests see the same sums of the same cells; every test
filters genes as its manual recommends.

* Null: control donors split in halves, each split once, in random order. Share of genes with p < .05, and of runs with a
  call at FDR 5%. Priors and weights were chosen on Kang's donors and on simulated cohorts of seeds from 100; Velmeshev's donors
  and the cohorts here (seeds 0 to 9) had no part in it.
* Power: semi-synthetic cohorts (``brain_cohort(disease="AD")``) of one cell type each, with known changes. True genes called
  at FDR 5%, what share of the calls is false, and true genes at a real FDR of 5%: the threshold of p (and of adjusted p) is moved
  until 5% of all calls in the cohorts of one size are false, so that tests are compared at the same error and not by how
  cautious they are. "area" is the mean of that number over real FDRs from 1 to 20%.
* Replication: Kang's donors in two halves, stimulated against control. Share of the calls of one half that the other has, the
  same for equally many genes of every test, and agreement of directions.
* Published: cohorts made from published tables return their directions (circular: it tests the program, not the disease).
* Speed: all types of a cohort, every test. Curve: power against the number of donors, from Velmeshev's.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import scmamba
from benchmarks.machine import machine_of
from scmamba.deg import compare

OURS = ("likelihood_ratio", "quasi_likelihood", "wald", "voom", "moderated_t", "mixed")
FAST = OURS[:-1]
PEERS = ("edgeR", "limma_voom", "DESeq2", "pydeseq2")
ALPHA = 0.05
#: Cell types of the semi-synthetic cohorts: one per cohort, in turn.
TYPES = ("Oligodendrocyte", "Microglia", "Excitatory", "OPC")
DONORS = (6, 10, 20)
CELLS = (50, 200, 2000)
#: Real false discovery rates at which tests are compared; "area" is the mean over them.
RATES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2)
TOP = 100  # genes of every test whose replication is compared at equal numbers


class Task:
    """One comparison of one cell type: tested here, and its sums written for R."""

    def __init__(
        self,
        name: str,
        cells: ad.AnnData,
        kind: str,
        tests: tuple[str, ...] = OURS,
        peers: bool = True,
        /,
        **about,
    ) -> None:
        """``cells.obs`` has ``donor`` and ``group`` (a, b); ``tests`` are those of scMamba that run."""
        self.name, self.cells, self.kind, self.about = name, cells, kind, about
        self.tests, self.peers = tests, peers
        self.results: dict[str, pd.DataFrame] = {}
        self.seconds: dict[str, float] = {}
        self.power: dict[str, pd.Series] = {}

    def run_here(self, folder: Path) -> bool:
        """Run scMamba's tests, write the sums for the peers, and release the cells."""
        for test in self.tests:
            start = time.process_time()
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
            self.seconds[test] = time.process_time() - start
            table = found.table.set_index("gene")
            self.results[test] = table[["p_val", "p_val_adj", "log2FC"]].set_axis(
                ["p", "fdr", "change"], axis=1
            )
            # The order of the calls: p over the weight that its false discovery rate has.
            self.results[test]["rank"] = table["p_val"] / table["weight"]
            self.power[test] = found.summary.iloc[0][["log2fc_80_power", "log2fc_80_power_top"]]
        self.samples = found.samples["all cells"]
        if self.peers:
            self.write(folder)
        self.cells = None
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
        """Results of the peers that finished."""
        for suffix, peers in (("peers", PEERS[:3]), ("pydeseq2", PEERS[3:])):
            path = folder / f"{self.name}.{suffix}.tsv"
            if not path.exists():
                continue
            table = pd.read_csv(path, sep="\t", index_col=0)
            time_file = "time" if suffix == "peers" else "pydeseq2_time"
            seconds = pd.read_csv(folder / f"{self.name}.{time_file}.tsv", sep="\t")
            for peer in peers:
                columns = [f"{peer}.p", f"{peer}.fdr", f"{peer}.change"]
                found = table[columns].set_axis(["p", "fdr", "change"], axis=1).dropna(subset="p")
                self.results[peer] = found.assign(rank=found["p"])
                self.seconds[peer] = float(seconds[peer].iloc[0])

    def rows(self) -> list[dict]:
        first = int((self.samples["group"] == 0).sum())
        head = {
            "kind": self.kind,
            "task": self.name,
            "donors1": first,
            "donors2": len(self.samples) - first,
            "cells_per_donor": float(self.samples["cells"].median()),
        }
        head |= {k: v for k, v in self.about.items() if k != "truth"}
        out = []
        for test, table in self.results.items():
            called = (table["fdr"].fillna(1) < ALPHA).to_numpy()
            row = head | {
                "test": test,
                "seconds": self.seconds.get(test, np.nan),
                "tested": len(table),
                "called": int(called.sum()),
                "p05": float((table["p"] < 0.05).mean()),
                "p001": float((table["p"] < 0.001).mean()),
            }
            row |= {k: float(v) for k, v in self.power.get(test, {}).items()}
            truth = self.about.get("truth")
            if truth is not None:
                change = truth.reindex(table.index).to_numpy()
                real = change != 0
                row["true_called"] = int((called & real).sum())
                row["false_called"] = int((called & ~real).sum())
                row["null_p05"] = float((table["p"].to_numpy()[~real] < 0.05).mean())
                same = np.sign(table["change"].to_numpy()) == np.sign(change)
                row["true_direction"] = int((called & real & same).sum())
            out.append(row)
        return out


def split(cells: ad.AnnData, donors: list[str], first: tuple[str, ...]) -> ad.AnnData:
    """Some donors' cells, in two groups."""
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
        whole = load_cells(data / file, column, value)
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
                part = split(cells, donors, every[i])
                tests = OURS if n < slow else FAST
                yield Task(name, part, "null", tests, n < slow, study=study, type=str(kind))


def load_cells(path: Path, column: str | None, value: str | None) -> ad.AnnData:
    """A set with the columns ``donor`` and ``type``; singlets, and cells with one value of a column."""
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


def power_tasks(seeds: range, large_seeds: range, n_genes: int) -> Iterator[Task]:
    """Semi-synthetic cohorts of one cell type; fewer of those with many cells."""
    for each, cells in itertools.product(DONORS, CELLS):
        for seed in large_seeds if cells > 500 else seeds:
            kind = TYPES[seed % len(TYPES)]
            cohort = scmamba.datasets.brain_cohort(
                n_cells=2 * each * cells,
                n_donors=2 * each,
                n_genes=n_genes,
                cell_types=[kind],
                disease="AD",
                seed=seed,
            )
            cohort.obs["group"] = np.where(cohort.obs["disease"] == "AD", "a", "b")
            yield Task(
                f"power_{each}_{cells}_{seed}",
                cohort,
                "power",
                FAST,
                donors=f"{each} v {each}",
                cells=cells,
                seed=seed,
                truth=cohort.varm["true_log2fc"][kind],
            )


def replication_tasks(data: Path, splits: int) -> Iterator[Task]:
    """Kang: stimulated against control in each half of the donors."""
    whole = load_cells(data / "kang2018_ifnb_8donors_2cond.h5ad", None, None)
    column = next(c for c in ("condition", "stim", "group_id", "group") if c in whole.obs)
    whole.obs["group"] = np.where(whole.obs[column].astype(str).str.startswith("stim"), "a", "b")
    donors = sorted(whole.obs["donor"].unique())
    for kind in whole.obs["type"].value_counts().index[:4]:
        cells = whole[whole.obs["type"] == kind].copy()
        halves = [c for c in itertools.combinations(donors, 4) if donors[0] in c][:: 35 // splits][
            :splits
        ]
        for i, half in enumerate(halves):
            for side, chosen in (("first", half), ("second", [d for d in donors if d not in half])):
                part = cells[cells.obs["donor"].isin(chosen)].copy()
                name = f"halves_{kind}_{i}_{side}".replace(" ", "-").replace("+", "")
                yield Task(name, part, "halves", FAST, type=str(kind), split=i, side=side)


def disease_tasks(data: Path) -> Iterator[Task]:
    """Velmeshev: autism against control, every cell type."""
    whole = load_cells(data / "velmeshev2019_pfc_3types.h5ad", None, None)
    column = next(c for c in whole.obs if "ASD" in set(whole.obs[c].astype(str)))
    whole.obs["group"] = np.where(whole.obs[column].astype(str) == "ASD", "a", "b")
    for kind in whole.obs["type"].value_counts().index[:3]:
        cells = whole[whole.obs["type"] == kind].copy()
        yield Task(f"disease_{kind}", cells, "disease", FAST, study="velmeshev", type=str(kind))


def published_tasks(data: Path | None, n_genes: int) -> Iterator[Task]:
    """Cohorts of published changes: the calls should have the directions of the tables."""
    tables = {"AD (Mathys 2019)": {"disease": "AD"}}
    if data is not None:
        from benchmarks.fit_disease import midbrain_changes

        tables["PD (Smajic 2022)"] = {"disease": "PD", "effects": midbrain_changes(data)}
    for study, options in tables.items():
        for kind in TYPES[:3]:
            cohort = scmamba.datasets.brain_cohort(
                n_cells=4000, n_donors=20, n_genes=n_genes, cell_types=[kind], seed=0, **options
            )
            sick = cohort.obs["disease"] != "Control"
            cohort.obs["group"] = np.where(sick, "a", "b")
            truth = cohort.varm["true_log2fc"][kind]
            name = f"published_{options['disease']}_{kind}"
            yield Task(
                name, cohort, "published", OURS[:1], False, study=study, type=kind, truth=truth
            )


def at_real_rate(
    scores: list[np.ndarray], real: list[np.ndarray], rates: tuple[float, ...]
) -> np.ndarray:
    """Mean number of true genes per comparison at every real false discovery rate, one threshold for all comparisons."""
    score, true = np.concatenate(scores), np.concatenate(real)
    order = np.argsort(score, kind="stable")
    found = np.cumsum(true[order])
    false = 1 - found / np.arange(1, order.size + 1)
    last = np.append(np.diff(score[order]) > 0, True)  # genes of one score enter together
    out = [found[(false <= rate) & last].max(initial=0) for rate in rates]
    return np.array(out) / len(scores)


def sweep(tasks: list[Task]) -> pd.DataFrame:
    """Every size and test: true genes at real FDR 5%, area, and the difference to the best peer with its jackknife error."""
    rows = []
    sizes = sorted({(t.about["donors"], t.about["cells"]) for t in tasks}, key=_size)
    for donors, cells in sizes:
        own = [t for t in tasks if (t.about["donors"], t.about["cells"]) == (donors, cells)]
        for test in [*OURS, *PEERS]:
            have = [t for t in own if test in t.results]
            if len(have) < len(own):
                continue
            tables = [t.results[test] for t in have]
            real = [t.about["truth"].reindex(x.index).to_numpy() != 0 for t, x in zip(have, tables)]
            by_p = [t["rank"].to_numpy() for t in tables]
            by_fdr = [t["fdr"].fillna(1.0).to_numpy() for t in tables]
            whole, other = (at_real_rate(s, real, RATES) for s in (by_p, by_fdr))
            parts = [
                at_real_rate(by_p[:i] + by_p[i + 1 :], real[:i] + real[i + 1 :], RATES).mean()
                for i in range(len(have))
                if len(have) > 1
            ]
            rows.append(
                {
                    "donors": donors,
                    "cells": cells,
                    "test": test,
                    "cohorts": len(have),
                    "true_at_5": whole[RATES.index(0.05)],
                    "area": whole.mean(),
                    "true_at_5_adjusted": other[RATES.index(0.05)],
                    "parts": parts,
                }
            )
    return pd.DataFrame(rows)


def _size(key: tuple[str, int]) -> tuple[int, int]:
    return int(key[0].split()[0]), key[1]


def replication(tasks: list[Task]) -> pd.DataFrame:
    """Share of one half's calls that the other half has, mean over both directions."""
    rows = []
    done = {(t.about["type"], t.about["split"], t.about["side"]): t for t in tasks if t.results}
    for (kind, number, side), one in done.items():
        other = done.get((kind, number, "second" if side == "first" else "first"))
        if other is None:
            continue
        for test in one.results:
            a, b = one.results[test], other.results[test]
            mine = a.index[a["fdr"].fillna(1) < ALPHA]
            theirs = set(b.index[b["fdr"].fillna(1) < ALPHA])
            tops = [set(_ranked(x).index[:TOP]) for x in (a, b)]
            both = mine.intersection(b.index)
            same = np.sign(a.loc[both, "change"]) == np.sign(b.loc[both, "change"])
            rows.append(
                {
                    "type": kind,
                    "test": test,
                    "called": len(mine),
                    "again": sum(g in theirs for g in mine),
                    "top_again": len(tops[0] & tops[1]),
                    "compared": len(both),
                    "same_direction": int(same.sum()),
                }
            )
    return pd.DataFrame(rows)


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    return table.fillna({"fdr": 1.0}).sort_values(["fdr", "p"], kind="stable")


def speed(cells: int) -> pd.DataFrame:
    """Seconds of every test on all eight types of one cohort of 20 donors."""
    cohort = scmamba.datasets.brain_cohort(n_cells=cells, n_donors=20, disease="AD", seed=0)
    warm = cohort[:, :300].copy()
    rows: list[dict] = []
    for test in OURS:
        compare(warm, "disease", "donor", "cell_type", test=test, verbose=False)  # compiled once
        wall, cpu = time.perf_counter(), time.process_time()
        found = compare(cohort, "disease", "donor", "cell_type", test=test, verbose=False)
        rows.append(
            {
                "test": test,
                "nuclei": cells,
                "types": len(found.summary),
                "genes tested": int(found.summary["tested"].sum()),
                "seconds": time.perf_counter() - wall,
                "processor seconds": time.process_time() - cpu,
            }
        )
    total = {"test": "all", "nuclei": cells, "types": 8, "genes tested": ""}
    sums = {k: sum(r[k] for r in rows) for k in ("seconds", "processor seconds")}
    return pd.DataFrame([*rows, total | sums])


def null_summary(null: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The splits of every study and test."""
    table = null.groupby(keys).agg(
        runs=("called", "size"),
        p05=("p05", "mean"),
        p001=("p001", "mean"),
        runs_with_calls=("called", lambda x: (x > 0).mean()),
        mean_called=("called", "mean"),
    )
    return table.reset_index()


def null_section(rows: pd.DataFrame) -> list[str]:
    null = rows[rows["kind"] == "null"]
    if not len(null):
        return []
    return [
        "## Donors of one condition split in halves: everything called is false",
        "Kang's donors are development data (see above), Velmeshev's are held out. The peers and `mixed` ran on fewer splits "
        "(column `runs`): compare them with care.",
        _markdown(null_summary(null, ["study", "test"]), 3),
        "### By cell type",
        _markdown(null_summary(null, ["study", "type", "test"]), 3),
    ]


def power_section(rows: pd.DataFrame, swept: pd.DataFrame) -> list[str]:
    power = rows[rows["kind"] == "power"]
    if not len(power):
        return []
    order = [t for t in (*OURS, *PEERS) if t in set(power["test"])]
    parts = []
    for column, title in (
        ("true_at_5", "true genes per cohort at a real FDR of 5%, by p"),
        ("true_at_5_adjusted", "true genes per cohort at a real FDR of 5%, by adjusted p"),
        ("area", "true genes per cohort, by p, mean over real FDRs from 1 to 20% (area)"),
    ):
        wide = _wide(swept.pivot(index=["donors", "cells"], columns="test", values=column), order)
        wide.insert(
            2,
            "cohorts",
            swept.groupby(["donors", "cells"])["cohorts"]
            .first()
            .loc[list(zip(wide["donors"], wide["cells"]))]
            .to_numpy(),
        )
        if column == "area":
            wide["default less best peer (error)"] = [
                _difference(swept, donors, cells)
                for donors, cells in zip(wide["donors"], wide["cells"])
            ]
        parts += [f"## Semi-synthetic cohorts: {title}", _markdown(wide, 3)]
    sums = power.groupby(["donors", "cells", "test"])[
        ["true_called", "false_called", "null_p05"]
    ].mean()
    sums["fdp"] = sums["false_called"] / (sums["false_called"] + sums["true_called"])
    for column, title in (
        ("true_called", "true genes called at FDR 5%"),
        ("fdp", "share of these calls that is false"),
        ("null_p05", "null genes with p < .05"),
    ):
        wide = _wide(sums[column].unstack(), order)
        parts += [f"## Semi-synthetic cohorts: {title}", _markdown(wide, 3)]
    return parts


def _wide(table: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    table = table.reindex(columns=order)
    return table.reindex(sorted(table.index, key=_size)).reset_index()


def _difference(swept: pd.DataFrame, donors: str, cells: int) -> str:
    """Area of the default less that of the best peer, and its jackknife standard error over cohorts."""
    own = swept[(swept["donors"] == donors) & (swept["cells"] == cells)].set_index("test")
    peers = [p for p in PEERS if p in own.index]
    if not peers:
        return ""
    best = own.loc[peers, "area"].idxmax()
    mine = own.loc[OURS[0]]
    parts = np.array(mine["parts"]) - np.array(own.loc[best, "parts"])
    n = parts.size
    error = np.sqrt((n - 1) / n * ((parts - parts.mean()) ** 2).sum()) if n > 1 else np.nan
    return f"{mine['area'] - own.loc[best, 'area']:+.2f} ({error:.2f}), {best}"


def disease_section(rows: pd.DataFrame) -> list[str]:
    table = rows[rows["kind"] == "disease"]
    if not len(table):
        return []
    columns = ["type", "donors1", "donors2", "test", "tested", "called"]
    return [
        "## Velmeshev, autism v control",
        "The last columns are the log2 fold change that is found with 80% power, for the median gene and for the most "
        "expressed quarter.",
        _markdown(table[[*columns, "log2fc_80_power", "log2fc_80_power_top"]], 3),
    ]


def halves_section(halves: pd.DataFrame) -> list[str]:
    if not len(halves):
        return []
    table = halves.groupby(["type", "test"]).mean()
    table.insert(2, "share", table["again"] / table["called"])
    table["direction"] = table.pop("same_direction") / table.pop("compared")
    return [
        "## Kang, stimulated v control, halves of the donors (development data)",
        f"`share`: of the calls of one half, called in the other; `top_again`: of the {TOP} most certain genes, also among "
        "those of the other half; `direction`: share of the calls with the same sign in the other half.",
        _markdown(table.reset_index(), 3),
    ]


def published_section(rows: pd.DataFrame) -> list[str]:
    table = rows[rows["kind"] == "published"]
    if not len(table):
        return []
    shown = table[
        ["study", "type", "called", "true_called", "false_called", "true_direction"]
    ].copy()
    shown["direction"] = shown.pop("true_direction") / shown["true_called"]
    return [
        "## Published changes put into a cohort (10 v 10 donors, 200 cells each) and found again",
        "Circular: the truth of these cohorts is the published table, so agreement says that program and table have the same "
        "directions, and nothing about the disease. `direction`: true genes called with the sign of the table.",
        _markdown(shown, 3),
    ]


def report(sections: list[list[str]], chosen: str, first_seed: int) -> str:
    """The result page; ``chosen``: the options that determine it."""
    head = [
        "# Tests between donors",
        "Written by `python -m benchmarks.donor_tests`. `likelihood_ratio` (the default), `quasi_likelihood`, `wald`, "
        "`voom`, `moderated_t` and `mixed` are tests of `scmamba.deg.compare`; edgeR (QL), limma (voom) and DESeq2 are those of "
        "Debian 12 (3.40, 3.54, 1.38), pydeseq2 is 0.5.4.",
        "Settings of the default were chosen on simulated cohorts of seeds from 100 and on Kang's donors. "
        + (
            "Other cohorts and Velmeshev's donors are held out."
            if first_seed < 100
            else "Seeds: development."
        ),
        f"`{chosen}`. Cohorts and splits are few, so small differences are chance: see the errors given.",
    ]
    return "\n\n".join(head + [part for section in sections for part in section]) + "\n"


def _markdown(table: pd.DataFrame, digits: int) -> str:
    def text(value: object) -> str:
        if isinstance(value, float):
            shown = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
            return "" if np.isnan(value) else shown
        return str(value)

    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * table.shape[1]]
    return "\n".join(
        lines
        + ["| " + " | ".join(text(v) for v in row) + " |" for row in table.itertuples(index=False)]
    )


def run_part(tasks: Iterator[Task], folder: Path, options: argparse.Namespace) -> None:
    """Run tasks here, then their peers in R, and keep what they found; what is kept already is not repeated."""
    for task in tasks:
        target = folder / f"{task.name}.pickle"
        if not target.exists() and task.run_here(folder):
            target.write_bytes(pickle.dumps(task))
    if options.no_peers:
        return
    here = Path(__file__)
    programs = [[options.rscript, str(here.with_suffix(".R")), str(folder)]]
    if options.pydeseq2:
        beside = here.with_name("donor_tests_pydeseq2.py")
        programs.append([options.pydeseq2, str(beside), str(folder)])
    for program in programs:
        try:
            subprocess.run(program, check=True, timeout=options.minutes * 60)
        except subprocess.TimeoutExpired:
            print("The peers ran out of time; tables hold what they finished.")


def kept_tasks(folder: Path) -> list[Task]:
    """Every task that was run, with the peers that finished."""
    tasks = [pickle.loads(path.read_bytes()) for path in sorted(folder.rglob("*.pickle"))]
    for task in tasks:
        for place in (folder, folder / task.kind):
            task.read(place)
    return tasks


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable = parser.add_argument
    add("--data", type=Path)
    add("--output", "-o", type=Path, default=Path("benchmarks/results"))
    add("--runs", type=int, default=6, help="splits of the controls per cell type")
    add("--slow-runs", type=int, default=1, help="of these, splits for the peers and mixed")
    add("--splits", type=int, default=2, help="splits of Kang's donors in halves")
    add("--seeds", type=int, default=10, help="semi-synthetic cohorts per size")
    add("--large-seeds", type=int, default=4, help="of these, with 2,000 cells per donor")
    add("--first-seed", type=int, default=0, help="100 and above: development")
    add("--genes", type=int, default=2500)
    add("--speed-cells", type=int, default=20_000, help="0: do not measure speed")
    add("--minutes", type=float, default=600, help="time limit of the peers")
    add("--rscript", default="Rscript")
    add("--pydeseq2", help="Python of an environment that has pydeseq2")
    add("--no-peers", action="store_true")
    add("--folder", type=Path, help="keep and reuse what was run; a temporary folder if not given")
    add(
        "--parts",
        default="power,published,null,disease,halves,curve,speed,report",
        help="comma-separated",
    )
    return parser.parse_args()


def run_parts(options: argparse.Namespace, folder: Path) -> None:
    """The parts that were requested, each in a folder of its own so that they can run side by side."""
    first, parts = options.first_seed, options.parts.split(",")
    makers: dict[str, Callable[[], Iterator[Task]]] = {
        "power": lambda: power_tasks(
            range(first, first + options.seeds),
            range(first, first + options.large_seeds),
            options.genes,
        ),
        "published": lambda: published_tasks(options.data, options.genes),
    }
    if options.data is not None:
        makers["null"] = lambda: null_tasks(options.data, options.runs, options.slow_runs)
        makers["disease"] = lambda: disease_tasks(options.data)
        makers["halves"] = lambda: replication_tasks(options.data, options.splits)
    for name in [p for p in parts if p in makers]:
        (folder / name).mkdir(parents=True, exist_ok=True)
        run_part(makers[name](), folder / name, options)
    if "curve" in parts and options.data is not None:
        write_power(options)
    if "speed" in parts and options.speed_cells:
        write_speed(options)


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        run_parts(options, folder)
        if "report" in options.parts.split(","):
            write_report(options, kept_tasks(folder))


def write_power(options: argparse.Namespace) -> None:
    """What Velmeshev's donors and other numbers of donors find: docs/deg_power.png and its numbers."""
    whole = load_cells(options.data / "velmeshev2019_pfc_3types.h5ad", None, None)
    column = next(c for c in whole.obs if "ASD" in set(whole.obs[c].astype(str)))
    found = compare(whole, column, "donor", "type", group1="ASD", group2="Control", verbose=False)
    curves = [found.power_curve(n).assign(cell_type=n) for n in found.summary["cell_type"]]
    pd.concat(curves).round(3).to_csv(options.output / "donor_power.tsv", sep="\t", index=False)
    figure = found.power()
    figure.savefig(Path(__file__).resolve().parents[1] / "docs" / "deg_power.png", dpi=120)


def write_speed(options: argparse.Namespace) -> None:
    """Seconds of all tests on all types, as a page."""
    table = speed(options.speed_cells)
    options.output.mkdir(parents=True, exist_ok=True)
    parts = [
        "# Speed of the tests between donors",
        "Written by `python -m benchmarks.donor_tests --parts speed`: a cohort of 20 donors and eight types, 10,000 genes.",
        _markdown(table, 3),
        f"Machine: {machine_of('donor_tests_speed', True)}.",
    ]
    (options.output / "donor_tests_speed.md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


def complete(tasks: list[Task]) -> list[Task]:
    """Without the semi-synthetic cohorts that a peer did not finish, so that all tests have the same cohorts."""
    every = {p for t in tasks if t.kind == "power" for p in t.results}
    return [t for t in tasks if t.kind != "power" or every <= t.results.keys()]


def write_report(options: argparse.Namespace, tasks: list[Task]) -> None:
    """Tables as .csv and .md."""
    tasks = complete(tasks)
    rows = pd.DataFrame([row for task in tasks for row in task.rows()])
    swept = sweep([t for t in tasks if t.kind == "power"])
    halves = replication([t for t in tasks if t.kind == "halves"])
    options.output.mkdir(parents=True, exist_ok=True)
    rows.round(5).to_csv(options.output / "donor_tests.csv", index=False)
    names = ("runs", "slow_runs", "splits", "seeds", "large_seeds", "first_seed", "genes")
    chosen = " ".join(f"--{n.replace('_', '-')} {getattr(options, n)}" for n in names)
    sections = [
        power_section(rows, swept),
        null_section(rows),
        disease_section(rows),
        halves_section(halves),
        published_section(rows),
    ]
    order = [t for t in (*OURS, *PEERS) if t in set(rows["test"])]
    seconds = rows.groupby("test")["seconds"].median().reindex(order)
    title = "## Processor seconds for one cell type (median; peers: seconds)"
    sections.append([title, _markdown(seconds.round(2).reset_index(), 2)])
    text = (
        report(sections, chosen, options.first_seed)
        + f"\nMachine: {machine_of('donor_tests', True)}.\n"
    )
    (options.output / "donor_tests.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
