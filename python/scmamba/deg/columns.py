"""Columns of the cell table, checked where they are named."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ..utils.errors import DataError


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

    Raises
    ------
    DataError
        There is no such column, or more than one.
    """
    if name not in obs:
        raise DataError(
            f"There is no column {name!r} in obs{' ' if use else ''}{use}. It has: "
            f"{', '.join(map(str, obs.columns[:20])) or 'no columns'}."
        )
    column = obs[name]
    if isinstance(column, pd.DataFrame):
        raise DataError(f"obs has {column.shape[1]} columns named {name!r}. Rename them.")
    return column


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """One name, several or none as a list."""
    return [names] if isinstance(names, str) else list(names or [])
