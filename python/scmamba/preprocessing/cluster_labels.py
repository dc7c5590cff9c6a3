"""Names of clusters from marker panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.values import log1p_cp10k
from ..datasets.marker_panels import brain_markers
from .options import PrepareOptions

if TYPE_CHECKING:
    from anndata import AnnData

#: Names of what is not one of the panel's types.
DOUBLET, UNIDENTIFIED, NEURON_BOTH, NEURON_NEITHER, MYELOID = (
    "Doublet",
    "Unidentified",
    "Neuron, both kinds",
    "Neuron, neither kind",
    "Myeloid, not microglia",
)
LEFT_OVER = (DOUBLET, UNIDENTIFIED, NEURON_BOTH, NEURON_NEITHER, MYELOID)
NEURON_MARKERS = ("SNAP25", "SYT1", "RBFOX3", "STMN2", "GRIN1", "MEG3", "NEFL")
MYELOID_MARKERS = ("CD14", "LYZ", "S100A8", "S100A9", "MRC1", "CD163", "F13A1", "FCN1", "VCAN")


def brain_panels() -> dict[str, tuple[str, ...]]:
    """Marker genes of the eight major brain types."""
    return {name: tuple(genes) for name, genes in brain_markers().items()}


def panel_scores(
    cells: AnnData, cluster: np.ndarray, panels: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Clusters x panels: mean over a panel's measured genes of the cluster's mean log value, as a z-score over all cells.

    Panels without a measured gene are NaN.
    """
    counts = sparse.csr_matrix(cells.X, dtype=np.float64)
    values = log1p_cp10k(counts).astype(np.float64)
    place = {symbol: i for i, symbol in enumerate(cells.var["symbol"])}
    names = np.unique(cluster)
    table = pd.DataFrame(np.nan, index=names, columns=list(panels))
    for panel, genes in panels.items():
        columns = [place[g] for g in genes if g in place]
        if columns:
            dense = values[:, columns].toarray()
            z = (dense - dense.mean(axis=0)) / np.maximum(dense.std(axis=0), 1e-9)
            table[panel] = [z[cluster == name].mean() for name in names]
    return table


def name_clusters(
    scores: pd.DataFrame, doublet: pd.Series, options: PrepareOptions, *, brain: bool
) -> pd.Series:
    """A name for each cluster from its panel scores and mean doublet score.

    ``brain``: ``scores`` has the eight brain types and the columns ``_neuron`` and ``_myeloid``, and left-over neurons and myeloid cells
    get names of their own.
    """
    types = [c for c in scores.columns if not c.startswith("_")]
    names = pd.Series(UNIDENTIFIED, index=scores.index)
    for cluster, row in scores.iterrows():
        if doublet[cluster] > options.max_doublet_score:
            names[cluster] = DOUBLET
            continue
        ranked = row[types].dropna().sort_values(ascending=False)
        if len(ranked) and ranked.iloc[0] >= options.min_score:
            names[cluster] = ranked.index[0]
        if brain:
            names[cluster] = _left_over(row, ranked, str(names[cluster]), options)
    return names


def _left_over(row: pd.Series, ranked: pd.Series, name: str, options: PrepareOptions) -> str:
    neurons = [c for c in ranked.index if "neuron" in c.lower()]
    if (
        len(neurons) == 2
        and name in neurons
        and ranked[neurons].min() >= options.min_score
        and np.ptp(ranked[neurons]) < options.min_margin
    ):
        return NEURON_BOTH
    if name == UNIDENTIFIED and row["_neuron"] >= options.min_score:
        return NEURON_NEITHER
    if (
        name in (UNIDENTIFIED, "Microglia")
        and row["_myeloid"] >= options.min_score
        and row["_myeloid"] > row["Microglia"]
    ):
        return MYELOID
    return name
