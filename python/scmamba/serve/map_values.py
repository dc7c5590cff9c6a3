"""Values of the cells on a map, by which the page colors them: columns of ``obs``, and one gene at a time.

The process that draws the map writes them; the server reads the values of a gene without numpy or HDF5. ``genes.bin`` holds the cells
(unsigned 16 bit) and the values (float32) of one gene after the other, ``genes.json`` its names and where each begins.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

#: Columns, and distinct values of a column, by which the page can color.
COLUMNS, LEVELS = 100, 200
#: Characters of a gene's name: the server reads all names at once.
LONGEST = 60


def column_values(adata: AnnData) -> dict[str, dict[str, Any]]:
    """Columns of ``obs``.

    Parameters
    ----------
    adata
        The cells of the map.

    Returns
    -------
    For each column ``levels`` and ``codes`` (-1: no value), or ``numbers`` (``None``: no value). Columns with more than
    :data:`LEVELS` distinct texts are omitted.
    """
    import pandas as pd

    found: dict[str, dict[str, Any]] = {}
    for name in list(adata.obs.columns)[:COLUMNS]:
        column = adata.obs[name]
        if pd.api.types.is_numeric_dtype(column) and column.dtype.kind in "iuf":
            values = np.asarray(column, dtype=float)
            found[str(name)] = {
                "numbers": [float(f"{v:.9g}") if np.isfinite(v) else None for v in values]
            }
            continue
        text = column.astype("string")
        codes, levels = pd.factorize(text, sort=True)
        if len(levels) <= LEVELS:
            found[str(name)] = {"levels": list(map(str, levels)), "codes": codes.tolist()}
    return found


def write_genes(adata: AnnData, folder: Path) -> None:
    """Write the values of all genes.

    Parameters
    ----------
    adata
        The cells of the map: at most 65,535.
    folder
        Where ``genes.bin`` and ``genes.json`` are written.
    """
    from scipy import sparse

    from ..data.selection import select_matrix

    matrices = {"measured": select_matrix(adata).display_values()}
    if "scmamba" in adata.layers:
        matrices["imputed"] = adata.layers["scmamba"]
    at, about = 0, dict[str, Any]()
    with open(folder / "genes.bin", "wb") as file:
        for name, matrix in matrices.items():
            columns = sparse.csc_matrix(matrix, dtype=np.float32)
            columns.sort_indices()
            starts = []
            for first, last in zip(columns.indptr[:-1], columns.indptr[1:], strict=True):
                starts.append(at)
                file.write(columns.indices[first:last].astype("<u2").tobytes())
                file.write(columns.data[first:last].astype("<f4").tobytes())
                at += 6 * int(last - first)
            about[name] = [*starts, at]
    names = [str(name)[:LONGEST] for name in adata.var_names]
    text = {"genes": names, "cells": adata.n_obs, "places": about}
    (folder / "genes.json").write_text(json.dumps(text))


def gene_values(folder: Path, gene: str) -> dict[str, Any] | list[str]:
    """Values of one gene in the cells of the map.

    Parameters
    ----------
    folder
        Where :func:`write_genes` wrote.
    gene
        Its name, in any case.

    Returns
    -------
    ``gene``, ``measured`` and, after imputation, ``imputed``; a list of genes with a similar name if there is none of this name.
    """
    about = json.loads((folder / "genes.json").read_text())
    gene, names = gene[:LONGEST], about["genes"]
    wanted = gene.casefold()
    places = [k for k, name in enumerate(names) if name == gene]
    places = places or [k for k, name in enumerate(names) if name.casefold() == wanted]
    if not places:
        return [name for name in names if name.casefold().startswith(wanted[:3])][:5]
    found: dict[str, Any] = {"gene": names[places[0]]}
    with open(folder / "genes.bin", "rb") as file:
        for name, starts in about["places"].items():
            first, last = starts[places[0]], starts[places[0] + 1]
            file.seek(first)
            found[name] = _spread(file.read(last - first), about["cells"])
    return found


def _spread(raw: bytes, cells: int) -> list[float]:
    """All values of a gene from those that are not zero."""
    many = len(raw) // 6
    rows, data = array("H", raw[: 2 * many]), array("f", raw[2 * many :])
    values = [0.0] * cells
    for row, value in zip(rows, data, strict=True):
        values[row] = round(value, 4)
    return values
