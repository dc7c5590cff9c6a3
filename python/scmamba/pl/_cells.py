"""Plots of cells: types, doublets, imputed expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._common import (
    as_types,
    category_colors,
    coordinates,
    gene_column,
    make_axes,
    need_column,
    need_numbers,
    scatter,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes


def annotation(
    adata: AnnData,
    level: str | None = None,
    *,
    basis: str = "X_umap",
    confidence: bool = True,
    axes: Axes | Sequence[Axes] | None = None,
) -> list[Axes]:
    """Map of the cells by type, and by the probability of the type.

    Parameters
    ----------
    adata
        Cells that :func:`scmamba.annotate` was called on.
    level
        Level of a reference with several, such as ``"subtype"``; the only one if not given.
    basis
        Key of ``obsm`` with the coordinates.
    confidence
        Also draw the calibrated probability of each cell's type.
    axes
        Axes to draw into, one or two; a new figure if not given.

    Returns
    -------
    The axes. Colors of the types are kept in ``uns["scmamba_type_colors"]``.

    Raises
    ------
    DataError
        There are no types or no coordinates.

    Examples
    --------
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(60, n_genes=500, seed=0)
    >>> adata.obs["scmamba_type"] = adata.obs["cell_type"]
    >>> adata.obs["scmamba_probability"] = 0.9
    >>> adata.obsm["X_umap"] = adata.X[:, :2].toarray()
    >>> axes = scmamba.pl.annotation(adata)
    >>> axes[1].get_title()
    'probability of the type'
    """
    suffix = "" if level is None else f"_{level}"
    column = f"scmamba_type{suffix}"
    types = as_types(need_column(adata, column, "annotate"))
    xy = coordinates(adata, basis)
    drawn = make_axes(1 + confidence, axes)
    names = [str(name) for name in types.categories]
    colors = category_colors(adata, column, names)
    scatter(drawn[0], xy, [colors[str(t)] for t in types], "cell type")
    handles = [
        drawn[0].scatter([], [], color=color, label=name, s=30) for name, color in colors.items()
    ]
    drawn[0].legend(
        handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8
    )
    if confidence:
        values = need_numbers(adata, f"scmamba_probability{suffix}", "annotate")
        points = scatter(
            drawn[1], xy, values, "probability of the type", cmap="viridis", vmin=0, vmax=1
        )
        drawn[1].figure.colorbar(points, ax=drawn[1], shrink=0.7)
    return drawn


def doublets(adata: AnnData, *, axes: Axes | None = None) -> Axes:
    """Histogram of the doublet scores, of singlets and of called doublets.

    Parameters
    ----------
    adata
        Cells that :func:`scmamba.find_doublets` was called on.
    axes
        Axes to draw into; a new figure if not given.

    Returns
    -------
    The axes.

    Raises
    ------
    DataError
        There are no scores.

    Examples
    --------
    >>> import numpy as np
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(60, n_genes=500, seed=0)
    >>> adata.obs["scmamba_doublet_score"] = np.linspace(0, 1, 60)
    >>> adata.obs["scmamba_doublet"] = adata.obs["scmamba_doublet_score"] > 0.9
    >>> scmamba.pl.doublets(adata).get_title()
    '6 of 60 cells (10.0%) called doublets'
    """
    score = need_numbers(adata, "scmamba_doublet_score", "find_doublets")
    called = need_numbers(adata, "scmamba_doublet", "find_doublets") > 0
    (axis,) = make_axes(1, axes)
    bins = np.linspace(0, max(1.0, float(np.nanmax(score, initial=0))), 51)
    axis.hist(
        [score[~called], score[called]],
        bins=bins,
        stacked=True,
        label=["singlets", "doublets"],
        color=["#4c78a8", "#e45756"],
    )
    axis.set(
        xlabel="doublet score",
        ylabel="cells",
        yscale="log",
        title=f"{int(called.sum()):,} of {len(called):,} cells ({called.mean():.1%}) called doublets",
    )
    axis.legend(frameon=False)
    return axis


def imputation(
    adata: AnnData,
    gene: str,
    *,
    layer: str = "scmamba",
    basis: str = "X_umap",
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Map of the cells by one gene, before and after imputing, on one color scale.

    Parameters
    ----------
    adata
        Cells that :func:`scmamba.impute` was called on.
    gene
        Name in ``var_names``.
    layer
        Layer with the imputed values.
    basis
        Key of ``obsm`` with the coordinates.
    axes
        Two axes to draw into; a new figure if not given.

    Returns
    -------
    The two axes. Titles give the share of cells with a value.

    Raises
    ------
    DataError
        The gene, the layer or the coordinates do not exist.

    Examples
    --------
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(60, n_genes=500, seed=0)
    >>> adata.layers["scmamba"] = adata.X.copy()
    >>> adata.obsm["X_umap"] = adata.X[:, :2].toarray()
    >>> before, after = scmamba.pl.imputation(adata, adata.var_names[0])
    >>> before.get_title() != after.get_title()
    True
    """
    xy = coordinates(adata, basis)
    before, after = (gene_column(adata, [gene], name)[:, 0] for name in (None, layer))
    drawn = make_axes(2, axes)
    top = max(float(before.max(initial=0)), float(after.max(initial=0)), 1e-9)
    for axis, values, name in zip(drawn, (before, after), ("observed", "imputed")):
        title = f"{gene}, {name}: {(values > 0).mean():.0%} of cells"
        order = np.argsort(values, kind="stable")
        points = scatter(axis, xy[order], values[order], title, cmap="magma_r", vmin=0, vmax=top)
    drawn[1].figure.colorbar(points, ax=drawn[1], shrink=0.7, label="log1p(CP10k)")
    return drawn
