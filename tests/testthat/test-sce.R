sce <- function(counts = counts_of(pbmc())) {
  object <- SingleCellExperiment::SingleCellExperiment(list(counts = counts))
  object$group <- factor(rep(c("x", "y"), length.out = ncol(counts)))
  object
}

test_that("a SingleCellExperiment has a new assay and a reduction", {
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

test_that("columns with spaces, colLabels() and a SummarizedExperiment are supported", {
  skip_without_python()
  skip_if_not_installed("SingleCellExperiment")
  object <- sce()
  SummarizedExperiment::colData(object)[["Sample ID"]] <- as.character(object$group)
  scored <- ScMambaDoublets(object, sample = "Sample ID", verbose = FALSE)
  plain <- ScMambaDoublets(object, sample = "group", verbose = FALSE)
  expect_identical(scored$scmamba_doublet_score, plain$scmamba_doublet_score)
  expect_true("Sample ID" %in% names(SummarizedExperiment::colData(scored)))
  SummarizedExperiment::assay(object, "logcounts") <- log1p(SummarizedExperiment::assay(object, "counts"))
  expect_error(ScMambaFindMarkers(object, "x"), "group.by.*colLabels", class = "scmamba_error")
  SingleCellExperiment::colLabels(object) <- object$group
  expect_identical(ScMambaFindMarkers(object, "x", test.use = "wilcox", verbose = FALSE),
    ScMambaFindMarkers(object, "x", group.by = "Sample ID", test.use = "wilcox", verbose = FALSE))
  all <- ScMambaFindAllMarkers(object, test.use = "wilcox", return.thresh = 2, verbose = FALSE)
  expect_setequal(as.character(unique(all$cluster)), c("x", "y"))
  SummarizedExperiment::rowData(object)$Symbol <- rownames(object)
  rownames(object) <- paste0("gene", seq_len(nrow(object)))
  imputed <- impute_tiny(object, gene.column = "Symbol")
  values <- SummarizedExperiment::assay(imputed, "scmamba")
  expect_identical(unname(as.matrix(values)), unname(as.matrix(data_of(impute_tiny(pbmc())))))
  bare <- SummarizedExperiment::SummarizedExperiment(list(counts = counts_of(pbmc())))
  after <- embed_tiny(bare)
  expect_s4_class(after, "SingleCellExperiment")
  expect_identical(SingleCellExperiment::reducedDim(after, "scmamba"),
    SeuratObject::Embeddings(embed_tiny(pbmc()), "scmamba_embedding"))
})

test_that("a reference may be a SummarizedExperiment with a column name that has a space", {
  skip_without_python()
  skip_if_not_installed("SingleCellExperiment")
  cohort <- ScMambaCohort(n.cells = 300, n.donors = 2, n.genes = 1500, seed = 3)
  counts <- counts_of(cohort)
  types <- S4Vectors::DataFrame(`Cell type` = as.character(cohort$cell_type), check.names = FALSE)
  reference <- SummarizedExperiment::SummarizedExperiment(list(counts = counts), colData = types)
  named <- ScMambaAnnotate(counts, reference, labels = "Cell type", verbose = FALSE)
  cohort$donor <- NULL
  same <- ScMambaAnnotate(counts, cohort, labels = "cell_type", verbose = FALSE)
  expect_identical(named$scmamba_type, same$scmamba_type)
})

test_that("the map of doublet scores is drawn in a reduction of a SingleCellExperiment", {
  skip_if_not_installed("SingleCellExperiment")
  skip_if_not_installed("ggplot2")
  object <- sce()
  n <- ncol(object)
  object$scmamba_doublet <- rep(c(FALSE, TRUE), length.out = n)
  object$scmamba_doublet_score <- seq_len(n) / n
  expect_error(ScMambaPlotDoublets(object, reduction = "UMAP"), "no reduction", class = "scmamba_error")
  SingleCellExperiment::reducedDim(object, "UMAP") <- matrix(seq_len(2 * n), n)
  picture <- ScMambaPlotDoublets(object, reduction = "UMAP")
  expect_identical(picture$labels$x, "UMAP 1")
  expect_identical(picture$data$y, n + seq_len(n))
  table <- as.data.frame(SummarizedExperiment::colData(object))
  expect_error(ScMambaPlotDoublets(table, reduction = "UMAP"), "needs a Seurat object", class = "scmamba_error")
})

test_that("columns of the levels and of the groups are not replaced unless that is allowed", {
  skip_without_python()
  skip_if_not_installed("SingleCellExperiment")
  for (name in c("scmamba_class_probability", "scmamba_subtype_alternatives", "scmamba_group_share")) {
    object <- sce()
    SummarizedExperiment::colData(object)[[name]] <- 1
    expect_error(ScMambaAnnotate(object, clusters = "group", verbose = FALSE), name, class = "scmamba_exists")
  }
})
