"""Seurat and SingleCellExperiment round trips; R's own ``identical`` is the judge. Run through
test_interop.py.
"""

import lzma
import os
import subprocess
import sys
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import rpy2.robjects as ro
from scipy import sparse

import scmamba.interop as bridge
from scmamba.interop import _r
from scmamba.interop._convert import convert_file
from scmamba.utils.compiled_code import import_umap
from scmamba.utils.errors import DataError, ScMambaError

_r.bridge()
_r.need("SeuratObject")
# The layer of an assay, old or new.
ro.r("""layer <- function(assay, name) {
  if (inherits(assay, "StdAssay")) SeuratObject::LayerData(assay, layer = name) else methods::slot(assay, name)
}""")


def in_r(code, **values):
    for name, value in values.items():
        ro.globalenv[name] = value
    return ro.r(code)


def truth(code, **values):
    return bool(in_r(code, **values)[0])


def through_file(adata, tmp_path):
    adata.write_h5ad(tmp_path / "x.h5ad")
    return anndata.read_h5ad(tmp_path / "x.h5ad")


@pytest.fixture(scope="module")
def seurat():
    return in_r("SeuratObject::pbmc_small")


# slot of pbmc_small -> R expression that must be the same before (x) and after (y) Seurat -> h5ad -> Seurat
KEPT = {
    "counts": "layer(o[['RNA']], 'counts')",
    "data": "layer(o[['RNA']], 'data')",
    "scale.data": "layer(o[['RNA']], 'scale.data')",
    "variable features, in order": "SeuratObject::VariableFeatures(o)",
    "feature metadata": "o[['RNA']][[]]",
    "assay key": "SeuratObject::Key(o[['RNA']])",
    "cell metadata": "o@meta.data",
    "idents": "SeuratObject::Idents(o)",
    "project": "o@project.name",
    "pca embeddings": "o[['pca']]@cell.embeddings",
    "pca loadings": "o[['pca']]@feature.loadings",
    "pca projected loadings": "o[['pca']]@feature.loadings.projected",
    "pca stdev": "o[['pca']]@stdev",
    "pca key and assay": "list(o[['pca']]@key, o[['pca']]@assay.used, o[['pca']]@global)",
    "tsne embeddings": "o[['tsne']]@cell.embeddings",
    "tsne key and assay": "list(o[['tsne']]@key, o[['tsne']]@assay.used, o[['tsne']]@global)",
    "graph": "o[['RNA_snn']]",
    "default assay": "SeuratObject::DefaultAssay(o)",
}
LOST = {"commands": "the log of 10 commands", "jackstraw": "JackStraw results of reduction 'pca'"}


@pytest.mark.parametrize("way", ["live", "file"])
def test_seurat_slot_by_slot(seurat, tmp_path, capfd, way):
    adata = bridge.from_seurat(seurat)
    messages = capfd.readouterr().err
    back = bridge.to_seurat(through_file(adata, tmp_path) if way == "file" else adata)
    different = [
        slot
        for slot, code in KEPT.items()
        if not truth(f"f <- function(o) {code}; identical(f(x), f(y))", x=seurat, y=back)
    ]
    assert not different
    assert all(sentence in messages for sentence in LOST.values())
    assert capfd.readouterr().err == ""  # and nothing else is lost on the way back


def test_anndata_side_of_a_seurat_object(seurat):
    adata = bridge.from_seurat(seurat, verbose=False)
    assert adata.X.dtype == np.int32 and sparse.issparse(adata.X)
    counts = np.array(in_r("as.matrix(layer(x[['RNA']], 'counts'))", x=seurat))
    np.testing.assert_array_equal(adata.X.toarray(), counts.T)
    data = np.array(in_r("as.matrix(layer(x[['RNA']], 'data'))", x=seurat))
    np.testing.assert_array_equal(adata.layers["data"].toarray(), data.T)
    graph = np.array(in_r("as.matrix(x[['RNA_snn']])", x=seurat))
    np.testing.assert_array_equal(adata.obsp["RNA_snn"].toarray(), graph)
    np.testing.assert_array_equal(
        adata.obsm["X_tsne"], np.array(in_r("x[['tsne']]@cell.embeddings", x=seurat))
    )
    assert adata.var["highly_variable"].sum() == 20 and adata.obsm["scale.data"].shape == (80, 20)
    assert adata.obs["groups"].tolist() == list(in_r("x$groups", x=seurat))


METADATA = """
n <- ncol(SeuratObject::pbmc_small); x <- SeuratObject::pbmc_small
x@meta.data$logical <- rep(c(TRUE, FALSE), length.out = n)
x@meta.data$logical_na <- rep(c(TRUE, NA, FALSE, TRUE), length.out = n)
x@meta.data$integer_na <- rep(c(1L, NA), length.out = n)
x@meta.data$double_na <- rep(c(1.5, NA, NaN, Inf), length.out = n)
x@meta.data$text_na <- rep(c("a", NA, "\\u00e9\\u4e2d", "NA"), length.out = n)
x@meta.data$text <- paste0("cell ", seq_len(n))
x@meta.data$ordered <- factor(rep(c("low", "high", NA, "low"), length.out = n), levels = c("low", "mid",
"high"),
                              ordered = TRUE)
x@meta.data$unused <- factor(rep("b", n), levels = c("c", "b", "a"))
x@meta.data$date <- as.Date("2020-02-29") + c(NA, seq_len(n - 1))
x@meta.data$time <- as.POSIXct("2020-02-29 12:34:56.25", tz = "UTC") + c(NA, seq_len(n - 1))
x@meta.data[["a name / of-its own"]] <- seq_len(n)
x@meta.data[["row_names"]] <- rep("r", n)
x@meta.data[["1x"]] <- 2^40 + seq_len(n)
x
"""


@pytest.mark.parametrize("way", ["live", "file"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # '/' in a key of an h5ad file
def test_metadata_of_every_type(tmp_path, way):
    x = in_r(METADATA)
    adata = bridge.from_seurat(x, verbose=False)
    if way == "file":
        adata.obs = adata.obs.rename(columns={"a name / of-its own": "a name of-its own"})
        adata = through_file(adata, tmp_path)
        adata.obs = adata.obs.rename(columns={"a name of-its own": "a name / of-its own"})
    back = bridge.to_seurat(adata, verbose=False)
    in_r("a <- x@meta.data; b <- y@meta.data", x=x, y=back)
    names = list(in_r("names(a)"))
    assert names == list(in_r("names(b)"))
    assert [n for n in names if not truth(f"identical(a[['{n}']], b[['{n}']])")] == []
    assert adata.obs["ordered"].cat.ordered and list(adata.obs["ordered"].cat.categories) == [
        "low",
        "mid",
        "high",
    ]


def test_columns_without_a_type_are_named(capfd):
    x = in_r(
        "x <- SeuratObject::pbmc_small; x@meta.data$nested <- lapply(seq_len(ncol(x)), function(i) 1:i); x"
    )
    adata = bridge.from_seurat(x)
    assert (
        "cell metadata column 'nested' (list)" in capfd.readouterr().err
        and "nested" not in adata.obs
    )
    adata.obs["objects"] = [{}] * adata.n_obs
    adata.uns["odd"] = {1, 2}
    bridge.to_seurat(adata)
    messages = capfd.readouterr().err
    assert (
        "cell metadata column 'objects' (dict" in messages and "uns 'odd' (holds a set)" in messages
    )


def test_level_na_of_a_factor():
    x = in_r(
        "x <- SeuratObject::pbmc_small; x$f <- addNA(factor(rep(c('u', NA, 'w'), length.out = 80))); x"
    )
    values = bridge.from_seurat(x, verbose=False).obs["f"]
    assert list(values.cat.categories) == ["u", "w"]
    assert values.isna().tolist() == [i % 3 == 1 for i in range(80)]
    assert values.dropna().tolist() == [("u", None, "w")[i % 3] for i in range(80) if i % 3 != 1]


TWO = """
x <- SeuratObject::pbmc_small
m <- matrix(rpois(5 * 80, 3), 5, dimnames = list(paste0("AB-", 1:5), colnames(x)))
x[["ADT"]] <- SeuratObject::CreateAssayObject(counts = methods::as(m, "dgCMatrix"))
x[["ADT"]] <- SeuratObject::AddMetaData(x[["ADT"]], c("i", "j", "k", "l", "m"), "isotype")
SeuratObject::VariableFeatures(x[["ADT"]]) <- c("AB-3", "AB-1")
d <- layer(x[["RNA"]], "data")
d@x <- d@x + 0.5
x[["scmamba"]] <- SeuratObject::CreateAssayObject(data = d)
SeuratObject::DefaultAssay(x) <- "ADT"
x
"""


def test_several_assays(tmp_path):
    x = in_r(TWO)
    adata = bridge.from_seurat(x, assay="RNA", verbose=False)
    assert set(adata.layers) == {"data", "scmamba"}
    assert adata.obsm["ADT_counts"].shape == (80, 5)
    back = bridge.to_seurat(through_file(adata, tmp_path), verbose=False)
    in_r("f <- function(o, a, s) layer(o[[a]], s)", x=x, y=back)
    assert truth(
        "identical(names(y@assays), c('RNA', 'ADT', 'scmamba')) && SeuratObject::DefaultAssay(y) == 'ADT'"
    )
    for assay, slot in (
        ("ADT", "counts"),
        ("ADT", "data"),
        ("scmamba", "data"),
        ("RNA", "scale.data"),
    ):
        assert truth(f"identical(f(x, '{assay}', '{slot}'), f(y, '{assay}', '{slot}'))"), (
            assay,
            slot,
        )
    assert truth(
        "identical(x[['ADT']][[]], y[['ADT']][[]]) && identical(x[['ADT']]@var.features, y[['ADT']]@var.features)"
    )
    other = bridge.from_seurat(x, verbose=False)
    assert other.shape == (80, 5) and other.obsm["RNA_scale.data"].shape == (80, 20)
    with pytest.raises(DataError, match="no assay 'SCT'"):
        bridge.from_seurat(x, assay="SCT")


def fresh():
    rng = np.random.default_rng(0)
    counts = sparse.random(30, 40, 0.3, random_state=0, format="csr")
    counts.data = rng.integers(1, 9, counts.nnz).astype(float)
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=[f"c{i}" for i in range(30)]))
    adata.var_names = [f"GENE_{i}" for i in range(40)]
    adata.obsm["X_pca"], adata.obsm["X_umap"] = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    adata.varm["PCs"] = rng.normal(size=(40, 4))
    adata.obsp["connectivities"] = sparse.random(30, 30, 0.1, random_state=1, format="csr")
    adata.layers["scmamba"] = sparse.csr_matrix(np.log1p(counts.toarray()) + 0.1)
    adata.var["highly_variable"] = np.arange(40) % 2 == 0
    adata.uns["scmamba"] = {"impute": {"passes": 10, "model": "brain-mini"}}
    return adata


def test_an_anndata_that_was_not_made_from_seurat(capfd):
    adata = fresh()
    made = bridge.to_seurat(adata)
    assert "'_' in 40 gene names" in capfd.readouterr().err
    in_r("", y=made)
    assert truth("identical(names(y@assays), c('RNA', 'scmamba')) && rownames(y)[2] == 'GENE-1'")
    assert truth("all(c('orig.ident', 'nCount_RNA', 'nFeature_RNA') %in% names(y@meta.data))")
    np.testing.assert_array_equal(
        np.array(in_r("y$nCount_RNA")), np.asarray(adata.X.sum(axis=1)).ravel()
    )
    np.testing.assert_array_equal(
        np.array(in_r("as.matrix(layer(y[['scmamba']], 'data'))")).T,
        adata.layers["scmamba"].toarray(),
    )
    np.testing.assert_array_equal(np.array(in_r("y[['pca']]@feature.loadings")), adata.varm["PCs"])
    np.testing.assert_array_equal(
        np.array(in_r("as.matrix(y@graphs$connectivities)")), adata.obsp["connectivities"].toarray()
    )
    assert in_r("SeuratObject::Misc(y, 'scmamba')$impute$passes")[0] == 10
    assert truth("length(SeuratObject::VariableFeatures(y)) == 20")
    # Seurat's own functions accept it
    assert truth(
        "library(Seurat); z <- NormalizeData(y, verbose = FALSE); inherits(subset(z, cells = colnames(z)[1:5]), 'Seurat')"
    )
    back = bridge.from_seurat(made, verbose=False)
    assert list(back.var_names) == list(adata.var_names) and (back.X != adata.X).nnz == 0
    np.testing.assert_array_equal(
        back.layers["scmamba"].toarray(), adata.layers["scmamba"].toarray()
    )
    assert back.uns["scmamba"] == adata.uns["scmamba"]


def test_log_values_become_data():
    adata = fresh()
    adata.X = sparse.csr_matrix(np.log1p(adata.X.toarray()))
    made = bridge.to_seurat(adata, verbose=False)
    in_r("a <- y[['RNA']]", y=made)
    assert truth(
        "if (inherits(a, 'StdAssay')) !'counts' %in% SeuratObject::Layers(a) else prod(dim(a@counts)) == 0"
    )
    np.testing.assert_array_equal(
        np.array(in_r("as.matrix(layer(y[['RNA']], 'data'))")).T, adata.X.toarray()
    )


def test_repeated_names(capfd):
    adata = fresh()
    adata.var_names = ["A"] * 2 + [f"g{i}" for i in range(38)]
    back = bridge.from_seurat(bridge.to_seurat(adata))
    assert "1 repeated gene names" in capfd.readouterr().err
    assert list(back.var_names) == list(adata.var_names)
    adata.obs_names = ["c"] * 30
    with pytest.raises(DataError, match="obs_names_make_unique"):
        bridge.to_seurat(adata)


def test_a_subset_of_the_converted_object(seurat):
    adata = bridge.from_seurat(seurat, verbose=False)
    part = adata[10:40, 5:60].copy()
    made = bridge.to_seurat(part, verbose=False)
    assert truth("ncol(y) == 30 && nrow(y) == 55 && methods::validObject(y)", y=made)
    assert truth(
        "identical(y[['pca']]@cell.embeddings, x[['pca']]@cell.embeddings[11:40, ])", x=seurat
    )
    assert truth("all(rownames(layer(y[['RNA']], 'scale.data')) %in% rownames(y))")


def test_dense_and_empty():
    adata = fresh()
    adata.X = adata.X.toarray()
    made = bridge.to_seurat(adata, verbose=False)
    np.testing.assert_array_equal(
        np.array(in_r("as.matrix(layer(y[['RNA']], 'counts'))", y=made)).T, adata.X
    )
    with pytest.raises(DataError, match="empty"):
        bridge.to_seurat(adata[:0])


SCE = """
suppressPackageStartupMessages(library(SingleCellExperiment))
set.seed(1)
m <- matrix(rpois(600, 1), 20, dimnames = list(paste0("g_", 1:20), paste0("c", 1:30)))
m <- methods::as(m, "dgCMatrix")
l <- m
l@x <- log1p(l@x)
x <- SingleCellExperiment(list(counts = m, logcounts = l, dense = as.matrix(l) / 2), mainExpName = "RNA")
x$batch <- factor(rep(c("b", "a"), 15), levels = c("b", "z", "a"))
x$ok <- rep(c(TRUE, NA, FALSE), 10)
x$day <- as.Date("2021-01-01") + 1:30
x$note <- rep(c("p", NA), 15)
rowData(x)$long <- paste("gene", 1:20)
p <- matrix(rnorm(90), 30, dimnames = list(colnames(x), paste0("PC", 1:3)))
attr(p, "rotation") <- matrix(rnorm(30), 10, dimnames = list(rownames(x)[10:1], colnames(p)))
reducedDim(x, "PCA") <- p
reducedDim(x, "My map") <- unname(p[, 1:2])
altExp(x, "spikes") <- SingleCellExperiment(list(counts = m[1:4, ]))
colPair(x, "near") <- methods::as(Matrix::rsparsematrix(30, 30, 0.1), "dgCMatrix")
metadata(x) <- list(who = "us", table = data.frame(a = 1:2, b = c("x", "y")), f = function() 1)
x
"""


def test_single_cell_experiment(tmp_path, capfd):
    if not truth("isTRUE(requireNamespace('SingleCellExperiment', quietly = TRUE))"):
        pytest.skip("no SingleCellExperiment in R")
    x = in_r(SCE)
    adata = bridge.from_sce(x)
    assert "metadata 'f'" in capfd.readouterr().err
    back = bridge.to_sce(through_file(adata, tmp_path))
    in_r("", x=x, y=back)
    kept = {
        "assays": "as.list(assays(o))",
        "colData": "lapply(as.list(colData(o)), identity)",
        "rowData": "as.list(rowData(o))",
        "names": "dimnames(o)",
        "reducedDims": "lapply(as.list(reducedDims(o)), function(m) matrix(m, nrow(m)))",
        "reducedDim names": "list(reducedDimNames(o), lapply(as.list(reducedDims(o)), colnames))",
        "rotation": "{r <- attr(reducedDim(o, 'PCA'), 'rotation'); r[sort(rownames(r)), ]}",
        "altExp": "assay(altExp(o, 'spikes'), 'counts')",
        "colPair": "methods::as(colPair(o, 'near', asSparse = TRUE), 'matrix')",
        "main": "mainExpName(o)",
        "metadata": "metadata(o)$who",
        "table": "lapply(metadata(o)$table, as.character)",
    }
    assert [
        k
        for k, code in kept.items()
        if not truth(f"f <- function(o) {code}; identical(f(x), f(y))")
    ] == []


def test_comparison_with_anndata2ri():
    anndata2ri = pytest.importorskip("anndata2ri")
    made = bridge.to_sce(fresh(), verbose=False)
    in_r("", y=made)
    with (ro.default_converter + anndata2ri.converter).context():
        theirs = ro.globalenv["y"]
    ours = fresh()
    assert list(theirs.obs_names) == list(ours.obs_names) and list(theirs.var_names) == list(
        ours.var_names
    )
    np.testing.assert_array_equal(sparse.csr_matrix(theirs.X).toarray(), ours.X.toarray())
    np.testing.assert_array_equal(
        sparse.csr_matrix(theirs.layers["scmamba"]).toarray(), ours.layers["scmamba"].toarray()
    )


def test_misnamed_files(tmp_path, seurat):
    good, bad = tmp_path / "good.rds", tmp_path / "bad.rds"
    bridge.write_seurat(bridge.from_seurat(seurat, verbose=False), good, verbose=False)
    assert bridge.read_seurat(good, verbose=False).shape == (80, 230)
    bad.write_bytes(good.read_bytes()[:2000])
    for path, messages in ((bad, "not an .rds file"), (tmp_path / "none.rds", "no file")):
        with pytest.raises(DataError, match=messages):
            bridge.read_seurat(path)
    bad.write_text("hello")
    with pytest.raises(DataError, match="not an .rds file"):
        bridge.read_seurat(bad)
    in_r(f"saveRDS(list(1), '{bad}')")
    with pytest.raises(DataError, match="not a Seurat object"):
        bridge.read_seurat(bad)
    with pytest.raises(ScMambaError, match="does not exist"):
        bridge.write_seurat(fresh(), tmp_path / "no" / "x.rds", verbose=False)


def test_convert_files(tmp_path, seurat):
    first, there, back = tmp_path / "a.rds", tmp_path / "b.h5ad", tmp_path / "c.rds"
    in_r(f"saveRDS(x, '{first}')", x=seurat)
    assert "80 cells x 230 genes" in convert_file(first, there, verbose=False)
    convert_file(there, back, verbose=False)
    in_r(f"y <- readRDS('{back}')")
    assert truth("identical(x@meta.data, y@meta.data)")
    assert truth("identical(layer(x[['RNA']], 'counts'), layer(y[['RNA']], 'counts'))")
    convert_file(there, tmp_path / "d.rds", to="sce", verbose=False)
    assert convert_file(tmp_path / "d.rds", tmp_path / "e.h5ad", verbose=False)
    assert anndata.read_h5ad(tmp_path / "e.h5ad").shape == (80, 230)
    before = back.read_bytes()
    for arguments, messages in (
        ((first, there), "exists already"),
        ((first, tmp_path / "x.loom"), "must end in"),
        ((tmp_path / "none.h5ad", tmp_path / "x.rds"), "no file"),
    ):
        with pytest.raises(DataError, match=messages):
            convert_file(*arguments)
    with pytest.raises(DataError, match="is .h5ad already"):
        convert_file(there, tmp_path / "x.h5ad")
    there.write_text("not an h5ad file")
    with pytest.raises(DataError, match="is not an h5ad"):
        convert_file(there, back, overwrite=True)
    assert back.read_bytes() == before and not (tmp_path / "x.rds").exists()


SPLIT = """
x <- SeuratObject::pbmc_small
a <- SeuratObject::CreateAssay5Object(counts = layer(x[["RNA"]], "counts"))
x[["V5"]] <- a
SeuratObject::DefaultAssay(x) <- "V5"
x$half <- rep(c("one", "two"), 40)
x[["V5"]] <- split(x[["V5"]], f = x$half)
x
"""


def test_split_layers_of_seurat_5(tmp_path, capfd):
    if not truth("utils::packageVersion('SeuratObject') >= '5.0.0'"):
        pytest.skip("SeuratObject 5 is not installed in this R")
    x = in_r(SPLIT)
    adata = bridge.from_seurat(x)
    assert (
        "the split of assay 'V5' into layers counts.one, counts.two (joined)"
        in capfd.readouterr().err
    )
    counts = np.array(
        in_r(
            "as.matrix(SeuratObject::LayerData(SeuratObject::JoinLayers(x[['V5']]), layer = 'counts'))"
        )
    )
    np.testing.assert_array_equal(adata.X.toarray(), counts.T)
    back = bridge.to_seurat(through_file(adata, tmp_path), verbose=False)
    assert truth("inherits(y[['V5']], 'Assay5') && inherits(y[['RNA']], 'Assay')", x=x, y=back)
    assert truth(
        "j <- SeuratObject::JoinLayers(x[['V5']]); identical(layer(j, 'counts'), layer(y[['V5']], 'counts'))"
    )
    assert truth("identical(x@meta.data, y@meta.data)")


def test_the_page_of_round_trips():
    import round_trip_table as table

    page = table.written()
    for heading, rows in table.tables().items():
        assert [slot for slot, verdict, _ in rows if verdict == "LOST WITHOUT A WORD"] == []
        text = table.as_text(heading, rows)
        assert page.get(heading, text) == text, (
            "docs/round_trips.md is old: run round_trip_table.py --write"
        )


# --- values are put into the right slot, and no entry stops the conversion
def layers_of(made, assay="RNA"):
    """Seurat's layers of an assay as arrays, cells x genes; empty ones omitted."""
    in_r("y <- o", o=made)
    out = {}
    for name in ("counts", "data", "scale.data"):
        code = f"""tryCatch({{m <- layer(y[['{assay}']], '{name}'); if (length(m)) t(as.matrix(m)) else NULL}},
                   error = function(e) NULL)"""
        found = in_r(code)
        if found is not ro.NULL:
            out[name] = np.array(found)
    return out


def normalized(adata):
    logs = adata.X.toarray() / adata.X.toarray().sum(axis=1, keepdims=True) * 1e4
    return np.log1p(logs)


def test_logs_of_counts_that_came_from_seurat_become_data(seurat, capfd):
    adata = bridge.from_seurat(seurat, verbose=False)
    logs = normalized(adata)
    adata.X = sparse.csr_matrix(logs)
    del adata.layers["data"], adata.obsm["scale.data"]
    capfd.readouterr()
    made = bridge.to_seurat(adata)
    found = layers_of(made)
    np.testing.assert_array_equal(found["data"], logs)
    # An empty slot of counts stays empty in Seurat 4; logarithms are not put there.
    assert "counts" not in found
    assert "written as data (it was read from counts)" in capfd.readouterr().err


def test_the_final_state_of_scanpys_tutorial():
    """Counts in a layer, logarithms of more genes in raw, scaled values in X."""
    adata = fresh()
    counts, logs = adata.X.toarray(), normalized(adata)
    adata.raw = anndata.AnnData(sparse.csr_matrix(logs), obs=adata.obs, var=adata.var)
    adata = adata[:, 5:35].copy()
    adata.layers["counts"] = sparse.csr_matrix(counts[:, 5:35])
    scaled = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    adata.X = scaled[:, 5:35]
    found = layers_of(bridge.to_seurat(adata, verbose=False))
    np.testing.assert_array_equal(found["counts"], counts[:, 5:35])
    np.testing.assert_array_equal(found["data"], logs[:, 5:35])
    np.testing.assert_array_equal(found["scale.data"], scaled[:, 5:35])


def test_corrected_counts_are_counts():
    adata = fresh()
    adata.X = sparse.csr_matrix(adata.X.toarray() * 0.93)
    found = layers_of(bridge.to_seurat(adata, verbose=False))
    np.testing.assert_array_equal(found["counts"], adata.X.toarray())


def test_logs_in_a_single_cell_experiment_are_logcounts(capfd):
    _r.need("SingleCellExperiment")
    adata = bridge.from_sce(bridge.to_sce(fresh(), verbose=False), verbose=False)
    logs = normalized(adata)
    adata.X = sparse.csr_matrix(logs)
    made = bridge.to_sce(adata)
    assert set(in_r("SummarizedExperiment::assayNames(y)", y=made)) == {"scmamba", "logcounts"}
    np.testing.assert_array_equal(
        np.array(in_r("as.matrix(SummarizedExperiment::assay(y, 'logcounts'))")).T, logs
    )
    assert "written as the assay logcounts" in capfd.readouterr().err


def test_names_in_use_are_replaced_by_free_ones(capfd):
    """impute and embed themselves: an assay and a reduction called scmamba."""
    adata = fresh()
    adata.layers["scmamba"] = sparse.csr_matrix(normalized(adata))
    adata.obsm["X_scmamba"] = np.arange(60.0).reshape(30, 2)
    adata.obsm["X_umap"], adata.obsm["umap"] = np.ones((30, 2)), np.zeros((30, 2))
    made = bridge.to_seurat(adata)
    assert truth("methods::validObject(y) && 'scmamba' %in% SeuratObject::Assays(y)", y=made)
    names = set(in_r("SeuratObject::Reductions(y)"))
    assert names == {"pca", "scmamba_embedding", "umap", "umap_embedding"}
    np.testing.assert_array_equal(
        np.array(in_r("y[['scmamba_embedding']]@cell.embeddings")), adata.obsm["X_scmamba"]
    )
    sides = [
        np.array(in_r(f"y[['{n}']]@cell.embeddings")).mean() for n in ("umap", "umap_embedding")
    ]
    assert sorted(sides) == [0.0, 1.0]
    assert "reduction 'scmamba_embedding' ('scmamba' is taken)" in capfd.readouterr().err


def test_unusual_entries_of_uns(capfd):
    adata = fresh()
    adata.uns = {
        "rank_genes_groups": {
            "params": {"groupby": "donor", "reference": None},
            "names": np.rec.fromarrays([["A", "B"], ["C", "D"]], names=["0", "1"]),
            "scores": np.rec.fromarrays([[1.5, 2.5], [3.5, 4.5]], names=["0", "1"]),
        },
        "nested": [[1, 2], [3, 4]],
        "ragged": [[1, 2], [3]],
        "factor": pd.Categorical(["a", None]),
        "mixed": {"good": 1, "bad": object(), "set": {1}},
        "complex": np.array([1 + 2j]),
        "big": np.array([2**60], dtype=np.uint64),
    }
    made = bridge.to_seurat(adata)
    messages = capfd.readouterr().err
    misc = "SeuratObject::Misc(y)"
    assert truth(f"identical({misc}$rank_genes_groups$names[['0']], c('A', 'B'))", y=made)
    assert truth(f"identical({misc}$rank_genes_groups$scores[['1']], c(3.5, 4.5))")
    assert truth(f"is.null({misc}$rank_genes_groups$params$reference)")
    assert truth(f"identical(dim({misc}$nested), c(2L, 2L)) && {misc}$nested[2, 1] == 3")
    assert truth(f"identical(lengths({misc}$ragged, use.names = FALSE), c(2L, 1L))")
    assert truth(f"is.na({misc}$factor[2]) && {misc}$mixed$good == 1")
    for name in ("uns 'mixed'/bad", "uns 'mixed'/set", "uns 'complex'", "uns 'big'"):
        assert name in messages


def test_unusual_entries_of_misc_and_metadata(capfd):
    made = in_r("""x <- SeuratObject::pbmc_small
      x@misc <- list(text = c("a", NA), factor = factor(c("b", NA)), fun = list(good = 1, bad = sum))
      x@meta.data$complex <- complex(real = seq_len(80), imaginary = 1)
      x@meta.data$wait <- as.difftime(seq_len(80), units = "mins")
      x@meta.data$big <- structure(rep(5e-324 * 7, 80), class = "integer64")
      x""")
    adata = bridge.from_seurat(made)
    messages = capfd.readouterr().err
    assert list(adata.uns["text"]) == ["a", np.nan] or pd.isna(adata.uns["text"][1])
    assert adata.uns["factor"][0] == "b" and pd.isna(adata.uns["factor"][1])
    assert adata.uns["fun"] == {"good": 1.0} and "misc 'fun'$bad" in messages
    assert adata.obs["big"].tolist() == [7] * 80
    assert (
        "complex" not in adata.obs
        and "column 'complex'" in messages
        and "column 'wait'" in messages
    )


def test_metadata_with_a_slash_is_written_readable(tmp_path):
    in_r(f"""x <- SeuratObject::pbmc_small; x$a <- 1; x@meta.data[["a/b"]] <- 2; x@meta.data[["_index"]] <- 3
         saveRDS(x, '{tmp_path / "x.rds"}')""")
    convert_file(tmp_path / "x.rds", tmp_path / "y.h5ad", verbose=False)
    found = anndata.read_h5ad(tmp_path / "y.h5ad")
    assert (found.obs["a"] == 1).all() and (found.obs["a_b"] == 2).all()
    assert (found.obs["index"] == 3).all()


def test_columns_with_the_same_name(capfd):
    adata = fresh()
    names = [f"d{i % 3}" for i in range(30)]
    adata.obs = pd.DataFrame(
        np.column_stack([names, names[::-1]]), index=adata.obs_names, columns=["donor", "donor"]
    )
    made = bridge.to_seurat(adata)
    assert "a second column of this name" in capfd.readouterr().err
    assert list(in_r("as.character(y$donor)", y=made)) == names


@pytest.mark.parametrize("start", ["_r.bridge()", "_r.r('R.home')()"])
def test_programs_started_after_r_load_their_own_libraries(start):
    # R adds its folders to the path; a Python built elsewhere then finds the system's libpython and cannot import ssl.
    code = """if True:
        import os, subprocess, sys
        from scmamba.interop import _r
        START
        assert "LD_LIBRARY_PATH" not in os.environ
        subprocess.run([sys.executable, "-c", "import ssl, sqlite3"], check=True)
        assert _r.r("requireNamespace")("SeuratObject", quietly=True)[0]
        sys.exit(_r.r("system")("R --vanilla -s -e 'stats::sd(1:3)'", **{"ignore.stdout": True})[0])
        """
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    command = [sys.executable, "-c", code.replace("START", start)]
    subprocess.run(command, check=True, env=environment)


# --- Seurat, scanpy's tutorial, Seurat
def tutorial(adata):
    """The steps of scanpy's tutorial, on an object converted from Seurat."""
    import scanpy as sc

    import_umap()  # before scanpy does: it would be compiled here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.layers["counts"] = adata.X.copy()
        sc.pp.normalize_total(adata, target_sum=2e3)  # not Seurat's 10,000, so that the data differ
        sc.pp.log1p(adata)
        sc.pp.highly_variable_genes(adata, n_top_genes=60)
        adata.raw = adata
        sc.pp.scale(adata, max_value=10)
        sc.pp.pca(adata, n_comps=8, random_state=0)
        sc.pp.neighbors(adata, n_neighbors=10, random_state=0)
        sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=0)
        sc.tl.umap(adata, random_state=0)
        sc.tl.rank_genes_groups(adata, "leiden")
    return adata


@pytest.mark.parametrize("kind", ["Assay", "Assay5"])
@pytest.mark.parametrize("way", ["live", "file"])
@pytest.mark.parametrize("origin", ["Seurat", "AnnData"])
def test_scanpys_tutorial_between_two_seurat_objects(seurat, tmp_path, capfd, kind, way, origin):
    pytest.importorskip("scanpy")
    if kind == "Assay5" and not truth("utils::packageVersion('SeuratObject') >= '5.0.0'"):
        pytest.skip("SeuratObject 5 is not installed in this R")
    start = bridge.from_seurat(seurat, verbose=False)
    if origin == "AnnData":
        start = anndata.AnnData(start.X, obs=start.obs[["groups"]], var=start.var[[]])
    adata = tutorial(start.copy())
    given = through_file(adata, tmp_path) if way == "file" else adata
    capfd.readouterr()
    made = bridge.to_seurat(given, assay_class=kind)
    messages = capfd.readouterr().err
    assert truth(f"methods::validObject(y) && inherits(y[['RNA']], '{kind}')", y=made)
    found = layers_of(made)
    genes, scaled = list(adata.var_names), list(in_r("rownames(layer(y[['RNA']], 'scale.data'))"))
    np.testing.assert_array_equal(found["counts"], start.X.toarray())
    np.testing.assert_array_equal(found["data"], adata.raw.X.toarray())
    np.testing.assert_array_equal(found["scale.data"][:, [scaled.index(g) for g in genes]], adata.X)
    variable = list(in_r("SeuratObject::VariableFeatures(y)"))
    flags = adata.var["highly_variable"].to_numpy()
    assert set(variable) == set(adata.var_names[flags]) and len(variable) == flags.sum() == 60
    strength = adata.var["dispersions_norm"].loc[variable].to_numpy()
    assert (np.diff(strength) <= 0).all()
    # Reductions with the entries that their plots and ElbowPlot read.
    np.testing.assert_array_equal(
        np.array(in_r("SeuratObject::Embeddings(y, 'pca')")), adata.obsm["X_pca"]
    )
    assert list(in_r("colnames(SeuratObject::Embeddings(y, 'pca'))"))[:2] == ["PC_1", "PC_2"]
    np.testing.assert_allclose(
        np.array(in_r("SeuratObject::Stdev(y, 'pca')")), np.sqrt(adata.uns["pca"]["variance"])
    )
    loaded = list(in_r("rownames(SeuratObject::Loadings(y, 'pca'))"))
    assert set(loaded) == set(variable)
    where = adata.var_names.get_indexer(loaded)
    np.testing.assert_array_equal(
        np.array(in_r("SeuratObject::Loadings(y, 'pca')")), adata.varm["PCs"][where]
    )
    np.testing.assert_array_equal(
        np.array(in_r("SeuratObject::Embeddings(y, 'umap')")), adata.obsm["X_umap"]
    )
    reductions = {"pca", "umap"} | ({"tsne"} if origin == "Seurat" else set())
    assert set(in_r("SeuratObject::Reductions(y)")) == reductions
    assert set(in_r("SeuratObject::Assays(y)")) == {"RNA"}
    for graph in ("connectivities", "distances"):
        np.testing.assert_array_equal(
            np.array(in_r(f"as.matrix(y@graphs${graph})")), adata.obsp[graph].toarray()
        )
    # Clusters, markers and parameters.
    assert list(in_r("as.character(y$leiden)")) == adata.obs["leiden"].astype(str).tolist()
    if origin == "AnnData":
        assert truth("identical(as.character(SeuratObject::Idents(y)), as.character(y$leiden))")
    misc = "SeuratObject::Misc(y, 'rank_genes_groups')"
    for group in adata.obs["leiden"].cat.categories:
        assert list(in_r(f"{misc}$names[['{group}']]")) == list(
            adata.uns["rank_genes_groups"]["names"][group]
        )
        np.testing.assert_array_equal(
            np.array(in_r(f"{misc}$scores[['{group}']]")),
            adata.uns["rank_genes_groups"]["scores"][group].astype(float),
        )
    assert in_r("SeuratObject::Misc(y, 'neighbors')$params$n_neighbors")[0] == 10
    assert truth("'means' %in% names(y[['RNA']][[]])")
    if origin == "Seurat":
        assert "the former one (layers/data) is dropped" in messages
    # The analysis continues in Seurat.
    assert truth(
        "library(Seurat); z <- FindNeighbors(y, dims = 1:5, verbose = FALSE); inherits(z, 'Seurat')"
    )


@pytest.mark.parametrize("form", ["stored twice", "unsorted", "array", "half precision", "dask"])
def test_unusual_matrices_are_written_with_their_values(form):
    adata = fresh()
    counts = adata.X.toarray()
    plain = sparse.csr_matrix(counts.astype(np.float32))
    if form == "stored twice":
        adata.X = sparse.csr_matrix(
            (np.repeat(plain.data / 2, 2), np.repeat(plain.indices, 2), plain.indptr * 2),
            shape=plain.shape,
        )
    elif form == "unsorted":
        adata.X = sparse.csr_matrix(plain[:, ::-1].tocsc().tocsr()[:, ::-1])
    elif form == "array":
        adata.X = sparse.csc_array(plain)
    elif form == "half precision":
        adata.X = counts.astype(np.float16)
    else:
        array = pytest.importorskip("dask.array")
        adata.X = array.from_array(counts, chunks=(7, 9)).map_blocks(sparse.csr_matrix)
    made = bridge.to_seurat(adata, verbose=False)
    assert truth("methods::validObject(layer(y[['RNA']], 'counts'))", y=made)
    np.testing.assert_array_equal(layers_of(made)["counts"], counts)


OLD = Path(__file__).parents[2] / "data" / "old_h5ad"


@pytest.mark.parametrize("name", sorted(p.name for p in OLD.glob("*.xz")))
@pytest.mark.filterwarnings("ignore")
def test_old_h5ad_files_convert(tmp_path, name):
    (tmp_path / "x.h5ad").write_bytes(lzma.decompress((OLD / name).read_bytes()))
    convert_file(tmp_path / "x.h5ad", tmp_path / "x.rds", verbose=False)
    convert_file(tmp_path / "x.rds", tmp_path / "y.h5ad", verbose=False)
    made = in_r(f"y <- readRDS('{tmp_path / 'x.rds'}'); y")
    before, after = anndata.read_h5ad(tmp_path / "x.h5ad"), anndata.read_h5ad(tmp_path / "y.h5ad")
    types = (
        ["Neuron", "Astrocyte", "OPC"]
        if "other" in name
        else ["Microglia", "Astrocyte", "Oligodendrocyte"]
    ) * 4
    assert list(in_r("as.character(y$cell_type)", y=made)) == types == list(after.obs["cell_type"])
    np.testing.assert_array_equal(layers_of(made)["counts"], before.X.toarray())
    np.testing.assert_array_equal(after.X.toarray(), before.X.toarray())


@pytest.mark.parametrize("source", ["10x", "mtx", "zarr"])
def test_10x_files_convert_to_both(tmp_path, source):
    from scipy.io import mmwrite

    adata = fresh()
    plain = anndata.AnnData(adata.X, obs=adata.obs[[]], var=adata.var[[]])
    path = tmp_path / f"x.{source}"
    if source == "zarr":
        plain.write_zarr(path)
    elif source == "mtx":
        path.mkdir()
        mmwrite(path / "matrix.mtx", plain.X.T.astype(int))
        (path / "barcodes.tsv").write_text("\n".join(plain.obs_names))
        (path / "features.tsv").write_text("\n".join(f"{g}\t{g}" for g in plain.var_names))
    else:
        with h5py.File(path, "w") as file:
            group = file.create_group("matrix")
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(plain.X, part).astype(int)
            group["shape"] = np.array(plain.shape[::-1])
            group["barcodes"] = plain.obs_names.to_numpy().astype("S")
            for part in ("id", "name"):
                group[f"features/{part}"] = plain.var_names.to_numpy().astype("S")
    convert_file(path, tmp_path / "y.h5ad", verbose=False)
    np.testing.assert_array_equal(
        anndata.read_h5ad(tmp_path / "y.h5ad").X.toarray(), plain.X.toarray()
    )
    convert_file(path, tmp_path / "y.rds", verbose=False)
    made = in_r(f"y <- readRDS('{tmp_path / 'y.rds'}'); y")
    np.testing.assert_array_equal(layers_of(made)["counts"], plain.X.toarray())
