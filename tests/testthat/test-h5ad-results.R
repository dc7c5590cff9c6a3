# Every result of scMamba survives a file, in both classes; files of scanpy with the variable genes only.

# A file sorts the names of lists and vectors.
sorted <- function(x) {
  if (is.data.frame(x) || is.null(names(x))) {
    return(x)
  }
  x <- x[order(names(x), method = "radix")]
  if (is.list(x)) lapply(x, sorted) else x
}

with_results <- function() {
  object <- ScMambaImpute(pbmc(), adapt = FALSE, sd = TRUE, force = TRUE, verbose = FALSE)
  object <- ScMambaImpute(object, assay.name = "expected", to.counts = TRUE, adapt = FALSE, force = TRUE,
    verbose = FALSE)
  object <- embed_tiny(object)
  suppressWarnings(ScMambaAmbient(object, sample = "groups", labels = "RNA_snn_res.1", corrected.assay = "corrected",
    verbose = FALSE))
}

expect_same_assay <- function(again, object, name) {
  record <- function(x) SeuratObject::Misc(x[[name]], "scmamba")
  expect_identical(SeuratObject::Key(again[[name]]), SeuratObject::Key(object[[name]]), info = name)
  expect_identical(record(again), record(object), info = name)
  # Of a matrix of counts alone, Seurat 4 keeps a copy as data.
  for (layer in if (name %in% c("expected", "corrected")) "counts" else c("counts", "data")) {
    values <- function(x) suppressWarnings(data_of(x, name, layer))
    if (name != "scmamba_sd" || layer == "data") {
      expect_equal(values(again), values(object), tolerance = 1e-7, info = paste(name, layer))
    }
  }
}

test_that("imputed assays, standard deviations, corrected counts and records survive a file", {
  skip_without_python()
  object <- with_results()
  file <- withr::local_tempfile(fileext = ".h5ad")
  ScMambaWriteH5ad(object, file, verbose = FALSE)
  again <- ScMambaReadH5ad(file, verbose = FALSE)
  expect_setequal(SeuratObject::Assays(again), c("RNA", "scmamba", "scmamba_sd", "expected", "corrected"))
  for (name in SeuratObject::Assays(object)) expect_same_assay(again, object, name)
  record <- SeuratObject::Misc(object, "scmamba")
  expect_setequal(names(record), c("impute", "embed", "ambient_rna"))
  expect_true(is.data.frame(record$ambient_rna$samples))
  expect_identical(sorted(SeuratObject::Misc(again, "scmamba")), sorted(record))
  expect_identical(SeuratObject::VariableFeatures(again), SeuratObject::VariableFeatures(object))
  # The results are recognized: replaced without `overwrite` by their verb, and the assay read is that of the counts.
  SeuratObject::DefaultAssay(again) <- "scmamba"
  expect_message(embed_tiny(again, overwrite = TRUE, verbose = TRUE), "reading \"RNA\"")
  # Python finds its own records.
  uns <- reticulate::py_to_r(scMamba:::.anndata()$read_h5ad(file)$uns)
  expect_identical(uns$scmamba$impute$params$to_counts, TRUE)
  expect_identical(uns$scmamba$impute$version, as.character(packageVersion("scMamba")))
})

test_that("a SingleCellExperiment is read and written whole", {
  skip_without_python()
  skip_if_not_installed("SingleCellExperiment")
  object <- with_results()
  file <- withr::local_tempfile(fileext = ".h5ad")
  ScMambaWriteH5ad(object, file, verbose = FALSE)
  sce <- ScMambaReadH5ad(file, as = "SingleCellExperiment", verbose = FALSE)
  expect_setequal(SummarizedExperiment::assayNames(sce),
    c("counts", "logcounts", "scmamba", "scmamba_sd", "expected", "corrected"))
  expect_equal(SummarizedExperiment::assay(sce, "scmamba_sd"), data_of(object, "scmamba_sd"), tolerance = 1e-7)
  expect_setequal(SingleCellExperiment::reducedDimNames(sce), c("PCA", "TSNE", "scmamba"))
  variable <- rownames(sce)[SummarizedExperiment::rowData(sce)$highly_variable]
  expect_setequal(variable, SeuratObject::VariableFeatures(object))
  expect_identical(sorted(S4Vectors::metadata(sce)$scmamba), sorted(SeuratObject::Misc(object, "scmamba")))
  ScMambaWriteH5ad(sce, file, overwrite = TRUE, verbose = FALSE)
  expect_equal(ScMambaReadH5ad(file, as = "SingleCellExperiment", verbose = FALSE), sce)
  # The record has the name of the last imputed assay; another one is named and not taken for something it may not be.
  expect_message(seurat <- ScMambaReadH5ad(file), "layers \"scmamba\" and \"scmamba_sd\" are not read")
  expect_equal(counts_of(seurat, "expected"), counts_of(object, "expected"), tolerance = 1e-7)
  expect_equal(counts_of(seurat, "corrected"), counts_of(object, "corrected"), tolerance = 1e-7)
  expect_error(ScMambaWriteH5ad(sce, file), "overwrite", class = "scmamba_exists")
  expect_error(ScMambaWriteH5ad(1, file), "Seurat object", class = "scmamba_error")
})

# scanpy's order of work: all genes as logarithms in raw, then the variable genes, scaled.
scanpy_file <- function(file, counts = FALSE) {
  reticulate::py_run_string(paste(
    "def _scmamba_scanpy(path, counts):",
    "    import anndata, numpy as np, pandas as pd, scipy.sparse as sp",
    "    values = np.arange(60.0).reshape(5, 12) % 7",
    "    names = dict(obs=pd.DataFrame(index=[f'c{i}' for i in range(5)]),",
    "                 var=pd.DataFrame({'id': [str(i) for i in range(12)]}, index=[f'G_{i}' for i in range(12)]))",
    "    a = anndata.AnnData(sp.csr_matrix(values if counts else np.log1p(values)), **names)",
    "    a.layers['counts'] = sp.csr_matrix(values)",
    "    a.raw = a",
    "    a = a[:, [3, 1, 7]].copy()",
    "    a.X = a.X.toarray() - 1.5",
    "    a.var['score'] = [.1, .2, .3]",
    "    a.layers['scmamba'] = sp.csr_matrix(np.log1p(a.layers['counts'].toarray()) + .5)",
    "    a.layers['spliced'] = a.layers['counts'].copy()",
    "    a.write_h5ad(path)", sep = "\n"
  ))
  reticulate::py_get_attr(reticulate::import_main(convert = FALSE), "_scmamba_scanpy")(file, counts)
  values <- matrix(0:59 %% 7, 12, dimnames = list(paste0("G-", 0:11), paste0("c", 0:4)))
  list(values = values, main = c("G-3", "G-1", "G-7"))
}

test_that("a file whose main matrix has the variable genes only is read with all genes", {
  skip_without_python()
  file <- withr::local_tempfile(fileext = ".h5ad")
  truth <- scanpy_file(file)
  said <- capture_messages(object <- ScMambaReadH5ad(file))
  expect_match(paste(said, collapse = ""), "12 genes and the main one 3")
  expect_match(paste(said, collapse = ""), "layer of counts is not read")
  expect_match(paste(said, collapse = ""), "\"spliced\" is not read")
  expect_equal(as.matrix(data_of(object, "RNA")), log1p(truth$values))
  expect_setequal(SeuratObject::VariableFeatures(object), truth$main)
  expect_false("nCount_RNA" %in% names(object[[]])) # a sum of logarithms
  expect_equal(object[["RNA"]][[]][truth$main, "score"], c(.1, .2, .3))
  expect_true(all(is.na(object[["RNA"]][[]][setdiff(rownames(truth$values), truth$main), "score"])))
  scaled <- as.matrix(data_of(object, "RNA", "scale.data"))[truth$main, ]
  expect_equal(scaled, log1p(truth$values)[truth$main, ] - 1.5, tolerance = 1e-6)
  # The imputed values of three genes, with the counts of these genes.
  expect_equal(as.matrix(data_of(object)), log1p(truth$values)[truth$main, ] + .5)
  expect_equal(as.matrix(counts_of(object, "scmamba")), truth$values[truth$main, ])
  expect_message(ScMambaWriteH5ad(object, file, overwrite = TRUE), "\"scmamba\" has 3 genes and \"RNA\" 12: it is not")
  # Counts in the raw matrix; only the main matrix.
  scanpy_file(file, counts = TRUE)
  expect_equal(as.matrix(counts_of(ScMambaReadH5ad(file, verbose = FALSE))), truth$values)
  few <- ScMambaReadH5ad(file, raw = FALSE, verbose = FALSE)
  expect_equal(as.matrix(counts_of(few)), truth$values[truth$main, ])
  expect_equal(dim(data_of(few, "RNA", "scale.data")), c(3, 5))
  skip_if_not_installed("SingleCellExperiment")
  sce <- ScMambaReadH5ad(file, as = "SingleCellExperiment", verbose = FALSE)
  expect_equal(unname(as.matrix(SummarizedExperiment::assay(sce, "counts"))), unname(truth$values))
  expect_identical(rownames(sce)[SummarizedExperiment::rowData(sce)$highly_variable], c("G_1", "G_3", "G_7"))
  main <- SingleCellExperiment::altExp(sce, "variable")
  expect_setequal(SummarizedExperiment::assayNames(main), c("scaled", "counts", "scmamba", "spliced"))
})
