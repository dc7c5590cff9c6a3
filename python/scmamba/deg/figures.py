"""Figures of the robustness analysis, in the manner of the paper's Fig. 7."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from .result import RobustnessResult

COLOURS = ("#8c8c8c", "#2a6f97", "#e07a5f", "#81b29a")
_WAYS = {"up": "up-regulated", "down": "down-regulated"}


def pyplot() -> Any:
    """matplotlib.pyplot, without a display if there is none."""
    import matplotlib

    if matplotlib.get_backend().lower() != "agg" and not matplotlib.is_interactive():
        matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    return plt


def all_figures(result: RobustnessResult) -> dict[str, Any]:
    """Every figure there are runs for; closed for display, open for saving."""
    out: dict[str, Any] = {}
    cells = result.runs[result.runs["kind"] == "cells"]
    if not cells.empty:
        ratios = sorted(cells["ratio"].unique())
        middle = min(ratios, key=lambda r: abs(r - 0.5))
        out["overlap_heatmap"] = overlap_heatmap(result, ratio=middle)
        if len(ratios) > 1:
            for name in result.settings["cell_types"]:
                out[f"ratios_{file_name(name)}"] = ratio_bars(result, cell_type=name)
    if (result.runs["kind"] == "donors").any():
        out["donor_boxes"] = donor_boxes(result)
    if not result.nulls.empty:
        out["false_positives"] = false_positive_bars(result)
    plt = pyplot()
    for figure in out.values():
        plt.close(figure)
    return out


def file_name(name: str) -> str:
    """A cell type as part of the name of a file."""
    return "".join(c if c.isalnum() else "_" for c in name)


def stars(p: float) -> str:
    """``***`` below 0.001, ``**`` below 0.01, ``*`` below 0.05, nothing otherwise."""
    return "" if not p < 0.05 else "***" if p < 0.001 else "**" if p < 0.01 else "*"


def overlap_heatmap(
    result: RobustnessResult, *, ratio: float = 0.5, measure: str = "overlap"
) -> Any:
    """Fig. 7a: mean overlap per cell type and layer, with stars of the paired t-tests; the last column is that of the per-donor test."""
    plt = pyplot()
    runs = result.runs[(result.runs["kind"] == "cells") & np.isclose(result.runs["ratio"], ratio)]
    tests = result.tests(measure)
    tests = tests[(tests["kind"] == "cells") & np.isclose(tests["ratio"], ratio)]
    layers, names = list(result.settings["layers"]), list(result.settings["cell_types"])
    beside = measure == "overlap" and "pseudobulk_overlap" in runs
    beside_name = per_donor_name(result)
    columns = [*layers, beside_name] if beside else layers
    width = 1.9 + 1.0 * len(columns) * 2 + 1.2
    figure, axes = plt.subplots(
        1, 2, figsize=(width, 1.4 + 0.42 * len(names)), squeeze=False, layout="constrained"
    )
    image = None
    for axis, way in zip(axes[0], _WAYS, strict=True):
        means = (
            runs[runs["direction"] == way].groupby(["cell_type", "layer"])[measure].mean().unstack()
        )
        if beside:
            first = runs[(runs["direction"] == way) & (runs["layer"] == layers[0])]
            means[beside_name] = first.groupby("cell_type")["pseudobulk_overlap"].mean()
        grid = means.reindex(index=names, columns=columns).to_numpy(dtype=float)
        image = axis.imshow(grid, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
        for i, name in enumerate(names):
            for j, layer in enumerate(columns):
                mine = (
                    (tests["cell_type"] == name)
                    & (tests["layer"] == layer)
                    & (tests["direction"] == way)
                )
                mark = tests[mine]["p_val"]
                text = (
                    "-"
                    if np.isnan(grid[i, j])
                    else f"{grid[i, j]:.2f}{stars(mark.iloc[0]) if len(mark) else ''}"
                )
                dark = not np.isnan(grid[i, j]) and grid[i, j] > 0.55
                axis.text(
                    j,
                    i,
                    text,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if dark else "black",
                )
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(names)), names if axis is axes[0, 0] else [""] * len(names))
        axis.set_title(_WAYS[way], fontsize=9)
    figure.colorbar(
        image, ax=axes[0].tolist(), label=f"overlap of DEGs at {ratio:.0%} of the cells", shrink=0.9
    )
    return figure


def ratio_bars(result: RobustnessResult, *, cell_type: str, measure: str = "overlap") -> Any:
    """Fig. 7b: mean and sd of the overlap against the share of the cells."""
    plt = pyplot()
    runs = result.runs[(result.runs["kind"] == "cells") & (result.runs["cell_type"] == cell_type)]
    tests = result.tests(measure).query("kind == 'cells' and cell_type == @cell_type")
    layers, ratios = list(result.settings["layers"]), sorted(runs["ratio"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
    for axis, way in zip(axes, _WAYS, strict=True):
        part = runs[runs["direction"] == way]
        for j, layer in enumerate(layers):
            values = (
                part[part["layer"] == layer]
                .groupby("ratio")[measure]
                .agg(["mean", "std"])
                .reindex(ratios)
            )
            at = np.arange(len(ratios)) + (j - (len(layers) - 1) / 2) * 0.8 / len(layers)
            axis.bar(
                at,
                values["mean"],
                0.8 / len(layers),
                yerr=values["std"],
                capsize=2,
                label=layer,
                color=COLOURS[j % len(COLOURS)],
            )
            if "pseudobulk_overlap" in part:
                mine = part[part["layer"] == layer].groupby("ratio")["pseudobulk_overlap"].mean()
                _per_donor(axis, at, mine.reindex(ratios).to_numpy(), j, per_donor_name(result))
        for i, ratio in enumerate(ratios):
            p = tests[(tests["direction"] == way) & np.isclose(tests["ratio"], ratio)]["p_val"]
            if len(p):
                axis.text(i, 1.02, stars(float(p.iloc[0])), ha="center", fontsize=8)
        axis.set_xticks(range(len(ratios)), [f"{r:.0%}" for r in ratios])
        axis.set(title=f"{cell_type}, {_WAYS[way]}", xlabel="share of the cells", ylim=(0, 1.1))
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("overlap of DEGs")
    axes[1].legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def donor_boxes(result: RobustnessResult, *, measure: str = "overlap") -> Any:
    """Fig. 7c: overlap of the DEGs of donor combinations with those of all donors."""
    plt = pyplot()
    runs = result.runs[result.runs["kind"] == "donors"]
    tests = result.tests(measure).query("kind == 'donors'")
    layers, names = list(result.settings["layers"]), list(pd.unique(runs["cell_type"]))
    size = (2.2 + 1.1 * len(names), 3.0)
    figure, axes = plt.subplots(
        1, 2, figsize=(size[0] * 1.6, size[1]), sharey=True, layout="constrained"
    )
    for axis, way in zip(axes, _WAYS, strict=True):
        part = runs[runs["direction"] == way]
        for j, layer in enumerate(layers):
            data = [
                part[(part["layer"] == layer) & (part["cell_type"] == n)][measure]
                .dropna()
                .to_numpy()
                for n in names
            ]
            at = np.arange(len(names)) + (j - (len(layers) - 1) / 2) * 0.8 / len(layers)
            boxes = axis.boxplot(
                data,
                positions=at,
                widths=0.7 / len(layers),
                patch_artist=True,
                medianprops={"color": "black"},
                flierprops={"markersize": 2},
            )
            for box in boxes["boxes"]:
                box.set_facecolor(COLOURS[j % len(COLOURS)])
            if "pseudobulk_overlap" in part:
                mine = (
                    part[part["layer"] == layer].groupby("cell_type")["pseudobulk_overlap"].mean()
                )
                _per_donor(axis, at, mine.reindex(names).to_numpy(), j, per_donor_name(result))
        for i, name in enumerate(names):
            p = tests[(tests["direction"] == way) & (tests["cell_type"] == name)]["p_val"]
            if len(p):
                axis.text(i, 1.02, stars(float(p.iloc[0])), ha="center", fontsize=8)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set(title=_WAYS[way], ylim=(-0.02, 1.1))
        axis.title.set_fontsize(9)
    axes[0].set_ylabel(f"overlap of DEGs, {result.settings['donors']} donors")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=COLOURS[j % len(COLOURS)]) for j in range(len(layers))
    ]
    marks = [line for line in axes[1].lines if line.get_label() == per_donor_name(result)]
    axes[1].legend(
        [*handles, *marks],
        [*layers, *[per_donor_name(result)] * len(marks)],
        fontsize=8,
        frameon=False,
    )
    return figure


def per_donor_name(result: RobustnessResult) -> str:
    """What figures call the test between donors; results of earlier versions have the moderated t-test."""
    test = result.settings.get("donor_test", "moderated_t")
    return "per donor" if test == "moderated_t" else f"per donor, {test.replace('_', ' ')}"


def _per_donor(axis: Any, at: np.ndarray, values: np.ndarray, layer: int, name: str) -> None:
    """Diamonds for the test between donors on the same runs."""
    label = name if layer == 0 else None
    axis.plot(at, values, "D", ms=4, color="black", label=label, ls="none")


def false_positive_bars(result: RobustnessResult) -> Any:
    """Share of genes with p < 0.05 where nothing differs, beside the per-donor test on the same splits."""
    plt = pyplot()
    table = result.false_positives()
    layers, names = list(result.settings["layers"]), list(result.settings["cell_types"])
    kinds = [k for k in ("null_cells", "null_donors") if (table["kind"] == k).any()]
    titles = {
        "null_cells": "random halves of each donor's cells",
        "null_donors": "donors of one condition split",
    }
    size = (1.5 + 3.4 * len(kinds), 3.0)
    figure, axes = plt.subplots(
        1, len(kinds), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        part = table[table["kind"] == kind].set_index(["cell_type", "layer"])
        for j, layer in enumerate(layers):
            rate = [part["rate_nominal"].get((n, layer), np.nan) for n in names]
            at = np.arange(len(names)) + (j - (len(layers) - 1) / 2) * 0.8 / len(layers)
            axis.bar(at, rate, 0.8 / len(layers), label=layer, color=COLOURS[j % len(COLOURS)])
            bulk = [part["pseudobulk_rate"].get((n, layer), np.nan) for n in names]
            axis.plot(
                at,
                bulk,
                "D",
                ms=4,
                color="black",
                label=per_donor_name(result) if j == 0 else None,
                ls="none",
            )
        axis.axhline(0.05, color="black", lw=0.8, ls="--")
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axis.set_title(titles[kind], fontsize=9)
    axes[0, 0].set_ylabel("genes with p < 0.05 (all false)")
    axes[0, -1].legend(fontsize=8, frameon=False)
    return figure
