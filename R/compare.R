#' Compare two conditions in every cell type, between donors
#'
#' Counts are summed over the cells of each donor and cell type, normalized, and compared by a test whose unit is the
#' donor. The result states the numbers of donors and cells, the fold change that this number of donors can find, genes
#' that depend on one donor, and columns that are confounded with the condition. [ScMambaPseudobulk()] is the same for
#' one comparison, as a plain table.
#'
#' @inheritParams ScMambaPseudobulk
#' @param ident.1,ident.2 The condition of interest and what it is compared with. If the column has two values both
#'   may be omitted: the one called control, normal, ctrl or the like is `ident.2`.
#' @param cell.type Column of the metadata with the cell types, or one value for each cell; `NULL`: all cells are one
#'   type.
#' @param interaction Column of the metadata with numbers or two values, constant within a donor (sex, age): tests
#'   whether the difference depends on it. `log2FC` is then the log2 ratio of the fold changes.
#' @param cell.types Only these cell types.
#' @param test.use `"likelihood_ratio"` (negative binomial, averaged over each gene's dispersion), `"quasi_likelihood"`
#'   (as edgeR), `"wald"` (as DESeq2), `"voom"` (as limma), `"moderated_t"`, or `"mixed"` (mixed model of the cells with
#'   donors as random effect).
#' @param alpha False-discovery rate below which a gene is called.
#' @param min.log2fc Test against this log2 fold change instead of 0.
#' @param min.total Genes with a smaller sum over all samples are omitted.
#'
#' @return A list of class `scmamba_comparison`: the data frames `table` (genes of all types) and `summary` (one row per
#'   type), `samples` (a list of data frames), and the sentences `notes` and `warnings`.
#' @seealso [ScMambaPlotCompare()], [ScMambaPseudobulk()], [ScMambaFindMarkers()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaCohort(n.cells = 400, n.donors = 6, n.genes = 300)
#'   # The default test compiles machine code when it is first used, for some seconds.
#'   result <- ScMambaCompare(seu, "disease", donor = "donor", ident.1 = "AD",
#'     ident.2 = "Control", test.use = "voom", verbose = FALSE)
#'   head(result$table)
#' }
#' @export
ScMambaCompare <- function(object, ...) {
  UseMethod("ScMambaCompare")
}

#' @rdname ScMambaCompare
#' @export
ScMambaCompare.Seurat <- function(object, group.by, donor, cell.type = NULL, ident.1 = NULL, ident.2 = NULL,
                                  covariates = NULL, interaction = NULL, cell.types = NULL,
                                  test.use = "likelihood_ratio", assay = NULL,
                                  layer = "counts", slot = NULL, paired = NULL, alpha = 0.05, min.log2fc = 0,
                                  min.cells = 10, min.total = 15, verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer)
  options <- .compare_options(ident.1, ident.2, cell.types, test.use, paired, alpha, min.log2fc, min.cells, min.total)
  matrix <- .get_layer(object, assay, layer, verbose)
  options$interaction <- interaction
  .compare(matrix, object[[]], group.by, donor, cell.type, covariates, options, verbose)
}

#' @rdname ScMambaCompare
#' @export
ScMambaCompare.SummarizedExperiment <- function(object, group.by, donor, cell.type = NULL, ident.1 = NULL,
                                                ident.2 = NULL, covariates = NULL, interaction = NULL,
                                                cell.types = NULL,
                                                test.use = "likelihood_ratio", assay = "counts", paired = NULL,
                                                alpha = 0.05, min.log2fc = 0, min.cells = 10, min.total = 15,
                                                verbose = TRUE, ...) {
  .no_extra(...)
  options <- .compare_options(ident.1, ident.2, cell.types, test.use, paired, alpha, min.log2fc, min.cells, min.total)
  options$interaction <- interaction
  .compare(.get_sce(object, assay), .sce_frame(object), group.by, donor, cell.type, covariates, options, verbose)
}

.compare_options <- function(ident.1, ident.2, cell.types, test.use, paired, alpha, min.log2fc, min.cells, min.total) {
  list(
    group1 = if (is.null(ident.1)) NULL else as.character(ident.1),
    group2 = if (is.null(ident.2)) NULL else as.character(ident.2),
    cell_types = if (is.null(cell.types)) NULL else as.list(as.character(cell.types)),
    test = match.arg(test.use, c("likelihood_ratio", "quasi_likelihood", "wald", "voom", "moderated_t", "mixed")),
    paired = if (is.null(paired)) NULL else .check_flag(paired, "paired"), alpha = .check_share(alpha, "alpha"),
    min_log2fc = .check_number(min.log2fc, "min.log2fc"), min_cells = .check_integer(min.cells, "min.cells", 1L),
    min_total = .check_number(min.total, "min.total")
  )
}

.compare <- function(matrix, frame, group.by, donor, cell.type, covariates, options, verbose) {
  groups <- .metadata_column(frame, group.by, "group.by")
  cells <- data.frame(as.character(groups), as.character(.per_cell(frame, donor, "donor")), stringsAsFactors = FALSE)
  names(cells) <- c(group.by, if (is.character(donor) && length(donor) == 1) donor else "donor")
  options$label_key <- if (!is.null(cell.type)) {
    if (is.character(cell.type) && length(cell.type) == 1) cell.type else "cell_type"
  }
  if (!is.null(cell.type)) cells[[options$label_key]] <- as.character(.per_cell(frame, cell.type, "cell.type"))
  for (name in unique(c(covariates, options$interaction))) cells[[name]] <- .metadata_column(frame, name, "covariates")
  options$covariates <- if (is.null(covariates)) NULL else as.list(covariates)
  arguments <- list(.to_adata(matrix, cells), condition_key = names(cells)[[1]], donor_key = names(cells)[[2]])
  result <- .call_python(.deg()$compare, c(arguments, options, verbose = verbose), verbose)
  lines <- function(tuple) vapply(as.character(unlist(reticulate::py_to_r(tuple))), .r_words, "", USE.NAMES = FALSE)
  setting <- function(name) reticulate::py_to_r(result$settings$get(name))
  structure(list(
    table = .plain_frame(result$table$reset_index(drop = TRUE)),
    summary = .plain_frame(result$summary$reset_index(drop = TRUE)),
    samples = .plain_frames(result$samples),
    notes = lines(result$notes), warnings = lines(result$warnings),
    settings = list(group1 = setting("group1"), group2 = setting("group2"), alpha = setting("alpha"),
      interaction = setting("interaction"))
  ), class = "scmamba_comparison")
}

#' @method print scmamba_comparison
#' @export
print.scmamba_comparison <- function(x, ...) {
  cli::cli_text("Comparison between donors: {nrow(x$summary)} cell type{?s}")
  for (line in x$warnings) cli::cli_inform(c("!" = .verbatim(line)))
  for (line in x$notes) cli::cli_inform(c(i = .verbatim(line)))
  print(utils::head(x$summary, 20))
  invisible(x)
}
