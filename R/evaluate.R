#' Evaluate results where the truth is known
#'
#' Compares cell types or doublets with known ones, measures how well masked counts are predicted, or compares the
#' clusters of imputed values and counts with known types and donors.
#'
#' @param object A Seurat object or a SingleCellExperiment.
#' @param task
#'   * `"annotation"`: F1 (macro, micro, weighted), coverage and accuracy of called types, per type, their confusion,
#'     and accuracy against coverage.
#'   * `"doublets"`: precision, recall, F1, AUROC and AUPRC of doublet scores.
#'   * `"imputation"`: every counted value is masked once and predicted by the model and by simple predictors. To
#'     measure a model, give cells of donors it was not trained on.
#'   * `"clusters"`: counts and imputed values are clustered in the same way and compared with types (and donors).
#' @param truth Column of the metadata with the known types, or for `"doublets"` one that is `TRUE` (or `"doublet"`)
#'   for droplets with two cells. Cells without a truth (`NA`) are omitted.
#' @param called Columns with the results: types (default `"scmamba_type"`), or scores of doublets (default
#'   `"scmamba_doublet_score"`).
#' @param confidence Column with the probabilities of the first calls; default `"scmamba_probability"` for
#'   `"scmamba_type"`.
#' @param donor Column with donors, for `"clusters"`.
#' @param assay,layer Assay and layer with the counts, for `"imputation"` and `"clusters"`; by default the default assay
#'   (SingleCellExperiment: `"counts"`).
#' @param gene.column Column of the assay's table of genes with the symbols or Ensembl IDs, for `"imputation"`.
#' @param imputed.assay Assays with imputed values, for `"clusters"`.
#' @param model Names or folders of models, for `"imputation"`; default the model that comes with scMamba.
#' @param predictors Simple predictors beside the model, such as `"gene_rate"` or `"neighbor_rate"`; by default all.
#' @param min.total Cells with fewer counts are not scored, for `"imputation"`.
#' @param max.cells Draw at most this many cells, for `"imputation"`.
#' @param seed The same seed gives the same result.
#' @param verbose Show messages and progress?
#' @param ... Not used; anything here is an error.
#'
#' @return A list of class `scmamba_evaluation`: the data frame `summary` (one row for each set of calls, score,
#'   predictor or assay), `tables` (data frames: `per_type`, `confusion` and `coverage`; `identification_rates`; or
#'   `resolutions`) and the sentences `notes`, which explain the columns.
#' @seealso [ScMambaAnnotate()], [ScMambaDoublets()], [ScMambaImpute()], [ScMambaPlotConfidence()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaCohort(n.cells = 80, n.donors = 2, n.genes = 3000)
#'   seu <- ScMambaAnnotate(seu, verbose = FALSE)
#'   ScMambaEvaluate(seu, "annotation", truth = "cell_type")$summary
#' }
#' @export
ScMambaEvaluate <- function(object, ...) {
  UseMethod("ScMambaEvaluate")
}

#' @rdname ScMambaEvaluate
#' @export
ScMambaEvaluate.Seurat <- function(object, task, truth = NULL, called = NULL, confidence = NULL, donor = NULL,
                                   assay = NULL, layer = "counts", gene.column = NULL, imputed.assay = "scmamba",
                                   model = NULL, predictors = NULL, min.total = 2000, max.cells = NULL, seed = 0,
                                   verbose = TRUE, ...) {
  .no_extra(...)
  read <- list(
    frame = function() object[[]],
    counts = function() {
      name <- .source_assay(object, assay, verbose)
      .named_genes(.get_layer(object, name, layer, verbose), object[[name]][[]], gene.column, verbose)
    },
    imputed = function() {
      assays <- lapply(imputed.assay, function(name) {
        name <- .check_assay(object, name)
        .get_layer(object, name, "data", verbose)
      })
      stats::setNames(assays, imputed.assay)
    }
  )
  .evaluate(read, task, truth, called, confidence, donor, model, predictors, min.total, max.cells, seed, verbose)
}

#' @rdname ScMambaEvaluate
#' @export
ScMambaEvaluate.SummarizedExperiment <- function(object, task, truth = NULL, called = NULL, confidence = NULL,
                                                 donor = NULL, assay = "counts", gene.column = NULL,
                                                 imputed.assay = "scmamba", model = NULL, predictors = NULL,
                                                 min.total = 2000, max.cells = NULL, seed = 0, verbose = TRUE, ...) {
  .no_extra(...)
  read <- list(
    frame = function() .sce_frame(object),
    counts = function() .named_genes(.get_sce(object, assay), .sce_genes(object), gene.column, verbose),
    imputed = function() {
      stats::setNames(lapply(imputed.assay, function(name) .get_sce(object, name)), imputed.assay)
    }
  )
  .evaluate(read, task, truth, called, confidence, donor, model, predictors, min.total, max.cells, seed, verbose)
}

.evaluate <- function(read, task, truth, called, confidence, donor, model, predictors, min.total, max.cells, seed,
                      verbose) {
  task <- match.arg(task, c("annotation", "doublets", "imputation", "clusters"))
  if (task != "imputation" && is.null(truth)) {
    .abort("{.arg truth} names the column of the metadata with what is known, for example
      {.code truth = \"cell_type\"}.")
  }
  seed <- .check_integer(seed, "seed", 0L)
  report <- switch(task,
    imputation = .evaluate_imputation(read, model, predictors, min.total, max.cells, seed, verbose),
    clusters = .evaluate_clusters(read, truth, donor, seed, verbose),
    .evaluate_columns(read$frame(), task, truth, called, confidence, verbose)
  )
  .evaluation_of(.evaluation()$frames(report))
}

.several <- function(names) if (is.null(names)) NULL else as.list(as.character(names))

.evaluate_imputation <- function(read, model, predictors, min.total, max.cells, seed, verbose) {
  options <- list(
    model = if (is.null(model)) NULL else lapply(as.character(model), .check_model), predictor = .several(predictors),
    min_total = .check_number(min.total, "min.total"),
    cells = if (is.null(max.cells)) NULL else .check_integer(max.cells, "max.cells", 1L), seed = seed
  )
  adata <- .to_adata(read$counts())
  .call_python(.evaluation()$imputation_of, c(list(adata), options, verbose = verbose), verbose)
}

.evaluate_clusters <- function(read, truth, donor, seed, verbose) {
  adata <- .to_adata(read$counts(), .columns_for(read$frame(), c(truth, donor), "truth or donor"))
  imputed <- read$imputed()
  for (name in names(imputed)) reticulate::py_set_item(adata$layers, name, .to_adata(imputed[[name]])$X)
  .call_python(.evaluation()$clusters_of, list(adata, truth, as.list(names(imputed)), donor, seed = seed), verbose)
}

.evaluate_columns <- function(frame, task, truth, called, confidence, verbose) {
  ours <- if (task == "annotation") "scmamba_type" else "scmamba_doublet_score"
  sure <- if (task == "annotation") confidence %||% intersect("scmamba_probability", names(frame))
  columns <- .columns_for(frame, unique(c(truth, called %||% ours, sure)), "truth or called")
  text <- vapply(columns, is.factor, NA)
  columns[text] <- lapply(columns[text], as.character)
  arguments <- list(reticulate::r_to_py(columns), truth, .several(called))
  if (task == "doublets") {
    return(.call_python(.evaluation()$doublets_of, arguments, verbose))
  }
  .call_python(.evaluation()$annotation_of, c(arguments, list(confidence)), verbose)
}

.evaluation_of <- function(found) {
  tables <- .plain_frames(found[[0]])
  notes <- vapply(as.character(unlist(reticulate::py_to_r(found[[1]]))), .r_words, "", USE.NAMES = FALSE)
  structure(list(summary = tables$summary, tables = tables[setdiff(names(tables), "summary")], notes = notes),
    class = "scmamba_evaluation")
}

.evaluation <- function() {
  .python()
  .translate_errors(reticulate::import("scmamba.evaluation.of_object", convert = FALSE))
}

#' @method print scmamba_evaluation
#' @export
print.scmamba_evaluation <- function(x, ...) {
  print(x$summary)
  for (line in x$notes) cli::cli_inform(c(i = .verbatim(line)))
  invisible(x)
}
