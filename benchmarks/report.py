"""The whole evaluation as one report: cell types, doublets, masked counts, imputed zeros, time and memory, each next to its peers.

    python -m benchmarks.report                                write results/report.md and its pictures from the committed tables
    python -m benchmarks.report --html report.html             and a single self-contained file
    python -m benchmarks.report --run --data DIR [--celltypist PYTHON] [--scvi PYTHON]   measure first (hours on two cores)

``--run`` runs the command named in each section, in turn, with three seeds; runs they have kept are not repeated.
The Pythons are those of environments with CellTypist (scikit-learn < 1.8) and with scvi-tools, MAGIC and DoubletDetection.
"""

from __future__ import annotations

import argparse
import base64
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from scmamba.evaluation.annotation_report import markdown

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
NAMES = {
    "scmamba": "scMamba, annotate()",
    "linear": "its simple views",
    "network": "its network",
    "logistic": "logistic regression",
    "celltypist": "CellTypist",
    "seurat": "Seurat transfer",
    "scanvi": "scANVI",
}
SETS = {
    "kang": "kang2018_ifnb (blood)",
    "velmeshev": "velmeshev2019 (brain nuclei)",
    "marques": "marques2016 (mouse, orthologs)",
    "heldout": "velmeshev2019, held-out donors",
}
OURS, THEIRS = "#8c2d5a", "#7f8fa6"


def read(name: str, **options: Any) -> pd.DataFrame:
    """A committed table."""
    return pd.read_csv(RESULTS / f"{name}.tsv", sep="\t", **options)


def text(name: str) -> str:
    """A committed page, its headings one level deeper."""
    return re.sub(
        r"^#",
        "##",
        (RESULTS / f"{name}.md").read_text(encoding="utf-8").strip(),
        flags=re.MULTILINE,
    )


def bars(
    axis: Any, table: pd.DataFrame, value: str, by: str, label: str, order: str | None = None
) -> None:
    """Mean of each group as a bar, minimum and maximum as a whisker, ours in color, that with the largest ``order`` on top."""
    place = table.groupby(by)[order or value].mean().sort_values().index
    found = table.groupby(by)[value].agg(["mean", "min", "max"]).loc[place]
    sides = [found["mean"] - found["min"], found["max"] - found["mean"]]
    colours = [
        OURS if "scMamba" in str(name) or str(name).startswith("its ") else THEIRS
        for name in found.index
    ]
    axis.barh(found.index.astype(str), found["mean"], xerr=sides, color=colours, error_kw={"lw": 1})
    axis.set_xlabel(label)
    axis.tick_params(labelsize=8)


def save(figure: Any, name: str) -> str:
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return f"![{name.replace('_', ' ')}]({name}.png)"


# --- sections -------------------------------------------------------------------------------------------
def cell_types() -> str:
    table, curves, novel = read("annotation"), read("annotation_coverage"), read("annotation_novel")
    table["name"] = table["method"].map(NAMES)
    sets = [name for name in SETS if (table["set"] == name).any()]
    scores, axes = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 2.6))
    for axis, name in zip(np.atleast_1d(axes), sets):
        own = table[table["set"] == name]
        bars(axis, own, "macro", "name", "macro F1")
        axis.set_xlim(0, 1)
        axis.set_title(SETS[name], fontsize=9)
    surest, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for method, own in curves[curves["set"] == "kang"].groupby("method", sort=False):
        mean = own.groupby("kept")["right"].mean()
        axes[0].plot(
            mean.index, mean, "o-", ms=3, lw=2 if method == "scmamba" else 1, label=NAMES[method]
        )
    axes[0].set(
        xlabel="share of the cells named, the surest first", ylabel="share of these that are right"
    )
    axes[0].set_title("kang: unassigned against wrong", fontsize=9)
    axes[0].legend(fontsize=7)
    novel = novel[novel["type"] != "all"].sort_values("rejected")
    axes[1].barh(
        novel["type"] + " (" + novel["cells"].astype(str) + ")", novel["rejected"], color=OURS
    )
    axes[1].set(xlabel="share of its cells rejected", xlim=(0, 1))
    axes[1].set_title("kang: a type absent from the reference", fontsize=9)
    axes[1].tick_params(labelsize=8)
    return "\n\n".join(
        [
            save(scores, "annotation_scores"),
            save(surest, "annotation_unassigned"),
            text("annotation"),
        ]
    )


def doublets() -> str:
    return (
        "Made by `python -m benchmarks.doublets`.\n\n![recall and precision by share called](doublets_rates.png)\n\n"
        + text("doublets")
    )


def hidden_values() -> str:
    parts = []
    figure, axes = plt.subplots(2, 2, figsize=(10, 6))
    for row, name in zip(axes, ("velmeshev", "kang")):
        found = [
            read(path.stem, comment="#")
            for path in sorted(RESULTS.glob(f"nonzero_imputation_{name}*.tsv"))
        ]
        table = pd.concat(found).drop_duplicates("predictor")
        table["predictor"] = table["predictor"].str.replace("scmamba:", "scMamba, ")
        table = table.sort_values("pearson_beyond_depth", ascending=False)
        head = next(
            iter((RESULTS / f"nonzero_imputation_{name}.tsv").read_text().splitlines())
        ).removeprefix("# ")
        parts.append(f"### {SETS[name]}\n\n{head}.\n\n" + markdown(table.set_index("predictor")))
        shown = table[~table["predictor"].str.contains("masked|^one$")]
        columns = (
            ("mse", "squared error (low is good)"),
            ("pearson_beyond_depth", "within-gene r beyond depth"),
        )
        for axis, (value, label) in zip(row, columns):
            bars(axis, shown[shown[value] < 1.0], value, "predictor", label)
            axis.set_title(SETS[name], fontsize=9)
    note = "Made by `python -m benchmarks.nonzero_imputation`; docs/evaluation.md describes the columns."
    return "\n\n".join(
        [note + " Not drawn: squared errors above 1.", save(figure, "hidden_values"), *parts]
    )


def filled_zeros() -> str:
    table = read("clusters")
    sets = list(dict.fromkeys(table["set"]))
    figure, axes = plt.subplots(
        len(sets), 4, figsize=(14, 2.9 * len(sets)), sharey="row", squeeze=False
    )
    for row, name in zip(axes, sets):
        columns = (
            ("NMI", "NMI with types"),
            ("ASW", "silhouette of types"),
            ("NMI_donor", "NMI with donors (low is good)"),
            ("ASW_donor", "silhouette of donors (low is good)"),
        )
        for axis, (value, label) in zip(row, columns):
            bars(axis, table[table["set"] == name], value, "method", label, order="NMI")
            axis.set_title(SETS[name], fontsize=9)
    return "\n\n".join(
        ["Made by `python -m benchmarks.clusters`.", save(figure, "clusters"), text("clusters")]
    )


def time_and_memory() -> str:
    return "Made by `python -m benchmarks.verbs_speed`.\n\n" + text("verbs_speed")


SECTIONS: dict[str, Callable[[], str]] = {
    "Cell types": cell_types,
    "Doublets": doublets,
    "Hidden non-zero values": hidden_values,
    "What filling zeros does to types and donors": filled_zeros,
    "Time and memory": time_and_memory,
}


# --- running and writing --------------------------------------------------------------------------------
def run(options: argparse.Namespace) -> None:
    """The commands behind the sections, one after the other."""
    data = ["--data", str(options.data)]
    pythons = [
        part
        for name in ("celltypist", "scvi")
        if getattr(options, name)
        for part in (f"--{name}", getattr(options, name))
    ]
    peers = ["--peers-python", options.scvi] if options.scvi else []
    for command in (
        ["annotation.py", *data, *pythons],
        ["annotation.py", *data, "--novel"],
        ["annotation.py", *data, "--markers"],
        ["doublets.py", *data, *peers],
        ["nonzero_imputation.py", *data],
        ["clusters.py", *data, *peers],
        ["verbs_speed.py"],
    ):
        print("##", *command, flush=True)
        subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], check=True)


def as_html(page: str) -> str:
    """The page with its pictures inside."""
    from markdown_it import MarkdownIt

    def inside(found: re.Match[str]) -> str:
        return (
            'src="data:image/png;base64,'
            + base64.b64encode((RESULTS / found[1]).read_bytes()).decode()
            + '"'
        )

    body = re.sub(
        r'src="([^":]+\.png)"', inside, MarkdownIt("commonmark").enable("table").render(page)
    )
    style = (
        "body{font:15px/1.5 sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}table{border-collapse:collapse;font-size:12px}"
        "td,th{padding:2px 8px;border-bottom:1px solid #ddd;text-align:left}img{max-width:100%}"
    )
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>scMamba, measured</title><style>{style}</style>{body}</html>\n'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="measure first")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--celltypist", help="with --run: Python of an environment with CellTypist")
    parser.add_argument(
        "--scvi",
        help="with --run: Python of an environment with scvi-tools, MAGIC and DoubletDetection",
    )
    parser.add_argument("--html", type=Path, help="write one self-contained page as well")
    options = parser.parse_args()
    if options.run:
        run(options)
    opening = "Held-out donors (or whole sets); mean over seeds, lowest and highest in brackets. Made by `python -m benchmarks.report`."
    page = (
        "\n\n".join(
            [
                "# scMamba, measured",
                opening,
                *(f"## {title}\n\n{make()}" for title, make in SECTIONS.items()),
            ]
        )
        + "\n"
    )
    (RESULTS / "report.md").write_text(page, encoding="utf-8")
    if options.html:
        options.html.write_text(as_html(page), encoding="utf-8")
    print(f"{RESULTS / 'report.md'}: {len(SECTIONS)} sections")


if __name__ == "__main__":
    main()
