"""Columns of the cell table, checked where they are named."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


def require_adata(adata: object, use: str = "this function") -> None:
    """Refuse anything but an object with cells: a path, a table or a matrix.

    Parameters
    ----------
    adata
        What was given.
    use
        What needs it, to begin the sentence of the message.

    Raises
    ------
    DataError
        It is no AnnData.

    Examples
    --------
    >>> require_adata("cells.h5ad", "compare()")
    Traceback (most recent call last):
    scmamba.utils.errors.DataError: compare() needs an AnnData object, and 'cells.h5ad' is a path. Read it first: anndata.read_h5ad('cells.h5ad').
    """
    if isinstance(adata, (str, PathLike)):
        path = fspath(adata)
        raise DataError(
            f"{use} needs an AnnData object, and {path!r} is a path. Read it first: anndata.read_h5ad({path!r})."
        )
    kind = type(adata).__name__
    holders = {"mod": ("mdata['rna']", "modality"), "tables": ("sdata.tables['table']", "table")}
    for parts, (example, name) in holders.items():
        held = getattr(adata, parts, None)
        if isinstance(held, Mapping):
            have = ", ".join(map(str, held)) or "none"
            raise DataError(
                f"{use} needs an AnnData object; found a {kind}. Pass the {name} with the counts, such as {example}; there "
                f"are: {have}. Results are written into it."
            )
    if not all(hasattr(adata, name) for name in ("obs", "var", "uns")):
        raise DataError(
            f"{use} needs an AnnData object (cells x genes, with obs and var); found {kind}."
        )


def warn_similar(names: Iterable[object], column: str) -> None:
    """Warn of values that differ only in spaces or in upper and lower case, which are different values.

    Parameters
    ----------
    names
        The values that a column holds.
    column
        Its name, for the message.

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as found:
    ...     warnings.simplefilter("always")
    ...     warn_similar(["OPC", "opc "], "cell_type")
    >>> str(found[0].message)
    "'cell_type' holds 'OPC' and 'opc ', which differ only in spaces or case and count as two values. Rename one if both mean the same."
    """
    seen: dict[str, str] = {}
    pairs = []
    for name in map(str, names):
        other = seen.setdefault(" ".join(name.split()).casefold(), name)
        if other != name:
            pairs.append(f"{other!r} and {name!r}")
    if pairs:
        more = f" ({len(pairs) - 1} more like these)" if len(pairs) > 1 else ""
        warnings.warn(
            f"{column!r} holds {pairs[0]}{more}, which differ only in spaces or case and count as two values. "
            "Rename one if both mean the same.",
            stacklevel=3,
        )


def refuse_lazy(obs: object) -> None:
    """Refuse an object of ``anndata.experimental.read_lazy``.

    Parameters
    ----------
    obs
        Its ``obs``, which is no DataFrame.

    Raises
    ------
    DataError
        Names what can be given instead.
    """
    import pandas as pd

    if not isinstance(obs, pd.DataFrame):
        raise DataError(
            "This object was read lazily (anndata.experimental.read_lazy), which keeps obs and var on disk. Read it with "
            "anndata.read_h5ad(path, backed='r'), or give adata.to_memory()."
        )


def require_column(obs: pd.DataFrame, name: str, use: str = "") -> pd.Series:
    """One column of ``obs``.

    Parameters
    ----------
    obs
        The cell table.
    name
        Name of the column.
    use
        What it is needed for, to end the sentence of the message: ``"with the donors"``.

    Returns
    -------
    The column.

    Raises
    ------
    DataError
        There is no such column, or more than one.

    Examples
    --------
    >>> import pandas as pd
    >>> require_column(pd.DataFrame({"donor": ["a"]}), "donor").tolist()
    ['a']
    """
    refuse_lazy(obs)
    if name not in obs:
        more = f" and {len(obs.columns) - 20} more" if len(obs.columns) > 20 else ""
        raise DataError(
            f"There is no column {name!r} in obs{' ' if use else ''}{use}; it has "
            f"{', '.join(map(str, obs.columns[:20])) or 'no columns'}{more}."
        )
    column = obs[name]
    if column.ndim > 1:
        raise DataError(f"obs has {column.shape[1]} columns named {name!r}. Rename them.")
    return column


def as_text(column: pd.Series) -> np.ndarray:
    """The values of a column as text, where one is missing, too: pandas 3 leaves missing values what they are.

    Parameters
    ----------
    column
        Of any type.

    Returns
    -------
    (n,) array of strings; ``"nan"`` (or ``"None"``) for missing values.

    Examples
    --------
    >>> import pandas as pd
    >>> as_text(pd.Series(["a", float("nan"), "b"])).tolist()
    ['a', 'nan', 'b']
    """
    return column.astype(object).map(str).to_numpy(dtype=object)
