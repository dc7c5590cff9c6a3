"""Figures, coordinates, colors and values that the plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.selection import select_matrix
from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

#: Color of cells without a type.
GREY = "#c8c8c8"


def make_axes(n: int, axes: Any, width: float = 5.0, height: float = 4.2) -> list[Any]:
    """Axes to draw into.

    Parameters
    ----------
    n
        How many are needed.
    axes
        Axes of the user, one or a sequence; ``None`` makes a new figure.
    width, height
        Size of each in inches.

    Returns
    -------
    ``n`` axes.

    Raises
    ------
    DataError
        Another number of axes was given.
    """
    if axes is None:
        import matplotlib.pyplot as plt

        figure, made = plt.subplots(1, n, figsize=(width * n, height), squeeze=False)
        figure.set_layout_engine("constrained")
        plt.close(figure)
        return list(made[0])
    given = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(given) != n:
        raise DataError(f"axes has {len(given)} axes; this plot needs {n}.")
    return given


def coordinates(adata: AnnData, basis: str) -> np.ndarray:
    """Two coordinates of each cell.

    Parameters
    ----------
    adata
        The object.
    basis
        Key of ``obsm``.

    Returns
    -------
    (n, 2).

    Raises
    ------
    DataError
        There is no such key.
    """
    if basis not in adata.obsm:
        have = ", ".join(adata.obsm) or "none"
        raise DataError(
            f"The data have no obsm['{basis}']; they have {have}. Make a map first, such as "
            "sc.pp.neighbors(adata, use_rep='X_scmamba') and sc.tl.umap(adata), or pass basis=."
        )
    return np.asarray(adata.obsm[basis])[:, :2]


def need_column(adata: AnnData, column: str, verb: str) -> Any:
    """A column of ``obs``.

    Parameters
    ----------
    adata
        The object.
    column
        Name of the column.
    verb
        Function that writes it, for the message.

    Returns
    -------
    The column.

    Raises
    ------
    DataError
        There is no such column.
    """
    if column not in adata.obs:
        raise DataError(f"The data have no column '{column}'; scmamba.{verb}(adata) writes it.")
    return adata.obs[column]


def category_colors(adata: AnnData, column: str, names: list[str]) -> dict[str, Any]:
    """Color of each category, kept in ``uns`` as scanpy does.

    Parameters
    ----------
    adata
        The object; ``uns["<column>_colors"]`` is read, or written.
    column
        Name of the column of ``obs``.
    names
        The categories.

    Returns
    -------
    Color by category; ``Unassigned`` is grey.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    key = f"{column}_colors"
    kept = [str(color) for color in adata.uns.get(key, [])]
    if len(kept) != len(names):
        palette = colormaps["tab20"]
        kept = [GREY if n == "Unassigned" else to_hex(palette(i % 20)) for i, n in enumerate(names)]
        adata.uns[key] = kept
    return dict(zip(names, kept))


def gene_column(adata: AnnData, genes: list[str], layer: str | None) -> np.ndarray:
    """Expression of some genes on a log scale.

    Parameters
    ----------
    adata
        The object.
    genes
        Names in ``var_names``.
    layer
        Layer; ``X`` if ``None``. Counts become log1p(CP10k), other values stay.

    Returns
    -------
    (n, len(genes)) float32.

    Raises
    ------
    DataError
        A gene or the layer does not exist.
    """
    if missing := [gene for gene in genes if gene not in adata.var_names]:
        raise DataError(f"The data have no gene {', '.join(missing)} (adata.var_names).")
    rows = select_matrix(adata, layer).display_values()
    return rows[:, adata.var_names.get_indexer(genes)].toarray()


def scatter(axis: Any, xy: np.ndarray, color: Any, title: str, **options: Any) -> Any:
    """Draw cells on a map.

    Parameters
    ----------
    axis
        Where to draw.
    xy
        (n, 2) coordinates.
    color
        Color or value of each cell.
    title
        Title of the axis.
    **options
        Further options of ``Axes.scatter``.

    Returns
    -------
    What ``Axes.scatter`` returns.
    """
    size = float(np.clip(60_000 / max(len(xy), 1), 1.5, 30))
    drawn = axis.scatter(
        xy[:, 0], xy[:, 1], c=color, s=size, linewidths=0, rasterized=len(xy) > 5000, **options
    )
    axis.set(title=title, xticks=[], yticks=[], aspect="equal")
    return drawn
