"""Columns of the cell table, checked where they are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import DataError

if TYPE_CHECKING:
    import pandas as pd


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
