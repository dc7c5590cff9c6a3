#' The available models
#'
#' @param backend `"reticulate"`: the models of this installation. A server
#'   ([ScMambaServer()], or `"server"`): its models.
#' @return A data frame: `name`, `genes`, `width` and `layers` of the network, `folder`, and the first lines of
#'   the model card in `about`; of a server, `name`, `default` and `about`. Every verb takes a name, or
#'   the folder of a model of your own ([ScMambaFineTune()]), as `model`.
#' @examples
#' if (scmamba_available()) ScMambaModels()
#' @export
ScMambaModels <- function(backend = NULL) {
  if (!is.null(backend) && !identical(backend, "reticulate")) {
    return(.server_models(if (identical(backend, "server")) .local_server() else backend))
  }
  scmamba <- .python()$scmamba
  folders <- reticulate::py_to_r(.translate_errors(scmamba$list_models()))
  rows <- lapply(names(folders), function(name) {
    model <- .translate_errors(scmamba$load_model(name, device = "cpu"))
    config <- model$config
    data.frame(
      name = name, genes = reticulate::py_to_r(config$n_genes), width = reticulate::py_to_r(config$d_model),
      layers = reticulate::py_to_r(config$n_layer), folder = as.character(folders[[name]]),
      about = .first_lines(reticulate::py_to_r(model$card)), stringsAsFactors = FALSE
    )
  })
  do.call(rbind, rows)
}

.first_lines <- function(card) {
  card <- strsplit(card, "\n", fixed = TRUE)[[1]]
  paste(utils::head(card[nzchar(card) & !startsWith(card, "#")], 2), collapse = " ")
}

.server_models <- function(server) {
  if (!inherits(server, "scmamba_server")) {
    .abort("{.arg backend} must be \"reticulate\", \"server\" or a server from {.code ScMambaServer()}.")
  }
  offered <- .server_json(server, "GET", "/v2/models")
  names <- as.character(unlist(if (is.data.frame(offered$models)) offered$models$name else offered$models))
  about <- vapply(names, function(name) {
    card <- .server_json(server, "GET", paste0("/v2/models/", curl::curl_escape(name)))$card
    if (is.null(card)) "" else .first_lines(card)
  }, "")
  data.frame(name = names, default = names == offered$default, about = unname(about), stringsAsFactors = FALSE)
}

#' Fine-tune a model on your own cells
#'
#' Trains a copy of a model on the counts of an object and writes it to a folder that every verb takes as
#' `model`: for imputation, without labels; or with `labels` as a classifier of your own cell types, with which
#' [ScMambaAnnotate()] names the cells of other objects without their reference.
#' [ScMambaImpute()] fine-tunes for each object by itself; fine-tune your own model if many
#' data sets of one tissue should be processed with the same model.
#'
#' @inheritParams ScMambaImpute
#' @param folder Folder of the new model; must not exist.
#' @param steps Training steps of 16 cells.
#' @param labels Column of the metadata with cell types, or one value for each cell: a classifier of these types is
#'   trained. Cells without a type (`NA`) are omitted. `NULL`: a model for imputation.
#' @param donor Column of the metadata with donors, or one value for each cell; ignored without `labels`, or if there
#'   is no such column. With at least three donors a fifth of them (at least one) is held out, and the classifier's
#'   probabilities are calibrated on these held-out donors; donors without whom a type would be lost are used for
#'   the training.
#' @param name Name of the model.
#'
#' @return The folder, invisibly.
#' @seealso [ScMambaImpute()], [ScMambaAnnotate()], [ScMambaModels()]
#' @examples
#' if (scmamba_available()) {
#'   folder <- file.path(tempdir(), "my-model")
#'   seu <- ScMambaCohort(n.cells = 40, n.donors = 2, n.genes = 200)
#'   ScMambaFineTune(seu, folder, labels = "cell_type", steps = 1, force = TRUE, verbose = FALSE)
#' }
#' @export
ScMambaFineTune <- function(object, ...) {
  UseMethod("ScMambaFineTune")
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.Seurat <- function(object, folder, assay = NULL, layer = "counts", slot = NULL, gene.column = NULL,
                                   model = NULL, labels = NULL, donor = "donor", steps = 1000,
                                   name = basename(folder), seed = 0, force = FALSE, backend = NULL,
                                   verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer, force)
  matrix <- .named_genes(.get_layer(object, assay, layer, verbose), object[[assay]][[]], gene.column, verbose)
  options <- .fine_tune_options(folder, model, steps, name, seed, force)
  .fine_tune(matrix, object[[]], labels, donor, folder, options, backend, verbose)
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.SummarizedExperiment <- function(object, ...) {
  ScMambaFineTune(.as_sce(object), ...)
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.SingleCellExperiment <- function(object, folder, assay = "counts", gene.column = NULL,
                                                 model = NULL, labels = NULL, donor = "donor", steps = 1000,
                                                 name = basename(folder), seed = 0, force = FALSE,
                                                 backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .named_genes(.get_sce(object, assay), .sce_genes(object), gene.column, verbose)
  options <- .fine_tune_options(folder, model, steps, name, seed, force)
  .fine_tune(matrix, .sce_frame(object), labels, donor, folder, options, backend, verbose)
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.default <- function(object, folder, model = NULL, labels = NULL, donor = NULL, steps = 1000,
                                    name = basename(folder), seed = 0, force = FALSE, backend = NULL,
                                    verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .named_genes(.check_matrix(.to_matrix(object)), verbose = verbose)
  options <- .fine_tune_options(folder, model, steps, name, seed, force)
  .fine_tune(matrix, NULL, labels, donor, folder, options, backend, verbose)
}

# Checked before the matrix is read.
.fine_tune_options <- function(folder, model, steps, name, seed, force) {
  folder <- path.expand(.check_name(folder, "folder"))
  if (file.exists(folder)) {
    .abort("{.arg folder}: {.file {folder}} exists already; choose a new one.", class = "scmamba_exists")
  }
  list(
    model = .check_model(model), steps = .check_integer(steps, "steps", 1L), name = .check_name(name, "name"),
    seed = .check_integer(seed, "seed", 0L), force = .check_flag(force, "force")
  )
}

.fine_tune <- function(matrix, frame, labels, donor, folder, options, backend, verbose) {
  folder <- path.expand(folder)
  no_column <- is.character(donor) && length(donor) == 1 && !donor %in% names(frame)
  if (is.null(labels) || no_column) donor <- NULL
  wanted <- .cell_columns(frame, list(labels = labels, donor = donor), ncol(matrix))
  options$label_key <- wanted$keys$labels
  options$donor_key <- wanted$keys$donor
  .backend(backend)$finetune(matrix, wanted$cells, folder, options, verbose)
  if (verbose) cli::cli_inform(c(v = "The model is in {.file {folder}}: pass it as {.arg model}."))
  invisible(folder)
}
