test_that("the reduction has the values of the Python package, in the order of the cells", {
  skip_without_python()
  set.seed(3)
  counts <- counts_of(pbmc())[, sample(80)]
  seu <- embed_tiny(SeuratObject::CreateSeuratObject(counts))
  direct <- reticulate::py_to_r(
    reticulate::py_get_item(python_alone(counts, "embed")$obsm, "X_scmamba")
  )
  ours <- SeuratObject::Embeddings(seu, "scmamba_embedding")
  expect_identical(rownames(ours), colnames(counts))
  expect_identical(colnames(ours), paste0("scmamba_", 1:16))
  expect_equal(unname(ours), direct, tolerance = 1e-12)
  expect_identical(SeuratObject::DefaultAssay(seu[["scmamba_embedding"]]), "RNA")
})

test_that("an existing reduction is kept unless overwrite is TRUE", {
  skip_without_python()
  seu <- pbmc()
  expect_error(embed_tiny(seu, reduction.name = "pca"), "already has a reduction",
    class = "scmamba_exists")
  seu <- embed_tiny(seu)
  expect_error(embed_tiny(seu), class = "scmamba_exists")
  # Assays and reductions share one set of names.
  expect_error(embed_tiny(seu, reduction.name = "RNA"), "in use", class = "scmamba_exists")
  expect_error(impute_tiny(seu, assay.name = "pca"), "in use", class = "scmamba_exists")
  expect_identical(SeuratObject::Embeddings(embed_tiny(seu, overwrite = TRUE), "scmamba_embedding"),
    SeuratObject::Embeddings(seu, "scmamba_embedding"))
  expect_true("pca" %in% SeuratObject::Reductions(seu))
})

test_that("the reduction works with neighbors, clusters and UMAP", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  seu <- embed_tiny(pbmc())
  seu <- Seurat::FindNeighbors(seu, reduction = "scmamba_embedding", dims = 1:10, verbose = FALSE)
  expect_true("RNA_snn" %in% SeuratObject::Graphs(seu))
  expect_s3_class(Seurat::DimPlot(seu, reduction = "scmamba_embedding"), "ggplot")
})

test_that("the simulated cohort equals the Python package's, as a Seurat object", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 40, n.donors = 2, n.genes = 300, seed = 4)
  datasets <- reticulate::import("scmamba.datasets", convert = FALSE)
  direct <- datasets$brain_cohort(40L, n_donors = 2L, n_genes = 300L, seed = 4L)
  expect_equal(dim(cohort), c(300, 40))
  expect_equal(as.matrix(unname(counts_of(cohort))),
    t(reticulate::py_to_r(direct$X$toarray())))
  direct <- scMamba:::.plain_frame(direct$obs)
  expect_identical(colnames(cohort), rownames(direct))
  expect_identical(as.character(cohort$cell_type), as.character(direct$cell_type))
  expect_error(ScMambaCohort(n.cells = 0), "n.cells")
})
