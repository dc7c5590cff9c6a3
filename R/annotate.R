#' Name the cell types
#'
#' From a labelled reference, from a model with labels, or from marker genes alone
#' (by default the eight major types of the human brain). Cells that are not certain
#' enough are called `Unassigned`.
#'
#' @inheritParams ScMambaImpute
#' @param reference A labelled Seurat object or SingleCellExperiment with counts.
#' @param labels Column of its metadata with the types, or several from coarse to
#'   fine.
#' @param markers A named list of types and genes, instead of a reference.
#' @param donor Column of the reference with donors, on whom the probabilities are
#'   calibrated; ignored where there is none.
#' @param network Fine-tune the network on the reference as well (minutes on a
#'   processor)? A number sets the steps, `FALSE` is much quicker.
#' @param error.rate Cells are `Unassigned` below the probability above which at most
#'   this share was wrong on donors left out.
#' @param cache Keep what was learnt from a reference for the next query?
#'
#' @return The same object with the metadata columns `scmamba_type`,
#'   `scmamba_probability` and `scmamba_alternatives` (the three likeliest types), and
#'   the record of how they were made: `Misc(object, "scmamba")$annotate`. For a
#'   matrix: a data frame of these columns.
#' @seealso [ScMambaPlotConfidence()], [ScMambaDoublets()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaCohort(n.cells = 80, n.donors = 2, n.genes = 3000)
#'   seu <- ScMambaAnnotate(seu, verbose = FALSE)
#'   table(seu$scmamba_type, seu$cell_type)
#' }
#' @export
ScMambaAnnotate <- function(object, ...) {
  UseMethod("ScMambaAnnotate")
}

#' @rdname ScMambaAnnotate
#' @export
ScMambaAnnotate.Seurat <- function(object, reference = NULL, labels = NULL, model = NULL, markers = NULL,
                                   donor = "donor", assay = NULL, layer = "counts", slot = NULL,
                                   network = TRUE, error.rate = 0.05, cache = TRUE, device = NULL,
                                   seed = 0, force = FALSE, overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .check_assay(object, assay)
  .check_free("scmamba_type", names(object[[]]), "a metadata column", "overwrite", overwrite)
  options <- .annotate_options(labels, model, markers, donor, network, error.rate, cache, device, seed, force)
  matrix <- .get_layer(object, assay, .layer_argument(layer, slot), verbose)
  known <- .labelled_cells(reference, labels, donor, verbose)
  result <- .backend(backend)$annotate(matrix, known, options, verbose)
  rownames(result$cells) <- colnames(object)
  object <- .annotate_seurat(object, "annotate", c(list(matrix = matrix), result))
  # The command log keeps arguments, and these would be whole data sets.
  reference <- if (is.null(reference)) NULL else class(reference)[[1]]
  model <- .describe_model(model)
  backend <- .describe_backend(backend)
  SeuratObject::LogSeuratCommand(object)
}

#' @rdname ScMambaAnnotate
#' @export
ScMambaAnnotate.SingleCellExperiment <- function(object, reference = NULL, labels = NULL, model = NULL,
                                                 markers = NULL, donor = "donor", assay = "counts",
                                                 network = TRUE, error.rate = 0.05, cache = TRUE,
                                                 device = NULL, seed = 0, force = FALSE,
                                                 overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  .check_free("scmamba_type", names(SummarizedExperiment::colData(object)), "a column", "overwrite", overwrite)
  options <- .annotate_options(labels, model, markers, donor, network, error.rate, cache, device, seed, force)
  known <- .labelled_cells(reference, labels, donor, verbose)
  result <- .backend(backend)$annotate(.get_sce(object, assay), known, options, verbose)
  .annotate_sce(object, "annotate", result)
}

#' @rdname ScMambaAnnotate
#' @export
ScMambaAnnotate.default <- function(object, reference = NULL, labels = NULL, model = NULL, markers = NULL,
                                    donor = "donor", network = TRUE, error.rate = 0.05, cache = TRUE,
                                    device = NULL, seed = 0, force = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  options <- .annotate_options(labels, model, markers, donor, network, error.rate, cache, device, seed, force)
  known <- .labelled_cells(reference, labels, donor, verbose)
  matrix <- .check_matrix(.to_matrix(object))
  result <- .backend(backend)$annotate(matrix, known, options, verbose)
  rownames(result$cells) <- colnames(matrix)
  structure(result$cells, scmamba = result$provenance)
}

.annotate_options <- function(labels, model, markers, donor, network, error.rate, cache, device, seed, force) {
  if (!is.null(markers) && (!is.list(markers) || is.null(names(markers)))) {
    .abort("{.arg markers} must be a named list: {.code list(Astrocyte = c(\"AQP4\", \"GFAP\"), ...)}.")
  }
  list(
    label_key = if (is.null(labels)) NULL else as.list(as.character(labels)),
    model = .check_model(model),
    markers = if (is.null(markers)) NULL else lapply(markers, function(genes) as.list(as.character(genes))),
    donor_key = donor,
    finetune_steps = if (!is.logical(network)) {
      .check_integer(network, "network", 1L)
    } else if (.check_flag(network, "network")) {
      400L # the default of Python's annotate()
    } else {
      0L
    },
    error_rate = .check_number(error.rate, "error.rate"),
    cache = .check_flag(cache, "cache"),
    device = .check_device(device),
    seed = .check_integer(seed, "seed", 0L),
    force = .check_flag(force, "force")
  )
}

# The counts of a reference and the columns that matter, or NULL.
.labelled_cells <- function(reference, labels, donor, verbose) {
  if (is.null(reference)) {
    return(NULL)
  }
  if (is.null(labels)) {
    .abort("Which column of the reference holds the types? Name it: {.code labels = \"cell_type\"}.")
  }
  if (inherits(reference, "Seurat")) {
    frame <- reference[[]]
    matrix <- .get_layer(reference, .check_assay(reference, NULL), "counts", verbose)
  } else if (inherits(reference, "SingleCellExperiment")) {
    frame <- as.data.frame(SummarizedExperiment::colData(reference))
    matrix <- .get_sce(reference, "counts")
  } else {
    .abort("{.arg reference} must be a Seurat object or a SingleCellExperiment, not {.cls {class(reference)[[1]]}}.")
  }
  wanted <- c(labels, intersect(donor, names(frame)))
  cells <- .columns_for(frame, unique(wanted), "labels")
  cells[] <- lapply(cells, as.character)
  list(matrix = matrix, cells = cells)
}

#' How certain the cell types are
#'
#' @param object What [ScMambaAnnotate()] gave: a Seurat object, a SingleCellExperiment or a
#'   data frame.
#' @return A ggplot: the probabilities of every type's cells.
#' @examples
#' if (scmamba_available() && requireNamespace("ggplot2", quietly = TRUE)) {
#'   seu <- ScMambaCohort(n.cells = 80, n.donors = 2, n.genes = 3000)
#'   ScMambaPlotConfidence(ScMambaAnnotate(seu, verbose = FALSE))
#' }
#' @export
ScMambaPlotConfidence <- function(object) {
  if (!requireNamespace("ggplot2", quietly = TRUE)) {
    .abort("The figure needs the R package {.pkg ggplot2}: {.code install.packages(\"ggplot2\")}.")
  }
  frame <- if (is.data.frame(object)) {
    object
  } else if (inherits(object, "Seurat")) {
    object[[]]
  } else {
    as.data.frame(SummarizedExperiment::colData(object))
  }
  if (!all(c("scmamba_type", "scmamba_probability") %in% names(frame))) {
    .abort("There are no types in this object; run {.code ScMambaAnnotate()} first.")
  }
  .data <- ggplot2::.data
  ggplot2::ggplot(frame, ggplot2::aes(.data$scmamba_probability, .data$scmamba_type)) +
    ggplot2::geom_boxplot(outlier.size = 0.5) +
    ggplot2::labs(x = "probability of the best type", y = NULL)
}
