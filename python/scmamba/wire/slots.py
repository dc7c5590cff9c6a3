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
#: Types of whole numbers that R's have room for.
_SMALL = tuple(map(np.dtype, ("int8", "uint8", "int16", "uint16", "int32")))


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


def frame_slots(table: pd.DataFrame) -> dict[str, Any]:
    """A table as arrays and lists of text, which every reticulate converts; the classes of pandas change their names.

    Parameters
    ----------
    table
        With one level of columns.

    Returns
    -------
    dict
        ``names`` of the columns, ``rows`` (names of the rows; ``None`` if they are numbers), ``length``, and ``columns``: for each a
        dict with ``kind`` (``number``, ``integer``, ``flag``, ``time``, ``text``, ``factor``, ``ordered``) and ``values`` (1-D;
        seconds since 1970 for ``time``; for text and factors int32 positions in ``levels``, -1 where a value is missing). Numbers
        have ``missing``, too: whether NaN stands for a missing value.

    Examples
    --------
    >>> import pandas as pd
    >>> from scmamba.wire.slots import frame_slots
    >>> frame_slots(pd.DataFrame({"type": ["a", None, "a"]}))["columns"]
    [{'kind': 'text', 'values': array([ 0, -1,  0], dtype=int32), 'levels': ['a']}]
    """
    rows = None if table.index.dtype.kind in "iu" else _strings(table.index)
    columns = [_column(table.iloc[:, place]) for place in range(table.shape[1])]
    return {
        "names": _strings(table.columns),
        "rows": rows,
        "length": len(table),
        "columns": columns,
    }


def _column(column: pd.Series) -> dict[str, Any]:
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        codes, levels = column.cat.codes.to_numpy(np.int32), column.cat.categories
        name = "ordered" if column.cat.ordered else "factor"
        return {"kind": name, "values": codes, "levels": _strings(levels)}
    if dtype.kind == "M":
        seconds = column.to_numpy("datetime64[ns]").astype(np.int64) / 1e9
        return {"kind": "time", "values": np.where(column.isna(), np.nan, seconds)}
    if dtype.kind == "b":
        return {"kind": "flag", "values": column.to_numpy(np.float64, na_value=np.nan)}
    if dtype.kind in "iuf":
        # Wider whole numbers than R's are doubles, as reticulate converts them.
        if dtype in _SMALL:
            return {"kind": "integer", "values": column.to_numpy(np.int32)}
        missing = pd.api.types.is_extension_array_dtype(dtype)
        values = column.to_numpy(np.float64, na_value=np.nan)
        return {"kind": "number", "values": values, "missing": missing}
    codes, levels = pd.factorize(column.astype(object).map(str, na_action="ignore"))
    return {"kind": "text", "values": codes.astype(np.int32), "levels": _strings(levels)}
