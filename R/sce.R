# Reading from and writing to SingleCellExperiment.

.get_sce <- function(object, assay, disk = FALSE) {
  known <- SummarizedExperiment::assayNames(object)
  if (!is.character(assay) || length(assay) != 1 || !assay %in% known) {
    .abort("This object has no assay {.val {assay}}; it has {.val {known}}.")
  }
  data <- SummarizedExperiment::assay(object, assay, withDimnames = TRUE)
  .check_matrix(.as_dgc(data, what = "assay {.val {assay}}", disk = disk, assay = assay))
}

# The metadata under the names they have, with spaces and all.
.sce_frame <- function(object) {
  columns <- SummarizedExperiment::colData(object)
  # Columns that are matrices or lists cannot name cells' groups.
  simple <- vapply(seq_along(columns), function(i) is.atomic(columns[[i]]) && is.null(dim(columns[[i]])), NA)
  as.data.frame(columns[, simple, drop = FALSE], optional = TRUE)
}

.sce_genes <- function(object) {
  frame <- as.data.frame(SummarizedExperiment::rowData(object), optional = TRUE)
  rownames(frame) <- rownames(object)
  frame
}

.sce_record <- function(object) {
  record <- S4Vectors::metadata(object)$scmamba
  if (is.list(record)) record else list()
}

# A SummarizedExperiment becomes a SingleCellExperiment, which can hold an embedding.
.as_sce <- function(object) {
  if (!requireNamespace("SingleCellExperiment", quietly = TRUE)) {
    .abort("A SummarizedExperiment needs the R package {.pkg SingleCellExperiment}.")
  }
  as(object, "SingleCellExperiment")
}

# The object's own names rule; NULL ones stay NULL.
.unnamed_as <- function(matrix, object) {
  dimnames(matrix) <- dimnames(object)
  matrix
}

.annotate_sce <- function(object, verb, result) {
  old <- .old_columns(.sce_record(object), verb, names(SummarizedExperiment::colData(object)), names(result$cells))
  for (column in old) object[[column]] <- NULL
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
