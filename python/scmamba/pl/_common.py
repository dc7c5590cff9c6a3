"""Figures, coordinates, colors and values that the plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.selection import select_matrix
from ..utils.columns import require_column
from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

#: Color of cells without a type.
GREY = "#c8c8c8"


def make_axes(
    n: int, axes: Any, width: float = 5.0, height: float = 4.2, columns: int | None = None
) -> list[Any]:
    """Axes to draw into.

    Parameters
    ----------
    n
        How many are needed.
    axes
        Axes of the user, one or a sequence; ``None`` makes a new figure, which a notebook shows below the cell.
    width, height
        Size of each in inches.
    columns
        Axes in one row of a new figure; all if not given.

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

        across = columns or n
        down = -(-n // across)
        size = (width * across, height * down)
        figure, made = plt.subplots(down, across, figsize=size, squeeze=False)
        figure.set_layout_engine("constrained")
        shown_by_axes(figure)
        return list(made.ravel()[:n])
    given = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(given) != n:
        raise DataError(f"axes has {len(given)} axes; this plot needs {n}.")
    return given


def shown_by_axes(figure: Any) -> None:
    """Close a figure where nothing shows open ones, so that a script does not collect them; its axes keep it.

    Parameters
    ----------
    figure
        The figure; windows and notebooks show it while it is open.
    """
    import matplotlib.pyplot as plt

    if plt.get_backend().lower() == "agg":
        plt.close(figure)


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
    values = adata.obsm[basis]
    points = np.asarray(values.toarray() if sparse.issparse(values) else values)
    if points.ndim != 2 or points.shape[1] < 2 or points.dtype.kind not in "iuf":
        raise DataError(
            f"obsm['{basis}'] holds no two numbers for each cell (shape {points.shape}, {points.dtype}); name a map with basis=."
        )
    return points[:, :2]


def need_numbers(adata: AnnData, column: str, verb: str) -> np.ndarray:
    """A column of numbers, missing ones as NaN.

    Parameters
    ----------
    adata, column, verb
        As in :func:`need_column`.

    Returns
    -------
    (n,) float.

    Raises
    ------
    DataError
        There is no such column, or it holds text.
    """
    values = need_column(adata, column, verb)
    try:
        return np.asarray(
            pd.to_numeric(values.astype(object)).to_numpy(dtype=float, na_value=np.nan)
        )
    except (TypeError, ValueError) as error:
        raise DataError(
            f"obs['{column}'] holds no numbers; scmamba.{verb}(adata, overwrite=True) writes it anew."
        ) from error


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
    return require_column(adata.obs, column)


def as_types(column: Any) -> pd.Categorical:
    """Cell types as categories; cells without one are ``Unassigned``.

    Parameters
    ----------
    column
        A column of ``obs``.
    """
    types = pd.Categorical(column)
    names = types.categories.map(str)
    if not names.is_unique:
        types, names = pd.Categorical(types.astype(str)), pd.Index(sorted(set(names)))
    types = types.rename_categories(names)
    if types.isna().any() and "Unassigned" not in types.categories:
        types = types.add_categories("Unassigned")
    return types.fillna("Unassigned") if types.isna().any() else types


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
    from matplotlib.colors import is_color_like, to_hex

    key = f"{column}_colors"
    given = adata.uns.get(key, [])
    kept = [] if isinstance(given, str) else [str(color) for color in np.ravel(given)]
    if len(kept) != len(names) or not all(map(is_color_like, kept)):
        # Grey is the color of cells without a type.
        palette = [
            color for i, color in enumerate(colormaps["tab20"](range(20))) if i not in (14, 15)
        ]
        kept = [
            GREY if n == "Unassigned" else to_hex(palette[i % len(palette)])
            for i, n in enumerate(names)
        ]
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
    if not all(isinstance(gene, str) for gene in genes):
        raise DataError(f"A gene is named by text; found {genes[0]!r}. Draw one gene at a time.")
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
