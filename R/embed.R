#' Embed cells with scMamba
#'
#' Gives every cell the vector the model uses for it, as a reduction that
#' `RunUMAP()`, `FindNeighbors()` and `DimPlot()` take at once.
#'
#' @inheritParams ScMambaImpute
#' @param reduction.name Name of the new reduction. A Seurat object keeps assays and
#'   reductions under one set of names, and `scmamba` is the imputed assay's.
#' @param reduction.key Prefix of its dimensions: `scmamba_1`, `scmamba_2`, ...
#' @param overwrite Replace a reduction that has this name already?
#'
#' @return The same object with more in it.
#'   * Seurat: the reduction `scmamba_embedding`, the record of how it was made in
#'     `Misc(object, "scmamba")`, and an entry in `Command(object)`.
#'   * SingleCellExperiment: `reducedDim(object, "scmamba")`, and the record in
#'     `metadata(object)$scmamba`.
#'   * matrix: a cells x dimensions matrix, with the record in its attribute
#'     `"scmamba"`.
#' @seealso [ScMambaImpute()], [scmamba_config()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaEmbed(SeuratObject::pbmc_small, force = TRUE)
#'   seu[["scmamba_embedding"]]
#' }
#' @export
ScMambaEmbed <- function(object, ...) {
  UseMethod("ScMambaEmbed")
}

#' @rdname ScMambaEmbed
#' @export
ScMambaEmbed.Seurat <- function(object, assay = NULL, layer = "counts", slot = NULL,
                                reduction.name = "scmamba_embedding", reduction.key = "scmamba_",
                                model = NULL, batch.size = NULL, device = NULL, force = FALSE,
                                overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .check_assay(object, assay)
  layer <- .layer_argument(layer, slot)
  .check_name(reduction.name, "reduction.name")
  .check_free_seurat(object, reduction.name, SeuratObject::Reductions(object), "a reduction",
    "reduction.name", overwrite)
  options <- .embed_options(model, batch.size, device, force)
  matrix <- .get_layer(object, assay, layer, verbose)
  result <- .backend(backend)$embed(matrix, options, verbose)
  colnames(result$embedding) <- paste0(reduction.key, seq_len(ncol(result$embedding)))
  if (reduction.name %in% SeuratObject::Reductions(object)) object[[reduction.name]] <- NULL
  object[[reduction.name]] <- SeuratObject::CreateDimReducObject(
    embeddings = result$embedding, key = reduction.key, assay = assay
  )
  object <- .annotate_seurat(object, "embed", result)
  model <- .describe_model(model)
  backend <- .describe_backend(backend)
  if (verbose) .say_embedded(result$embedding, reduction.name)
  SeuratObject::LogSeuratCommand(object)
}

#' @rdname ScMambaEmbed
#' @export
ScMambaEmbed.SingleCellExperiment <- function(object, assay = "counts",
                                              reduction.name = "scmamba", model = NULL,
                                              batch.size = NULL, device = NULL, force = FALSE,
                                              overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  .check_name(reduction.name, "reduction.name")
  .check_free(reduction.name, SingleCellExperiment::reducedDimNames(object),
    "a reduction", "reduction.name", overwrite)
  options <- .embed_options(model, batch.size, device, force)
  matrix <- .get_sce(object, assay)
  result <- .backend(backend)$embed(matrix, options, verbose)
  embedding <- result$embedding
  dimnames(embedding) <- list(colnames(object), paste0("scmamba_", seq_len(ncol(embedding))))
  SingleCellExperiment::reducedDim(object, reduction.name) <- embedding
  if (verbose) .say_embedded(embedding, reduction.name)
  .annotate_sce(object, "embed", result)
}

#' @rdname ScMambaEmbed
#' @export
ScMambaEmbed.dgCMatrix <- function(object, model = NULL, batch.size = NULL, device = NULL,
                                   force = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  options <- .embed_options(model, batch.size, device, force)
  result <- .backend(backend)$embed(.check_matrix(object), options, verbose)
  embedding <- result$embedding
  colnames(embedding) <- paste0("scmamba_", seq_len(ncol(embedding)))
  if (verbose) .say_embedded(embedding)
  structure(embedding, scmamba = result$provenance)
}

#' @rdname ScMambaEmbed
#' @export
ScMambaEmbed.default <- function(object, ...) {
  ScMambaEmbed.dgCMatrix(.to_matrix(object), ...)
}

.embed_options <- function(model, batch.size, device, force) {
  list(
    model = .check_model(model),
    batch_size = if (is.null(batch.size)) NULL else .check_integer(batch.size, "batch.size", 1L),
    device = .check_device(device),
    force = .check_flag(force, "force")
  )
}

.say_embedded <- function(embedding, name = NULL) {
  where <- if (is.null(name)) "" else ": the reduction {.val {name}}"
  cli::cli_inform(c(v = paste0(
    "Embedded {nrow(embedding)} cells in {ncol(embedding)} dimensions", where
  )))
}
