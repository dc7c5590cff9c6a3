"""Seurat objects and AnnData, slot by slot, with a sentence for whatever has no place on the other side.

==========================  ==========================================================================
Seurat                      AnnData
==========================  ==========================================================================
counts of the main assay    ``X`` (int32 where whole)
data                        ``layers["data"]`` (``X`` if there are no counts)
scale.data                  ``obsm["scale.data"]``, a DataFrame: it holds some features only
further layers, assays      ``layers[name]`` where they have the same features, else ``obsm[...]``
meta.data, idents           ``obs`` (``obs["active_ident"]`` where no column equals it)
meta.features               ``var``; variable features also ``var["highly_variable"]``
reductions                  ``obsm["X_" + name]``, ``varm[name + "_loadings"]``
graphs                      ``obsp[name]``
misc                        ``uns``
names, keys, stdev, types   ``uns["seurat"]``: what it takes to go back
==========================  ==========================================================================

Dropped with a message: spatial images, command log, tools, neighbor lists, JackStraw, SCT models.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.atomic import atomic_path
from ..utils.errors import DataError
from ..utils.layers import layer_names
from ..utils.progress import say
from . import _r
from . import _values as v
from .placement import place_matrices

if TYPE_CHECKING:
    from anndata import AnnData

_ORIGINAL = "scmamba_original_name"
_KEYS = {"pca": "PC_", "umap": "UMAP_", "tsne": "tSNE_"}


def read_seurat(
    path: str | os.PathLike[str], *, assay: str | None = None, verbose: bool = True
) -> AnnData:
    """Read an ``.rds`` file that holds a Seurat object (v3, v4, and v5 where SeuratObject 5 is installed).

    Parameters
    ----------
    path
        The file.
    assay
        Assay that becomes ``X`` and gives the genes; the active one if not given.
    verbose
        Print what was not converted.

    Returns
    -------
    The object; see :func:`from_seurat`.

    Raises
    ------
    DataError
        There is no such file, it is no .rds file, or it holds another kind of object.
    """
    found = _r.read_rds(path)
    if "Seurat" not in _r.classes(found):
        raise DataError(
            f"{path} holds a {_r.classes(found)[0]}, not a Seurat object (for a SingleCellExperiment: read_sce)."
        )
    return from_seurat(found, assay=assay, verbose=verbose)


def write_seurat(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    assay: str = "RNA",
    assay_class: str = "auto",
    compress: bool = True,
    verbose: bool = True,
) -> None:
    """Write an AnnData as a Seurat object into an ``.rds`` file, whole or not at all; see :func:`to_seurat`.

    Parameters
    ----------
    adata
        The object.
    path
        The file to write.
    assay
        Name of the assay of ``X``, unless the object came from Seurat.
    assay_class
        ``"Assay"`` (Seurat 3 and 4), ``"Assay5"``, or ``"auto"``.
    compress
        Compress the file; without, writing is several times faster and the file larger.
    verbose
        Print what was not converted.
    """
    made = to_seurat(adata, assay=assay, assay_class=assay_class, verbose=verbose)
    save_rds(made, path, compress=compress)


def save_rds(value: Any, path: str | os.PathLike[str], *, compress: bool = True) -> None:
    """``saveRDS`` into a file that appears only when it is complete."""
    with atomic_path(Path(path)) as temporary:
        _r.run(
            _r.r("saveRDS"),
            value,
            v.to_strings([str(temporary)]),
            compress=v.to_column(np.array([compress])),
        )


def from_seurat(seurat: Any, *, assay: str | None = None, verbose: bool = True) -> AnnData:
    """Turn a live Seurat object (an rpy2 object) into an AnnData; the table of this module lists what goes
    where.

    Parameters
    ----------
    seurat
        As R functions called through rpy2 return it.
    assay
        Assay that becomes ``X`` and gives the genes; the active one if not given.
    verbose
        Print what was not converted.

    Returns
    -------
    The AnnData.

    Raises
    ------
    DataError
        There is no such assay, or the object is empty.
    """
    import anndata

    _r.need("SeuratObject")
    parts = v.named(_r.call("seurat_apart", seurat))
    assays = {name: _Assay(value) for name, value in v.named(parts["assays"]).items()}
    default = str(parts["default"][0])
    main = assay or default
    if main not in assays:
        raise DataError(f"The object has no assay '{main}'; its assays are {', '.join(assays)}.")
    cells = v.strings(parts["cells"])
    lost = warn_lost(parts)
    obs, types = frame_from_r(parts["obs"], parts["obs.names"], cells, lost)
    var, var_types = frame_from_r(
        assays[main].meta, assays[main].meta_names, assays[main].features, lost
    )
    adata = anndata.AnnData(obs=obs, var=var)
    note: dict[str, Any] = {
        "main": main,
        "default": default,
        "project": str(parts["project"][0]),
        "types": types,
        "feature_types": var_types,
        "assays": {},
        "reductions": {},
        "graphs": {},
    }
    for name, value in sorted(assays.items(), key=lambda item: item[0] != main):
        note["assays"][name] = _place_assay(adata, name, value, main)
    variable = set(assays[main].variable)
    if variable:
        note["had_highly_variable"] = "highly_variable" in var
        adata.var["highly_variable"] = adata.var_names.isin(variable)
    _place_ident(adata, parts["ident"], note)
    for name, value in named_items(parts["reductions"]):
        note["reductions"][name] = _place_reduction(adata, name, v.named(value))
    for name, value in named_items(parts["graphs"]):
        graph = v.named(value)
        adata.obsp[name] = _graph(graph)
        note["graphs"][name] = str(graph["assay"][0])
    _place_misc(adata, parts["misc"], lost)
    for kind in ("assays", "reductions", "graphs"):  # a file sorts the keys of a dict
        note[f"{kind}_order"] = np.array(list(note[kind]), dtype=object)
    adata.uns["seurat"] = note
    _restore_names(adata)
    report_lost(lost, "the Seurat object", verbose)
    return adata


class _Assay:
    """One assay as R took it apart."""

    def __init__(self, value: Any) -> None:
        part = v.named(value)
        self.kind, self.key = str(part["class"][0]), str(part["key"][0])
        self.features = v.strings(part["features"])
        self.variable = v.strings(part["variable"])
        self.meta, self.meta_names = part["meta"], part["meta.names"]
        self.layers = {
            n: v.named(x)
            for n, x in v.named(part["layers"]).items()
            if x.__class__.__name__ != "NULLType"
        }


def named_items(value: Any) -> list[tuple[str, Any]]:
    """Name and value of every element of an R list."""
    return list(v.named(value).items())


def warn_lost(parts: dict[str, Any]) -> list[str]:
    """What R noted as not converted, as text."""
    return (
        []
        if parts["lost"].__class__.__name__ == "NULLType"
        else [str(s) for s in v.strings(parts["lost"])]
    )


def frame_from_r(
    columns: Any, names: Any, index: list[Any], lost: list[str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """A DataFrame and the R classes of the columns AnnData has no type for; ``lost`` gets the names of what has none at all."""
    frame: dict[str, Any] = {}
    types: dict[str, str] = {}
    for given, value in zip(v.strings(names), columns):
        name, number = str(given), 1
        while name in frame:
            name, number = f"{given}.{number}", number + 1
        try:
            frame[name], was = v.column(value)
        except v.Unknown as error:
            if lost is not None:
                lost.append(f"column '{given}' ({error})")
            continue
        if was:
            types[name] = was
    return pd.DataFrame(frame, index=pd.Index([str(i) for i in index], dtype=object)), types


def _place_assay(adata: AnnData, name: str, value: _Assay, main: str) -> dict[str, Any]:
    """Write the layers of an assay by their scale, and report where."""
    is_main = name == main
    same = is_main or value.features == list(adata.var_names)
    place: dict[str, str] = {}
    names: dict[str, Any] = {}
    for layer, part in value.layers.items():
        matrix, features = v.matrix(part["matrix"]), v.strings(part["features"])
        full = features == value.features and v.strings(part["cells"]) == list(adata.obs_names)
        key = layer if is_main else (name if layer == "data" else f"{name}_{layer}")
        if is_main and layer == ("counts" if "counts" in value.layers else "data"):
            adata.X, place[layer] = matrix, "X"
        elif full and same and layer != "scale.data":
            adata.layers[key], place[layer] = matrix, f"layers/{key}"
        else:
            matrix = _all_cells(matrix, v.strings(part["cells"]), adata.obs_names)
            if sparse.issparse(matrix):
                adata.obsm[key], names[layer] = matrix, np.array(features, dtype=object)
            else:
                adata.obsm[key] = pd.DataFrame(matrix, index=adata.obs_names, columns=features)
            place[layer] = f"obsm/{key}"
    note: dict[str, Any] = {
        "class": value.kind,
        "key": value.key,
        "place": place,
        "layer_features": names,
        "variable": np.array(value.variable, dtype=object),
    }
    if not is_main:
        frame, note["types"] = frame_from_r(value.meta, value.meta_names, value.features)
        note["features"] = np.array(value.features, dtype=object)
        note["meta"] = frame
    return note


def _all_cells(matrix: Any, cells: list[Any], wanted: pd.Index) -> Any:
    """Rows for every cell of the object; a v5 layer may hold some cells only."""
    if cells == list(wanted):
        return matrix
    where = pd.Index(cells).get_indexer(wanted)
    if sparse.issparse(matrix):
        pick = sparse.csr_matrix(
            (
                np.ones((where >= 0).sum(), matrix.dtype),
                (np.flatnonzero(where >= 0), where[where >= 0]),
            ),
            shape=(len(wanted), len(cells)),
        )
        return (pick @ matrix).tocsr()
    out = np.full((len(wanted), matrix.shape[1]), np.nan)
    out[where >= 0] = matrix[where[where >= 0]]
    return out


def _place_ident(adata: AnnData, value: Any, note: dict[str, Any]) -> None:
    """Idents as the column that equals them, or as a column of their own."""
    ident = v.column(value)[0]
    text = np.asarray(ident.astype(object))
    for name in adata.obs:
        column = adata.obs[name]
        if (
            isinstance(column.dtype, pd.CategoricalDtype)
            and list(column.cat.categories) == list(ident.categories)
            and (np.asarray(column.astype(object)) == text).all()
        ):
            note["ident"] = name
            return
    note["ident"] = "active_ident"
    adata.obs["active_ident"] = ident


def _place_reduction(adata: AnnData, name: str, part: dict[str, Any]) -> dict[str, Any]:
    components = [str(c) for c in v.strings(part["components"])]
    adata.obsm[f"X_{name}"] = np.asarray(v.tree(part["embeddings"]), dtype=np.float64)
    order = {}
    for kind, key in (
        ("loadings", f"{name}_loadings"),
        ("projected", f"{name}_loadings_projected"),
    ):
        if part[kind].__class__.__name__ != "NULLType":
            inner = v.named(part[kind])
            values = np.full((adata.n_vars, len(components)), np.nan)
            order[key] = np.array([str(f) for f in v.strings(inner["features"])], dtype=object)
            where = adata.var_names.get_indexer(order[key])
            values[where[where >= 0]] = v.matrix(inner["matrix"]).T[where >= 0]
            adata.varm[key] = values
    return {
        "loadings": order,
        "components": np.array(components, dtype=object),
        "stdev": v.memory(part["stdev"], np.float64),
        "key": str(part["key"][0]),
        "assay": str(part["assay"][0]) if len(part["assay"]) else "",
        "global": bool(part["global"][0]),
    }


def _graph(part: dict[str, Any]) -> sparse.csr_matrix:
    """A Graph's columns are CSC; transposed twice it is the same matrix as CSR."""
    n = int(part["n"][0])
    slots = (
        v.memory(part["x"], np.float64),
        v.memory(part["i"], np.int32),
        v.memory(part["p"], np.int32),
    )
    return sparse.csc_matrix(slots, shape=(n, n)).tocsr()


def _place_misc(adata: AnnData, misc: Any, lost: list[str]) -> None:
    for name, value in named_items(misc):
        try:
            adata.uns[name] = v.tree(value, lost, f"misc '{name}'")
        except v.Unknown as error:
            lost.append(f"misc '{name}' ({error})")


def _restore_names(adata: AnnData) -> None:
    """Gene names that Seurat would not take come back as they were."""
    if _ORIGINAL in adata.var:
        adata.var_names = adata.var[_ORIGINAL].astype(str).to_numpy()
        del adata.var[_ORIGINAL]


def to_seurat(
    adata: AnnData, *, assay: str = "RNA", assay_class: str = "auto", verbose: bool = True
) -> Any:
    """Turn an AnnData into a live Seurat object (an rpy2 object).

    An object that came from Seurat goes back as it was, with what was added since: new layers become assays
    of their own, new ``obsm`` entries reductions, new ``obs`` columns metadata. ``X``, ``layers["counts"]``, ``layers["data"]`` and
    ``raw`` go where their values belong: counts, logarithms into ``data``, scaled values into ``scale.data``.

    Parameters
    ----------
    adata
        The object.
    assay
        Name of the assay of ``X``, unless the object came from Seurat.
    assay_class
        ``"Assay"`` (Seurat 3 and 4), ``"Assay5"``, or ``"auto"``: what it was, else what the installed Seurat makes.
    verbose
        Print what was not converted.

    Returns
    -------
    The rpy2 object.

    Raises
    ------
    DataError
        Repeated cell names, an empty object, or negative counts.
    """
    _r.need("SeuratObject")
    if assay_class not in ("auto", "Assay", "Assay5"):
        raise DataError(f"assay_class is '{assay_class}'; it must be 'auto', 'Assay' or 'Assay5'.")
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    if not adata.obs_names.is_unique:
        raise DataError(
            "Cell names repeat, and Seurat needs unique ones: call adata.obs_names_make_unique() first."
        )
    lost: list[str] = []
    maker = SeuratBuilder(adata.to_memory() if adata.isbacked else adata, assay, assay_class, lost)
    parts = maker.parts()
    made = _r.call("seurat_together", v.to_list(parts))
    report_lost(lost, "the AnnData", verbose)
    if maker.moved:
        say("In the Seurat object: " + "; ".join(maker.moved), verbose)
    return made


class SeuratBuilder:
    """Builds the plain lists ``seurat_together`` takes; remembers which parts of the AnnData were used."""

    def __init__(self, adata: AnnData, assay: str, assay_class: str, lost: list[str]) -> None:
        self.adata, self.lost, self.assay_class = adata, lost, assay_class
        self.moved: list[str] = []
        note = adata.uns.get("seurat")
        self.note: dict[str, Any] = note if isinstance(note, dict) and "assays" in note else {}
        self.main = str(self.note.get("main", assay))
        self.names = self._feature_names()
        self.used: set[str] = set()
        remembered = dict(self.note.get("assays", {}).get(self.main, {}).get("place", {}))
        self.places = place_matrices(adata, remembered, self.moved)
        for layer, place in remembered.items():  # replaced since: neither an assay nor a reduction
            if place != "X" and place not in self.places.values() and layer in self.places:
                self.used.add(place)
                self.moved.append(
                    f"{layer} is {self.places[layer]}; the former one ({place}) is dropped"
                )

    def parts(self) -> dict[str, Any]:
        """The parts of a Seurat object that :meth:`adata` gives, by name."""
        adata, note = self.adata, self.note
        assays = {self.main: self._main_assay()}
        for name in in_order(note.get("assays", {}), note.get("assays_order", [])):
            if name != self.main and (made := self._noted_assay(name)) is not None:
                assays[name] = made
        for layer in layer_names(adata.layers):
            if f"layers/{layer}" not in self.used:
                assays[_free(layer, assays, "_layer")] = self._layer_assay(layer)
        reductions = self._reductions(set(assays))
        graphs = self._graphs(set(assays) | set(reductions))
        obs = self._obs()
        types = note.get("types", {})
        default = str(note.get("default", self.main))
        return {
            "cells": v.to_strings(adata.obs_names),
            "default": v.to_strings([default if default in assays else self.main]),
            "assays": v.to_list(assays),
            "obs": v.to_list(self._columns(obs, types, "cell metadata")),
            "ident": self._ident(),
            "reductions": v.to_list(reductions),
            "graphs": v.to_list(graphs),
            "project": v.to_strings([str(note.get("project", "scMamba"))]),
            "misc": v.to_list(self._misc()),
        }

    def _feature_names(self) -> list[str]:
        """Seurat takes no '_' or '|' in feature names and no repeats; the originals are kept beside them."""
        names = [str(n) for n in self.adata.var_names]
        changed = [re.sub(r"[_|]", "-", n) for n in names]
        if len(set(changed)) < len(changed):
            from anndata.utils import make_index_unique

            again = len(changed) - len(set(changed))
            changed = list(make_index_unique(pd.Index(changed), join="."))
            self.lost.append(
                f"{again} repeated gene names (numbered; the originals are in feature metadata '{_ORIGINAL}')"
            )
        elif changed != names:
            n = sum(a != b for a, b in zip(changed, names))
            self.lost.append(
                f"'_' in {n} gene names ('-' in Seurat; the originals are in feature metadata '{_ORIGINAL}')"
            )
        return changed

    def _layer(self, matrix: Any, features: list[str]) -> Any:
        return v.to_list({"matrix": v.to_matrix(matrix), "features": v.to_strings(features)})

    def _main_assay(self) -> Any:
        info = self.note.get("assays", {}).get(self.main, {})
        layers = self._main_layers(info)
        var = self.adata.var.copy()
        came_along = not self.note.get("had_highly_variable", True)
        if came_along and self._noted_variable(info) is not None:
            var = var.drop(columns="highly_variable", errors="ignore")
        if self.names != [str(n) for n in self.adata.var_names]:
            var[_ORIGINAL] = self.adata.var_names.astype(str)
        variable = self._variable(info)
        meta = self._columns(var, self.note.get("feature_types", {}), "gene metadata")
        return self._assay(info, self.main, self.names, layers, variable, meta)

    def _main_layers(self, info: dict[str, Any]) -> dict[str, Any]:
        adata = self.adata
        place = self.places
        layers: dict[str, Any] = {}
        for layer, where in place.items():
            matrix, features = self._find(where, info, layer)
            if matrix is None:
                continue
            self.used.add(where)
            if features is not None:  # scale.data and other partial layers
                keep = pd.Index(features).isin(adata.var_names)
                renamed = dict(zip(adata.var_names.astype(str), self.names))
                matrix, features = matrix[:, keep], [renamed[f] for f in np.asarray(features)[keep]]
            layers[layer] = self._layer(matrix, self.names if features is None else features)
        if not layers:
            raise DataError(
                "The AnnData holds no matrix (X is empty); put counts or normalized values in X."
            )
        return layers

    def _find(self, where: str, info: dict[str, Any], layer: str) -> tuple[Any, Any]:
        """A matrix by its place, and its own feature names where it does not have those of ``var``."""
        if where == "X":
            return v.plain_matrix(self.adata.X), None
        if where == "raw":
            return self.adata.raw[:, self.adata.var_names].X, None
        holder, key = where.split("/", 1)
        found = getattr(self.adata, holder).get(key)
        if found is None or holder == "layers":
            return found, None
        if isinstance(found, pd.DataFrame):
            return found.to_numpy(), list(found.columns)
        return found, list(info.get("layer_features", {}).get(layer, []))

    def _noted_variable(self, info: dict[str, Any]) -> list[str] | None:
        """Variable features as they came from Seurat, in order; ``None`` if others were chosen since."""
        var = self.adata.var
        renamed = dict(zip(self.adata.var_names.astype(str), self.names))
        noted = [renamed[str(f)] for f in info.get("variable", []) if str(f) in renamed]
        if "highly_variable" not in var:
            return noted
        now = {n for n, f in zip(self.names, _flags(var["highly_variable"])) if f}
        same = now == set(noted) or self.note.get("had_highly_variable", False)
        return noted if self.note and same else None

    def _variable(self, info: dict[str, Any]) -> list[str]:
        """Variable features, most variable first where scanpy ranked them."""
        noted = self._noted_variable(info)
        if noted is not None:
            return noted
        var = self.adata.var
        order = np.arange(len(var))
        if "highly_variable_rank" in var:
            order = np.argsort(var["highly_variable_rank"].to_numpy(float), kind="stable")
        elif "dispersions_norm" in var:
            order = np.argsort(-var["dispersions_norm"].to_numpy(float), kind="stable")
        flags = _flags(var["highly_variable"])
        return [self.names[i] for i in order if flags[i]]

    def _noted_assay(self, name: str) -> Any:
        """An assay that came from Seurat and is not the main one."""
        info = self.note["assays"][name]
        features = [str(f) for f in info.get("features", [])]
        layers = {}
        for layer, where in info.get("place", {}).items():
            matrix, own = self._find(where, info, layer)
            if matrix is not None:
                self.used.add(where)
                own = own if own else (self.names if where.startswith("layers/") else features)
                layers[layer] = self._layer(matrix, own)
                if where.startswith("layers/"):
                    features = self.names
        if not layers:
            self.lost.append(f"assay '{name}', whose values are no longer in the AnnData")
            return None
        frame = info.get("meta", pd.DataFrame(index=features))
        frame = frame.reindex(features) if len(frame.columns) else pd.DataFrame(index=features)
        meta = self._columns(frame, info.get("types", {}), f"feature metadata of '{name}'")
        variable = [str(f) for f in info.get("variable", []) if str(f) in set(features)]
        return self._assay(info, name, features, layers, variable, meta)

    def _layer_assay(self, layer: str) -> Any:
        self.used.add(f"layers/{layer}")
        layers = {"data": self._layer(self.adata.layers[layer], self.names)}
        return self._assay({}, layer, self.names, layers, [], {})

    def _assay(
        self,
        info: dict[str, Any],
        name: str,
        features: list[str],
        layers: dict[str, Any],
        variable: list[str],
        meta: dict[str, Any],
    ) -> Any:
        kind = self.assay_class
        if kind == "auto" and info.get("class"):
            kind = "Assay5" if str(info["class"]) == "Assay5" else "Assay"
        return v.to_list(
            {
                "class": v.to_strings([kind]),
                "key": v.to_strings([str(info.get("key") or _key(name))]),
                "features": v.to_strings(features),
                "layers": v.to_list(layers),
                "variable": v.to_strings(variable),
                "meta": v.to_list(meta),
            }
        )

    def _columns(self, frame: pd.DataFrame, types: dict[str, str], what: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for position, name in enumerate(frame.columns):
            if str(name) in out:
                self.lost.append(f"{what} column '{name}' (a second column of this name)")
                continue
            try:
                out[str(name)] = v.to_column(frame.iloc[:, position], types.get(str(name)))
            except v.Unknown as error:
                self.lost.append(f"{what} column '{name}' ({error})")
        return out

    def _obs(self) -> pd.DataFrame:
        obs = self.adata.obs.copy()
        if self.note:
            return (
                obs.drop(columns="active_ident", errors="ignore")
                if self.note.get("ident") == "active_ident"
                else obs
            )
        obs.insert(
            0, "orig.ident", pd.Categorical(["scMamba"] * len(obs))
        ) if "orig.ident" not in obs else None
        if "counts" in self.places:
            counts, _ = self._find(self.places["counts"], {}, "counts")
            found = (
                counts.getnnz(axis=1)
                if sparse.issparse(counts) and counts.data.all()
                else (counts > 0).sum(axis=1)
            )
            for name, value in (
                (f"nCount_{self.main}", counts.sum(axis=1)),
                (f"nFeature_{self.main}", found),
            ):
                if name not in obs:
                    obs[name] = np.asarray(value).ravel()
        return obs

    def _ident(self) -> Any:
        name = self.note.get("ident")
        if not self.note:  # as Seurat's own FindClusters leaves them
            name = next((n for n in ("leiden", "louvain") if n in self.adata.obs), None)
        if name in self.adata.obs:
            return v.to_column(self.adata.obs[name].astype("category"))
        return v.to_column(pd.Series(pd.Categorical(["scMamba"] * self.adata.n_obs)))

    def _reductions(self, taken: set[str]) -> dict[str, Any]:
        """Reductions by name; one that is called like an assay or another reduction gets a free name."""
        order = in_order(self.adata.obsm, [f"X_{n}" for n in self.note.get("reductions_order", [])])
        out: dict[str, Any] = {}
        keys: set[str] = set()
        for key in order:
            wanted = key.removeprefix("X_")
            name = _free(wanted, [*taken, *out], "_embedding")
            if (made := self._reduction(key, name, keys)) is None:
                continue
            if name != wanted:
                self.moved.append(f"obsm '{key}' is the reduction '{name}' ('{wanted}' is taken)")
            out[name] = made
        return out

    def _graphs(self, taken: set[str]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key in in_order(self.adata.obsp, self.note.get("graphs_order", [])):
            name = _free(key, [*taken, *out], "_graph")
            if name != key:
                self.moved.append(f"obsp '{key}' is the graph '{name}' ('{key}' is taken)")
            out[name] = self._graph(key)
        return out

    def _reduction(self, key: str, own_name: str, keys: set[str]) -> Any:
        if f"obsm/{key}" in self.used:
            return None
        value = self.adata.obsm[key]
        values = value.to_numpy() if isinstance(value, pd.DataFrame) else value
        if (
            sparse.issparse(values)
            or values.ndim != 2
            or values.shape[1] == 0
            or values.dtype.kind not in "fiub"
        ):
            self.lost.append(f"obsm '{key}' (not a dense table of numbers)")
            return None
        name = key.removeprefix("X_")
        info = self.note.get("reductions", {}).get(name, {})
        if name == "pca" and "PCs" in self.adata.varm:
            info = _scanpy_pca(self.adata, values.shape[1])
            self.used.update({"varm/pca_loadings", "varm/pca_loadings_projected"})
        remembered = info.get("key") or _KEYS.get(name.lower()) if own_name == name else None
        prefix = str(remembered or _key(own_name, upper=True))
        while prefix in keys:  # keys of reductions must be unique in Seurat
            prefix = f"{prefix[:-1]}x_"
        keys.add(prefix)
        components = [str(c) for c in info.get("components", [])]
        if len(components) != values.shape[1]:
            components = [f"{prefix}{i + 1}" for i in range(values.shape[1])]
        stdev = np.asarray(info.get("stdev", []), dtype=np.float64)
        return v.to_list(
            {
                "embeddings": v.to_dense(values),
                "components": v.to_strings(components),
                "loadings": self._loadings(
                    info.get("varm", f"{name}_loadings"), len(components), info
                ),
                "projected": None
                if "varm" in info
                else self._loadings(f"{name}_loadings_projected", len(components), info),
                "stdev": v.to_column(stdev),
                "key": v.to_strings([prefix]),
                "assay": v.to_strings([str(info.get("assay", ""))]),
                "global": v.to_column(
                    np.array([bool(info.get("global", name in ("umap", "tsne")))])
                ),
            }
        )

    def _loadings(self, key: str, width: int, info: dict[str, Any]) -> Any:
        if key not in self.adata.varm or np.asarray(self.adata.varm[key]).shape[1] != width:
            return None
        values = np.asarray(self.adata.varm[key], dtype=np.float64)
        absent = np.isnan(values) | ((values == 0) if key == "PCs" else False)
        rows = np.flatnonzero(~absent.all(axis=1))
        position = {str(n): i for i, n in enumerate(self.adata.var_names)}
        noted = [
            position[str(f)] for f in info.get("loadings", {}).get(key, []) if str(f) in position
        ]
        if set(noted) == set(rows):
            rows = np.array(noted, dtype=int)
        self.used.add(f"varm/{key}")
        features = [self.names[i] for i in rows]
        return v.to_list({"matrix": v.to_dense(values[rows]), "features": v.to_strings(features)})

    def _graph(self, key: str) -> Any:
        value = self.adata.obsp[key]
        graph = sparse.csc_matrix(value).sorted_indices()
        return v.to_list(
            {
                "x": v.to_column(graph.data.astype(np.float64)),
                "i": v.to_column(graph.indices.astype(np.int32)),
                "p": v.to_column(graph.indptr.astype(np.int32)),
                "assay": v.to_strings([str(self.note.get("graphs", {}).get(key, ""))]),
            }
        )

    def _misc(self) -> dict[str, Any]:
        """``uns`` as misc, with a message about entries without an R type."""
        out = {}
        for name, value in self.adata.uns.items():
            if name == "seurat":
                continue
            try:
                out[str(name)] = v.to_tree(value, self.lost, f"uns '{name}'")
            except v.Unknown as error:
                self.lost.append(f"uns '{name}' (holds a {error})")
        self.lost.extend(f"varm '{k}'" for k in self.adata.varm if f"varm/{k}" not in self.used)
        self.lost.extend(f"varp '{k}'" for k in self.adata.varp)
        if (raw := self.adata.raw) is not None:
            if "raw" not in self.used:
                self.lost.append("raw (put what you need into layers)")
            elif raw.n_vars > self.adata.n_vars:
                more = raw.n_vars - self.adata.n_vars
                self.lost.append(f"{more:,} genes of raw that the object no longer has")
        return out


def _flags(column: pd.Series) -> np.ndarray:
    flags: np.ndarray = column.fillna(False).astype(bool).to_numpy()
    return flags


def _scanpy_pca(adata: AnnData, width: int) -> dict[str, Any]:
    """What ``sc.pp.pca`` left about its reduction: only it writes ``varm["PCs"]``, so it is newer than what came from Seurat."""
    record = adata.uns.get("pca")
    variance = record.get("variance") if isinstance(record, dict) else None
    known = variance is not None and len(variance) == width
    return {"varm": "PCs", "stdev": np.sqrt(np.asarray(variance, dtype=float)) if known else []}


def _key(name: str, *, upper: bool = False) -> str:
    """A Seurat key: letters and digits, then an underscore."""
    letters = re.sub(r"[^A-Za-z0-9]", "", name) or "x"
    return f"{letters.upper() if upper else letters.lower()}_"


def in_order(found: Any, noted: Any) -> list[str]:
    """Keys in the order they came in (a file sorts them), new ones after."""
    first = [str(n) for n in noted if n in found]
    return [*first, *(n for n in found if n not in first)]


def _free(name: str, taken: Any, ending: str) -> str:
    """A name that is not taken: with the ending, then numbered."""
    free, number = name, 1
    while free in taken:
        free = f"{name}{ending}" if number == 1 else f"{name}{ending}{number}"
        number += 1
    return free


def report_lost(lost: list[str], what: str, verbose: bool) -> None:
    """Print what was not carried over, if anything."""
    if lost:
        say(f"Not carried over from {what}: " + "; ".join(lost), verbose)
