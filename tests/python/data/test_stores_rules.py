"""Unusual files of cells: every layout by hand, the contents of the cache, and vocabularies built from files."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from scmamba.data import storage as stores
from scmamba.data.collection import Collection
from scmamba.data.h5ad_files import open_backed
from scmamba.data.storage import cache_folder, fingerprint, open_store
from scmamba.data.vocabulary_builder import MIN_FRACTION, build_vocabulary, read_gtf
from scmamba.genes import Vocabulary, annotation
from scmamba.utils.errors import DataError

COUNTS = np.array([[1, 0, 2, 0], [0, 0, 0, 0], [0, 3, 0, 4]])
IDS = ["ENSG00000000003", "ENSG00000000419", "ENSG00000000457", "ENSG00000000460"]


def whole(store) -> list[list[float]]:
    return store.read(0, store.shape[0]).toarray().tolist()


def write_10x(path: Path, kinds: list[str] | None, group: str = "matrix") -> Path:
    """Version 3 with feature types, without them, or version 2 (``genes`` in a group named after the genome)."""
    rows = sparse.csr_matrix(COUNTS)
    names = np.array(["A", "B", "C", "D"], dtype="S")
    with h5py.File(path, "w") as file:
        made = file.create_group(group)
        for name in ("data", "indices", "indptr"):
            made[name] = getattr(rows, name)
        made["shape"] = np.array([4, 3])
        made["barcodes"] = np.array(["x", "y", "z"], dtype="S")
        if group == "matrix":
            made["features/id"], made["features/name"] = np.array(IDS, dtype="S"), names
            if kinds is not None:
                made["features/feature_type"] = np.array(kinds, dtype="S")
        else:
            made["genes"], made["gene_names"] = np.array(IDS, dtype="S"), names
    return path


# --- 10x
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "group", "kept"),
    [
        (
            ["Gene Expression", "Antibody Capture", "Gene Expression", "Gene Expression"],
            "matrix",
            [0, 2, 3],
        ),
        (["Gene Expression"] * 4, "matrix", [0, 1, 2, 3]),
        (None, "matrix", [0, 1, 2, 3]),
        (None, "GRCh38", [0, 1, 2, 3]),
    ],
)
def test_cellranger_files_of_every_version(tmp_path, kinds, group, kept):
    store = open_store(write_10x(tmp_path / "s1.raw.h5", kinds, group))
    assert store.shape == (3, len(kept)) and whole(store) == COUNTS[:, kept].tolist()
    assert store.var.index.tolist() == [IDS[i] for i in kept]
    assert store.var["symbol"].tolist() == ["ABCD"[i] for i in kept]
    assert (store.name, store.source) == ("s1.raw", "s1.raw.h5") and store.column("donor") is None
    assert store.read(1, 3).toarray().tolist() == COUNTS[1:, kept].tolist() and list(
        store.blocks()
    ) == [(0, 3)]


def write_mtx(
    folder: Path,
    prefix: str,
    features: list[list[str]],
    *,
    zipped: bool,
    features_name: str = "features",
) -> None:
    folder.mkdir(exist_ok=True)
    end = ".gz" if zipped else ""
    tables = {features_name: features, "barcodes": [["x"], ["y"], ["z"]]}
    for name, rows in tables.items():
        text = "".join("\t".join(row) + "\n" for row in rows).encode()
        file = folder / f"{prefix}{name}.tsv{end}"
        file.write_bytes(gzip.compress(text) if zipped else text)
    io.mmwrite(folder / f"{prefix}matrix.mtx", sparse.coo_matrix(COUNTS.T))
    if zipped:
        text = (folder / f"{prefix}matrix.mtx").read_bytes()
        (folder / f"{prefix}matrix.mtx.gz").write_bytes(gzip.compress(text))
        (folder / f"{prefix}matrix.mtx").unlink()


@pytest.mark.parametrize("zipped", [True, False])
def test_market_matrices_with_their_tables(tmp_path, zipped):
    kinds = ["Gene Expression", "Gene Expression", "Antibody Capture", "Gene Expression"]
    write_mtx(tmp_path / "s", "", [[i, n, k] for i, n, k in zip(IDS, "ABCD", kinds)], zipped=zipped)
    store = open_store(tmp_path / "s", cache=tmp_path / "cache", verbose=False)
    assert whole(store) == COUNTS[:, [0, 1, 3]].tolist() and store.var["symbol"].tolist() == [
        "A",
        "B",
        "D",
    ]
    assert store.var.index.tolist() == [IDS[0], IDS[1], IDS[3]]
    # In a folder with other samples, with the older name of the table and without feature types.
    write_mtx(
        tmp_path / "all",
        "p1_",
        [[i, n] for i, n in zip(IDS, "ABCD")],
        zipped=zipped,
        features_name="genes",
    )
    path = tmp_path / "all" / ("p1_matrix.mtx" + (".gz" if zipped else ""))
    store = open_store(path, cache=tmp_path / "cache", verbose=False)
    assert whole(store) == COUNTS.tolist() and (store.name, store.source) == (
        "p1_matrix",
        path.name,
    )
    one = tmp_path / "one"
    write_mtx(one, "", [[i] for i in IDS], zipped=zipped)
    assert open_store(one, cache=tmp_path / "cache", verbose=False).var["symbol"].tolist() == IDS
    write_mtx(tmp_path / "bad", "", [[i] for i in IDS[:3]], zipped=zipped)
    with pytest.raises(DataError, match="is 4 x 3; its tables of names have 3 genes x 3 cells"):
        open_store(tmp_path / "bad", cache=tmp_path / "cache", verbose=False)
    for file in (tmp_path / "bad").glob("barcodes*"):
        file.unlink()
    with pytest.raises(DataError, match="there is no barcodes.tsv"):
        open_store(tmp_path / "bad", cache=tmp_path / "cache", verbose=False)


# --- AnnData
# -----------------------------------------------------------------------------------------------


def object_of(matrix=None) -> ad.AnnData:
    obs = pd.DataFrame(
        {"donor": pd.Categorical(["d1", None, "d2"]), "age": [70.0, np.nan, 81.5]},
        index=["x", "y", "z"],
    )
    made = ad.AnnData(
        sparse.csr_matrix(COUNTS) if matrix is None else matrix,
        obs=obs,
        var=pd.DataFrame({"symbol": list("ABCD")}, index=IDS),
    )
    made.layers["twice"] = sparse.csr_matrix(2 * COUNTS)
    return made


def test_columns_are_strings_and_missing_values_are_empty(tmp_path):
    object_of().write_h5ad(tmp_path / "a.h5ad")
    for source in (tmp_path / "a.h5ad", object_of()):
        store = open_store(source)
        assert store.column("donor").tolist() == ["d1", "", "d2"] and store.column(
            "age"
        ).tolist() == ["70.0", "", "81.5"]
        assert (
            store.column("none") is None
            and store.var["symbol"].tolist() == list("ABCD")
            and store.shape == (3, 4)
        )
        assert (
            whole(store) == COUNTS.tolist()
            and whole(open_store(source, layer="twice")) == (2 * COUNTS).tolist()
        )
        with pytest.raises(
            DataError, match=r"no layer 'x'|has no layer 'x'; its layers are \['twice'\]"
        ):
            open_store(source, layer="x")
    assert (open_store(object_of()).name, open_store(tmp_path / "a.h5ad").name) == ("cells", "a")
    without = object_of()
    without.X = None
    without.write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(DataError, match=r"b.h5ad has no X; name one of its layers \['twice'\]"):
        open_store(tmp_path / "b.h5ad")
    memory = open_store(object_of())
    memory.read(0, 1).data[:] = memory.read(0, 3).data[:] = 9
    assert whole(memory) == COUNTS.tolist(), "what is read is one's own"


def test_files_of_old_versions_and_column_major_matrices(tmp_path):
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = COUNTS.astype(np.float32)
        obs = np.array(
            [(b"x", b"d1"), (b"y", b"d2"), (b"z", b"d1")], dtype=[("index", "S1"), ("donor", "S2")]
        )
        file["obs"] = obs
        file["var"] = np.array(
            [(i.encode(), b"A") for i in IDS], dtype=[("index", "S15"), ("symbol", "S1")]
        )
    store = open_store(tmp_path / "old.h5ad")
    assert (
        whole(store) == COUNTS.tolist()
        and store.column("donor").tolist() == ["d1", "d2", "d1"]
        and store.column("x") is None
    )
    object_of(sparse.csc_matrix(COUNTS)).write_h5ad(tmp_path / "csc.h5ad")
    store = open_store(tmp_path / "csc.h5ad", cache=tmp_path / "cache", verbose=False)
    assert whole(store) == COUNTS.tolist() and (store.name, store.source) == ("csc", "csc.h5ad")
    kept = [p.name for p in (tmp_path / "cache").iterdir()]
    assert kept == [f"csc-{fingerprint(tmp_path / 'csc.h5ad', '')}.h5ad"]
    assert whole(open_store(tmp_path / "csc.h5ad", layer="twice")) == (2 * COUNTS).tolist(), (
        "a layer by rows needs no copy"
    )


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        open_store(tmp_path / "absent.h5ad")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="neither an AnnData zarr nor a matrix.mtx"):
        open_store(tmp_path / "folder")
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="x.csv is a text table"):
        open_store(tmp_path / "x.csv")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(DataError, match=r"neither AnnData nor 10x \(it holds weights\)"):
        open_store(tmp_path / "other.h5")
    for name, words in (
        ("absent.h5ad", "There is no file"),
        ("x.csv", "text table"),
    ):
        with pytest.raises(DataError, match=words):
            open_backed(tmp_path / name)
    (tmp_path / "seurat.RDS").write_bytes(b"X\n")
    with pytest.raises(
        DataError, match="looks like an R object: convert it with 'scmamba convert'"
    ):
        open_backed(tmp_path / "seurat.RDS")
    with pytest.raises(DataError, match="other.h5 is HDF5, but neither AnnData nor 10x"):
        open_backed(tmp_path / "other.h5")
    object_of().write_h5ad(tmp_path / "a.h5ad")
    opened = open_backed(tmp_path / "a.h5ad")
    assert opened.isbacked and opened.shape == (3, 4)
    opened.file.close()


# --- blocks and caches
# --------------------------------------------------------------------------------------


def test_blocks_have_about_the_same_number_of_values(tmp_path, monkeypatch):
    filled = np.array([3, 1, 0, 0, 4, 4, 1, 1, 1])
    rows = sparse.csr_matrix(
        (np.ones(15), np.concatenate([np.arange(n) for n in filled]), np.r_[0, np.cumsum(filled)]),
        shape=(9, 4),
    )
    ad.AnnData(rows).write_h5ad(tmp_path / "a.h5ad")
    ad.AnnData(rows.toarray()).write_h5ad(tmp_path / "dense.h5ad")
    assert (
        list(open_store(tmp_path / "a.h5ad").blocks())
        == list(open_store(tmp_path / "dense.h5ad").blocks())
        == [(0, 9)]
    )
    monkeypatch.setattr(stores, "_MAX_VALUES", 4)
    assert list(open_store(tmp_path / "a.h5ad").blocks()) == [(0, 4), (4, 5), (5, 6), (6, 9)]
    monkeypatch.setattr(stores, "_MAX_VALUES", 3)
    assert list(open_store(tmp_path / "a.h5ad").blocks()) == [
        (0, 1),
        (1, 4),
        (4, 5),
        (5, 6),
        (6, 9),
    ], "at least one row"
    monkeypatch.setattr(stores, "_MAX_VALUES", 9)
    halves = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    assert (
        list(open_store(tmp_path / "dense.h5ad").blocks())
        == list(open_store(ad.AnnData(rows)).blocks())
        == halves
    )
    wide = open_store(ad.AnnData(sparse.csr_matrix((9000, 1))))
    monkeypatch.setattr(stores, "_MAX_VALUES", 4_000_000)
    assert list(wide.blocks()) == [(0, 4096), (4096, 8192), (8192, 9000)]


def test_a_fingerprint_depends_on_path_size_time_and_parameters(tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_text("one")
    os.utime(path, ns=(10**18, 10**18))
    first = fingerprint(path, "layer")
    assert len(first) == 16 and first == fingerprint(path, "layer") != fingerprint(
        path
    ) != fingerprint(path, "x")
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert fingerprint(path, "layer") != first
    path.write_text("other")
    os.utime(path, ns=(10**18, 10**18))
    assert fingerprint(path, "layer") != first
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.h5ad").write_text("one")
    os.utime(tmp_path / "b" / "a.h5ad", ns=(10**18, 10**18))
    assert fingerprint(tmp_path / "b" / "a.h5ad", "layer") != first
    folder = fingerprint(tmp_path / "b")
    (tmp_path / "b" / "deep").mkdir()
    (tmp_path / "b" / "deep" / "more").write_text("x")
    assert fingerprint(tmp_path / "b") != folder


def test_folder_of_converted_files(monkeypatch, tmp_path):
    monkeypatch.setenv("SCMAMBA_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.setenv("SCMAMBA_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert cache_folder() == Path("/c/scmamba")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "scmamba"


def test_the_summary_of_a_file_is_cached_and_a_damaged_one_recomputed(tmp_path):
    object_of().write_h5ad(tmp_path / "a.h5ad")

    def totals():
        return Collection(
            [tmp_path / "a.h5ad"], cache=tmp_path / "c", force=True, verbose=False
        ).totals.tolist()

    assert totals() == [3, 0, 7]
    (note,) = (tmp_path / "c").glob("*.npz")
    stored = dict(np.load(note))
    np.savez(note, **{**stored, "totals": stored["totals"] + 1})
    assert totals() == [4, 1, 8], "it is read, not made again"
    np.savez(note, **{**stored, "totals": stored["totals"][:2]})
    assert totals() == [3, 0, 7]
    note.write_bytes(b"broken")
    assert totals() == [3, 0, 7]


# --- vocabularies
# --------------------------------------------------------------------------------------------


def test_a_vocabulary_keeps_genes_detected_in_enough_cells(tmp_path):
    known = annotation().set_index("ensembl_id")
    y = known.index[known.chromosome == "Y"][0]
    genes = [IDS[2], IDS[0], y, IDS[1], "unknown", IDS[3]]
    seen = [5, 4, 200, 200, 200, 0]  # in 1,000 cells
    counts = np.column_stack([(np.arange(500) < n) * 2 for n in seen])
    one = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=genes))
    other = ad.AnnData(sparse.csr_matrix(np.ones((500, 1)) * 3), var=pd.DataFrame(index=[IDS[1]]))
    built, table = build_vocabulary([one, other], cache=tmp_path, verbose=False)
    assert (
        MIN_FRACTION == 0.005
        and list(built) == [IDS[1], IDS[2]]
        and built.symbols == ("DPM1", "SCYL3")
    )
    assert list(table.columns) == [
        "ensembl_id",
        "symbol",
        "chromosome",
        "cells",
        "fraction",
        "kept",
    ]
    assert table.ensembl_id.tolist() == IDS[:3] and table.cells.tolist() == [4, 700, 5]
    assert table.fraction.tolist() == [0.004, 0.7, 0.005] and table.kept.tolist() == [
        False,
        True,
        True,
    ]
    with_y, _ = build_vocabulary(
        [one], without=("20",), min_fraction=0.0, cache=tmp_path, verbose=False
    )
    assert list(with_y) == sorted([IDS[0], IDS[2], y]), (
        "chromosome 20 is excluded, and so is a gene that is never detected"
    )
    with pytest.raises(DataError, match="No gene is seen in 90% of the 1,000 cells"):
        build_vocabulary([one, other], min_fraction=0.9, cache=tmp_path, verbose=False)


@pytest.mark.parametrize("zipped", [False, True])
def test_genes_of_an_annotation_file(tmp_path, zipped):
    lines = [
        "#!genome",
        'chrX\ths\tgene\t1\t2\t.\t+\t.\tgene_id "ENSG1.5"; gene_type "x"; gene_name "ONE";',
        'X\ths\ttranscript\t1\t2\t.\t+\t.\tgene_id "ENSG2"; gene_name "TWO";',
        '7\ths\tgene\t1\t2\t.\t+\t.\tgene_id "ENSG3";',
        'chrY\ths\tgene\t1\t2\t.\t+\t.\tgene_id "ENSG1.5_PAR_Y"; gene_name "ONE";',
        "7\ths\tgene",
        '7\ths\tgene\t1\t2\t.\t+\t.\tgene_name "NONE";',
    ]
    path = tmp_path / ("a.gtf.gz" if zipped else "a.gtf")
    text = "\n".join(lines) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert read_gtf(path).to_numpy().tolist() == [["ENSG1", "ONE", "X"], ["ENSG3", "", "7"]]
    (tmp_path / "none.gtf").write_text("#\n")
    with pytest.raises(DataError, match="no line of feature 'gene'"):
        read_gtf(tmp_path / "none.gtf")
    with pytest.raises(DataError, match="no annotation"):
        read_gtf(tmp_path / "absent.gtf")


@pytest.mark.parametrize(
    "groups, words",
    [
        (["assays", "meta.data"], "h5Seurat"),
        (["assays", "cell.names"], "h5Seurat"),
        (["assays"], "neither"),
        (["meta.data", "cell.names"], "neither"),
    ],
)
def test_h5seurat_files_are_recognized_by_two_of_their_groups(groups, words, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for group in groups:
            file.create_group(group)
    with pytest.raises(DataError, match=words):
        open_store(tmp_path / "x.h5")


def test_antibodies_in_a_file_are_not_genes_of_a_collection(tmp_path):
    """A row of var that is not a gene is not counted, even if it has the name of a gene."""
    genes = list(Vocabulary.published().subset(range(60)).ensembl_ids)
    counts = np.random.default_rng(0).poisson(3.0, (6, 60)).astype(np.float32)
    cells = ad.AnnData(sparse.csr_matrix(counts))
    cells.var_names = genes
    cells.obs_names = [f"c{i}" for i in range(6)]
    cells.var["feature_types"] = ["Gene Expression"] * 50 + ["Antibody Capture"] * 10
    cells.write_h5ad(tmp_path / "x.h5ad")
    plain = cells[:, :50].copy()
    plain.write_h5ad(tmp_path / "plain.h5ad")
    found, expected = (
        Collection([tmp_path / name], force=True, min_coverage=0, verbose=False)
        for name in ("x.h5ad", "plain.h5ad")
    )
    np.testing.assert_array_equal(found.totals, expected.totals)
    np.testing.assert_array_equal(found.totals, counts[:, :50].sum(axis=1))
