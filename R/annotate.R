#' Annotate cell types
#'
#' Without further arguments, annotates cells of the human brain from the expected counts of brain cell types that
#' come with the package (`reference = "human-brain"`), to three levels. Where fewer than 100 genes of this reference
#' were measured, marker genes of the eight major types are used instead (`markers = "panel"`); a message names the
#' source. Other sources: a labeled reference, a model with labels, or marker genes of your own. Cells below the
#' probability threshold are `Unassigned`.
#'
#' @inheritParams ScMambaImpute
#' @param reference A labeled Seurat object or SingleCellExperiment with counts; labeled cells that are kept on a server
#'   ([ScMambaKeepReference()]); or `"human-brain"`, the expected
#'   counts of 13 brain cell types (33 profiles with their subtypes) that come with the package
#'   ([ScMambaReferences()]): no labels are needed.
#'   `NULL`: `"human-brain"`, unless `model` or `markers` is given.
#' @param reference.assay,reference.layer Assay and layer of the reference to read; by default its
#'   default assay (or, if that has no counts, as in an integrated reference, the assay `RNA`) and `"counts"`.
#' @param reference.gene.column Column of the reference's table of genes with the symbols or Ensembl IDs, if its
#'   row names are something else.
#' @param labels Column of its metadata with the types, or several from coarse to
#'   fine; known for cells kept on a server.
#' @param region With the reference `"human-brain"`: `"cortex"`, `"hippocampus"` or `"midbrain"`, to omit the types of
#'   other regions. `NULL`: all.
#' @param markers A named list of types and genes, instead of a reference; or `"panel"`, the marker genes of the
#'   eight major types of the human brain.
#' @param clusters Column of the metadata with clusters (`"ident"`: the identities), or one value for each
#'   cell: every cluster also gets a type, the one of more than half of its cells.
#' @param donor Column of the reference with the donors: whole donors are held out to calibrate the
#'   probabilities. Ignored if the reference has no such column.
#' @param network Fine-tune the network on the reference as well (minutes on a
#'   processor)? A number sets the steps; `TRUE` takes 400. Without it the result was as good wherever
#'   that was measured.
#' @param error.rate Target error rate: cells are `Unassigned` below the probability above which at most
#'   this share of the calls on held-out donors was wrong.
#' @param across.studies If the reference differs from your cells as one study differs from another, also make cells
#'   `Unassigned` whose cluster does not fit its type or whose type is uncertain? More than half of the calls may be
#'   lost. `FALSE`: a message gives the numbers of these cells, and the calls are kept.
#' @param cache Keep the fitted reference for the next query?
#'
#' @return The same object with the metadata columns `scmamba_type` (a factor),
#'   `scmamba_probability` and `scmamba_alternatives` (the three most probable types); with `"human-brain"`
#'   also `scmamba_class` and `scmamba_subtype`; with `clusters`
#'   also `scmamba_group_type` and `scmamba_group_share` (the share of the cluster's cells that have
#'   this type); and the record of how they were made: `Misc(object, "scmamba")$annotate`. For a
#'   matrix: a data frame of these columns.
#' @seealso [ScMambaReferences()], [ScMambaPlotConfidence()], [ScMambaDoublets()]
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
                                   gene.column = NULL, reference.assay = NULL, reference.layer = "counts",
                                   reference.gene.column = NULL,
                                   clusters = NULL, network = FALSE, error.rate = 0.05, cache = TRUE, device = NULL,
                                   seed = 0, force = FALSE, overwrite = FALSE, backend = NULL, verbose = TRUE,
                                   region = NULL, across.studies = FALSE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer, force)
  .check_columns(names(object[[]]), .seurat_record(object), "annotate", .type_columns(reference, model, markers),
    .beside_columns(clusters), overwrite)
  if (!is.null(clusters)) {
    by_ident <- identical(clusters, "ident")
    groups <- if (by_ident) SeuratObject::Idents(object) else .per_cell(object[[]], clusters, "clusters")
  }
  labels <- labels %||% .kept_labels(reference)
  options <- .annotate_options(labels, model, markers, donor, network, error.rate, cache, device, seed, force, region,
    across.studies)
  matrix <- .get_layer(object, assay, layer, verbose, disk = TRUE)
  known <- .labelled_cells(reference, labels, donor, verbose, reference.assay, reference.layer, reference.gene.column)
  named <- .named_genes(matrix, object[[assay]][[]], gene.column, verbose)
  result <- .backend(backend)$annotate(named, known, options, verbose)
  if (!is.null(clusters)) result$cells <- .with_clusters(result$cells, groups)
  rownames(result$cells) <- colnames(object)
  object <- .annotate_seurat(object, "annotate", c(list(matrix = matrix), result))
  # The command log keeps arguments, and these would be whole data sets.
  reference <- if (is.null(reference) || is.character(reference)) reference else class(reference)[[1]]
  model <- .describe_model(model)
  backend <- .describe_backend(backend)
  SeuratObject::LogSeuratCommand(object)
}

#' @rdname ScMambaAnnotate
#' @export
ScMambaAnnotate.SummarizedExperiment <- function(object, ...) {
  ScMambaAnnotate(.as_sce(object), ...)
}

#' @rdname ScMambaAnnotate
#' @export
ScMambaAnnotate.SingleCellExperiment <- function(object, reference = NULL, labels = NULL, model = NULL,
                                                 markers = NULL, donor = "donor", assay = "counts",
                                                 gene.column = NULL, reference.assay = NULL,
                                                 reference.layer = "counts", reference.gene.column = NULL,
                                                 clusters = NULL, network = FALSE,
                                                 error.rate = 0.05, cache = TRUE,
                                                 device = NULL, seed = 0, force = FALSE,
                                                 overwrite = FALSE, backend = NULL, verbose = TRUE,
                                                 region = NULL, across.studies = FALSE, ...) {
  .no_extra(...)
  frame <- .sce_frame(object)
  .check_columns(names(frame), .sce_record(object), "annotate", .type_columns(reference, model, markers),
    .beside_columns(clusters), overwrite)
  groups <- if (!is.null(clusters)) .per_cell(frame, clusters, "clusters")
  labels <- labels %||% .kept_labels(reference)
  options <- .annotate_options(labels, model, markers, donor, network, error.rate, cache, device, seed, force, region,
    across.studies)
  known <- .labelled_cells(reference, labels, donor, verbose, reference.assay, reference.layer, reference.gene.column)
  named <- .named_genes(.get_sce(object, assay, disk = TRUE), .sce_genes(object), gene.column, verbose)
  result <- .backend(backend)$annotate(named, known, options, verbose)
  if (!is.null(clusters)) result$cells <- .with_clusters(result$cells, groups)
  .annotate_sce(object, "annotate", result)
}

#' @rdname ScMambaAnnotate
#' @export
ScMambaAnnotate.default <- function(object, reference = NULL, labels = NULL, model = NULL, markers = NULL,
                                    donor = "donor", reference.assay = NULL, reference.layer = "counts",
                                    reference.gene.column = NULL,
                                    clusters = NULL, network = FALSE, error.rate = 0.05, cache = TRUE,
                                    device = NULL, seed = 0, force = FALSE, backend = NULL, verbose = TRUE,
                                    region = NULL, across.studies = FALSE, ...) {
  .no_extra(...)
  labels <- labels %||% .kept_labels(reference)
  options <- .annotate_options(labels, model, markers, donor, network, error.rate, cache, device, seed, force, region,
    across.studies)
  known <- .labelled_cells(reference, labels, donor, verbose, reference.assay, reference.layer, reference.gene.column)
  matrix <- .check_matrix(.to_matrix(object, disk = TRUE))
  groups <- if (!is.null(clusters)) .per_cell(NULL, clusters, "clusters", ncol(matrix))
  result <- .backend(backend)$annotate(.named_genes(matrix, verbose = verbose), known, options, verbose)
  if (!is.null(clusters)) result$cells <- .with_clusters(result$cells, groups)
  rownames(result$cells) <- colnames(matrix)
  structure(result$cells, scmamba = result$provenance)
}

.kept_labels <- function(reference) if (inherits(reference, "scmamba_kept_reference")) reference$labels

.beside_columns <- function(clusters) {
  levels <- c("scmamba", "scmamba_class", "scmamba_subtype")
  c(paste0(levels, "_probability"), paste0(levels, "_alternatives"),
    if (!is.null(clusters)) c("scmamba_group_type", "scmamba_group_share"))
}

# One type for each cluster: the most frequent one, if more than half of the cluster's cells were given it. Cells
# that are Unassigned count among all.
.with_clusters <- function(cells, groups) {
  groups <- as.character(groups)
  counts <- table(groups, as.character(cells$scmamba_type))
  share <- counts / rowSums(counts)
  named <- share[, colnames(share) != "Unassigned", drop = FALSE]
  type <- rep("Unassigned", nrow(share))
  top <- rep(0, nrow(share))
  if (ncol(named) > 0) {
    best <- max.col(named, ties.method = "first")
    top <- named[cbind(seq_along(best), best)]
    type[top > 0.5] <- colnames(named)[best][top > 0.5]
  }
  at <- match(groups, rownames(share))
  cells$scmamba_group_type <- .as_levels(type[at])
  cells$scmamba_group_share <- as.numeric(top)[at]
  cells
}

.annotate_options <- function(labels, model, markers, donor, network, error.rate, cache, device, seed, force, region,
                              across.studies) {
  if (!is.null(region)) region <- match.arg(region, c("cortex", "hippocampus", "midbrain"))
  list(
    label_key = if (is.null(labels)) NULL else as.list(as.character(labels)),
    model = .check_model(model),
    markers = .marker_panel(markers),
    donor_key = donor,
    finetune_steps = if (!is.logical(network)) {
      .check_integer(network, "network", 1L)
    } else if (.check_flag(network, "network")) {
      400L
    } else {
      0L
    },
    error_rate = .check_share(error.rate, "error.rate"),
    across_studies = .check_flag(across.studies, "across.studies"),
    cache = .check_flag(cache, "cache"),
    device = .check_device(device),
    seed = .check_integer(seed, "seed", 0L),
    force = .check_flag(force, "force"),
    region = region
  )
}

# NULL, the name of the panel of the package, or genes by type.
.marker_panel <- function(markers) {
  if (is.null(markers) || identical(markers, "panel")) {
    return(markers)
  }
  if (!is.list(markers) || is.null(names(markers))) {
    .abort("{.arg markers} must be a named list: {.code list(Astrocyte = c(\"AQP4\", \"GFAP\"), ...)}, or
      {.val panel}.")
  }
  lapply(markers, function(genes) as.list(as.character(genes)))
}

# Columns that are always guarded: with the reference of the brain, the default, there are three levels.
.type_columns <- function(reference, model, markers) {
  by_default <- is.null(reference) && is.null(model) && is.null(markers)
  if (is.character(reference) || by_default) c("scmamba_class", "scmamba_type", "scmamba_subtype") else "scmamba_type"
}

# The counts of a reference and the columns that matter, the name of a reference of the package, or NULL.
.labelled_cells <- function(reference, labels, donor, verbose, assay = NULL, layer = "counts", gene.column = NULL) {
  if (is.null(reference)) {
    return(NULL)
  }
  if (is.character(reference)) {
    if (!identical(reference, "human-brain")) {
      .abort("There is no reference {.val {reference}} in the package; there is {.val human-brain}. Give labeled cells
        as a Seurat object or a SingleCellExperiment.")
    }
    return(reference)
  }
  if (inherits(reference, "scmamba_kept_reference")) {
    return(reference)
  }
  if (is.null(labels)) {
    .abort("{.arg reference} needs {.arg labels}: the column of its metadata with the cell types, for example
      {.code labels = \"cell_type\"}.")
  }
  if (inherits(reference, "Seurat")) {
    frame <- reference[[]]
    read <- .reference_values(reference, assay, layer, verbose)
    matrix <- read$matrix
    genes <- reference[[read$assay]][[]]
  } else if (inherits(reference, "SummarizedExperiment")) {
    reference <- .as_sce(reference)
    frame <- .sce_frame(reference)
    matrix <- .get_sce(reference, assay %||% layer)
    genes <- .sce_genes(reference)
  } else {
    .abort("{.arg reference} must be a Seurat object, a SingleCellExperiment or {.val human-brain}, not
      {.cls {class(reference)[[1]]}}.")
  }
  wanted <- c(labels, intersect(donor, names(frame)))
  cells <- .columns_for(frame, unique(wanted), "labels")
  cells[] <- lapply(cells, as.character)
  list(matrix = .named_genes(matrix, genes, gene.column, verbose), cells = cells)
}

# An integrated reference has an assay without counts as its default: then the one with the counts is read.
.reference_values <- function(reference, assay, layer, verbose) {
  chosen <- .source_assay(reference, assay, verbose)
  without <- is.null(assay) && !layer %in% .layer_names(reference, chosen)
  if (without && "RNA" %in% SeuratObject::Assays(reference)) {
    if (verbose) {
      cli::cli_inform(c(i = "The default assay {.val {chosen}} of the reference has no {.val {layer}}; reading
        {.val RNA}."))
    }
    chosen <- "RNA"
  }
  .refuse_imputed(reference, chosen, layer)
  matrix <- tryCatch(.get_layer(reference, chosen, layer, verbose), scmamba_error = function(e) {
    .abort(c("The reference cannot be read.", x = .verbatim(conditionMessage(e)),
      i = "{.arg reference.assay} and {.arg reference.layer} choose what is read of it."))
  })
  list(matrix = matrix, assay = chosen)
}

# Layers that hold something, split ones by their common name.
.layer_names <- function(object, assay) {
  filled <- .filled_layers(object, assay)
  unique(c(filled, sub("[.].*$", "", filled)))
}
