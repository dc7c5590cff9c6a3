"""The parts of the conversion that need no R: slots, numbers, dates, names and orders."""

from __future__ import annotations

import sys
import types
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmamba.data.values import is_integer
from scmamba.interop import _convert, _r, _values, seurat
from scmamba.utils.errors import DataError, ScMambaError
from scmamba.wire import slots

MATRIX = np.array([[0, 5.0, 0], [0.25, 0, -2]])  # two cells x three genes


def test_a_genes_by_cells_matrix_becomes_cells_by_genes():
    # A dgCMatrix of MATRIX's transpose: column by column is cell by cell.
    x, i, p = np.array([5.0, 0.25, -2]), np.array([1, 0, 2]), np.array([0, 1, 3])
    obs = pd.DataFrame({"donor": ["a", "b"]}, index=["to be", "replaced"])
    adata = slots.adata_from_slots(x, i, p, [3, 2], ["G1", "G2", "G2"], ["c1", "c2"], obs)
    assert adata.X.toarray().tolist() == MATRIX.tolist() and adata.obs["donor"].tolist() == [
        "a",
        "b",
    ]
    assert adata.obs_names.tolist() == ["c1", "c2"] and adata.var_names.tolist() == [
        "G1",
        "G2",
        "G2",
    ]
    back = slots.layer_slots(adata)
    assert (back["x"].tolist(), back["i"].tolist(), back["p"].tolist(), back["dim"]) == (
        x.tolist(),
        [1, 0, 2],
        [0, 1, 3],
        [3, 2],
    )
    assert (back["x"].dtype, back["i"].dtype, back["p"].dtype) == (np.float64, np.int32, np.int32)
    one = slots.adata_from_slots(
        x[:1], i[:1], p[:2], (3, 1), ["a", "b", "c"], "alone"
    )  # R passes a single name as a string
    assert one.obs_names.tolist() == ["alone"]


def test_layers_of_every_type_become_slots():
    unsorted = sparse.csr_matrix(
        (np.array([2.0, 1.0]), np.array([2, 0]), np.array([0, 2, 2])), shape=(2, 3)
    )
    adata = ad.AnnData(
        np.zeros((2, 3)),
        layers={"a": unsorted, "b": sparse.csc_matrix(MATRIX).astype(np.float32), "c": MATRIX},
    )
    assert slots.layer_slots(adata, "a")["i"].tolist() == [0, 2] and slots.layer_slots(adata, "a")[
        "x"
    ].tolist() == [1, 2]
    for layer in "bc":
        assert slots.layer_slots(adata, layer)["x"].tolist() == [5, 0.25, -2] and slots.layer_slots(
            adata, layer
        )["p"].tolist() == [0, 1, 3]
    assert slots.layer_slots(adata)["x"].tolist() == []


@pytest.mark.parametrize(("genes", "cells"), [(["a", "b"], ["x", "y"]), (["a", "b", "c"], ["x"])])
def test_names_fit_the_matrix(genes, cells):
    with pytest.raises(DataError, match="3 x 2"):
        slots.adata_from_slots(
            np.array([]), np.array([], int), np.array([0, 0, 0]), [3, 2], genes, cells
        )


def test_a_matrix_beyond_rs_index_is_refused(monkeypatch):
    adata = ad.AnnData(sparse.csr_matrix(MATRIX))
    monkeypatch.setattr(slots, "_R_LIMIT", 3)
    assert len(slots.layer_slots(adata)["x"]) == 3
    monkeypatch.setattr(slots, "_R_LIMIT", 2)
    with pytest.raises(DataError, match="3 values"):
        slots.layer_slots(adata)


@pytest.mark.parametrize(
    ("values", "fine"),
    [
        ([1.0, -3], True),
        ([1.5], False),
        ([2.0**31 - 1], True),
        ([2.0**31], False),
        ([-(2.0**31)], False),
        ([np.nan], False),
        ([], True),
        ([0.0] * (1 << 20) + [0.5], False),
        (np.array([True]), True),
        (np.array([2**40]), False),
        (np.array([7], np.int32), True),
    ],
)
def test_whole_numbers(values, fine):
    values = np.asarray(values)
    assert (is_integer(values) and _values._fits_32_bits(values)) is fine


def test_days_and_seconds_since_1970():
    days = _values._dates(np.array([0, 19_000.9, np.nan, -1]), "D")
    assert (
        days.astype(object).tolist()[:2] == ["1970-01-01", "2022-01-08"]
        and pd.isna(days[2])
        and days[3] == "1969-12-31"
    )
    seconds = _values._dates(np.array([0.0, 1.5, -0.25, np.inf]), "s")
    assert [pd.Timestamp(t) for t in seconds[:3]] == [
        pd.Timestamp(0),
        pd.Timestamp("1970-01-01 00:00:01.5"),
        pd.Timestamp("1969-12-31 23:59:59.75"),
    ] and pd.isna(seconds[3])


@pytest.mark.parametrize("made", [np.asarray, sparse.csr_matrix])
def test_layers_of_some_cells_are_expanded_to_all(made):
    found = seurat._all_cells(made(MATRIX), ["c", "a"], pd.Index(["a", "b", "c"]))
    dense = found.toarray() if sparse.issparse(found) else found
    assert dense[0].tolist() == MATRIX[1].tolist() and dense[2].tolist() == MATRIX[0].tolist()
    assert (dense[1] == 0).all() if sparse.issparse(found) else np.isnan(dense[1]).all()
    same = made(MATRIX)
    assert seurat._all_cells(same, ["a", "b"], pd.Index(["a", "b"])) is same


def test_names_of_keys():
    assert (
        seurat._key("RNA_snn.0") == "rnasnn0_"
        and seurat._key("pca", upper=True) == "PCA_"
        and seurat._key("__") == "x_"
    )
    assert seurat.in_order({"a": 1, "b": 2, "c": 3}, ["c", "x", "a"]) == ["c", "a", "b"]
    assert (
        seurat._free("data", {"counts": 1}, "_layer") == "data"
        and seurat._free("data", {"data": 1}, "_layer") == "data_layer"
    )


def test_gene_names_are_restored():
    adata = ad.AnnData(
        np.zeros((1, 2)),
        var=pd.DataFrame({seurat._ORIGINAL: ["A_1", "B"], "x": [1, 2]}, index=["A-1", "B"]),
    )
    seurat._restore_names(adata)
    assert adata.var_names.tolist() == ["A_1", "B"] and list(adata.var) == ["x"]


def test_lost_slots_are_reported_once(capsys):
    seurat.report_lost(["tool 'a'", "image 'b'"], "the Seurat object", True)
    seurat.report_lost(["x"], "y", False)
    seurat.report_lost([], "z", True)
    assert (
        capsys.readouterr().err
        == "scMamba: Not carried over from the Seurat object: tool 'a'; image 'b'\n"
    )


@pytest.mark.parametrize(
    ("source", "target", "more", "words"),
    [
        ("a.h5ad", "b.h5ad", {}, "one file must"),
        ("a.rds", "b.rds", {}, "one file must"),
        ("a.csv", "b.rds", {}, "is a text table"),
        ("none.h5ad", "b.rds", {}, "There is no file"),
        ("a.h5ad", "b.rds", {"to": "loom"}, "'seurat' or 'sce'"),
        ("a.h5ad", "there.rds", {}, "exists already"),
        ("a.h5ad", "b.rds", {}, "is not an h5ad"),
        ("A.H5AD", "there.RDS", {"overwrite": True}, "is not an h5ad"),
    ],
)
def test_invalid_conversions(tmp_path, source, target, more, words):
    for name in ("a.h5ad", "a.rds", "a.csv", "A.H5AD", "there.rds", "there.RDS"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(DataError, match=words):
        _convert.convert_file(tmp_path / source, tmp_path / target, **more)
    assert (tmp_path / "there.rds").read_text() == "nothing"


@pytest.mark.parametrize(
    ("to", "assay", "expected"),
    [
        ("seurat", "", ("write_seurat", {"assay": "RNA", "compress": True, "verbose": True})),
        ("seurat", "X", ("write_seurat", {"assay": "X", "compress": True, "verbose": True})),
        ("sce", "X", ("write_sce", {"compress": True, "verbose": True})),
    ],
)
def test_which_writer_an_rds_file_gets(tmp_path, monkeypatch, to, assay, expected):
    got = []
    for module, name in (("seurat", "write_seurat"), ("sce", "write_sce")):
        monkeypatch.setattr(
            f"scmamba.interop.{module}.{name}",
            lambda adata, path, n=name, **o: got.append((n, adata.shape, path.name, o)),
        )
    ad.AnnData(MATRIX).write_h5ad(tmp_path / "a.h5ad")
    note = _convert.convert_file(tmp_path / "a.h5ad", tmp_path / "b.rds", to=to, assay=assay)
    assert got == [(expected[0], (2, 3), "b.rds", expected[1])] and note.endswith(
        "b.rds: 2 cells x 3 genes"
    )


@pytest.mark.parametrize(
    ("kinds", "words"),
    [(["Seurat"], "assay=X"), (["SingleCellExperiment", "S4"], "sce"), (["list"], None)],
)
def test_which_reader_an_rds_file_gets(tmp_path, monkeypatch, kinds, words):
    (tmp_path / "a.rds").write_text("x")
    adata = ad.AnnData(MATRIX)
    monkeypatch.setattr(
        "scmamba.interop._r",
        SimpleNamespace(read_rds=lambda path: "object", classes=lambda found: kinds),
        raising=False,
    )
    monkeypatch.setattr(
        "scmamba.interop.seurat.from_seurat",
        lambda found, assay, verbose: adata.uns.update(by=f"assay={assay}") or adata,
    )
    monkeypatch.setattr(
        "scmamba.interop.sce.from_sce", lambda found, verbose: adata.uns.update(by="sce") or adata
    )
    convert = lambda: _convert.convert_file(tmp_path / "a.rds", tmp_path / "b.h5ad", assay="X")  # noqa: E731
    if words is None:
        with pytest.raises(DataError, match="holds a list"):
            convert()
    else:
        assert (
            convert().endswith("2 cells x 3 genes")
            and ad.read_h5ad(tmp_path / "b.h5ad").uns["by"] == words
        )


def test_inside_r_no_second_r_is_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "rpytools", types.ModuleType("rpytools"))  # set by reticulate
    monkeypatch.setattr(_r, "_bridge", None)
    with pytest.raises(ScMambaError, match="runs inside R"):
        _r.bridge()


def test_a_missing_rpy2_gives_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "rpy2", None)  # as if it were not installed
    monkeypatch.setattr(_r, "_bridge", None)
    with pytest.raises(ScMambaError, match=r"pip install 'scmamba\[r\]'"):
        _r.bridge()
    with pytest.raises(DataError, match="There is no file"):
        _r.read_rds("none.rds")
