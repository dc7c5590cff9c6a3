#' Estimate ambient RNA
#'
#' Nuclei of post-mortem tissue are sequenced in a solution that holds RNA of broken cells. `ScMambaAmbient()` estimates
#' which share of the counts of each cell is ambient RNA, for each sample, from the genes that each cell type does not
#' express, and can add an assay with corrected counts. Your counts are not changed.
#'
#' The ambient RNA of a sample is taken to be the average of its cells, so give all cells that were sequenced, before
#' cell types are removed. A sample with one cell type has the share `NA` and a reason: there, ambient and own RNA
#' cannot be
#' distinguished. Test for differential expression with the observed counts; corrected ones are for figures and for the
#' question whether a gene of another cell type is real.
#'
#' @inheritParams ScMambaImpute
#' @param sample Column of the metadata with the library or donor, or one value for each cell; each has its own ambient
#'   RNA. `NULL`: all cells are one sample.
#' @param labels Column with cell types, or one value for each cell. `NULL`: the types of the reference `human-brain` if
#'   at least 100 of its genes were measured and the cells are of the brain, otherwise clusters.
#' @param corrected.assay Name of a new assay for the corrected counts (fractions); `NULL`: none is made.
#' @param overwrite Replace a metadata column or assay with this name?
#'
#' @return The same object with the metadata column `scmamba_ambient` (share of the counts of each cell, `NA` if it
#'   cannot be known), the new assay, and the record `Misc(object, "scmamba")$ambient_rna`, whose data frames
#'   `samples` and
#'   `types` hold the share with a 95% interval. For a matrix: a data frame with the column, and the record in its
#'   attribute `"scmamba"`. Runs in this process, not on a server.
#' @seealso [ScMambaDoublets()], [ScMambaAnnotate()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaCohort(n.cells = 200, n.donors = 2, n.genes = 1500)
#'   seu <- ScMambaAmbient(seu, sample = "donor", labels = "cell_type", verbose = FALSE)
#'   SeuratObject::Misc(seu, "scmamba")$ambient_rna$samples
#' }
#' @export
ScMambaAmbient <- function(object, ...) {
  UseMethod("ScMambaAmbient")
}

#' @rdname ScMambaAmbient
#' @export
ScMambaAmbient.Seurat <- function(object, sample = NULL, labels = NULL, corrected.assay = NULL, assay = NULL,
                                  layer = "counts", slot = NULL, gene.column = NULL, seed = 0, overwrite = FALSE,
                                  verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer)
  .check_columns(names(object[[]]), .seurat_record(object), "ambient_rna", NULL, "scmamba_ambient", overwrite)
  if (!is.null(corrected.assay)) {
    .check_name(corrected.assay, "corrected.assay")
    .check_free_seurat(object, corrected.assay, SeuratObject::Assays(object), "an assay", "corrected.assay", overwrite)
    .check_not_itself(corrected.assay, assay, "corrected.assay")
  }
  wanted <- .cell_columns(object[[]], list(sample = sample, labels = labels))
  matrix <- .get_layer(object, assay, layer, verbose)
  named <- .named_genes(matrix, object[[assay]][[]], gene.column, verbose)
  result <- .ambient(named, wanted, seed, !is.null(corrected.assay), verbose)
  rownames(result$cells) <- colnames(object)
  if (!is.null(corrected.assay)) {
    dimnames(result$corrected) <- dimnames(matrix)
    new <- .make_assay(result$corrected, like = object[[assay]], expected = TRUE)
    object <- .add_assay(object, corrected.assay, new, .plain_key(corrected.assay))
    result$provenance$corrected.assay <- corrected.assay
  }
  object <- .annotate_seurat(object, "ambient_rna", c(list(matrix = matrix), result))
  SeuratObject::LogSeuratCommand(object)
}

#' @rdname ScMambaAmbient
#' @export
ScMambaAmbient.SummarizedExperiment <- function(object, ...) {
  ScMambaAmbient(.as_sce(object), ...)
}

#' @rdname ScMambaAmbient
#' @export
ScMambaAmbient.SingleCellExperiment <- function(object, sample = NULL, labels = NULL, corrected.assay = NULL,
                                                assay = "counts", gene.column = NULL, seed = 0, overwrite = FALSE,
                                                verbose = TRUE, ...) {
  .no_extra(...)
  frame <- .sce_frame(object)
  .check_columns(names(frame), .sce_record(object), "ambient_rna", NULL, "scmamba_ambient", overwrite)
  if (!is.null(corrected.assay)) {
    .check_name(corrected.assay, "corrected.assay")
    .check_free(corrected.assay, SummarizedExperiment::assayNames(object), "an assay", "corrected.assay", overwrite)
    .check_not_itself(corrected.assay, assay, "corrected.assay")
  }
  wanted <- .cell_columns(frame, list(sample = sample, labels = labels))
  matrix <- .named_genes(.get_sce(object, assay), .sce_genes(object), gene.column, verbose)
  result <- .ambient(matrix, wanted, seed, !is.null(corrected.assay), verbose)
  if (!is.null(corrected.assay)) {
    SummarizedExperiment::assay(object, corrected.assay, withDimnames = FALSE) <- .unnamed_as(result$corrected, object)
    result$provenance$corrected.assay <- corrected.assay
  }
  .annotate_sce(object, "ambient_rna", result)
}

#' @rdname ScMambaAmbient
#' @export
ScMambaAmbient.default <- function(object, sample = NULL, labels = NULL, seed = 0, verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .check_matrix(.to_matrix(object))
  wanted <- .cell_columns(NULL, list(sample = sample, labels = labels), ncol(matrix))
  result <- .ambient(.named_genes(matrix, verbose = verbose), wanted, seed, FALSE, verbose)
  rownames(result$cells) <- colnames(matrix)
  structure(result$cells, scmamba = result$provenance)
}

.plain_key <- function(name) paste0(tolower(gsub("[^[:alnum:]]", "", name)), "_")

# The shares, the corrected counts if they are wanted, and the tables of samples and types.
.ambient <- function(matrix, wanted, seed, corrected, verbose) {
  options <- list(
    sample_key = wanted$keys$sample, label_key = wanted$keys$labels,
    corrected_layer = if (corrected) "corrected", seed = .check_integer(seed, "seed", 0L)
  )
  adata <- .to_adata(matrix, wanted$cells)
  result <- .call_python(.python()$scmamba$ambient_rna, c(list(adata), options, verbose = verbose), verbose)
  counts <- if (corrected) {
    slots <- .translate_errors(.python()$slots$layer_slots(result, "corrected"))
    .from_slots(slots, dim(matrix), dimnames(matrix))
  }
  tables <- .translate_errors(reticulate::import("scmamba.preprocessing", convert = FALSE))$ambient_table
  made <- list(samples = .plain_frame(tables(result)), types = .plain_frame(tables(result, by_type = TRUE)))
  list(
    cells = .result_columns(result, wanted$cells), corrected = counts,
    provenance = c(.provenance(result, "ambient_rna"), made)
  )
}
