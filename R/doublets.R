#' Find doublets
#'
#' Compares every droplet with doublets simulated from your own cells, within each
#' sample, and calls as many as are expected from the number of cells.
#'
#' @inheritParams ScMambaImpute
#' @param sample Column of the metadata with the library or donor, or one value for each cell; doublets form
#'   within a sample. `NULL`: all cells are one sample.
#' @param method `"fast"` (6 seconds for 1,000 cells and about a minute for 5,000 on two
#'   processor cores), `"network"` (the pre-trained network fine-tuned on simulated
#'   doublets; minutes, and more accurate on brain nuclei), or `"both"`, the mean of the two:
#'   on measured data close to the better one.
#' @param expected.rate Share of doublets; default 0.8 percent per 1,000 cells of a
#'   sample, corrected by the data.
#' @param identification.rate Call exactly this share of every sample, in place of the
#'   expected share.
#' @param labels Column with cell types, or one value for each cell, used only to name the likely parents. `NULL`: of
#'   brain cells the types of the reference `human-brain`, of others clusters.
#'
#' @return The same object with the metadata columns `scmamba_doublet_score`,
#'   `scmamba_doublet` (`TRUE`/`FALSE`) and `scmamba_doublet_parents`, and the record
#'   `Misc(object, "scmamba")$doublets`. Nothing is removed. For a matrix: a data frame.
#' @seealso [ScMambaAnnotate()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaCohort(n.cells = 120, n.donors = 2, n.genes = 1500)
#'   seu <- ScMambaDoublets(seu, verbose = FALSE)
#'   table(seu$scmamba_doublet)
#' }
#' @export
ScMambaDoublets <- function(object, ...) {
  UseMethod("ScMambaDoublets")
}

#' @rdname ScMambaDoublets
#' @export
ScMambaDoublets.Seurat <- function(object, sample = NULL, method = "fast", model = NULL, expected.rate = NULL,
                                   identification.rate = NULL, labels = NULL, assay = NULL, layer = "counts",
                                   slot = NULL, gene.column = NULL, seed = 0, overwrite = FALSE, backend = NULL,
                                   verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer)
  .check_columns(names(object[[]]), .seurat_record(object), "doublets", "scmamba_doublet", .doublet_columns, overwrite)
  wanted <- .cell_columns(object[[]], list(sample = sample, labels = labels))
  options <- .doublet_options(method, model, expected.rate, identification.rate, wanted$keys, seed)
  matrix <- .get_layer(object, assay, layer, verbose, disk = TRUE)
  named <- .named_genes(matrix, object[[assay]][[]], gene.column, verbose)
  result <- .backend(backend)$doublets(named, wanted$cells, options, verbose)
  rownames(result$cells) <- colnames(object)
  object <- .annotate_seurat(object, "doublets", c(list(matrix = matrix), result))
  model <- .describe_model(model)
  backend <- .describe_backend(backend)
  SeuratObject::LogSeuratCommand(object)
}

#' @rdname ScMambaDoublets
#' @export
ScMambaDoublets.SummarizedExperiment <- function(object, ...) {
  ScMambaDoublets(.as_sce(object), ...)
}

#' @rdname ScMambaDoublets
#' @export
ScMambaDoublets.SingleCellExperiment <- function(object, sample = NULL, method = "fast", model = NULL,
                                                 expected.rate = NULL, identification.rate = NULL,
                                                 labels = NULL, assay = "counts", gene.column = NULL, seed = 0,
                                                 overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  frame <- .sce_frame(object)
  .check_columns(names(frame), .sce_record(object), "doublets", "scmamba_doublet", .doublet_columns, overwrite)
  wanted <- .cell_columns(frame, list(sample = sample, labels = labels))
  options <- .doublet_options(method, model, expected.rate, identification.rate, wanted$keys, seed)
  matrix <- .named_genes(.get_sce(object, assay, disk = TRUE), .sce_genes(object), gene.column, verbose)
  .annotate_sce(object, "doublets", .backend(backend)$doublets(matrix, wanted$cells, options, verbose))
}

#' @rdname ScMambaDoublets
#' @export
ScMambaDoublets.default <- function(object, sample = NULL, method = "fast", model = NULL, expected.rate = NULL,
                                    identification.rate = NULL, labels = NULL, seed = 0, backend = NULL,
                                    verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .check_matrix(.to_matrix(object, disk = TRUE))
  wanted <- .cell_columns(NULL, list(sample = sample, labels = labels), ncol(matrix))
  options <- .doublet_options(method, model, expected.rate, identification.rate, wanted$keys, seed)
  result <- .backend(backend)$doublets(.named_genes(matrix, verbose = verbose), wanted$cells, options, verbose)
  rownames(result$cells) <- colnames(matrix)
  structure(result$cells, scmamba = result$provenance)
}

.doublet_columns <- c("scmamba_doublet_score", "scmamba_doublet_parents")

.doublet_options <- function(method, model, expected.rate, identification.rate, keys, seed) {
  if (!is.character(method) || !isTRUE(method %in% c("fast", "network", "both"))) {
    .abort("{.arg method} must be \"fast\", \"network\" or \"both\", not {.val {method}}.")
  }
  optional <- function(value, name) if (is.null(value)) NULL else .check_share(value, name)
  list(
    method = method, model = .check_model(model), sample_key = keys$sample, label_key = keys$labels,
    expected_rate = optional(expected.rate, "expected.rate"),
    identification_rate = optional(identification.rate, "identification.rate"),
    seed = .check_integer(seed, "seed", 0L)
  )
}
