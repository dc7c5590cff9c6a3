#' How reproducible are the DEGs of a comparison?
#'
#' Repeats a comparison on random subsamples of the cells and on combinations of
#' donors, with the measured and with the imputed values, and reports how many of the
#' genes are found again; then repeats it on comparisons without a difference, which gives
#' the false-positive rate. More overlap does not mean more true genes: read both.
#'
#' @param object A Seurat object with counts and, for the comparison, the assay
#'   [ScMambaImpute()] adds; or a SingleCellExperiment.
#' @param group.by Column of the metadata with the two groups, such as disease.
#' @param ident.1,ident.2 Its two values, disease first. May be omitted if the
#'   column has two and one is called control, normal, ctrl or the like.
#' @param donor,cell.type Columns with the donors and the cell types. Without
#'   `donor` there are no donor runs; without `cell.type` all cells are one type.
#' @param assay,imputed.assay Assay with the counts, and assay with the imputed
#'   values (`NULL`: counts only).
#' @param ratios Shares of each group's cells that are drawn.
#' @param permutations Draws per share.
#' @param donors Donors per group of the combinations, such as `"3v3"`; `NULL` for
#'   none.
#' @param null.permutations Runs on comparisons without a difference; with 0 no
#'   false-positive rate is measured.
#' @param max.combinations Largest number of donor combinations.
#' @param min.degs Overlaps are missing if the full data have fewer DEGs.
#' @param donor.test Test between donors that is made beside every test over cells: `"moderated_t"` of the donors'
#'   means, or, of their counts, `"likelihood_ratio"` (the default of [ScMambaCompare()]), `"quasi_likelihood"` or
#'   `"wald"` (about a second for each draw; columns `pseudobulk_` of `runs` are then missing for imputed values, which
#'   are no counts).
#' @param seed The same seed gives the same result.
#' @param workers Processes on this machine; by default as many as `BPPARAM` or `future::plan()` has workers, otherwise
#'   one. The result does not depend on it. The other verbs compute in threads of one process; their number is that of
#'   the environment variable `OMP_NUM_THREADS`, set before R starts, and by default one per core.
#' @param BPPARAM Parameters of BiocParallel, such as `MulticoreParam(4)`, in place of `workers`: only the number of
#'   workers is used.
#' @param resume Folder for finished parts; an interrupted call with the same folder continues.
#' @param backend As in [ScMambaImpute()]; a server chooses `workers` itself and
#'   resumes by itself, so `resume` cannot be given.
#' @param verbose Show messages and progress?
#' @param ... Not used; anything here is an error.
#'
#' @return An object of class `scmamba_robustness`: a list with the data frames
#'   `summary`, `tests` (paired comparisons of the layers), `false_positives`, `runs`
#'   (every draw and its seed) and `full`, and the sentences `notes` and `warnings`.
#' @seealso [ScMambaPlotRobustness()], [ScMambaFindMarkers()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaCohort(n.cells = 200, n.donors = 4, n.genes = 300)
#'   ScMambaRobustness(seu, group.by = "disease", donor = "donor", imputed.assay = NULL,
#'     ratios = 0.5, permutations = 3, donors = NULL, null.permutations = 2, workers = 1)
#' }
#' @export
ScMambaRobustness <- function(object, ...) {
  UseMethod("ScMambaRobustness")
}

#' @rdname ScMambaRobustness
#' @export
ScMambaRobustness.Seurat <- function(object, group.by, ident.1 = NULL, ident.2 = NULL, donor = NULL,
                                     cell.type = NULL, assay = NULL, imputed.assay = "scmamba",
                                     ratios = c(0.1, 0.2, 0.35, 0.5, 0.75, 0.9), permutations = 100,
                                     donors = "3v3", null.permutations = 20, max.combinations = 200, min.degs = 10,
                                     donor.test = "moderated_t", seed = 0, workers = NULL, BPPARAM = NULL,
                                     resume = NULL, backend = NULL,
                                     verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  counts <- .get_layer(object, assay, "counts", verbose)
  imputed <- if (!is.null(imputed.assay)) {
    if (!imputed.assay %in% SeuratObject::Assays(object)) {
      .abort(c("There is no assay {.val {imputed.assay}}.",
        i = "Run {.code ScMambaImpute()} first, or set {.code imputed.assay = NULL} to use the counts alone."))
    }
    values <- .get_layer(object, imputed.assay, "data", verbose)
    .check_still_imputed(object, imputed.assay, "data", values)
    values
  }
  options <- .robustness_options(ident.1, ident.2, ratios, permutations, donors, null.permutations,
    max.combinations, min.degs, donor.test, seed, .workers(workers, BPPARAM), resume)
  .robustness(counts, imputed, object[[]], group.by, donor, cell.type, options, backend, verbose)
}

#' @rdname ScMambaRobustness
#' @export
ScMambaRobustness.SummarizedExperiment <- function(object, ...) {
  ScMambaRobustness(.as_sce(object), ...)
}

#' @rdname ScMambaRobustness
#' @export
ScMambaRobustness.SingleCellExperiment <- function(object, group.by, ident.1 = NULL, ident.2 = NULL,
                                                   donor = NULL, cell.type = NULL, assay = "counts",
                                                   imputed.assay = "scmamba",
                                                   ratios = c(0.1, 0.2, 0.35, 0.5, 0.75, 0.9),
                                                   permutations = 100, donors = "3v3",
                                                   null.permutations = 20, max.combinations = 200,
                                                   min.degs = 10, donor.test = "moderated_t",
                                                   seed = 0, workers = NULL, BPPARAM = NULL, resume = NULL,
                                                   backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  imputed <- if (is.null(imputed.assay)) NULL else .get_sce(object, imputed.assay)
  options <- .robustness_options(ident.1, ident.2, ratios, permutations, donors, null.permutations,
    max.combinations, min.degs, donor.test, seed, .workers(workers, BPPARAM), resume)
  frame <- .sce_frame(object)
  .robustness(.get_sce(object, assay), imputed, frame, group.by, donor, cell.type, options, backend, verbose)
}

.robustness <- function(counts, imputed, frame, group.by, donor, cell.type, options, backend, verbose) {
  if (!is.null(imputed) && !identical(dim(imputed), dim(counts))) {
    .abort("The imputed assay has {nrow(imputed)} genes x {ncol(imputed)} cells and the counts
      {nrow(counts)} x {ncol(counts)}; impute the same object again.")
  }
  columns <- c(condition_key = group.by, donor_key = donor, label_key = cell.type)
  cells <- .columns_for(frame, unname(columns), "group.by, donor or cell.type")
  cells[] <- lapply(cells, as.character)
  options <- c(as.list(columns), options,
    list(layers = if (is.null(imputed)) list("counts") else list("counts", "scmamba")))
  .backend(backend)$robustness(counts, imputed, cells, options, verbose)
}

.robustness_options <- function(ident.1, ident.2, ratios, permutations, donors, null.permutations,
                                max.combinations, min.degs, donor.test, seed, workers, resume) {
  list(
    group1 = if (is.null(ident.1)) NULL else as.character(ident.1),
    group2 = if (is.null(ident.2)) NULL else as.character(ident.2),
    ratios = as.list(as.double(ratios)),
    permutations = .check_integer(permutations, "permutations", 1L),
    donors = donors,
    null_permutations = .check_integer(null.permutations, "null.permutations", 0L),
    max_combinations = .check_integer(max.combinations, "max.combinations", 1L),
    min_degs = .check_integer(min.degs, "min.degs", 1L),
    donor_test = match.arg(donor.test, c("moderated_t", "likelihood_ratio", "quasi_likelihood", "wald")),
    seed = .check_integer(seed, "seed", 0L),
    n_jobs = workers,
    resume = if (is.null(resume)) NULL else path.expand(.check_name(resume, "resume"))
  )
}

# The number of processes: as given, or that of the user's own set-up of BiocParallel or future. NULL: one.
.workers <- function(workers, BPPARAM) {
  if (!is.null(BPPARAM)) {
    if (!is.null(workers)) .abort("{.arg workers} and {.arg BPPARAM} both give the number of processes; omit one.")
    if (!inherits(BPPARAM, "BiocParallelParam")) {
      .abort("{.arg BPPARAM} must be made by BiocParallel, for example {.code BiocParallel::MulticoreParam(4)}; it is
        a {.cls {class(BPPARAM)[[1]]}}. A number of processes is given as {.arg workers}.")
    }
    return(.check_integer(BiocParallel::bpnworkers(BPPARAM), "the number of workers of BPPARAM", 1L))
  }
  workers <- workers %||% .future_workers()
  if (is.null(workers)) NULL else .check_integer(workers, "workers", 1L)
}

# NULL without a plan: future's own default computes in this process.
.future_workers <- function() {
  if (!isNamespaceLoaded("future") || inherits(future::plan(), "sequential")) {
    return(NULL)
  }
  number <- future::nbrOfWorkers()
  if (is.finite(number)) number
}

#' @method print scmamba_robustness
#' @export
print.scmamba_robustness <- function(x, ...) {
  cli::cli_text("Robustness of DEGs, {nrow(x$runs)} runs")
  for (line in x$warnings) cli::cli_inform(c("!" = .verbatim(line)))
  for (line in x$notes) cli::cli_inform(c(i = .verbatim(line)))
  print(utils::head(x$summary, 20))
  invisible(x)
}
