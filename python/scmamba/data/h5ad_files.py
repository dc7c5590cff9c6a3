"""Opening files of cells, with a sentence for what is not one; writing h5ad files that can be read again."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from ..utils.atomic import atomic_path
from ..utils.errors import DataError
from ..utils.h5_output import write_anndata
from ..utils.layers import layer_names
from ..utils.progress import say
from .file_kinds import file_kind, local_path

if TYPE_CHECKING:
    from anndata import AnnData


def open_backed(path: str | os.PathLike[str]) -> AnnData:
    """Open a file of cells: h5ad without reading its matrix, 10x HDF5, zarr and mtx folders in memory.

    Parameters
    ----------
    path
        ``.h5ad``, 10x ``.h5``, ``.zarr`` folder, ``.mtx(.gz)`` or the folder Cell Ranger puts it in; ``~`` is expanded.

    Returns
    -------
    AnnData, backed for ``.h5ad``.

    Raises
    ------
    DataError
        No such file, a damaged one, or a kind that is not read here: the message names it and the call that reads it.
    """
    import anndata

    place = local_path(path)
    kind = file_kind(place)
    if kind == "rds":
        raise DataError(
            f"{place.name} is not an h5ad (HDF5) file. It looks like an R object: convert it with 'scmamba convert'."
        )
    if kind in ("10x", "mtx"):
        from .storage import read_adata

        return read_adata(place, kind)
    try:
        return anndata.read_zarr(place) if kind == "zarr" else anndata.read_h5ad(place, backed="r")
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        raise DataError(
            f"{place.name} is {'a zarr store' if kind == 'zarr' else 'HDF5'} but cannot be read as AnnData "
            f"({type(error).__name__}: {error}). Is it truncated?"
        ) from error


def write_h5ad(
    adata: AnnData, path: str | os.PathLike[str], *, compress: bool = True, verbose: bool = True
) -> None:
    """Write an object, whole or not at all, and open the file once before it appears.

    Annotations that no h5ad file can hold are changed with a sentence (see :func:`writable_frame`); ``adata`` is not changed.

    Parameters
    ----------
    adata
        The object.
    path
        File to write.
    compress
        Compress with gzip.
    verbose
        Print what was changed.

    Raises
    ------
    DataError
        The file cannot be written, or not be read again.
    """
    notes: list[str] = []
    copy = writable(adata, notes)
    with atomic_path(Path(path)) as temporary:
        write_anndata(copy, temporary, compression="gzip" if compress else None)
        check_readable(temporary, Path(path).name)
    report(notes, verbose)


def check_readable(path: Path, name: str) -> None:
    """Open a file that was just written.

    Parameters
    ----------
    path, name
        Where it is, and what the user calls it.

    Raises
    ------
    DataError
        It cannot be read.
    """
    import anndata

    try:
        opened = anndata.read_h5ad(path, backed="r")
        _ = opened.obs, opened.var, opened.uns, None if opened.raw is None else opened.raw.var
        opened.file.close()
    except Exception as error:  # h5py and anndata raise many kinds
        raise DataError(
            f"{name} was written but cannot be read again ({type(error).__name__}: {error}). Nothing was kept; please report this."
        ) from error


def check_writable(adata: AnnData) -> None:
    """Write the annotations into memory once, before long work whose result they have to go with.

    Parameters
    ----------
    adata
        The object, in memory or backed.

    Raises
    ------
    DataError
        They cannot be written; names which.
    """
    import anndata

    notes: list[str] = []
    parts: dict[str, Any] = {
        "obs": writable_frame(adata.obs, "obs", notes),
        "var": writable_frame(adata.var, "var", notes),
        "uns": dict(adata.uns),
    }
    if adata.raw is not None:
        parts["raw.var"] = writable_frame(adata.raw.var, "raw.var", notes)
    with h5py.File("dry-check", "w", driver="core", backing_store=False) as file:
        for name, value in parts.items():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    anndata.io.write_elem(file, name.replace(".", "_"), value)
            except Exception as error:
                raise DataError(
                    f"{name} cannot be written to an h5ad file ({type(error).__name__}: {error}). Remove or convert that entry first."
                ) from error


def writable(adata: AnnData, notes: list[str]) -> AnnData:
    """The object, or a shallow copy of it whose annotations can be written.

    Parameters
    ----------
    adata
        The object.
    notes
        Gets a sentence for each change.
    """
    import anndata

    obs, var = (
        writable_frame(adata.obs, "obs", notes),
        writable_frame(adata.var, "var", notes),
    )
    raw = adata.raw
    raw_var = None if raw is None else writable_frame(raw.var, "raw.var", notes)
    if obs is adata.obs and var is adata.var and (raw is None or raw_var is raw.var):
        return adata
    memory = adata.to_memory() if adata.isbacked else adata
    made = anndata.AnnData(
        memory.X,
        obs=obs,
        var=var,
        uns=memory.uns,
        obsm=dict(memory.obsm),
        varm=dict(memory.varm),
        layers={name: memory.layers[name] for name in layer_names(memory.layers)},
        obsp=dict(memory.obsp),
        varp=dict(memory.varp),
    )
    if memory.raw is not None:
        made.raw = anndata.AnnData(
            memory.raw.X, obs=obs[[]], var=raw_var, varm=dict(memory.raw.varm)
        )
    return made


def writable_frame(frame: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """A frame that an h5ad file can hold, the frame itself where nothing is in the way.

    Columns of several types become text; nullable strings plain ones; ``/`` in names becomes ``_``; a column ``_index`` that repeats the
    index is dropped, another one is renamed; dates become ISO text; a repeated column name is numbered.

    Parameters
    ----------
    frame
        ``obs`` or ``var``.
    name
        What to call it in sentences.
    notes
        Gets a sentence for each change that a reader of the file would notice.

    Returns
    -------
    pandas.DataFrame

    Examples
    --------
    >>> notes = []
    >>> writable_frame(pd.DataFrame({"a/b": [1, 2]}, index=["x", "y"]), "obs", notes).columns.tolist()
    ['a_b']
    >>> notes
    ["obs column 'a/b' is called 'a_b'"]
    """
    made: dict[str, Any] = {}
    changed = False
    index = frame.index
    if (
        not _is_plain(index.dtype)
        or index.name == "_index"
        or not all(isinstance(i, str) for i in index)
    ):
        changed = True
        index = pd.Index(index.astype(str).astype(object)).rename(_index_name(index.name))
    for position, label in enumerate(frame.columns):
        column = frame.iloc[:, position]
        if label == "_index" and list(column.astype(str)) == list(frame.index.astype(str)):
            changed = True  # what SeuratDisk writes
            continue
        wanted = _free_name(str(label), made)
        if wanted != label:
            changed = True
            notes.append(f"{name} column '{label}' is called '{wanted}'")
        values = _writable_column(column, f"{name} column '{label}'", notes)
        changed |= values is not column
        made[wanted] = values.array if isinstance(values, pd.Series) else values
    return pd.DataFrame(made, index=index) if changed else frame


def _is_plain(dtype: Any) -> bool:
    """Python objects, or the ``str`` of pandas 3, which is no nullable type: missing text is NaN there."""
    return pd.api.types.is_object_dtype(dtype) or (
        isinstance(dtype, pd.StringDtype) and getattr(dtype, "na_value", pd.NA) is not pd.NA
    )


def _index_name(name: Any) -> Any:
    return None if name == "_index" else name


def _free_name(label: str, taken: dict[str, Any]) -> str:
    wanted = "index" if label == "_index" else label.replace("/", "_")
    free, number = wanted, 1
    while free in taken:
        number += 1
        free = f"{wanted}_{number}"
    return free


def _writable_column(column: pd.Series, what: str, notes: list[str]) -> pd.Series:
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = column.cat.categories
        plain = _is_plain(categories.dtype) and all(isinstance(c, str) for c in categories)
        if plain or categories.dtype.kind in "iufb":
            return column
        text = pd.Index(categories.astype(str).astype(object))
        if not text.is_unique:
            return pd.Series(pd.Categorical(_text(column)), index=column.index)
        return pd.Series(column.cat.rename_categories(text), index=column.index)
    if isinstance(column.dtype, pd.StringDtype) and not _is_plain(column.dtype):
        return pd.Series(pd.Categorical(_text(column)), index=column.index)
    if column.dtype.kind in "mM" or isinstance(column.dtype, (pd.PeriodDtype, pd.IntervalDtype)):
        notes.append(f"{what} ({column.dtype}) is written as text")
        return pd.Series(pd.Categorical(_text(column)), index=column.index)
    if not _is_plain(column.dtype):
        return column
    present = column.dropna()
    if all(isinstance(value, str) for value in present):
        return column
    if all(isinstance(value, (bool, np.bool_)) for value in present):
        return column.astype("boolean")
    notes.append(f"{what} holds values of several types and is written as text")
    return pd.Series(pd.Categorical(_text(column)), index=column.index)


def _text(column: pd.Series) -> list[str | None]:
    return [
        None if missing else str(value)
        for value, missing in zip(column, column.isna(), strict=True)
    ]


def report(notes: list[str], verbose: bool) -> None:
    """Print what was changed for the file.

    Parameters
    ----------
    notes
        The sentences.
    verbose
        Print them.
    """
    if notes:
        say("In the file: " + "; ".join(dict.fromkeys(notes)), verbose)
