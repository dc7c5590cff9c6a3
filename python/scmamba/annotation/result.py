"""The result of an annotation: cell types, probabilities, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.provenance import KEY, refuse_existing, write_record
from ..utils.compiled_code import import_umap
from ..utils.deprecation import warn_renamed
from ..utils.progress import say
from .brain_reference import LEVELS
from .options import AnnotateOptions

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

#: What a cell is called whose type is not certain enough.
UNASSIGNED = "Unassigned"


@dataclass
class Annotation:
    """Cell types of one data set: what ``annotate(..., return_result=True)`` returns.

    Attributes
    ----------
    cells
        (n,) names of the cells.
    levels
        Classes of each level, coarse to fine; a single level is called ``type``.
    probabilities
        (n, classes) calibrated probabilities of each level.
    threshold
        Cells whose best class is less probable are :data:`UNASSIGNED`.
    coverage_curve
        (points, 3) threshold, share of cells kept, accuracy of these, on held-out donors; empty without a reference.
    is_novel
        (n,) bool: the cell resembles nothing in the reference, does not fit its type, or is too uncertain in cells of another study.
    provenance
        How the result was made; ``mode`` is ``"brain"``, ``"reference"``, ``"model"`` or ``"markers"``.
    pcs
        (n, d) principal components of the cells' own log1p(CP10k), for the map.
    params
        Options that :func:`scmamba.annotate` was called with.
    """

    cells: pd.Index
    levels: dict[str, list[str]]
    probabilities: dict[str, np.ndarray]
    threshold: float
    coverage_curve: np.ndarray
    is_novel: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)
    pcs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def main_level(self) -> str:
        """The level that :meth:`labels` gives if none is named: the finest, or ``type`` of the brain reference's tree."""
        return "type" if self.provenance.get("mode") == "brain" else list(self.levels)[-1]

    @property
    def curve(self) -> np.ndarray:
        """Former name of :attr:`coverage_curve`."""
        warn_renamed("Annotation.curve", "Annotation.coverage_curve")
        return self.coverage_curve

    @property
    def space(self) -> np.ndarray:
        """Former name of :attr:`pcs`."""
        warn_renamed("Annotation.space", "Annotation.pcs")
        return self.pcs

    @property
    def strange(self) -> np.ndarray:
        """Former name of :attr:`is_novel`."""
        warn_renamed("Annotation.strange", "Annotation.is_novel")
        return self.is_novel

    def plane(self, seed: int = 0) -> tuple[np.ndarray, str]:
        """Call :meth:`umap`, under its former name.

        Parameters
        ----------
        seed
            Seed of the map.

        Returns
        -------
        As :meth:`umap`.
        """
        warn_renamed("Annotation.plane()", "Annotation.umap()")
        return self.umap(seed)

    def labels(self, level: str | None = None) -> np.ndarray:
        """Class of each cell.

        Parameters
        ----------
        level
            Name of the level; default :attr:`main_level`.

        Returns
        -------
        (n,) class or ``Unassigned``. The class of a fine level lies below the class of the coarse level.
        """
        level = level or self.main_level
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
        """One row per cell: class, probability and the three most probable classes of each level."""
        out: dict[str, Any] = {}
        for level in self.levels:
            p, names = self.probabilities[level], np.array(self.levels[level], dtype=object)
            called, probability, alternatives = columns_of_level(
                level, self.provenance.get("mode") == "brain"
            )
            order = np.argsort(-p, axis=1, kind="stable")[:, :3]
            out[called] = pd.Categorical(self.labels(level), categories=[*names, UNASSIGNED])
            out[probability] = p[np.arange(len(p)), self._consistent(level)]
            out[alternatives] = [
                "; ".join(f"{names[j]} {p[i, j]:.2f}" for j in order[i]) for i in range(len(p))
            ]
        return pd.DataFrame(out, index=self.cells)

    def to_adata(self, adata: AnnData) -> AnnData:
        """Write the table into ``obs`` and how it was made into ``uns["scmamba"]["annotate"]``.

        Parameters
        ----------
        adata
            The cells that were annotated, in the same order.

        Returns
        -------
        The same object.
        """
        table = self.to_table()
        for column in set(_columns_written(adata)) - set(table):
            del adata.obs[column]  # such as levels that this result does not have
        for column in table:
            adata.obs[column] = (
                table[column].to_numpy() if table[column].dtype == object else table[column].array
            )
        summary = {k: v for k, v in self.provenance.items() if k not in ("parents", "model")}
        summary["columns"] = list(table)
        write_record(
            adata,
            "annotate",
            params=self.params,
            model=self.provenance.get("model"),
            summary=summary,
        )
        return adata

    def report(self, truth: Sequence[str], level: str | None = None) -> pd.DataFrame:
        """Score the calls against known types; unassigned cells count as missed.

        Parameters
        ----------
        truth
            (n,) known class of each cell; cells whose class is missing (NaN, None) are not scored.
        level
            Name of the level; default the finest.

        Returns
        -------
        ``precision``, ``recall``, ``f1`` and ``cells`` of each class.
        """
        from sklearn.metrics import precision_recall_fscore_support

        known, kept = _known_types(truth)
        names = sorted(set(known[kept]))
        p, r, f, n = precision_recall_fscore_support(
            known[kept],
            np.asarray(self.labels(level).astype(str))[kept],
            labels=names,
            zero_division=0,
        )
        return pd.DataFrame(
            {"precision": p, "recall": r, "f1": f, "cells": n}, index=pd.Index(names, name="type")
        )

    def confusion(self, truth: Sequence[str], level: str | None = None) -> pd.DataFrame:
        """Compare calls with known classes.

        Parameters
        ----------
        truth
            (n,) known class of each cell.
        level
            Name of the level; default the finest.

        Returns
        -------
        Number of cells of each known class (rows) and call (columns, with ``Unassigned``).
        """
        known, kept = _known_types(truth)
        called = pd.Series(np.asarray(self.labels(level).astype(str))[kept], name="called")
        return pd.crosstab(pd.Series(known[kept], name="true"), called)

    def coverage(
        self, truth: Sequence[str] | None = None, level: str | None = None
    ) -> pd.DataFrame:
        """Accuracy against coverage.

        Parameters
        ----------
        truth
            (n,) known class of each cell; without it the curve is the one of the reference's held-out donors.
        level
            Name of the level; default the finest.

        Returns
        -------
        ``threshold``, ``coverage`` (share of cells with at least this probability) and ``accuracy`` (share of these that is right).
        """
        columns = ["threshold", "coverage", "accuracy"]
        if truth is None:
            return pd.DataFrame(self.coverage_curve, columns=columns)
        level = level or self.main_level
        best = self._consistent(level)
        top = self.probabilities[level][np.arange(len(best)), best]
        known, has_type = _known_types(truth)
        right = np.array(self.levels[level], dtype=str)[best] == known
        top, right = top[has_type], right[has_type]
        kept = [(t, top >= t) for t in np.round(np.arange(0, 1, 0.01), 2)]
        return pd.DataFrame(
            [(t, k.mean(), right[k].mean()) for t, k in kept if k.any()], columns=columns
        )

    def umap(self, seed: int = 0) -> tuple[np.ndarray, str]:
        """Two-dimensional map of the cells.

        Parameters
        ----------
        seed
            Seed of the map.

        Returns
        -------
        (n, 2) coordinates, and the name of the method: ``"UMAP"``, or ``"component"`` for the first two components if umap-learn
        is not installed or there are fewer than 20 cells.
        """
        flat = np.pad(self.pcs, ((0, 0), (0, 2)))[:, :2]
        if len(flat) < 20:
            return flat, "component"
        try:
            umap = import_umap()
        except ImportError:
            return flat, "component"
        neighbors = min(15, len(flat) - 1)
        return umap.UMAP(
            n_neighbors=neighbors, metric="cosine", random_state=seed, n_jobs=1
        ).fit_transform(self.pcs), "UMAP"

    def to_plots(self, truth: Sequence[str] | None = None) -> dict[str, Figure]:
        """Figures by name.

        Parameters
        ----------
        truth
            (n,) known class of each cell, if there is one.

        Returns
        -------
        ``probability`` (histogram), ``map`` (UMAP colored by call), ``coverage`` (accuracy against coverage, of held-out donors of the
        reference or of these cells if ``truth`` is given) and, with ``truth``, ``confusion``.
        """
        import matplotlib.pyplot as plt

        figures = {
            "probability": _histogram(
                self.probabilities[self.main_level].max(axis=1), self.threshold
            )
        }
        if self.pcs.size:
            figures["map"] = _map(
                *self.umap(),
                self.labels().astype(str),
                None if truth is None else np.where(*_known_types(truth)[::-1], "no type"),
            )
        if truth is not None or len(self.coverage_curve):
            figures["coverage"] = _coverage(
                self.coverage_curve, None if truth is None else self.coverage(truth), self.threshold
            )
        if truth is not None:
            figures["confusion"] = _confusion(self.confusion(truth))
        for figure in figures.values():
            plt.close(figure)
        return figures


def _known_types(truth: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) classes as text, and which cells have one."""
    values = np.asarray(truth, dtype=object)
    return values.astype(str), ~pd.isna(values)


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
    colors = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(names)} | {
        UNASSIGNED: (0.8, 0.8, 0.8, 1.0)
    }
    for axis, (title, values) in zip(axes[0], panels):
        for name in [UNASSIGNED, *names]:
            own = values == name
            if own.any():
                axis.scatter(
                    *flat[own].T,
                    s=max(1.0, 3000 / len(flat)),
                    color=colors[name],
                    label=name,
                    linewidths=0,
                )
        axis.set(title=title, xlabel=f"{method} 1", ylabel=f"{method} 2", xticks=[], yticks=[])
        axis.legend(markerscale=3, fontsize=6, frameon=False, loc="best")
    return figure


def _coverage(curve: np.ndarray, own: pd.DataFrame | None, threshold: float) -> Figure:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.5))
    lines = [("held-out donors of the reference", curve)] if len(curve) else []
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
    """(n, d) principal components of the cells; fewer of very few cells, zeros of a single one."""
    from ..neighbors.svd import principal_components

    parts = min(number, min(x.shape) - 1)
    return (
        principal_components(x, parts, seed=seed)[0]
        if parts >= 1 and x.nnz
        else np.zeros((x.shape[0], 1))
    )


def report_counts(answer: Annotation, verbose: bool) -> None:
    """Print how many cells are of which type."""
    names, numbers = np.unique(answer.labels().astype(str), return_counts=True)
    order = np.argsort(-numbers)
    say(", ".join(f"{names[i]} {numbers[i]}" for i in order[:12]), verbose)


def _columns_written(adata: AnnData) -> list[str]:
    """Columns of ``obs`` that an earlier annotation of these cells wrote and that are still there."""
    record = adata.uns.get("scmamba", {}).get("annotate", {})
    written = record.get("summary", {}).get("columns", [])
    return [str(column) for column in np.atleast_1d(written) if column in adata.obs]


def columns_of_level(level: str, in_tree: bool) -> tuple[str, str, str]:
    """Columns of ``obs`` for the class, its probability and the alternatives; ``in_tree``: a level of the brain reference."""
    if level == "type":
        return f"{KEY}_type", f"{KEY}_probability", f"{KEY}_alternatives"
    if in_tree:
        return tuple(f"{KEY}_{level}{end}" for end in ("", "_probability", "_alternatives"))  # type: ignore[return-value]
    return tuple(f"{KEY}_{name}_{level}" for name in ("type", "probability", "alternatives"))  # type: ignore[return-value]


def refuse_foreign_columns(adata: AnnData, options: AnnotateOptions, in_tree: bool = False) -> None:
    """Refuse to replace columns of ``obs`` that :func:`scmamba.annotate` did not write."""
    key = options.label_key
    levels = ["type"] if key is None or isinstance(key, str) or len(key) == 1 else list(key)
    columns = [name for level in levels for name in columns_of_level(level, False)]
    if in_tree:
        columns = [name for level in LEVELS for name in columns_of_level(level, True)]
    refuse_existing(adata, "annotate", obs=columns, overwrite=options.overwrite)
