# Reading from and writing to SingleCellExperiment.

.get_sce <- function(object, assay) {
  known <- SummarizedExperiment::assayNames(object)
  if (!is.character(assay) || length(assay) != 1 || !assay %in% known) {
    .abort("This object has no assay {.val {assay}}; it has {.val {known}}.")
  }
  data <- SummarizedExperiment::assay(object, assay, withDimnames = TRUE)
  .check_matrix(.as_dgc(data, what = "assay {.val {assay}}", assay = assay))
}

# The object's own names rule; NULL ones stay NULL.
.unnamed_as <- function(matrix, object) {
  dimnames(matrix) <- dimnames(object)
  matrix
}

.annotate_sce <- function(object, verb, result) {
  for (column in names(result$cells)) {
    object[[column]] <- result$cells[[column]]
  }
  record <- S4Vectors::metadata(object)
  kept <- if (is.list(record$scmamba)) record$scmamba else list()
  kept[[verb]] <- result$provenance
  record$scmamba <- kept
  S4Vectors::metadata(object) <- record
  object
}
