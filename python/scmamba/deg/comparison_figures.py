"""Figures of ``compare``: volcano plots and heat maps of donors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import COLOURS, file_name, pyplot

if TYPE_CHECKING:
    from .comparison_result import CompareResult

_NAMED = 12  # genes with their names in a volcano plot


def volcano(result: CompareResult, cell_type: str) -> Any:
    """Shrunken fold change against -log10 p; genes that are called in color, those of one donor as rings."""
    plt = pyplot()
    table = result.table[result.table["cell_type"] == cell_type]
    called = (table["p_val_adj"] < result.settings["alpha"]).to_numpy()
    single = (table["driven_by"] != "").to_numpy()
    x = table["log2FC_shrunk"].to_numpy()
    y = -np.log10(np.maximum(table["p_val"].to_numpy(), 1e-300))
    figure, axis = plt.subplots(figsize=(4.5, 4), layout="constrained")
    axis.scatter(x[~called], y[~called], s=4, color=COLOURS[0], alpha=0.5, lw=0)
    for own, color in ((x > 0, COLOURS[2]), (x <= 0, COLOURS[1])):
        axis.scatter(*(v[called & own & ~single] for v in (x, y)), s=9, color=color, lw=0)
        axis.scatter(*(v[called & own & single] for v in (x, y)), s=14, fc="none", ec=color)
    for i in np.flatnonzero(called)[:_NAMED]:
        axis.annotate(
            table["gene"].iloc[i],
            (x[i], y[i]),
            fontsize=6,
            xytext=(2, 2),
            textcoords="offset points",
        )
    pair = result.settings["group1"], result.settings["group2"]
    by = result.settings.get("interaction")
    what = "fold change" if by is None else f"ratio of fold changes by {by}"
    axis.set(
        xlabel=f"log2 {what}, {pair[0]} over {pair[1]} (shrunken)",
        ylabel="-log10 p",
        title=f"{cell_type}: {int(called.sum())} genes",
    )
    return figure


def heatmap(result: CompareResult, cell_type: str, n: int = 30) -> Any:
    """Levels of the most certain genes in every sample, minus the mean of group 2."""
    plt = pyplot()
    table = result.table[result.table["cell_type"] == cell_type].head(n)
    samples = result.samples[cell_type]
    order = np.argsort(samples["group"].to_numpy(), kind="stable")
    levels = result.levels[cell_type]
    # Positions, not names: a gene may be in the object twice.
    columns = [levels.columns.get_loc(g) for g in table["gene"]]
    columns = [
        c if isinstance(c, int) else int(np.flatnonzero(levels.columns == g)[0])
        for c, g in zip(columns, table["gene"])
    ]
    values = levels.to_numpy()[:, columns]
    values = (values - values[(samples["group"] == 1).to_numpy()].mean(axis=0))[order]
    limit = float(np.quantile(np.abs(values), 0.98)) or 1.0
    size = (2.5 + 0.22 * len(samples), 1.5 + 0.17 * len(table))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = axis.imshow(values.T, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    first = int((samples["group"] == 0).sum())
    axis.axvline(first - 0.5, color="black", lw=1)
    axis.set_xticks(
        range(len(samples)), samples["donor"].to_numpy()[order], rotation=90, fontsize=6
    )
    axis.set_yticks(range(len(table)), table["gene"], fontsize=6)
    pair = result.settings["group1"], result.settings["group2"]
    axis.set_title(f"{cell_type}: {pair[0]} (left), {pair[1]}", fontsize=9)
    figure.colorbar(image, ax=axis, label=f"log2, minus the mean of {pair[1]}", shrink=0.8)
    return figure


def power(result: CompareResult, cell_type: str | None = None) -> Any:
    """Smallest fold change found with 80% power against the donors in each group; this comparison as a point."""
    plt = pyplot()
    names = list(result.summary["cell_type"]) if cell_type is None else [cell_type]
    figure, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    colors = plt.get_cmap("tab10")
    for i, name in enumerate(names):
        curve = result.power_curve(name)
        axis.plot(curve["donors"], 2 ** curve["log2fc"], color=colors(i % 10), label=name)
        axis.plot(curve["donors"], 2 ** curve["log2fc_top"], color=colors(i % 10), ls=":")
        row = result.summary.set_index("cell_type").loc[name]
        here = 2 / (1 / row["donors1"] + 1 / row["donors2"])  # as many as two equal groups
        axis.plot(here, 2 ** row["log2fc_80_power"], "o", ms=5, color=colors(i % 10))
    axis.plot([], [], color="black", ls=":", label="most expressed quarter of the genes")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="donors in each group",
        ylabel="fold change found with 80% power",
    )
    ticks = [3, 5, 10, 20, 40, 60]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    low, high = axis.get_ylim()
    folds = [f for f in (1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50) if low <= f <= high]
    axis.set_yticks(folds, [f"{t:g}" for t in folds])
    axis.minorticks_off()
    axis.legend(fontsize=7, frameon=False)
    return figure


def save_figures(result: CompareResult, folder: Path) -> None:
    """``volcano_TYPE.png`` and ``heatmap_TYPE.png`` of every cell type, and ``power.png``."""
    plt = pyplot()
    for name in result.summary["cell_type"]:
        for kind, draw in (("volcano", volcano), ("heatmap", heatmap)):
            figure = draw(result, name)
            figure.savefig(folder / f"{kind}_{file_name(name)}.png", dpi=150)
            plt.close(figure)
    figure = power(result)
    figure.savefig(folder / "power.png", dpi=150)
    plt.close(figure)
