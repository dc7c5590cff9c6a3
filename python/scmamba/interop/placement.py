"""Which matrix of an AnnData becomes which layer of an R object: by what it holds, not by where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..data.selection import select_matrix
from ..data.values import ValueScale

if TYPE_CHECKING:
    from anndata import AnnData

#: Kind of values -> Seurat's layer.
_LAYER = {
    "counts": "counts",
    "empty": "counts",
    "log1p": "data",
    "log1p_counts": "data",
    "scaled": "scale.data",
    "negative": "scale.data",
}
#: Where each layer is looked for, in this order, if X is not it.
_ELSEWHERE = {"counts": ("counts", "raw"), "data": ("data", "logcounts", "raw")}


def layer_for(values: ValueScale) -> str:
    """Seurat's name for values of a kind; ``data`` for those that are neither counts, logarithms nor scaled.

    Parameters
    ----------
    values
        What was found.

    Examples
    --------
    >>> import numpy as np
    >>> from scmamba.data.values import classify_values
    >>> layer_for(classify_values(np.array([[1, 2], [0, 3]])))
    'counts'
    """
    return _LAYER.get(values.kind, "data")


def place_matrices(
    adata: AnnData, remembered: Mapping[str, str], notes: list[str]
) -> dict[str, str]:
    """The layers of the main assay and where their values are: ``X``, ``raw``, ``layers/NAME`` or ``obsm/NAME``.

    A place that was remembered when the object came from R holds only where the values still fit it.

    Parameters
    ----------
    adata
        The object.
    remembered
        Place of each layer when the object was read from R; empty for others.
    notes
        Gets a sentence where values moved.

    Returns
    -------
    dict
        Layer to place, counts before data before scaled values.
    """
    places: dict[str, str] = {}
    if adata.X is not None:
        places[_layer_of_x(adata, remembered, notes)] = "X"
    # What was read from R never sets raw: logarithms there are newer than those that came along.
    if "data" not in places and "data" in remembered and _holds(adata, "raw", "data"):
        places["data"] = "raw"
    for layer, place in remembered.items():
        if place != "X" and layer not in places and _is_there(adata, place):
            places[layer] = place
    for layer, names in _ELSEWHERE.items():
        if layer not in places:
            found = next((n for n in names if _holds(adata, n, layer)), None)
            if found is not None:
                places[layer] = found if found == "raw" else f"layers/{found}"
    if set(places) == {"scale.data"}:
        notes.append("X holds scaled values and there are no others; they are written as data")
        return {"data": places["scale.data"]}
    first = (
        [layer for layer in remembered if layer in places] if _unchanged(places, remembered) else []
    )
    order = [*first, *(layer for layer in ("counts", "data", "scale.data") if layer not in first)]
    return {layer: places[layer] for layer in [*order, *places] if layer in places}


def _layer_of_x(adata: AnnData, remembered: Mapping[str, str], notes: list[str]) -> str:
    before = next((layer for layer, place in remembered.items() if place == "X"), None)
    values = select_matrix(adata).classify()
    now = layer_for(values)
    if before is None or before == now or before not in ("counts", "data", "scale.data"):
        return now if before is None else before
    if values.kind in ("neither", "not_finite") or (
        before == "data" and now == "counts" and not values.integer
    ):
        return before  # what Seurat's data holds after another normalization
    notes.append(f"{values.sentence}: written as {now} (it was read from {before})")
    return now


def _unchanged(places: Mapping[str, str], remembered: Mapping[str, str]) -> bool:
    return all(places.get(layer) == place for layer, place in remembered.items())


def _is_there(adata: AnnData, place: str) -> bool:
    holder, _, key = place.partition("/")
    return key in getattr(adata, holder)


def _holds(adata: AnnData, name: str, layer: str) -> bool:
    """Whether a layer or ``raw`` holds what belongs into ``layer``, for all genes."""
    if name == "raw":
        if (
            "raw" in adata.layers
            or adata.raw is None
            or not adata.var_names.isin(adata.raw.var_names).all()
        ):
            return False
    elif name not in adata.layers:
        return False
    return layer_for(select_matrix(adata, name).classify()) == layer
