"""Plots of cells: types, doublets, imputed expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..annotation.result import UNASSIGNED, columns_of_level
from ..data.values import to_csr
from ..utils.columns import require_column
from ..utils.errors import DataError
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
    level: str | Sequence[str] | None = None,
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
        Level of a reference with several, such as ``"class"`` or ``"subtype"`` of the human brain, or several of them;
        ``"all"`` for all, one row each. The types if not given.
    basis
        Key of ``obsm`` with the coordinates.
    confidence
        Also draw the calibrated probability of each cell's type.
    axes
        Axes to draw into, one or two for each level; a new figure if not given.

    Returns
    -------
    The axes. Colors of the types are kept in ``uns["scmamba_type_colors"]``, those of other levels beside them.

    Raises
    ------
    DataError
        There are no types or no coordinates, or no such level.

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
    xy = coordinates(adata, basis)
    levels = chosen_levels(adata, level)
    each = 1 + confidence
    drawn = make_axes(each * len(levels), axes, columns=each)
    for row, (name, column, probability) in enumerate(levels):
        _types_on_map(drawn[row * each], adata, xy, column, name)
        if confidence:
            axis = drawn[row * each + 1]
            values = need_numbers(adata, probability, "annotate")
            title = f"probability of the {name}"
            points = scatter(axis, xy, values, title, cmap="viridis", vmin=0, vmax=1)
            axis.figure.colorbar(points, ax=axis, shrink=0.7)
    return drawn


def _types_on_map(axis: Axes, adata: AnnData, xy: np.ndarray, column: str, name: str) -> None:
    """One map of the cells by type with its legend."""
    types = as_types(need_column(adata, column, "annotate"))
    names = [str(name) for name in types.categories]
    colors = category_colors(adata, column, names)
    title = "cell type" if name == "type" else f"cell type: {name}"
    scatter(axis, xy, [colors[str(t)] for t in types], title)
    present = set(types)
    handles = [
        axis.scatter([], [], color=color, label=name, s=30)
        for name, color in colors.items()
        if name in present
    ]
    size = 8 if len(handles) <= 14 else 6
    axis.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=size
    )


def chosen_levels(adata: AnnData, level: str | Sequence[str] | None) -> list[tuple[str, str, str]]:
    """Levels of an annotation to draw.

    Parameters
    ----------
    adata
        Cells that were annotated.
    level
        One level, several, ``"all"``, or ``None`` for the types (without such a level the finest).

    Returns
    -------
    Name, column of the type and column of its probability of each.

    Raises
    ------
    DataError
        There is no annotation, or no such level.
    """
    levels = _levels_there(adata)
    if level == "all" and levels:
        return [(name, *columns) for name, columns in levels.items()]
    wanted = ["type" if "type" in levels or not levels else list(levels)[-1]]
    if level is not None:
        wanted = [level] if isinstance(level, str) else list(level)
    if missing := [name for name in wanted if name not in levels]:
        if not levels:
            need_column(adata, columns_of_level("type", False)[0], "annotate")
        raise DataError(
            f"The annotation has no level {', '.join(map(repr, missing))}; it has {', '.join(levels) or 'none'}."
        )
    return [(name, *levels[name]) for name in wanted]


def _levels_there(adata: AnnData) -> dict[str, tuple[str, str]]:
    """Columns of the type and of its probability of each level that is in ``obs``, coarse to fine."""
    record = adata.uns.get("scmamba", {})
    record = record.get("annotate", {}) if hasattr(record, "get") else {}
    summary = record.get("summary", {}) if hasattr(record, "get") else {}
    written: Any = np.atleast_1d(summary.get("columns", [])) if hasattr(summary, "get") else []
    found = {}
    for column, probability in zip(map(str, written[0::3]), map(str, written[1::3])):
        name = column.removeprefix("scmamba_type_").removeprefix("scmamba_")
        found[name] = (column, probability)
    found = found or {"type": columns_of_level("type", False)[:2]}
    return {name: columns for name, columns in found.items() if columns[0] in adata.obs}


def coverage(
    adata: AnnData | pd.DataFrame,
    truth_key: str | None = None,
    *,
    level: str | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Accuracy against coverage: the share of right calls among the cells with the highest probabilities.

    Parameters
    ----------
    adata
        Cells that :func:`scmamba.annotate` was called on; or the table of ``Annotation.coverage()``, the curve of the
        reference's held-out donors.
    truth_key
        Column of ``obs`` with the known types. Cells without one are not counted.
    level
        Level of a reference with several; the types if not given.
    axes
        Axes to draw into; a new figure if not given.

    Returns
    -------
    The axes. The curve ends at the share of cells that received a type; the title gives both numbers there.

    Raises
    ------
    DataError
        There are no types, no probabilities or no known types.

    Examples
    --------
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(60, n_genes=500, seed=0)
    >>> adata.obs["scmamba_type"] = adata.obs["cell_type"]
    >>> adata.obs["scmamba_probability"] = 0.9
    >>> scmamba.pl.coverage(adata, "cell_type").get_title()
    '100% of the cells assigned, 100% of these right'
    """
    if isinstance(adata, pd.DataFrame):
        if not {"coverage", "accuracy"} <= set(adata):
            raise DataError(
                f"The table has the columns {', '.join(map(str, adata.columns))}; expected coverage and accuracy, as of "
                "Annotation.coverage()."
            )
        share, right = adata["coverage"].to_numpy(float), adata["accuracy"].to_numpy(float)
    else:
        share, right = _coverage_of_cells(adata, truth_key, level)
    (axis,) = make_axes(1, axes)
    axis.plot(100 * share, 100 * right, color="#4c78a8")
    axis.set(xlabel="cells assigned, %", ylabel="of these right, %", xlim=(0, 101))
    if len(share):
        end = int(np.argmax(share))
        axis.plot(100 * share[end], 100 * right[end], "o", color="black", ms=4)
        axis.set_title(
            f"{share[end]:.0%} of the cells assigned, {right[end]:.0%} of these right", fontsize=10
        )
    return axis


def _coverage_of_cells(
    adata: AnnData, truth_key: str | None, level: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the cells, the most probable first, and the share of right calls among them."""
    if truth_key is None:
        raise DataError(
            "coverage() needs truth_key=: the column of obs with the known types. Without known types pass the curve of the "
            "reference's held-out donors, scmamba.annotate(..., return_result=True).coverage()."
        )
    ((_, column, probability),) = chosen_levels(adata, level)
    truth = require_column(adata.obs, truth_key, "with the known types")
    called = as_types(need_column(adata, column, "annotate")).astype(str)
    sure = need_numbers(adata, probability, "annotate")
    known = ~pd.isna(truth).to_numpy()
    if not known.any():
        raise DataError(f"obs['{truth_key}'] holds no known type.")
    assigned = known & (np.asarray(called) != UNASSIGNED)
    order = np.flatnonzero(assigned)[np.argsort(-sure[assigned], kind="stable")]
    right = np.asarray(called)[order] == truth.astype(str).to_numpy()[order]
    number = np.arange(1, len(order) + 1)
    # Cells of one probability are one point: their order is chance.
    last = np.append(np.diff(sure[order]) != 0, True)[: len(order)]
    return (number / known.sum())[last], (np.cumsum(right) / number)[last]


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
    sd_layer: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Map of the cells by one gene, before and after imputing, on one color scale, and the uncertainty.

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
    sd_layer
        Layer with the standard deviations, ``"scmamba_sd"`` of ``impute(sd=True)``: a third map shows them.
    axes
        Two axes to draw into, three with ``sd_layer``; a new figure if not given.

    Returns
    -------
    The axes. Titles give the share of cells with a value, and the largest standard deviation.

    Raises
    ------
    DataError
        The gene, a layer or the coordinates do not exist.

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
    sd = None if sd_layer is None else _sd_column(adata, gene, sd_layer)
    drawn = make_axes(2 if sd is None else 3, axes)
    top = max(float(before.max(initial=0)), float(after.max(initial=0)), 1e-9)
    for axis, values, name in zip(drawn, (before, after), ("observed", "imputed")):
        title = f"{gene}, {name}: {(values > 0).mean():.0%} of cells"
        order = np.argsort(values, kind="stable")
        points = scatter(axis, xy[order], values[order], title, cmap="magma_r", vmin=0, vmax=top)
    drawn[1].figure.colorbar(points, ax=drawn[1], shrink=0.7, label="log1p(CP10k)")
    if sd is not None:
        title = f"{gene}, standard deviation: up to {sd.max(initial=0):.2f}"
        points = scatter(drawn[2], xy, sd, title, cmap="viridis", vmin=0)
        drawn[2].figure.colorbar(points, ax=drawn[2], shrink=0.7, label="log1p(CP10k)")
    return drawn


def _sd_column(adata: AnnData, gene: str, layer: str) -> np.ndarray:
    """(n,) standard deviations of one gene."""
    if layer not in adata.layers:
        raise DataError(
            f"There is no layer {layer!r}. Write it with scmamba.impute(adata, sd=True)."
        )
    return to_csr(adata.layers[layer][:, adata.var_names.get_indexer([gene])]).toarray()[:, 0]
