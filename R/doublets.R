#' Find doublets
#'
#' Scores every droplet against doublets simulated from your own cells, within each
#' sample, and calls as many as are expected from the number of cells.
#'
#' @inheritParams ScMambaImpute
#' @param sample Column of the metadata with the library or donor; doublets form
#'   within a sample. `NULL`: all cells are one sample.
#' @param method `"fast"` (seconds to a minute), `"network"` (the pre-trained network
#'   fine-tuned on simulated doublets, minutes on a processor, and better on brain
#'   nuclei), or `"both"`, their mean: the best choice where minutes do not matter.
#' @param expected.rate Share of doublets; default 0.8 percent per 1,000 cells of a
#'   sample, corrected by the data.
#' @param identification.rate Call exactly this share of every sample instead.
#' @param labels Column with cell types, used only to name the likely parents.
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
                                   slot = NULL, seed = 0, overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .check_assay(object, assay)
  .check_free("scmamba_doublet", names(object[[]]), "a metadata column", "overwrite", overwrite)
  options <- .doublet_options(method, model, expected.rate, identification.rate, sample, labels, seed)
  cells <- .columns_for(object[[]], unique(c(sample, labels)), "sample or labels")
  matrix <- .get_layer(object, assay, .layer_argument(layer, slot), verbose)
  result <- .backend(backend)$doublets(matrix, cells, options, verbose)
  rownames(result$cells) <- colnames(object)
  object <- .annotate_seurat(object, "doublets", c(list(matrix = matrix), result))
  model <- .describe_model(model)
  backend <- .describe_backend(backend)
  SeuratObject::LogSeuratCommand(object)
}

#' @rdname ScMambaDoublets
#' @export
ScMambaDoublets.SingleCellExperiment <- function(object, sample = NULL, method = "fast", model = NULL,
                                                 expected.rate = NULL, identification.rate = NULL,
                                                 labels = NULL, assay = "counts", seed = 0,
                                                 overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  frame <- as.data.frame(SummarizedExperiment::colData(object))
  .check_free("scmamba_doublet", names(frame), "a column", "overwrite", overwrite)
  options <- .doublet_options(method, model, expected.rate, identification.rate, sample, labels, seed)
  cells <- .columns_for(frame, unique(c(sample, labels)), "sample or labels")
  .annotate_sce(object, "doublets", .backend(backend)$doublets(.get_sce(object, assay), cells, options, verbose))
}

#' @rdname ScMambaDoublets
#' @export
ScMambaDoublets.default <- function(object, method = "fast", model = NULL, expected.rate = NULL,
                                    identification.rate = NULL, seed = 0, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  options <- .doublet_options(method, model, expected.rate, identification.rate, NULL, NULL, seed)
  matrix <- .check_matrix(.to_matrix(object))
  result <- .backend(backend)$doublets(matrix, NULL, options, verbose)
  rownames(result$cells) <- colnames(matrix)
  structure(result$cells, scmamba = result$provenance)
}

.doublet_options <- function(method, model, expected.rate, identification.rate, sample, labels, seed) {
  if (!is.character(method) || !isTRUE(method %in% c("fast", "network", "both"))) {
    .abort("{.arg method} must be \"fast\", \"network\" or \"both\", not {.val {method}}.")
  }
  optional <- function(value, name) if (is.null(value)) NULL else .check_number(value, name)
  list(
    method = method, model = .check_model(model), sample_key = sample, label_key = labels,
    expected_rate = optional(expected.rate, "expected.rate"),
    identification_rate = optional(identification.rate, "identification.rate"),
    seed = .check_integer(seed, "seed", 0L)
  )
}
