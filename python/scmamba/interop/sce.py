"""SingleCellExperiment objects and AnnData: assays, colData, rowData, reducedDims, altExps, colPairs,
metadata.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.selection import select_matrix
from ..utils.errors import DataError
from ..utils.layers import layer_names
from ..utils.progress import say
from . import _r
from . import _values as v
from .placement import layer_for
from .seurat import (
    SeuratBuilder,
    frame_from_r,
    in_order,
    named_items,
    report_lost,
    save_rds,
    warn_lost,
)

if TYPE_CHECKING:
    from anndata import AnnData


def read_sce(path: str | os.PathLike[str], *, verbose: bool = True) -> AnnData:
    """Read an ``.rds`` file that holds a SingleCellExperiment; see :func:`from_sce`.

    Parameters
    ----------
    path
        The file.
    verbose
        Print what was not converted.

    Returns
    -------
    The object.

    Raises
    ------
    DataError
        There is no such file, it is no .rds file, or it holds another kind of object.
    """
    found = _r.read_rds(path)
    if "SingleCellExperiment" not in _r.classes(found):
        raise DataError(
            f"{path} holds a {_r.classes(found)[0]}, not a SingleCellExperiment (for Seurat: read_seurat)."
        )
    return from_sce(found, verbose=verbose)


def write_sce(
    adata: AnnData, path: str | os.PathLike[str], *, compress: bool = True, verbose: bool = True
) -> None:
    """Write an AnnData as a SingleCellExperiment into an ``.rds`` file, whole or not at all; see :func:`to_sce`.

    Parameters
    ----------
    adata
        The object.
    path
        The file to write.
    compress
        Compress the file; without, writing is several times faster and the file larger.
    verbose
        Print what was not converted.
    """
    save_rds(to_sce(adata, verbose=verbose), path, compress=compress)


def from_sce(sce: Any, *, verbose: bool = True) -> AnnData:
    """Turn a live SingleCellExperiment (an rpy2 object) into an AnnData.

    ``counts`` (or the first assay) becomes ``X``, the others ``layers``; reducedDims ``obsm["X_" + name]`` with their rotation in
    ``varm``; altExps ``obsm["altexp_..."]``; colPairs ``obsp``; metadata ``uns``. ``uns["sce"]`` keeps the names for the way back.

    Parameters
    ----------
    sce
        The object, as R functions called through rpy2 return it.
    verbose
        Print what was not converted.

    Returns
    -------
    The AnnData.

    Raises
    ------
    DataError
        The object has no names of genes or cells, or no named assay.
    """
    import anndata

    _r.need("SingleCellExperiment")
    parts = v.named(_r.call("sce_apart", sce))
    lost = warn_lost(parts)
    features = parts["features"]
    if features.__class__.__name__ == "NULLType" or parts["cells"].__class__.__name__ == "NULLType":
        raise DataError(
            "The object has no gene or no cell names (rownames, colnames); set them first."
        )
    obs, types = frame_from_r(parts["obs"], parts["obs.names"], v.strings(parts["cells"]), lost)
    var, var_types = frame_from_r(parts["var"], parts["var.names"], v.strings(features), lost)
    adata = anndata.AnnData(obs=obs, var=var)
    assays = {name or "assay": value for name, value in named_items(parts["assays"])}
    if not assays:
        raise DataError("The object has no named assay; there is no matrix to read.")
    first = "counts" if "counts" in assays else next(iter(assays))
    adata.X = v.matrix(assays[first])
    for name, value in assays.items():
        if name != first:
            adata.layers[name] = v.matrix(value)
    note: dict[str, Any] = {
        "X": first,
        "assays": np.array(list(assays), dtype=object),
        "main": str(parts["main"][0]),
        "types": types,
        "feature_types": var_types,
        "reductions": {},
        "alternatives": {},
    }
    for name, value in named_items(parts["reductions"]):
        note["reductions"][name] = _place_reduction(adata, name, v.named(value))
    note["order"] = np.array([info["key"] for info in note["reductions"].values()], dtype=object)
    for name, value in named_items(parts["alternatives"]):
        note["alternatives"][name] = _place_alternative(adata, name, v.named(value))
    for name, value in named_items(parts["pairs"]):
        adata.obsp[name] = sparse.csr_matrix(v.matrix(value).T)
    for name, value in named_items(parts["metadata"]):
        try:
            adata.uns[name] = v.tree(value, lost, f"metadata '{name}'")
        except v.Unknown as error:
            lost.append(f"metadata '{name}' ({error})")
    adata.uns["sce"] = note
    report_lost(lost, "the SingleCellExperiment", verbose)
    return adata


def _place_reduction(adata: AnnData, name: str, part: dict[str, Any]) -> dict[str, Any]:
    key = name if name.startswith("X_") else f"X_{name}"
    adata.obsm[key] = v.matrix(part["embeddings"]).T
    if part["loadings"].__class__.__name__ != "NULLType":
        inner = v.named(part["loadings"])
        rotation = v.matrix(inner["matrix"]).T
        values = np.full((adata.n_vars, rotation.shape[1]), np.nan)
        where = adata.var_names.get_indexer([str(f) for f in v.strings(inner["features"])])
        values[where[where >= 0]] = rotation[where >= 0]
        adata.varm[f"{name}_loadings"] = values
    return {
        "key": key,
        "components": np.array([str(c) for c in v.strings(part["components"])], dtype=object),
    }


def _place_alternative(adata: AnnData, name: str, part: dict[str, Any]) -> dict[str, Any]:
    place = {}
    for layer, value in named_items(part["assays"]):
        adata.obsm[f"altexp_{name}_{layer}"] = v.matrix(value)
        place[layer] = f"altexp_{name}_{layer}"
    return {"features": np.array(v.strings(part["features"]), dtype=object), "place": place}


def to_sce(adata: AnnData, *, verbose: bool = True) -> Any:
    """Turn an AnnData into a live SingleCellExperiment (an rpy2 object); the reverse of :func:`from_sce`.

    ``X`` becomes the assay it came from if its values still fit the name, else ``counts``, ``logcounts`` or ``scaled`` by what it holds.

    Parameters
    ----------
    adata
        The object.
    verbose
        Print what was not converted.

    Returns
    -------
    The rpy2 object.

    Raises
    ------
    DataError
        The object is empty, or cell names are duplicated.
    """
    _r.need("SingleCellExperiment")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    if not adata.obs_names.is_unique:
        raise DataError("Cell names repeat: call adata.obs_names_make_unique() first.")
    adata = adata.to_memory() if adata.isbacked else adata
    found = adata.uns.get("sce")
    note: dict[str, Any] = found if isinstance(found, dict) and "assays" in found else {}
    lost: list[str] = []
    helper = SeuratBuilder(adata, "counts", "auto", lost)
    lost.clear()  # a SingleCellExperiment takes gene names as they are
    helper.moved.clear()
    used = {place for a in note.get("alternatives", {}).values() for place in a["place"].values()}
    reductions = _reductions(adata, note, used, lost, helper.moved)
    parts = {
        "cells": v.to_strings(adata.obs_names),
        "features": v.to_strings(adata.var_names),
        "main": v.to_strings([str(note.get("main", ""))]),
        "assays": v.to_list(_assays(adata, note, helper)),
        "obs": v.to_list(helper._columns(adata.obs, note.get("types", {}), "cell metadata")),
        "var": v.to_list(
            helper._columns(adata.var, note.get("feature_types", {}), "gene metadata")
        ),
        "reductions": v.to_list(reductions),
        "alternatives": v.to_list(_alternatives(adata, note)),
        "pairs": v.to_list(
            {k: v.to_matrix(sparse.csr_matrix(adata.obsp[k]).T) for k in adata.obsp}
        ),
        "metadata": v.to_list(_metadata(adata, lost)),
    }
    made = _r.call("sce_together", v.to_list(parts))
    report_lost(lost, "the AnnData", verbose)
    if helper.moved:
        say("In the SingleCellExperiment: " + "; ".join(helper.moved), verbose)
    return made


def _assays(adata: AnnData, note: dict[str, Any], helper: SeuratBuilder) -> dict[str, Any]:
    """Assays in their old order, new layers after them."""
    matrices = {} if adata.X is None else {_name_of_x(adata, note, helper.moved): adata.X}
    matrices |= {
        (k if k not in matrices else f"{k}_layer"): adata.layers[k]
        for k in layer_names(adata.layers)
    }
    order = [str(a) for a in note.get("assays", []) if str(a) in matrices]
    return {k: v.to_matrix(matrices[k]) for k in [*order, *(k for k in matrices if k not in order)]}


def _name_of_x(adata: AnnData, note: dict[str, Any], moved: list[str]) -> str:
    """The assay that X came from, if its values still fit the name; else the name of what it holds."""
    values = select_matrix(adata).classify()
    names = {"counts": "counts", "data": "logcounts", "scale.data": "scaled"}
    now, before = names[layer_for(values)], str(note.get("X", ""))
    if before and before not in names.values():
        return before
    if not before or before == now:
        return now if now not in adata.layers else f"{now}_X"
    moved.append(f"{values.sentence}: written as the assay {now} (it was read from {before})")
    return now if now not in adata.layers else f"{now}_X"


def _reductions(
    adata: AnnData, note: dict[str, Any], used: set[str], lost: list[str], moved: list[str]
) -> dict[str, Any]:
    noted = note.get("reductions", {})
    names = {info["key"]: name for name, info in noted.items()}
    out = {}
    for key in in_order(adata.obsm, np.array(note.get("order", list(names)), dtype=object)):
        if key in used:
            continue
        value = adata.obsm[key]
        values = value.to_numpy() if isinstance(value, pd.DataFrame) else value
        if (
            sparse.issparse(values)
            or values.ndim != 2
            or values.shape[1] == 0
            or values.dtype.kind not in "fiub"
        ):
            lost.append(f"obsm '{key}' (not a dense table of numbers)")
            continue
        wanted = names.get(key, key.removeprefix("X_"))
        name = wanted if wanted not in out else key
        if name != wanted:
            moved.append(f"obsm '{key}' is the reducedDim '{name}' ('{wanted}' is taken)")
        components = list(note.get("reductions", {}).get(name, {}).get("components", []))
        if isinstance(value, pd.DataFrame):
            components = list(value.columns)
        loadings = None
        if f"{name}_loadings" in adata.varm:
            rotation = np.asarray(adata.varm[f"{name}_loadings"], dtype=np.float64)
            seen = ~np.isnan(rotation).all(axis=1)
            features = v.to_strings(adata.var_names[seen])
            loadings = v.to_list({"matrix": v.to_dense(rotation[seen]), "features": features})
        out[name] = v.to_list(
            {
                "embeddings": v.to_dense(values),
                "components": v.to_strings(
                    components if len(components) == values.shape[1] else []
                ),
                "loadings": loadings,
            }
        )
    return out


def _alternatives(adata: AnnData, note: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for name, info in note.get("alternatives", {}).items():
        assays = {
            k: v.to_matrix(adata.obsm[place])
            for k, place in info["place"].items()
            if place in adata.obsm
        }
        out[name] = v.to_list(
            {"features": v.to_strings(info["features"]), "assays": v.to_list(assays)}
        )
    return out


def _metadata(adata: AnnData, lost: list[str]) -> dict[str, Any]:
    out = {}
    for name, value in adata.uns.items():
        if name == "sce":
            continue
        try:
            out[str(name)] = v.to_tree(value, lost, f"uns '{name}'")
        except v.Unknown as error:
            lost.append(f"uns '{name}' (holds a {error})")
    lost.extend(f"varm '{k}'" for k in adata.varm if not k.endswith("_loadings"))
    lost.extend(f"varp '{k}'" for k in adata.varp)
    if adata.raw is not None:
        lost.append("raw (put what you need into layers)")
    return out
