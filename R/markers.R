#' Differential expression with MAST's test, at the speed of sums
#'
#' The table of Seurat's `FindMarkers(test.use = "MAST")`, computed in closed form
#' from sums over cells: the same genes, the same numbers, hundreds of times
#' faster. Cells of one donor are not independent, and this test treats them as if
#' they were: compare patients with controls by [ScMambaRobustness()] or a
#' pseudobulk test beside it, and do not read significance into imputed values
#' before you have seen their false-positive rate.
#'
#' @param object A Seurat object, a SingleCellExperiment, or a genes x cells matrix.
#' @param ident.1,ident.2 The groups to compare: identities of the object, or values
#'   of `group.by`. `ident.2 = NULL` means all other cells. For a matrix: names or
#'   numbers of its columns.
#' @param group.by Column of the metadata that holds the groups; the identities of
#'   the object if not given.
#' @param subset.ident Only cells of these identities are compared (with `group.by`).
#' @param assay,layer,slot What to test: the default assay's layer `data`, log
#'   values as `NormalizeData()` makes them, or `"scmamba"` for imputed values. Raw
#'   counts are normalised first. `slot` is Seurat 4's word.
#' @param features Test only these genes (the correction still counts all genes).
#' @param logfc.threshold,min.pct,min.diff.pct,only.pos As in `FindMarkers()`; the
#'   defaults are those of the Seurat version chosen by `seurat`.
#' @param latent.vars Columns of the metadata added to MAST's model.
#' @param test.use `"MAST"` or `"wilcox"`.
#' @param seurat Whose fold change, filters and order: `"5"` or `"4"`; default the
#'   version installed.
#' @param backend As in [ScMambaImpute()].
#' @param verbose Messages and progress?
#' @param ... Not used; anything here is an error.
#'
#' @return A data frame with genes as row names, like `FindMarkers()` gives it:
#'   `p_val`, `avg_log2FC`, `pct.1`, `pct.2`, `p_val_adj` (Bonferroni over all genes
#'   of the object), and `p_val_bh` (Benjamini-Hochberg over the genes tested).
#' @seealso [ScMambaRobustness()]
#' @examples
#' if (scmamba_available()) {
#'   head(ScMambaFindMarkers(SeuratObject::pbmc_small, ident.1 = "0", ident.2 = "1"))
#' }
#' @export
ScMambaFindMarkers <- function(object, ...) {
  UseMethod("ScMambaFindMarkers")
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindMarkers.Seurat <- function(object, ident.1, ident.2 = NULL, group.by = NULL,
                                      subset.ident = NULL, assay = NULL, layer = "data", slot = NULL,
                                      features = NULL, logfc.threshold = NULL, min.pct = NULL,
                                      min.diff.pct = -Inf, only.pos = FALSE, latent.vars = NULL,
                                      test.use = "MAST", seurat = NULL, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  if (!is.null(subset.ident)) {
    .check_known(subset.ident, levels(SeuratObject::Idents(object)), "identities", "subset.ident")
    object <- object[, SeuratObject::Idents(object) %in% subset.ident]
  }
  assay <- .check_assay(object, assay)
  layer <- .layer_argument(layer, slot)
  groups <- if (is.null(group.by)) {
    as.character(SeuratObject::Idents(object))
  } else {
    as.character(.metadata_column(object[[]], group.by, "group.by"))
  }
  seurat <- seurat %||% if (.seurat5()) "5" else "4"
  options <- .marker_options(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, seurat, features)
  normalised <- paste0("NormalizeData.", assay) %in% SeuratObject::Command(object)
  # Seurat 4.2 and 4.3 take the fold change of the logs where nobody recorded their making.
  if (!.seurat5() && seurat == "4" && layer == "data" && !normalised) options$fold_change <- "log"
  matrix <- .get_layer(object, assay, layer, verbose)
  cells <- .columns_for(object[[]], latent.vars, "latent.vars")
  .find_markers(matrix, groups, ident.1, ident.2, cells, options, backend, verbose)
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindMarkers.SingleCellExperiment <- function(object, ident.1, ident.2 = NULL, group.by,
                                                    assay = "logcounts", features = NULL,
                                                    logfc.threshold = NULL, min.pct = NULL,
                                                    min.diff.pct = -Inf, only.pos = FALSE,
                                                    latent.vars = NULL, test.use = "MAST",
                                                    seurat = "5", backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  frame <- as.data.frame(SummarizedExperiment::colData(object))
  groups <- as.character(.metadata_column(frame, group.by, "group.by"))
  options <- .marker_options(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, seurat, features)
  .find_markers(.get_sce(object, assay), groups, ident.1, ident.2,
    .columns_for(frame, latent.vars, "latent.vars"), options, backend, verbose)
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindMarkers.default <- function(object, ident.1, ident.2 = NULL, features = NULL,
                                       logfc.threshold = NULL, min.pct = NULL, min.diff.pct = -Inf,
                                       only.pos = FALSE, test.use = "MAST", seurat = "5",
                                       backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .check_matrix(.to_matrix(object))
  first <- .column_numbers(matrix, ident.1, "ident.1")
  second <- if (is.null(ident.2)) {
    setdiff(seq_len(ncol(matrix)), first)
  } else {
    .column_numbers(matrix, ident.2, "ident.2")
  }
  if (length(both <- intersect(first, second)) > 0) {
    .abort("{length(both)} cells stand in both groups.")
  }
  groups <- rep("neither", ncol(matrix))
  groups[first] <- "first"
  groups[second] <- "second"
  options <- .marker_options(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, seurat, features)
  .find_markers(matrix, groups, "first", "second", NULL, options, backend, verbose)
}

.find_markers <- function(matrix, groups, ident.1, ident.2, cells, options, backend, verbose) {
  known <- unique(groups)
  .check_known(ident.1, known, "groups", "ident.1")
  if (!is.null(ident.2)) .check_known(ident.2, known, "groups", "ident.2")
  frame <- data.frame(scmamba_group = groups, stringsAsFactors = FALSE)
  if (!is.null(cells)) {
    frame <- cbind(frame, cells)
    options$covariates <- as.list(names(cells))
  }
  options <- c(list(
    groupby = "scmamba_group", group1 = as.list(as.character(ident.1)),
    group2 = if (is.null(ident.2)) NULL else as.list(as.character(ident.2))
  ), options)
  table <- .backend(backend)$markers(matrix, frame, options, verbose)
  # Seurat's numbers, R's row names.
  as.data.frame(table)
}

.marker_options <- function(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, seurat, features) {
  seurat <- as.character(seurat)
  if (!identical(seurat, "5") && !identical(seurat, "4")) .abort("{.arg seurat} must be \"5\" or \"4\".")
  if (!is.character(test.use) || !isTRUE(test.use %in% c("MAST", "wilcox"))) {
    .abort("{.arg test.use} must be \"MAST\" or \"wilcox\", not {.val {test.use}}.")
  }
  optional <- function(value, name) if (is.null(value)) NULL else .check_number(value, name)
  list(
    logfc_threshold = optional(logfc.threshold, "logfc.threshold"),
    min_pct = optional(min.pct, "min.pct"),
    min_diff_pct = as.double(min.diff.pct),
    only_pos = .check_flag(only.pos, "only.pos"),
    test = test.use, seurat = seurat,
    genes = if (is.null(features)) NULL else as.list(as.character(features))
  )
}

.check_known <- function(values, known, what, argument) {
  missing <- setdiff(as.character(values), as.character(known))
  if (length(values) == 0 || length(missing) > 0) {
    known <- utils::head(sort(unique(as.character(known))), 12)
    .abort("{.arg {argument}}: there {?is/are} no {what} {.val {missing}}; there are {.val {known}}.")
  }
}

.metadata_column <- function(frame, name, argument) {
  .check_name(name, argument)
  if (!name %in% names(frame)) {
    columns <- names(frame)
    .abort("{.arg {argument}}: the metadata have no column {.val {name}}; they have {.val {columns}}.")
  }
  frame[[name]]
}

.columns_for <- function(frame, names, argument) {
  if (is.null(names)) {
    return(NULL)
  }
  for (name in names) .metadata_column(frame, name, argument)
  columns <- frame[, names, drop = FALSE]
  rownames(columns) <- NULL
  columns
}

.column_numbers <- function(matrix, which, argument) {
  if (is.logical(which)) which <- base::which(which)
  if (is.character(which)) which <- match(which, colnames(matrix))
  if (length(which) == 0 || anyNA(which) || any(which < 1 | which > ncol(matrix))) {
    .abort("{.arg {argument}} must name columns of the matrix: names, numbers or TRUE/FALSE.")
  }
  as.integer(which)
}
