sce <- function(counts = counts_of(pbmc())) {
  object <- SingleCellExperiment::SingleCellExperiment(list(counts = counts))
  object$group <- factor(rep(c("x", "y"), length.out = ncol(counts)))
  object
}

test_that("a SingleCellExperiment comes back with an assay and a reduction", {
  skip_without_python()
  skip_if_not_installed("SingleCellExperiment")
  before <- sce()
  after <- embed_tiny(impute_tiny(before))
  expect_identical(SummarizedExperiment::assayNames(after), c("counts", "scmamba"))
  expect_identical(SummarizedExperiment::assay(after, "counts"),
    SummarizedExperiment::assay(before, "counts"))
  expect_identical(dimnames(after), dimnames(before))
  expect_identical(after$group, before$group)
  expect_identical(SummarizedExperiment::assay(after, "scmamba"), data_of(impute_tiny(pbmc())))
  embedding <- SingleCellExperiment::reducedDim(after, "scmamba")
  expect_identical(embedding, SeuratObject::Embeddings(embed_tiny(pbmc()), "scmamba_embedding"))
  expect_setequal(names(S4Vectors::metadata(after)$scmamba), c("impute", "embed"))
  expect_error(impute_tiny(after), class = "scmamba_exists")
  expect_error(embed_tiny(after), class = "scmamba_exists")
  expect_error(impute_tiny(before, assay = "logcounts"), "no assay")
})

test_that("names with _ and dense matrices are kept as they are", {
  skip_without_python()
  skip_if_not_installed("SingleCellExperiment")
  counts <- as.matrix(counts_of(pbmc()))
  rownames(counts) <- gsub("-", "_", rownames(counts))
  after <- impute_tiny(sce(counts))
  expect_identical(rownames(after), rownames(counts))
  expect_s4_class(SummarizedExperiment::assay(after, "scmamba"), "dgCMatrix")
  expect_true(is.matrix(SummarizedExperiment::assay(after, "counts")))
})
