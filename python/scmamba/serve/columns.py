"""Columns of an upload's cells, with the values of each: what a user of the page can choose from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Columns and values of one column that are listed at most, and rows of text that are read for them.
COLUMNS, LEVELS, ROWS = 200, 100, 200_000


def read_columns(path: Path) -> list[dict[str, Any]]:
    """Columns of a file that was inspected before.

    Parameters
    ----------
    path
        An ``.h5ad`` file or scMamba's plain form; other files have no columns.

    Returns
    -------
    ``name`` and ``levels`` of each: the values of a column of text, at most :data:`LEVELS`; none for numbers.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"SCMB1\n"):
        return _plain_form(path)
    return _h5ad(path) if start == b"\x89HDF\r\n\x1a\n" else []


def _plain_form(path: Path) -> list[dict[str, Any]]:
    import json

    with open(path, "rb") as file:
        file.seek(6)
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found = {str(name): _distinct(values) for name, values in header.get("obs", {}).items()}
    found |= {str(name): _distinct(values) for name, values in header.get("levels", {}).items()}
    for about in header.get("arrays", []):
        if str(about.get("name", "")).startswith("obs/"):
            found.setdefault(str(about["name"])[4:], [])
    return [{"name": name, "levels": levels} for name, levels in list(found.items())[:COLUMNS]]


def _h5ad(path: Path) -> list[dict[str, Any]]:
    import h5py

    found: list[dict[str, Any]] = []
    with h5py.File(path, "r") as file:
        obs = file.get("obs")
        if not isinstance(obs, h5py.Group):
            return found
        index = obs.attrs.get("_index", "_index")
        order = [str(name) for name in obs.attrs.get("column-order", [])]
        for name in [*order, *sorted(set(obs) - set(order))]:
            if name == index or name.startswith("__") or name not in obs or len(found) == COLUMNS:
                continue
            found.append({"name": _shown(name), "levels": _levels(obs[name])})
    return found


def _levels(column: Any) -> list[str]:
    """Values of a column of categories, text or truths."""
    import h5py

    if isinstance(column, h5py.Group):
        values = column.get("categories", column.get("values"))
    else:
        values = column
    if not isinstance(values, h5py.Dataset) or values.ndim != 1:
        return []
    if values.dtype.kind == "b":
        return ["False", "True"]
    if h5py.check_string_dtype(values.dtype) is None:
        return []
    return _distinct(values.asstr()[:ROWS])


def _distinct(values: Any) -> list[str]:
    """The values in alphabetical order; none if there are too many to choose from."""
    found: set[str] = set()
    for value in values:
        if value is not None:
            found.add(_shown(value))
        if len(found) > LEVELS:
            return []
    return sorted(found)


def _shown(text: Any) -> str:
    """A name as the page shows it: printable, short."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:200])
