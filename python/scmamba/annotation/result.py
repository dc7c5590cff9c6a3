"""What annotation answers: types, probabilities, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from .._version import __version__
from ..data.provenance import KEY
from ..utils.progress import say

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

#: What a cell is called whose type is not certain enough.
UNASSIGNED = "Unassigned"


@dataclass
class Annotation:
    """What the cells are.

    Attributes
    ----------
    cells
        (n,) names.
    levels
        Level -> its classes, coarse to fine; one level is called ``type``.
    probabilities
        Level -> (n, classes) calibrated.
    threshold
        Cells whose best class is less probable are :data:`UNASSIGNED`.
    curve
        (points, 3) threshold, share of cells kept, accuracy, on donors left out; empty where there was no reference.
    is_novel
        (n,) True: like nothing in the reference.
    space
        (n, d) leading components of the cells' own log1p(CP10k), for the map.
    """

    cells: pd.Index
    levels: dict[str, list[str]]
    probabilities: dict[str, np.ndarray]
    threshold: float
    curve: np.ndarray
    is_novel: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)
    space: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def labels(self, level: str | None = None) -> np.ndarray:
        """(n,) class or ``Unassigned``; of a fine level only what belongs to the coarse class given."""
        names = list(self.levels)
        level = level or names[-1]
        best = self._consistent(level)
        p = self.probabilities[level]
        found = np.array(self.levels[level], dtype=object)[best]
        unsure = (p[np.arange(len(p)), best] < self.threshold) | self.is_novel
        return np.where(unsure, UNASSIGNED, found)

    def _consistent(self, level: str) -> np.ndarray:
        names = list(self.levels)
        p = self.probabilities[level]
        if level == names[0]:
            return p.argmax(axis=1)
        above = names[names.index(level) - 1]
        parent = np.array(self.provenance["parents"][level])
        return np.where(parent[None, :] == self._consistent(above)[:, None], p, -1.0).argmax(axis=1)

    def to_table(self) -> pd.DataFrame:
        """One row per cell: class, probability and the three likeliest classes of every level."""
        out: dict[str, Any] = {}
        for level in self.levels:
            p, names = self.probabilities[level], np.array(self.levels[level], dtype=object)
            suffix = "" if level == "type" else f"_{level}"
            order = np.argsort(-p, axis=1, kind="stable")[:, :3]
            out[f"{KEY}_type{suffix}"] = pd.Categorical(
                self.labels(level), categories=[*names, UNASSIGNED]
            )
            out[f"{KEY}_probability{suffix}"] = p[np.arange(len(p)), self._consistent(level)]
            out[f"{KEY}_alternatives{suffix}"] = [
                "; ".join(f"{names[j]} {p[i, j]:.2f}" for j in order[i]) for i in range(len(p))
            ]
        return pd.DataFrame(out, index=self.cells)

    def to_adata(self, adata: AnnData) -> AnnData:
        """Write the table into ``obs`` and provenance into ``uns["scmamba"]["annotate"]``."""
        table = self.to_table()
        for column in table:
            adata.obs[column] = (
                table[column].to_numpy() if table[column].dtype == object else table[column].array
            )
        notes = dict(adata.uns.get(KEY, {}))
        notes["annotate"] = {k: v for k, v in self.provenance.items() if k != "parents"} | {
            "version": __version__
        }
        adata.uns[KEY] = notes
        return adata

    def report(self, truth: Sequence[str], level: str | None = None) -> pd.DataFrame:
        """Precision, recall, F1 and cells per class against known types; unassigned cells count as missed."""
        from sklearn.metrics import precision_recall_fscore_support

        known = np.asarray(truth, dtype=str)
        names = sorted(set(known))
        p, r, f, n = precision_recall_fscore_support(
            known, self.labels(level).astype(str), labels=names, zero_division=0
        )
        return pd.DataFrame(
            {"precision": p, "recall": r, "f1": f, "cells": n}, index=pd.Index(names, name="type")
        )

    def confusion(self, truth: Sequence[str], level: str | None = None) -> pd.DataFrame:
        """(classes of truth, calls) numbers of cells, ``Unassigned`` among the calls."""
        called = pd.Series(self.labels(level).astype(str), name="called")
        return pd.crosstab(pd.Series(np.asarray(truth, dtype=str), name="true"), called)

    def coverage(
        self, truth: Sequence[str] | None = None, level: str | None = None
    ) -> pd.DataFrame:
        """``threshold coverage accuracy``: which share of the cells is kept above each threshold, and how many of these are right.

        Of the cells at hand where ``truth`` (n,) is known; else what was seen on donors of the reference that were left out.
        """
        columns = ["threshold", "coverage", "accuracy"]
        if truth is None:
            return pd.DataFrame(self.curve, columns=columns)
        level = level or list(self.levels)[-1]
        best = self._consistent(level)
        top = self.probabilities[level][np.arange(len(best)), best]
        right = np.array(self.levels[level], dtype=str)[best] == np.asarray(truth, dtype=str)
        kept = [(t, top >= t) for t in np.round(np.arange(0, 1, 0.01), 2)]
        return pd.DataFrame(
            [(t, k.mean(), right[k].mean()) for t, k in kept if k.any()], columns=columns
        )

    def plane(self, seed: int = 0) -> tuple[np.ndarray, str]:
        """(n, 2) coordinates and the name of the method: UMAP, or the leading components where umap-learn is not installed."""
        flat = np.pad(self.space, ((0, 0), (0, 2)))[:, :2]
        if len(flat) < 20:
            return flat, "component"
        try:
            from umap import UMAP
        except ImportError:
            return flat, "component"
        neighbours = min(15, len(flat) - 1)
        return UMAP(
            n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1
        ).fit_transform(self.space), "UMAP"

    def to_plots(self, truth: Sequence[str] | None = None) -> dict[str, Figure]:
        """Pictures by name: ``probability``, ``map`` (UMAP by call), ``coverage`` against accuracy; with ``truth`` also ``confusion``.

        The curve is of donors of the reference left out, or of these cells where their truth is given; without either there is none.
        """
        import matplotlib.pyplot as plt

        figures = {
            "probability": _histogram(
                self.probabilities[list(self.levels)[-1]].max(axis=1), self.threshold
            )
        }
        if self.space.size:
            figures["map"] = _map(
                *self.plane(),
                self.labels().astype(str),
                None if truth is None else np.asarray(truth, dtype=str),
            )
        if truth is not None or len(self.curve):
            figures["coverage"] = _coverage(
                self.curve, None if truth is None else self.coverage(truth), self.threshold
            )
        if truth is not None:
            figures["confusion"] = _confusion(self.confusion(truth))
        for figure in figures.values():
            plt.close(figure)
        return figures


def _histogram(top: np.ndarray, threshold: float) -> Figure:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    axis.hist(top, bins=40)
    axis.axvline(threshold, color="black", lw=1)
    axis.set(xlabel="probability of the best class", ylabel="cells")
    return figure


def _map(flat: np.ndarray, method: str, called: np.ndarray, truth: np.ndarray | None) -> Figure:
    import matplotlib.pyplot as plt

    panels = [("called", called)] + ([] if truth is None else [("true", truth)])
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 5), squeeze=False)
    names = sorted({name for _, values in panels for name in values} - {UNASSIGNED})
    colours = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(names)} | {
        UNASSIGNED: (0.8, 0.8, 0.8, 1.0)
    }
    for axis, (title, values) in zip(axes[0], panels):
        for name in [UNASSIGNED, *names]:
            own = values == name
            if own.any():
                axis.scatter(
                    *flat[own].T,
                    s=max(1.0, 3000 / len(flat)),
                    color=colours[name],
                    label=name,
                    linewidths=0,
                )
        axis.set(title=title, xlabel=f"{method} 1", ylabel=f"{method} 2", xticks=[], yticks=[])
        axis.legend(markerscale=3, fontsize=6, frameon=False, loc="best")
    return figure


def _coverage(curve: np.ndarray, own: pd.DataFrame | None, threshold: float) -> Figure:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    lines = [("donors of the reference left out", curve)] if len(curve) else []
    lines += [] if own is None else [("these cells", own.to_numpy())]
    for name, line in lines:
        axis.plot(100 * line[:, 1], 100 * line[:, 2], label=name)
        here = line[np.argmin(np.abs(line[:, 0] - threshold))]
        axis.plot(100 * here[1], 100 * here[2], "ko", ms=4)
    axis.set(xlabel="cells assigned, %", ylabel="of these right, %")
    axis.legend(fontsize=7, frameon=False)
    return figure


def _confusion(table: pd.DataFrame) -> Figure:
    import matplotlib.pyplot as plt

    share = table.to_numpy() / table.to_numpy().sum(axis=1, keepdims=True)
    figure, axis = plt.subplots(figsize=(2 + 0.45 * table.shape[1], 1.5 + 0.4 * table.shape[0]))
    axis.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (i, j), number in np.ndenumerate(table.to_numpy()):
        if number:
            axis.text(
                j,
                i,
                str(number),
                ha="center",
                va="center",
                fontsize=6,
                color="black" if share[i, j] > 0.6 else "white",
            )
    axis.set_xticks(range(table.shape[1]), table.columns, rotation=90)
    axis.set_yticks(range(table.shape[0]), table.index)
    axis.set(xlabel="called", ylabel="true")
    return figure


def own_components(x: sparse.csr_matrix, seed: int, number: int = 30) -> np.ndarray:
    """(n, d) leading components of the cells themselves; fewer of very few cells, none of a single one."""
    from ..neighbors.svd import principal_components

    parts = min(number, min(x.shape) - 1)
    return (
        principal_components(x, parts, seed=seed)[0]
        if parts >= 1 and x.nnz
        else np.zeros((x.shape[0], 1))
    )


def report_counts(answer: Annotation, verbose: bool) -> None:
    """Say how many cells are of which type."""
    names, numbers = np.unique(answer.labels().astype(str), return_counts=True)
    order = np.argsort(-numbers)
    say(", ".join(f"{names[i]} {numbers[i]}" for i in order[:12]), verbose)
