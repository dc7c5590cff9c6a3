"""Tables and docs/doublets.md from the stored scores of benchmarks/doublets.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.machine import machine_of
from scmamba.evaluation.doublets import doublet_scores, identification_curve, jaccard

TITLES = {
    "stoeckius": "Hashed cell lines (stoeckius2018, negatives dropped): true doublets of two hashes",
    "velmeshev": "Brain nuclei of four donors (velmeshev2019), a tenth of each donor's droplets simulated from two of its nuclei",
    "pbmc3k": "PBMC 3k, a tenth of the droplets simulated from two cells",
}
PICTURED = (
    "scMamba both",
    "scMamba fast",
    "scMamba network",
    "Scrublet",
    "SOLO",
    "DoubletDetection",
    "DoubletFinder equivalent",
    "hybrid equivalent",
    "number of detected genes",
)


def report(
    data: Path,
    load: Callable[..., Any],
    kept: Path,
    here: Path,
    absent: dict[str, str],
    measured: bool,
) -> None:
    """Write results/doublets.tsv, doublets_rates.tsv, doublets.md and docs/doublets.md."""
    runs = read_runs(kept)
    truths = {name: load(name, data).obs for name in {run["set"] for run in runs}}
    add_hybrid(runs)
    rows, curves = [], []
    for run in runs:
        truth = truths[run["set"]]["truth"].to_numpy()
        own = {key: run[key] for key in ("set", "detector", "seed", "seconds", "peak_mib")}
        rows.append(
            own
            | doublet_scores(truth, run["score"], run.get("called"))
            | detectable(truths[run["set"]], run["score"])
        )
        curves.append(
            identification_curve(truth, run["score"]).assign(
                **{k: own[k] for k in ("set", "detector", "seed")}
            )
        )
    table, curve = pd.DataFrame(rows), pd.concat(curves)
    out = here / "results"
    table.round(4).to_csv(out / "doublets.tsv", sep="\t", index=False, lineterminator="\n")
    curve.round(4).to_csv(out / "doublets_rates.tsv", sep="\t", index=False, lineterminator="\n")
    text = "\n\n".join(
        [
            *[section(name, table, curve, runs) for name in TITLES if name in truths],
            absentees(absent),
            f"Machine: {machine_of('doublets', measured)}.",
        ]
    )
    (out / "doublets.md").write_text(text + "\n", encoding="utf-8")
    picture(truths, runs, out / "doublets_rates.png")
    page = here.parent / "docs" / "doublets.md"
    head = page.read_text(encoding="utf-8").split("<!-- results -->")[0] if page.exists() else ""
    page.write_text(head + "<!-- results -->\n\n" + text + "\n", encoding="utf-8")
    print(
        table.groupby(["set", "detector"])["AUPRC"]
        .agg(["mean", "min", "max", "count"])
        .round(3)
        .to_string()
    )


def picture(truths: dict[str, pd.DataFrame], runs: list[dict[str, Any]], path: Path) -> None:
    """Recall and precision over identification rates, one column of panels for each set, the mean over seeds of each detector."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rates = np.arange(0.01, 0.501, 0.01)
    names = [name for name in TITLES if name in truths]
    figure, axes = plt.subplots(
        2, len(names), figsize=(4.2 * len(names), 6.4), sharex=True, sharey="row", squeeze=False
    )
    for column, name in enumerate(names):
        truth = truths[name]["truth"].to_numpy()
        for colour, detector in enumerate(PICTURED):
            own = [
                identification_curve(truth, r["score"], rates)
                for r in runs
                if r["set"] == name and r["detector"] == detector
            ]
            for row, measure in enumerate(("recall", "precision")) if own else ():
                mean = np.mean([curve[measure] for curve in own], axis=0)
                width = 2.2 if detector.startswith("scMamba") else 1.2
                axes[row, column].plot(
                    rates, mean, color=f"C{colour}", lw=width, label=f"{detector} ({len(own)})"
                )
        perfect = np.minimum(rates / truth.mean(), 1), np.minimum(truth.mean() / rates, 1)
        for row, best in enumerate(perfect):
            axes[row, column].plot(rates, best, color="0.7", ls=":", lw=1, label="all known")
        axes[0, column].set_title(TITLES[name].split(",")[0].split(" (")[0], fontsize=9)
        axes[1, column].set_xlabel("share of droplets called")
        axes[1, column].legend(fontsize=6, title="detector (seeds)", title_fontsize=6)
    axes[0, 0].set_ylabel("recall")
    axes[1, 0].set_ylabel("precision")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def read_runs(kept: Path) -> list[dict[str, Any]]:
    runs = []
    for path in sorted(kept.glob("*.npz")):
        with np.load(path) as file:
            runs.append(
                json.loads(str(file["about"]))
                | {key: file[key] for key in file.files if key != "about"}
            )
    return runs


def add_hybrid(runs: list[dict[str, Any]]) -> None:
    """hybrid of scds: cxds and bcds, each scaled to 0..1, added."""
    scores = {(r["set"], r["seed"], r["detector"]): r for r in runs}
    for (name, seed, detector), run in list(scores.items()):
        other = scores.get((name, seed, "cxds equivalent"))
        if detector != "bcds equivalent" or other is None:
            continue
        both = [(s - s.min()) / (s.max() - s.min()) for s in (run["score"], other["score"])]
        seconds = run["seconds"] + other["seconds"]
        runs.append(
            {**run, "detector": "hybrid equivalent", "seconds": seconds, "score": both[0] + both[1]}
        )


def detectable(obs: pd.DataFrame, score: np.ndarray) -> dict[str, float]:
    """AUPRC without homotypic doublets, which no expression profile reveals."""
    if "homotypic" in obs:
        out = obs["homotypic"].to_numpy(dtype=bool)
    else:
        out = (obs["doublet_kind"].astype(str) == "homotypic").to_numpy()
    found = doublet_scores(obs["truth"].to_numpy()[~out], score[~out])
    return {"AUPRC_heterotypic": found["AUPRC"]}


def section(name: str, table: pd.DataFrame, curve: pd.DataFrame, runs: list[dict[str, Any]]) -> str:
    part = table[table["set"] == name]
    lines = [
        f"### {TITLES[name]}",
        "",
        f"Prevalence {part['prevalence'].iloc[0]:.3f}: the AUPRC of a random detector. Mean over seeds, lowest and highest in "
        "brackets; precision, recall, TNR and F1 with as many droplets called as there are true doublets. Stability: mean Jaccard index "
        "of the calls of two seeds.",
        "",
        "| detector | seeds | AUPRC | heterotypic only | AUROC | precision | recall | TNR | F1 | stability | seconds | MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    order = part.groupby("detector")["AUPRC"].mean().sort_values(ascending=False).index
    for detector in order:
        own = part[part["detector"] == detector]
        middle = own.mean(numeric_only=True)
        spread = f"**{middle['AUPRC']:.3f}** ({own['AUPRC'].min():.3f}-{own['AUPRC'].max():.3f})"
        same = jaccard([top(r) for r in runs if r["set"] == name and r["detector"] == detector])
        cells = " | ".join(
            f"{middle[c]:.3f}"
            for c in ("AUPRC_heterotypic", "AUROC", "precision", "recall", "TNR", "F1")
        )
        steady = f"{same.mean():.2f}" if len(same) else "-"
        lines.append(
            f"| {detector} | {len(own)} | {spread} | {cells} | {steady} | {middle['seconds']:.0f} | {middle['peak_mib']:.0f} |"
        )
    lines += [
        "",
        "Identification rates (precision / recall / TNR):",
        "",
        "| detector | 10% | 20% | 30% | 40% |",
        "|---|---|---|---|---|",
    ]
    here = curve[curve["set"] == name]
    for detector in order:
        own = (
            here[here["detector"] == detector]
            .groupby("rate")[["precision", "recall", "TNR"]]
            .mean()
        )
        lines.append(
            f"| {detector} | "
            + " | ".join(
                f"{r.precision:.2f} / {r.recall:.2f} / {r.TNR:.2f}" for r in own.itertuples()
            )
            + " |"
        )
    return "\n".join(lines)


def top(run: dict[str, Any]) -> np.ndarray:
    """Calls of a run: its own, or the highest tenth of its scores if it has no calls."""
    if "called" in run:
        return run["called"]
    score = run["score"]
    called = np.zeros(len(score), dtype=bool)
    called[np.argsort(-score, kind="stable")[: len(score) // 10]] = True
    return called


def absentees(absent: dict[str, str]) -> str:
    lines = ["### Not in the tables, and why", "", "| detector | reason |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {why} |" for name, why in absent.items()])
