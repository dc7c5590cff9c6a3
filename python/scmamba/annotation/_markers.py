"""Cell types from marker genes: cells that clearly express one panel train a classifier; neighbors smooth its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.special import softmax

from ..data import CellReader
from ..genes import match_genes
from ..neighbors.knn import nearest_neighbors
from ..utils.errors import DataError
from ..utils.expected_time import report_expected
from ..utils.progress import say
from ._reference import UNLABELLED
from .ensemble import fit_ensemble
from .expression import all_human_genes, read_human_cells, shared_values
from .novelty import unit
from .options import AnnotateOptions
from .result import Annotation, own_components

if TYPE_CHECKING:
    from anndata import AnnData

#: A panel of the default with fewer measured genes is completed from the longer list.
FEW = 4
#: Cells over which marker scores are averaged, the cell among them.
NEIGHBORS = 15


def annotate_by_markers(
    adata: AnnData,
    panel: dict[str, list[str]],
    more: dict[str, list[str]] | None,
    options: AnnotateOptions,
    verbose: bool,
) -> Annotation:
    """Name the cells by marker genes.

    Parameters
    ----------
    adata
        The cells.
    panel
        Genes by cell type.
    more
        Further genes that complete a type of which fewer than four genes were measured; ``None`` if the user chose the panel.
    options
        Options of :func:`scmamba.annotate`.
    verbose
        Print what is done.

    Raises
    ------
    DataError
        Fewer than two types with measured genes.
    """
    cells = read_human_cells(adata, options.layer, options.gene_column, options.force)
    columns, short = measured_markers(cells, panel, more, verbose)
    report_expected("annotate markers", len(cells), verbose=verbose)
    x = shared_values(cells, cells.genes, np.arange(len(cells)))
    names = sorted(columns)
    pcs = own_components(x, options.seed)
    p, is_novel, curve, clear = classify_by_markers(
        x, [columns[n] for n in names], pcs, names, options.seed
    )
    say(f"{clear} of {len(p)} cells clearly express the markers of one type", verbose)
    provenance = {
        "mode": "markers",
        "values": cells.values.sentence,
        "types": names,
        "not_measured": sorted(set(panel) - set(columns)),
        "completed": short,
        "clear_cells": clear,
        "threshold": 0.5,
        "genes_per_type": {n: len(columns[n]) for n in names},
        "parents": {},
        "note": "probabilities are calibrated on cells that clearly express the markers of one type, not on known types",
    }
    is_novel = is_novel | (np.diff(x.indptr) == 0)
    return Annotation(
        adata.obs_names, {"type": names}, {"type": p}, 0.5, curve, is_novel, provenance, pcs
    )


def measured_markers(
    cells: CellReader,
    panel: dict[str, list[str]],
    more: dict[str, list[str]] | None,
    verbose: bool,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of each type's measured genes, and the types that were completed from ``more``.

    Raises
    ------
    DataError
        Fewer than two types with measured genes.
    """
    vocabulary = all_human_genes()

    def measured(genes: list[str]) -> np.ndarray:
        found = match_genes(list(genes), vocabulary).positions
        return np.flatnonzero(np.isin(cells.genes, found[found >= 0]))

    refuse_reserved_names(panel)
    columns = {name: measured(genes) for name, genes in panel.items()}
    if more is None and not any(map(len, columns.values())) or _named_by_genes(panel):
        refuse_genes_as_types(panel)
    short = extend_short_panels(
        columns, {name: measured(genes) for name, genes in (more or {}).items()}
    )
    if short:
        say(
            f"few genes of the panel were measured for {', '.join(short)}; using additional markers for these types",
            verbose,
        )
    # In the panel of the package, which the user did not choose, a single gene is not enough to identify a type.
    columns = {name: own for name, own in columns.items() if len(own) >= (1 if more is None else 2)}
    if len(columns) < 2:
        raise DataError(
            f"Genes of {len(columns)} of the {len(panel)} panels were measured; markers of at least two types are needed. "
            "Check the gene names, or give markers= for your tissue."
        )
    if missing := sorted(set(panel) - set(columns)):
        few = "no marker" if more is None else "fewer than two markers"
        say(
            f"{few} of {', '.join(missing)} measured: cells of these types cannot be identified and may be assigned to another type",
            verbose,
        )
    return columns, short


def refuse_reserved_names(panel: dict[str, list[str]]) -> None:
    """Refuse a type that is called like a cell without one.

    Raises
    ------
    DataError
        Names the type.
    """
    if taken := [name for name in panel if name.strip().casefold() in UNLABELLED]:
        raise DataError(
            f"markers has a cell type {taken[0]!r}, which is what cells without a type are called. Rename it."
        )


def _named_by_genes(panel: dict[str, list[str]]) -> bool:
    """Most types are called like genes that their own panel lacks: a table whose columns are types, or whose first column is the gene."""
    names = list(panel)
    is_gene = match_genes(names, all_human_genes()).positions >= 0
    return len(names) > 2 and is_gene.mean() >= 0.7 and not any(n in panel[n] for n in names)


def refuse_genes_as_types(panel: dict[str, list[str]]) -> None:
    """Refuse a panel whose types are genes.

    Raises
    ------
    DataError
        Names the first of them.
    """
    names = [
        name for name in panel if (match_genes([name], all_human_genes()).positions >= 0).all()
    ]
    if 2 * len(names) > len(panel):
        raise DataError(
            f"markers has genes where cell types are expected ({', '.join(names[:4])}). Put the cell type first on each line and its "
            "genes after it; a table with one column per type is given as a mapping of types to genes."
        )


def extend_short_panels(columns: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> list[str]:
    """Add further markers to types of which few were measured; returns these types.

    Further markers are less specific (neurons express SLC1A2 and CLU, too), so they are used only if at least half of the types have
    enough markers of their own.
    """
    well = [name for name, own in columns.items() if len(own) >= FEW]
    if 2 * len(well) < len(columns):
        return []
    short = [name for name in columns if name not in well and len(more.get(name, [])) > 0]
    for name in short:
        columns[name] = np.union1d(columns[name], more[name])
    return short


def classify_by_markers(
    x: sparse.csr_matrix, columns: list[np.ndarray], space: np.ndarray, names: list[str], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(n, types) probabilities, (n,) cells without support, the coverage curve, and the number of training cells."""
    nearest = nearest_neighbors(unit(space), unit(space), NEIGHBORS)
    score = marker_scores(x, columns, nearest)
    around = score[nearest].mean(axis=1)
    seeds = confident_cells(score, around)
    sure = np.flatnonzero(seeds >= 0)
    if len(np.unique(seeds[sure])) < 2 or x.shape[0] < 60:
        return softmax(8 * score, axis=1), score.max(axis=1) < 0.1, np.empty((0, 3)), len(sure)
    ensemble = fit_ensemble(
        x[sure], np.array(names)[seeds[sure]], np.full(len(sure), ""), seed=seed, verbose=False
    )
    p = np.zeros((len(seeds), len(names)))
    p[:, [names.index(n) for n in ensemble.names]] = ensemble.probabilities(x)
    p = 0.5 * p + 0.5 * p[nearest].mean(axis=1)
    return p, unsupported_cells(around, seeds, p.argmax(axis=1)), ensemble.curve, len(sure)


def marker_scores(
    x: sparse.csr_matrix, columns: list[np.ndarray], nearest: np.ndarray | None = None
) -> np.ndarray:
    """(n, types) weighted mean of each panel's genes, each relative to its 98th percentile.

    Not centered: where most cells are of one type, the average cell is of it. With ``nearest`` (n, k) neighbors, genes that correlate
    with another type's panel rather than with their own weigh less.
    """
    values = []
    for own in columns:
        raw = x[:, own].toarray()
        values.append(np.minimum(raw / np.maximum(np.quantile(raw, 0.98, axis=0), 1.0), 1.5))
    weights = (
        [np.ones(v.shape[1]) for v in values] if nearest is None else coherence(values, nearest)
    )
    return np.column_stack([v @ w / w.sum() for v, w in zip(values, weights)])


def coherence(values: list[np.ndarray], nearest: np.ndarray) -> list[np.ndarray]:
    """Weights of each panel's genes: how much better a gene correlates with the rest of its panel than with any other, over neighborhoods."""
    smooth = [v[nearest].mean(axis=1) for v in values]
    sums = [s.sum(axis=1) for s in smooth]
    weights = []
    for t, genes in enumerate(smooth):
        others = np.column_stack([sums[u] for u in range(len(sums)) if u != t])
        own = [
            correlations(genes[:, [g]], (sums[t] - genes[:, g])[:, None])[0, 0]
            for g in range(genes.shape[1])
        ]
        rivals = correlations(genes, others).max(axis=1)
        weights.append(
            np.clip(0.5 + np.array(own) - rivals, 0.05, 1.0) if genes.shape[1] > 1 else np.ones(1)
        )
    return weights


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(p, q) Pearson correlations of the columns; 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)[None, :]
    return np.where(size > 1e-9, a.T @ b / np.maximum(size, 1e-9), 0.0)


def confident_cells(score: np.ndarray, around: np.ndarray) -> np.ndarray:
    """(n,) the type whose panel a cell expresses clearly more than any other; -1 if there is none.

    Its neighbors must agree, or the margin must be large: in shallow cells a stray transcript is enough for a high score.
    """
    order = np.sort(score, axis=1)
    margin = order[:, -1] - order[:, -2]
    own = score.argmax(axis=1)
    clear = (order[:, -1] > 0.25) & (margin > np.where(around.argmax(axis=1) == own, 0.15, 0.45))
    return np.where(clear, own, -1)


def unsupported_cells(around: np.ndarray, seeds: np.ndarray, called: np.ndarray) -> np.ndarray:
    """(n,) True: neighborhoods that express the panel of their call less than 0.4 times as much as the training cells do, and less than
    1.5 times as much as another panel.
    """
    out = np.zeros(len(called), dtype=bool)
    for c in np.unique(called):
        if (seeds == c).any():
            own = called == c
            rival = np.delete(around[own], c, axis=1).max(axis=1)
            weak = around[own, c] < 0.4 * np.median(around[seeds == c, c])
            out[own] = weak & (around[own, c] < 1.5 * rival)
    return out
