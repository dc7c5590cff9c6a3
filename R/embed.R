#' Embed cells with scMamba
#'
#' Adds the model's embedding of every cell as a reduction for `RunUMAP()`,
#' `FindNeighbors()` and `DimPlot()`.
#'
#' @inheritParams ScMambaImpute
#' @param reduction.name Name of the new reduction. In a Seurat object assays and
#'   reductions cannot share a name, and `scmamba` is the imputed assay.
#' @param reduction.key Prefix of its dimensions: `scmamba_1`, `scmamba_2`, ...; by default one
#'   that is not in use.
#' @param overwrite Replace an existing reduction of this name?
#'
#' @return The same object with the results added.
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
ScMambaEmbed.Seurat <- function(object, assay = NULL, layer = "counts", slot = NULL, gene.column = NULL,
                                reduction.name = "scmamba_embedding", reduction.key = NULL,
                                model = NULL, batch.size = NULL, device = NULL, force = FALSE,
                                overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer, force)
  .check_name(reduction.name, "reduction.name")
  .check_columns(names(object[[]]), .seurat_record(object), c("impute", "embed"), NULL, "scmamba_low_depth", overwrite)
  .check_free_seurat(object, reduction.name, SeuratObject::Reductions(object), "a reduction",
    "reduction.name", overwrite)
  options <- .embed_options(model, batch.size, device, force)
  matrix <- .get_layer(object, assay, layer, verbose, disk = TRUE)
  named <- .named_genes(matrix, object[[assay]][[]], gene.column, verbose)
  result <- .backend(backend)$embed(named, options, verbose)
  reduction.key <- reduction.key %||% .reduction_key(object, reduction.name)
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
ScMambaEmbed.SummarizedExperiment <- function(object, ...) {
  ScMambaEmbed(.as_sce(object), ...)
}

#' @rdname ScMambaEmbed
#' @export
ScMambaEmbed.SingleCellExperiment <- function(object, assay = "counts", gene.column = NULL,
                                              reduction.name = "scmamba", model = NULL,
                                              batch.size = NULL, device = NULL, force = FALSE,
                                              overwrite = FALSE, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  .check_name(reduction.name, "reduction.name")
  .check_free(reduction.name, SingleCellExperiment::reducedDimNames(object),
    "a reduction", "reduction.name", overwrite)
  options <- .embed_options(model, batch.size, device, force)
  .check_columns(names(.sce_frame(object)), .sce_record(object), c("impute", "embed"), NULL, "scmamba_low_depth",
    overwrite)
  named <- .named_genes(.get_sce(object, assay, disk = TRUE), .sce_genes(object), gene.column, verbose)
  result <- .backend(backend)$embed(named, options, verbose)
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
  result <- .backend(backend)$embed(.named_genes(.check_matrix(object), verbose = verbose), options, verbose)
  embedding <- result$embedding
  colnames(embedding) <- paste0("scmamba_", seq_len(ncol(embedding)))
  if (verbose) .say_embedded(embedding)
  structure(embedding, scmamba = result$provenance)
}

#' @rdname ScMambaEmbed
#' @export
ScMambaEmbed.default <- function(object, ...) {
  ScMambaEmbed.dgCMatrix(.to_matrix(object, disk = TRUE), ...)
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
