"""A map of a finished job's cells for the page: two coordinates each, made on request.

``python -m scmamba.serve.cell_map RESULT_FOLDER [MAX_BYTES] [unconfined]`` writes ``picture.json`` there, and the values of the genes; a
separate process, so that the server stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..utils.atomic import atomic_path
from ..utils.compiled_code import import_umap, private_folder
from ..wire.scmb import missing_as_null
from .map_values import column_values, write_genes

if TYPE_CHECKING:
    from anndata import AnnData

#: Cells drawn at most; more would not be seen.
MOST = 5000


def drawn_cells(adata: AnnData, seed: int = 0) -> np.ndarray:
    """Row numbers of the cells on the map.

    Parameters
    ----------
    adata
        The cells of a result.
    seed
        Seed of the draw if there are more than :data:`MOST`.
    """
    rows = np.arange(adata.n_obs)
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
    return rows


def cell_map(adata: AnnData, seed: int = 0) -> dict[str, Any]:
    """Coordinates of at most :data:`MOST` cells.

    Returns
    -------
    ``cells`` (row numbers), ``x``, ``y`` (scaled to 0..1), ``columns`` (:func:`.map_values.column_values`) and ``method``: UMAP of the model's embedding if there is one, else of 30
    principal components of log1p CP10k; the first two components if there are too few cells for a UMAP.
    """
    from sklearn.decomposition import TruncatedSVD

    from ..data.selection import select_matrix

    rows = drawn_cells(adata, seed)
    if "X_scmamba" in adata.obsm:
        basis, what = np.asarray(adata.obsm["X_scmamba"])[rows], "the model's embedding"
    else:
        values = select_matrix(adata[rows]).display_values()
        parts = max(2, min(30, min(values.shape) - 1))
        basis, what = (
            TruncatedSVD(parts, random_state=seed).fit_transform(values),
            f"{parts} components of log1p CP10k",
        )
    basis = basis - basis.mean(axis=0)
    method, flat = _flatten(basis, seed)
    low, high = flat.min(axis=0), flat.max(axis=0)
    flat = (flat - low) / np.where(high > low, high - low, 1)
    return {
        "cells": rows.tolist(),
        "x": flat[:, 0].round(4).tolist(),
        "y": flat[:, 1].round(4).tolist(),
        "method": f"{method} of {what}",
        "columns": column_values(adata[rows]),
    }


def _flatten(basis: np.ndarray, seed: int) -> tuple[str, np.ndarray]:
    if len(basis) >= 20:
        try:
            umap = import_umap()
        except ImportError:
            pass
        else:
            return "UMAP", umap.UMAP(
                n_neighbors=min(15, len(basis) - 1), random_state=seed, n_jobs=1
            ).fit_transform(basis)
    if len(basis) < 3:
        return "first components", np.pad(basis, ((0, 0), (0, 2)))[:, :2]
    left, size, _ = np.linalg.svd(basis, full_matrices=False)
    return "first components", (left * size)[:, :2]


def main() -> None:
    """Make the picture of one result."""
    import warnings

    import anndata

    from .confinement import confine, first_to_go, limit_memory

    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    first_to_go()
    for size in filter(str.isdigit, sys.argv[2:]):
        limit_memory(int(size))
    kept: Path | None = None
    if "unconfined" not in sys.argv[2:]:
        # Only this program reads what is compiled here: a result that took it over could write there.
        kept = private_folder("maps")
        os.environ["NUMBA_CACHE_DIR"] = str(kept)
        confine(write=[folder, kept])
    # Before anything is compiled: a damaged result ends here.
    adata = anndata.read_h5ad(folder / "result.h5ad")
    if kept is not None:
        with contextlib.suppress(ImportError):
            import_umap(kept)
    picture = cell_map(adata)
    write_genes(adata[drawn_cells(adata)], folder)
    with atomic_path(folder / "picture.json") as path:
        path.write_text(json.dumps(missing_as_null(picture), allow_nan=False))


if __name__ == "__main__":
    main()
