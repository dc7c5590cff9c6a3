# Layers on disk: read in blocks, never whole, and imputed values that stay on disk.

# pbmc_small as an HDF5 file, in the layout of write_h5ad().
h5ad_of <- function(counts, file) {
  scMamba:::.write_blocks(scMamba:::.new_on_disk(counts), NULL, file)
  file
}

# The values alone.
plain_of <- function(matrix) {
  matrix <- as(matrix, "dgCMatrix")
  attr(matrix, "scmamba") <- NULL
  matrix
}

test_that("a matrix written in blocks is the same, whatever the size of the blocks", {
  skip_without_python()
  counts <- counts_of(pbmc())
  for (columns in c(1, 7, 80, 1000)) {
    withr::local_options(scmamba.block = columns * nrow(counts))
    file <- withr::local_tempfile(fileext = ".h5ad")
    expect_identical(scMamba:::.in_memory(scMamba:::.new_from_file(h5ad_of(counts, file))), counts)
  }
})

test_that("large layers on disk give the same results as layers in memory, and imputed values stay on disk", {
  skip_without_python()
  skip_if_not_installed("HDF5Array")
  counts <- counts_of(pbmc())
  folder <- withr::local_tempdir()
  layer <- scMamba:::.h5_sparse(h5ad_of(counts, file.path(folder, "cells.h5ad")), "/X")
  dimnames(layer) <- dimnames(counts)
  withr::local_options(scmamba.disk = 0, scmamba.block = 9 * nrow(counts))
  imputed <- impute_tiny(layer)
  expect_s4_class(imputed, "DelayedMatrix")
  expect_equal(plain_of(imputed), plain_of(impute_tiny(counts)), tolerance = 1e-6)
  # Beside the file of the layer; a second result does not replace the first.
  expect_setequal(list.files(folder), c("cells.h5ad", "scmamba_imputed.h5ad"))
  impute_tiny(layer)
  expect_setequal(list.files(folder), c("cells.h5ad", "scmamba_imputed.h5ad", "scmamba_imputed_2.h5ad"))
  expect_equal(embed_tiny(layer), embed_tiny(counts), ignore_attr = TRUE, tolerance = 1e-6)
  # Temporary files are gone.
  expect_identical(list.files(tempdir(), "^scmamba-.*h5ad$"), character())
  skip_if_not_installed("SingleCellExperiment")
  sce <- SingleCellExperiment::SingleCellExperiment(list(counts = layer))
  after <- impute_tiny(sce, file = file.path(folder, "named.h5ad"))
  expect_s4_class(SummarizedExperiment::assay(after, "scmamba"), "DelayedMatrix")
  expect_true(file.exists(file.path(folder, "named.h5ad")))
  expect_identical(dimnames(after), dimnames(counts))
})

test_that("an Assay5 refers to layers and results on disk", {
  skip_without_python()
  skip_if_not(seurat5, "Seurat 5")
  skip_if_not_installed("HDF5Array")
  counts <- counts_of(pbmc())
  folder <- withr::local_tempdir()
  layer <- scMamba:::.h5_sparse(h5ad_of(counts, file.path(folder, "cells.h5ad")), "/X")
  withr::local_options(scmamba.disk = 0, scmamba.block = 9 * nrow(counts))
  object <- SeuratObject::CreateSeuratObject(SeuratObject::CreateAssay5Object(counts = counts))
  in_memory <- object
  object[["RNA"]]@layers$counts <- unname(layer)
  after <- impute_tiny(object)
  values <- SeuratObject::LayerData(after, assay = "scmamba", layer = "data")
  expect_s4_class(values, "DelayedMatrix")
  expect_equal(as.matrix(values), as.matrix(data_of(impute_tiny(in_memory))), tolerance = 1e-6)
  expect_s4_class(SeuratObject::LayerData(after, assay = "scmamba", layer = "counts"), "DelayedMatrix")
  expect_true(file.exists(file.path(folder, "scmamba_imputed.h5ad")))
  expect_identical(colnames(after), colnames(object))
  # Subset, save and read again.
  part <- after[, colnames(after)[3:20]]
  expect_equal(as.matrix(SeuratObject::LayerData(part, assay = "scmamba", layer = "data")),
    as.matrix(values)[, 3:20], ignore_attr = TRUE)
  saved <- withr::local_tempfile(fileext = ".rds")
  saveRDS(after, saved)
  expect_equal(as.matrix(SeuratObject::LayerData(readRDS(saved), assay = "scmamba", layer = "data")), as.matrix(values))
  embedded <- SeuratObject::Embeddings(embed_tiny(object), "scmamba_embedding")
  expect_equal(embedded, SeuratObject::Embeddings(embed_tiny(in_memory), "scmamba_embedding"), tolerance = 1e-6)
})

test_that("an h5ad file can be given by its path", {
  skip_without_python()
  counts <- counts_of(pbmc())
  folder <- withr::local_tempdir()
  path <- h5ad_of(counts, file.path(folder, "cells.h5ad"))
  expect_equal(embed_tiny(path), embed_tiny(counts), ignore_attr = TRUE, tolerance = 1e-6)
  expect_error(embed_tiny(file.path(folder, "other.h5ad")), "no file", class = "scmamba_error")
  expect_error(embed_tiny("pbmc"), "path of an h5ad file", class = "scmamba_error")
  skip_if_not_installed("HDF5Array")
  imputed <- impute_tiny(path, file = file.path(folder, "imputed.h5ad"))
  expect_equal(plain_of(imputed), plain_of(impute_tiny(counts)), tolerance = 1e-6)
  expect_error(impute_tiny(path, file = file.path(folder, "imputed.h5ad")), "exists already", class = "scmamba_exists")
  expect_error(impute_tiny(path, file = path, overwrite = TRUE), "is the file that is read", class = "scmamba_exists")
  expect_error(impute_tiny(path, file = file.path(folder, "imputed.rds")), "must end in", class = "scmamba_error")
  expect_error(impute_tiny(path, file = file.path(folder, "no", "imputed.h5ad")), "no folder", class = "scmamba_error")
  expect_setequal(list.files(folder), c("cells.h5ad", "imputed.h5ad"))
})

test_that("a result with too many values for R goes to disk after the first block, or is refused before the others", {
  skip_without_python()
  counts <- counts_of(pbmc())
  file <- file.path(withr::local_tempdir(), "imputed.h5ad")
  adata <- scMamba:::.to_adata(counts)
  impute <- function(target) {
    options <- list(adata, target, max_values = 100L, model = tiny_model(), force = TRUE, verbose = FALSE)
    scMamba:::.call_python(scMamba:::.imputation()$impute_or_write, options, FALSE)
  }
  expect_error(impute(NULL), "R sparse matrix at most 100", class = "scmamba_error")
  written <- impute(file)
  expect_true(scMamba:::.is_written(written, file))
  scMamba:::.close_h5ad(written)
  skip_if_not_installed("HDF5Array")
  expect_equal(plain_of(scMamba:::.open_layer(file, counts)), plain_of(impute_tiny(counts)), tolerance = 1e-6)
})

test_that("objects that cannot refer to values on disk are named before any work", {
  skip_without_python()
  expect_error(impute_tiny(pbmc(), file = "imputed.h5ad"), if (seurat5) "HDF5Array|Assay5" else "Assay5",
    class = "scmamba_error")
})
