#' Cell types of the reference that comes with the package
#'
#' Expected counts of human brain cell types, for `ScMambaAnnotate(object, reference = "human-brain")`.
#'
#' @return A data frame with one row per cell type: `reference`, `class`, `type`, `subtype`, `ontology_id` (Cell
#'   Ontology), `region` (empty: all), `cells` (labeled nuclei; 0: published means whose number per type is not
#'   stated), `studies` and `licence`.
#' @seealso [ScMambaAnnotate()]
#' @examples
#' if (scmamba_available()) head(ScMambaReferences())
#' @export
ScMambaReferences <- function() {
  .plain_frame(.translate_errors(.python()$scmamba$references()))
}

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
#' Trains a copy of a model for imputation on the counts of an object, without
#' labels, and writes it to a folder that every verb takes as `model`.
#' [ScMambaImpute()] fine-tunes for each object by itself; fine-tune your own model if many
#' data sets of one tissue should be processed with the same model.
#'
#' @inheritParams ScMambaImpute
#' @param folder Folder of the new model; must not exist.
#' @param steps Training steps of 16 cells.
#' @param name Name of the model.
#'
#' @return The folder, invisibly.
#' @examples
#' if (scmamba_available()) {
#'   folder <- file.path(tempdir(), "my-model")
#'   seu <- ScMambaCohort(n.cells = 60, n.donors = 2, n.genes = 400)
#'   ScMambaFineTune(seu, folder, steps = 2, force = TRUE, verbose = FALSE)
#' }
#' @export
ScMambaFineTune <- function(object, ...) {
  UseMethod("ScMambaFineTune")
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.Seurat <- function(object, folder, assay = NULL, layer = "counts", slot = NULL, gene.column = NULL,
                                   model = NULL, steps = 1000, name = basename(folder), seed = 0,
                                   force = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer, force)
  matrix <- .named_genes(.get_layer(object, assay, layer, verbose), object[[assay]][[]], gene.column, verbose)
  .fine_tune(matrix, folder, model, steps, name, seed, force, backend, verbose)
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.SummarizedExperiment <- function(object, ...) {
  ScMambaFineTune(.as_sce(object), ...)
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.SingleCellExperiment <- function(object, folder, assay = "counts", gene.column = NULL,
                                                 model = NULL, steps = 1000, name = basename(folder),
                                                 seed = 0, force = FALSE,
                                                 backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .named_genes(.get_sce(object, assay), .sce_genes(object), gene.column, verbose)
  .fine_tune(matrix, folder, model, steps, name, seed, force, backend, verbose)
}

#' @rdname ScMambaFineTune
#' @export
ScMambaFineTune.default <- function(object, folder, model = NULL, steps = 1000, name = basename(folder),
                                    seed = 0, force = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .named_genes(.check_matrix(.to_matrix(object)), verbose = verbose)
  .fine_tune(matrix, folder, model, steps, name, seed, force, backend, verbose)
}

.fine_tune <- function(matrix, folder, model, steps, name, seed, force, backend, verbose) {
  .check_name(folder, "folder")
  folder <- path.expand(folder)
  if (file.exists(folder)) {
    .abort("{.arg folder}: {.file {folder}} exists already; choose a new one.", class = "scmamba_exists")
  }
  options <- list(
    model = .check_model(model), steps = .check_integer(steps, "steps", 1L), name = .check_name(name, "name"),
    seed = .check_integer(seed, "seed", 0L), force = .check_flag(force, "force")
  )
  .backend(backend)$finetune(matrix, folder, options, verbose)
  if (verbose) cli::cli_inform(c(v = "The model is in {.file {folder}}: pass it as {.arg model}."))
  invisible(folder)
}
