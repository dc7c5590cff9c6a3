test_that("an object is restored from an h5ad file, and scanpy's conventions are read", {
  skip_without_python()
  object <- impute_tiny(embed_tiny(pbmc()))
  file <- withr::local_tempfile(fileext = ".h5ad")
  ScMambaWriteH5ad(object, file, verbose = FALSE)
  expect_error(ScMambaWriteH5ad(object, file), "overwrite", class = "scmamba_exists")
  again <- ScMambaReadH5ad(file, verbose = FALSE)
  expect_identical(dimnames(again), dimnames(object))
  expect_equal(counts_of(again), counts_of(object))
  expect_equal(data_of(again, "RNA"), data_of(object, "RNA"), tolerance = 1e-7)
  expect_equal(data_of(again), data_of(object), tolerance = 1e-7)
  expect_identical(unname(SeuratObject::Key(again[["scmamba"]])), "imputed_")
  expect_equal(unname(SeuratObject::Embeddings(again, "pca")), unname(SeuratObject::Embeddings(object, "pca")))
  expect_setequal(SeuratObject::Reductions(again), SeuratObject::Reductions(object))
  expect_identical(as.character(again$groups), as.character(object$groups))
  # The table of genes, with missing values.
  n <- nrow(object)
  table <- data.frame(id = c(NA, paste0("ENSG", seq_len(n)[-1])), size = c(NA, seq_len(n)[-1] / 7),
    long = c(NA, rep(c(TRUE, FALSE), length.out = n - 1)), row.names = rownames(object))
  object[["RNA"]] <- SeuratObject::AddMetaData(object[["RNA"]], table)
  ScMambaWriteH5ad(object, file, overwrite = TRUE, verbose = FALSE)
  genes <- ScMambaReadH5ad(file, verbose = FALSE)[["RNA"]][[]]
  expect_identical(rownames(genes), rownames(object))
  expect_identical(as.character(genes$id), table$id)
  expect_equal(genes$size, table$size)
  expect_identical(as.logical(as.character(genes$long)), table$long)
  # A file written by Python: counts in raw, log values in X.
  python <- withr::local_tempfile(fileext = ".h5ad")
  reticulate::py_run_string(paste(
    "def _scmamba_h5ad(path):", "    import anndata, numpy, pandas, scipy.sparse as sp",
    "    x = sp.csr_matrix(numpy.arange(12.0).reshape(3, 4))",
    "    a = anndata.AnnData(x, obs=pandas.DataFrame({'t': pandas.Categorical(['b', 'a', 'b'])}, index=list('xyz')),",
    "                        var=pandas.DataFrame({'id': list('1234')}, index=['A', 'B_1', 'C', 'D']))",
    "    a.raw = a", "    a.X = a.X.log1p()", "    a.obsm['X_umap'] = numpy.ones((3, 2))", "    a.write_h5ad(path)",
    sep = "\n"
  ))
  reticulate::py_get_attr(reticulate::import_main(convert = FALSE), "_scmamba_h5ad")(python)
  expect_message(read <- ScMambaReadH5ad(python), "the raw matrix")
  names <- list(c("A", "B-1", "C", "D"), c("x", "y", "z"))
  expect_equal(as.matrix(counts_of(read)), matrix(0:11 + 0, 4, dimnames = names))
  expect_equal(as.matrix(data_of(read, "RNA")), log1p(as.matrix(counts_of(read))))
  expect_identical(levels(read$t), c("a", "b"))
  expect_identical(SeuratObject::Reductions(read), "umap")
  expect_identical(as.character(read[["RNA"]][["id"]][, 1]), as.character(1:4))
  expect_error(ScMambaReadH5ad("/no/such.h5ad"), "no file", class = "scmamba_error")
})
