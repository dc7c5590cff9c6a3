"""Plots of genes: markers by cell type, differential expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..utils.errors import DataError
from ._common import gene_column, make_axes, need_column

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def markers(
    adata: AnnData,
    genes: Sequence[str],
    *,
    label_key: str = "scmamba_type",
    layer: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Dot plot: mean expression and share of expressing cells of genes in each cell type.

    Parameters
    ----------
    adata
        Cells with types.
    genes
        Names in ``var_names``.
    label_key
        Column of ``obs`` with the cell types.
    layer
        Layer with the values; ``X`` if not given. Counts are drawn as log1p(CP10k).
    axes
        Axes to draw into; a new figure if not given.

    Returns
    -------
    The axes.

    Raises
    ------
    DataError
        A gene, the column or the layer does not exist.

    Examples
    --------
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(60, n_genes=500, seed=0)
    >>> axis = scmamba.pl.markers(adata, list(adata.var_names[:3]), label_key="cell_type")
    >>> len(axis.get_xticks())
    3
    """
    types = pd.Categorical(need_column(adata, label_key, "annotate"))
    values = pd.DataFrame(gene_column(adata, list(genes), layer), columns=list(genes))
    mean = values.groupby(types, observed=True).mean()
    share = (values > 0).groupby(types, observed=True).mean()
    width, height = 2.5 + 0.35 * len(genes), 1.5 + 0.3 * len(mean)
    (axis,) = make_axes(1, axes, width, height)
    x, y = np.meshgrid(np.arange(len(genes)), np.arange(len(mean)))
    points = axis.scatter(
        x.ravel(),
        y.ravel(),
        s=4 + 160 * share.to_numpy().ravel(),
        c=mean.to_numpy().ravel(),
        cmap="Reds",
        edgecolors="#888888",
        linewidths=0.3,
    )
    axis.set_xticks(np.arange(len(genes)), list(genes), rotation=90)
    axis.set_yticks(np.arange(len(mean)), [str(name) for name in mean.index])
    axis.set(title="size: share of cells", xlim=(-0.6, len(genes) - 0.4))
    axis.invert_yaxis()
    axis.figure.colorbar(points, ax=axis, shrink=0.7, label="mean log1p(CP10k)")
    return axis


def volcano(
    table: pd.DataFrame,
    *,
    alpha: float = 0.05,
    min_log2fc: float = 0.25,
    n_names: int = 10,
    axes: Axes | None = None,
) -> Axes:
    """Volcano plot of a table of :func:`scmamba.find_markers`, :func:`scmamba.pseudobulk` or, of one type, :func:`scmamba.compare`.

    Parameters
    ----------
    table
        One row per gene with ``p_val``, ``p_val_adj`` and ``avg_log2FC`` (or ``log2FC``); the names of the genes are its index or
        the column ``gene``.
    alpha
        A gene is colored if its adjusted p is below this ...
    min_log2fc
        ... and its absolute log2 fold change at least this.
    n_names
        Number of genes whose names are written, those with the smallest p.
    axes
        Axes to draw into; a new figure if not given.

    Returns
    -------
    The axes; the title counts the colored genes.

    Raises
    ------
    DataError
        A column is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> import scmamba
    >>> table = pd.DataFrame(
    ...     {"p_val": [1e-9, 0.4], "p_val_adj": [1e-6, 1.0], "avg_log2FC": [1.2, 0.1]}, index=["GFAP", "ACTB"]
    ... )
    >>> scmamba.pl.volcano(table).get_title()
    '1 of 2 genes: adjusted p < 0.05, |log2FC| at least 0.25'
    """
    change = next((c for c in ("avg_log2FC", "log2FC", "logFC") if c in table), None)
    if change is None or not {"p_val", "p_val_adj"} <= set(table):
        raise DataError(
            f"The table has the columns {', '.join(map(str, table.columns))}; expected p_val, p_val_adj and avg_log2FC."
        )
    (axis,) = make_axes(1, axes)
    tiny = np.nextafter(0, 1)
    height = -np.log10(np.maximum(table["p_val"].to_numpy(float), tiny))
    fold = table[change].to_numpy(float)
    names = table["gene"].to_numpy() if "gene" in table else table.index.to_numpy()
    found = (table["p_val_adj"].to_numpy(float) < alpha) & (np.abs(fold) >= min_log2fc)
    axis.scatter(fold[~found], height[~found], s=8, color="#bbbbbb", linewidths=0)
    axis.scatter(fold[found], height[found], s=10, color="#e45756", linewidths=0)
    for row in np.argsort(-height, kind="stable")[:n_names]:
        if found[row]:
            axis.annotate(str(names[row]), (fold[row], height[row]), fontsize=7)
    axis.set(xlabel="log2 fold change", ylabel="-log10 p")
    number = f"{int(found.sum()):,} of {len(table):,} genes"
    title = f"{number}: adjusted p < {alpha:g}, |log2FC| at least {min_log2fc:g}"
    axis.set_title(title, fontsize=9)
    return axis
