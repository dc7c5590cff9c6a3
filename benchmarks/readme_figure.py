"""The README's figure, from the committed tables: three questions, scMamba next to other methods, gains and a loss.

python -m benchmarks.readme_figure        writes man/figures/measured.png
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
TARGET = HERE.parent / "man" / "figures" / "measured.png"
OURS, THEIRS = "#00796b", "#9aa5b1"

#: Method in ``foreign_genes_gains.tsv`` -> name in the figure.
RATES = {
    "scMamba": "scMamba",
    "100 neighbors, Hellinger": "100 nearest neighbors",
    "diffusion (idea of MAGIC)": "diffusion",
    "gene rate": "average of the gene",
    "low rank (idea of ALRA)": "rank reduction",
}
DETECTORS = {
    "scMamba both": 'scMamba, method="both"',
    "scMamba fast": "scMamba, default",
    "hybrid equivalent": "hybrid of cxds and bcds",
    "SOLO": "SOLO",
    "Scrublet": "Scrublet",
}
NAMERS = {
    'annotate(reference="human-brain")': "scMamba",
    'annotate(markers="panel")': "scMamba, marker genes",
    "Spearman correlation with the same profiles": "correlation, same profiles",
    "logistic regression seeded by markers": "regression, marker genes",
}


def panels() -> dict[str, tuple[str, pd.Series]]:
    """Title -> label of the axis and value of each method, best first."""
    gains = pd.read_csv(RESULTS / "foreign_genes_gains.tsv", sep="\t")
    gains = gains[gains["set"] == "velmeshev"].set_index("method")["gain"] * 100
    found = pd.read_csv(RESULTS / "doublets.tsv", sep="\t")
    found = found[found["set"] == "velmeshev"].groupby("detector")["AUPRC"].mean()
    named = pd.Series(
        {
            method: float(value)
            for method, value in re.findall(
                r"^\| agarwal2020, held-out donor1 \| (.*?) \| ([\d.]+) \|",
                (RESULTS / "brain_types.md").read_text(encoding="utf-8"),
                re.M,
            )
        }
    )
    shown = {
        "Zeros of brain nuclei,\nheld-out donors": ("deviance of counts removed, %", gains, RATES),
        "Simulated doublets of brain\nnuclei, held-out donors": ("AUPRC", found, DETECTORS),
        "Cell types without labels,\nAgarwal donor 1": ("accuracy", named, NAMERS),
    }
    return {
        title: (label, values[list(names)].rename(names).sort_values(ascending=False))
        for title, (label, values, names) in shown.items()
    }


def draw() -> Any:
    """The figure."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 2.6), layout="constrained")
    for axis, (title, (label, values)) in zip(axes, panels().items()):
        colors = [OURS if name.startswith("scMamba") else THEIRS for name in values.index]
        bars = axis.barh(values.index, values, color=colors)
        digits = 1 if label.endswith("%") else 3
        axis.bar_label(bars, fmt=f"%.{digits}f", padding=2, fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(label, fontsize=9)
        axis.tick_params(labelsize=9)
        axis.spines[["top", "right"]].set_visible(False)
        axis.axvline(0, color="black", lw=0.8)
        low, high = min(0.0, values.min()), max(0.0, values.max())
        room = 0.18 * (high - low)
        axis.set_xlim(low - room if low < 0 else 0, high + room)
    return figure


def main() -> None:
    figure = draw()
    figure.savefig(TARGET, dpi=130, metadata={"Software": None})
    print(TARGET)


if __name__ == "__main__":
    main()
