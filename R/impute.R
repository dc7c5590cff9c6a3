#' Impute dropouts with scMamba
#'
#' Imputes the zeros of a single-nucleus RNA-seq data set. Observed values are never
#' changed, and the result is a new assay beside your own. By default zeros of all genes
#' can be imputed, also of genes outside the model's gene list; `method = "masked"` imputes
#' the genes of the model only.
#'
#' The result is log-normalized: `log1p` of 10,000 counts per cell. By default zeros are
#' imputed from the rates of a cell's nearest neighbors in your data, and from the network,
#' where it lowers the deviance of split counts. With `adapt = TRUE` a copy of the network is
#' first fine-tuned for a short time on your data, without labels, if that can help.
#'
#' @section Imputed values and statistics:
#' Imputed values are predictions: good for plots, embeddings and clustering.
#' Tests for differential expression should use the observed counts. Imputed values may be tested
#' only with the donor as the unit, never over cells: in a test over the microglia of two halves of a
#' study's control donors, 65% of the genes had p < 0.05 on imputed values (counts: 21%).
#'
#' @param object A Seurat object (version 4 or 5), a `SingleCellExperiment`, a genes x cells
#'   matrix (best a `dgCMatrix`, or a matrix on disk), or the path of an h5ad file.
#' @param assay Name of the assay to read; by default the default assay
#'   (Seurat) or `"counts"` (SingleCellExperiment). If the default assay is an imputed
#'   one, the assay it was made from is read.
#' @param layer Layer of the assay to read, `"counts"` or log-normalized
#'   `"data"`. The scale of its values is detected. Split
#'   layers (`counts.1`, `counts.2`, ...) are joined for the computation.
#' @param slot Seurat 4's name for `layer`; if given, it is used instead.
#' @param gene.column Column of the assay's table of genes (Seurat: `object[[assay]][[]]`;
#'   SingleCellExperiment: `rowData(object)`) with the symbols or Ensembl IDs, if the row
#'   names are something else.
#' @param assay.name Name of the new assay.
#' @param model `NULL` for the model that comes with scMamba, or the path of a
#'   checkpoint directory.
#' @param adapt Fine-tune a copy of the model on these data first? It is used only
#'   if it predicts masked counts of held-out cells better. A
#'   number sets the steps of training.
#' @param method `"ensemble"`, the default if the model has a rate head (as
#'   `brain-mini` has): the expected rate of every gene, given the cell and its
#'   nearest neighbors. `"masked"`: the paper's masked prediction of log values.
#' @param batch Column of the metadata with the donor or library, or one value for
#'   each cell. With `method = "ensemble"`, nearest neighbors are then balanced
#'   across batches, using only batches that contain the same cell type. This removes
#'   donor effects, which helps clustering and plotting, but also removes real
#'   differences between donors or conditions: do not set it if you compare conditions.
#' @param values `"zeros"`, the default: observed values are kept, and zeros are imputed
#'   where the gene is probably expressed; a cell then sums to more than 10,000, and
#'   shallow cells gain more than deep ones. `"posterior"`: the expected value of every
#'   gene, observed ones included, where every cell sums to 10,000 before the logarithm; a
#'   gene in which nothing was counted is 0 if it is expressed with a probability below 10%.
#'   For pictures of genes. For `method = "ensemble"`.
#' @param sd Also return the standard deviation of every stored value, given the cell and its
#'   neighbors, on the scale of the values (`log1p`, or counts with `to.counts`)? For
#'   `method = "ensemble"`.
#' @param min.probability A zero is imputed only if the gene is expressed in the cell (at half
#'   of its average rate or more) with at least this probability. 0.95 by default, at which
#'   genes of other cell types stay near their observed share; with 0 every zero is imputed
#'   whose expected value is at least `min.value`, up to `max.filled`, and no posterior value is
#'   set to 0. For `method = "ensemble"`, with at least 30 cells.
#' @param max.filled Largest share of a cell's entries (its genes) that is imputed: the zeros that
#'   are most probably expressed; 1 for no limit. What imputed zeros add to each cell is in the
#'   column `scmamba_added` of the metadata. For `method = "ensemble"` with `values = "zeros"`.
#' @param passes For `"masked"`: number of interleaved parts in which the
#'   zeros are predicted.
#' @param min.value Predictions below this value stay zero: 0.2 by default (0 with
#'   `method = "masked"` or `to.counts = TRUE`). With 0 nearly all entries of the
#'   result hold a value.
#' @param to.counts Give expected counts (in the layer `counts` of the new assay)
#'   instead of log-normalized values (in `data`)? Needs raw counts.
#' @param batch.size Cells per batch; `NULL` chooses one from the available
#'   memory.
#' @param device `"cpu"`, `"cuda"` or `"mps"`; `NULL` takes the fastest available.
#' @param seed Seed of everything random; the same seed gives the same result.
#'   R's own random numbers are not touched.
#' @param force Continue if few genes match the model's gene list?
#' @param overwrite Replace an existing assay of this name?
#' @param backend `"reticulate"` (in this process), `"server"` (a separate process on
#'   this machine), or a server from [ScMambaServer()]. Default: the option
#'   `scmamba.backend`, or `"reticulate"`.
#' @param verbose Show messages and progress? Inside of `progressr::with_progress()`, or after
#'   `progressr::handlers(global = TRUE)`, progress is shown by your handlers of progressr.
#' @param file For values that stay on disk: the h5ad file (`"imputed.h5ad"`) that they are written to, and that the
#'   new assay refers to. Layers on disk (HDF5Array, DelayedArray, BPCells) of more than 200 million entries
#'   (`options(scmamba.disk = )`) and results of more than 2^31 values use `"scmamba_imputed.h5ad"` without it, in the
#'   folder of the layer's file or the working directory. Keep the file with the object; `SeuratObject::SaveSeuratRds()`
#'   and `saveRDS()` do not copy it. Needs an `Assay5` of Seurat 5, a `SingleCellExperiment` or a matrix, and the
#'   package HDF5Array.
#' @param ... Not used; a misspelled argument is an error.
#'
#' @return The same object with the results added.
#'   * Seurat: the assay `scmamba` with the imputed values in the layer `data` (key
#'     `imputed_`: `FeaturePlot(object, "imputed_APOE")`) and the observed counts, unchanged, in
#'     the layer `counts`, so that `AggregateExpression()` and other functions that need
#'     counts find the observed ones. The record of how it was made is in
#'     `Misc(object, "scmamba")`, and an entry in `Command(object)`.
#'     `DefaultAssay()` is not changed. Do not run `NormalizeData()` on this assay: the
#'     imputed values are normalized already, and it would replace them.
#'     With `sd = TRUE` there is a second assay, `scmamba_sd` (key `imputedsd_`).
#'   * SingleCellExperiment: the assay `scmamba` (with `sd = TRUE` also `scmamba_sd`), and the
#'     record in `metadata(object)$scmamba`.
#'   * matrix or h5ad file: the imputed `dgCMatrix` (a `DelayedMatrix` if it is on disk), with the
#'     record in its attribute `"scmamba"`, and the standard deviations in the attribute `"sd"`.
#' @seealso [ScMambaEmbed()], [scmamba_config()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- SeuratObject::pbmc_small
#'   # 230 genes are far fewer than the model has, hence `force`; no
#'   # adaptation, to be quick.
#'   seu <- ScMambaImpute(seu, adapt = FALSE, force = TRUE)
#'   seu[["scmamba"]]
#' }
#' @export
ScMambaImpute <- function(object, ...) {
  UseMethod("ScMambaImpute")
}

#' @rdname ScMambaImpute
#' @export
ScMambaImpute.Seurat <- function(object, assay = NULL, layer = "counts", slot = NULL,
                                 gene.column = NULL, assay.name = "scmamba", model = NULL, method = NULL,
                                 batch = NULL, values = "zeros", sd = FALSE,
                                 min.probability = 0.95, max.filled = 0.25, adapt = TRUE, passes = 10,
                                 min.value = NULL, to.counts = FALSE, batch.size = NULL,
                                 device = NULL, seed = 0,
                                 force = FALSE, overwrite = FALSE, backend = NULL, verbose = TRUE, file = NULL, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer, force)
  .check_name(assay.name, "assay.name")
  .check_columns(names(object[[]]), .seurat_record(object), c("impute", "embed"), NULL, .impute_columns, overwrite)
  .check_free_seurat(object, assay.name, SeuratObject::Assays(object), "an assay",
    "assay.name", overwrite)
  sd.name <- .sd_name(assay.name)
  if (isTRUE(sd)) .check_free_seurat(object, sd.name, SeuratObject::Assays(object), "an assay", "assay.name", overwrite)
  .check_not_itself(assay.name, assay, "assay.name")
  options <- .impute_options(
    model, method, values, sd, min.probability, max.filled, adapt, passes, min.value, to.counts, batch.size,
    device, seed, force
  )
  wanted <- .cell_columns(object[[]], list(batch = batch))
  options$batch_key <- wanted$keys$batch
  matrix <- .get_layer(object, assay, layer, verbose, disk = TRUE)
  file <- .result_file(file, matrix, .seurat5() && inherits(object[[assay]], "StdAssay"), overwrite, backend)
  named <- .named_genes(matrix, object[[assay]][[]], gene.column, verbose)
  result <- .backend(backend)$impute(named, wanted$cells, options, verbose, file)
  dimnames(result$matrix) <- dimnames(matrix)
  if (!is.null(result$sd)) dimnames(result$sd) <- dimnames(matrix)
  observed <- if (!to.counts) .observed_counts(object, assay, layer, matrix)
  new <- .make_assay(result$matrix, like = object[[assay]], observed, expected = to.counts)
  SeuratObject::Misc(new, slot = "scmamba") <- list(source = assay, layer = layer,
    counts = if (to.counts) "expected" else if (is.null(observed)) "none" else "observed")
  object <- .add_assay(object, assay.name, new)
  object <- .add_sd_assay(object, sd.name, result$sd, assay, layer)
  if (!to.counts) object <- .note_normalised(object, assay.name)
  result$provenance$assay.name <- assay.name
  object <- .annotate_seurat(object, "impute", result)
  model <- .describe_model(model)
  backend <- .describe_backend(backend)
  if (verbose) .say_imputed(matrix, assay.name)
  SeuratObject::LogSeuratCommand(object)
}

#' @rdname ScMambaImpute
#' @export
ScMambaImpute.SummarizedExperiment <- function(object, ...) {
  ScMambaImpute(.as_sce(object), ...)
}

#' @rdname ScMambaImpute
#' @export
ScMambaImpute.SingleCellExperiment <- function(object, assay = "counts", gene.column = NULL,
                                               assay.name = "scmamba",
                                               model = NULL, method = NULL, batch = NULL, values = "zeros",
                                               sd = FALSE, min.probability = 0.95, max.filled = 0.25,
                                               adapt = TRUE, passes = 10,
                                               min.value = NULL, to.counts = FALSE, batch.size = NULL,
                                               device = NULL, seed = 0,
                                               force = FALSE, overwrite = FALSE,
                                               backend = NULL, verbose = TRUE, file = NULL, ...) {
  .no_extra(...)
  .check_name(assay.name, "assay.name")
  .check_free(assay.name, SummarizedExperiment::assayNames(object), "an assay",
    "assay.name", overwrite)
  sd.name <- .sd_name(assay.name)
  if (isTRUE(sd)) {
    .check_free(sd.name, SummarizedExperiment::assayNames(object), "an assay", "assay.name", overwrite)
  }
  .check_not_itself(assay.name, assay, "assay.name")
  options <- .impute_options(
    model, method, values, sd, min.probability, max.filled, adapt, passes, min.value, to.counts, batch.size,
    device, seed, force
  )
  frame <- .sce_frame(object)
  .check_columns(names(frame), .sce_record(object), c("impute", "embed"), NULL, .impute_columns, overwrite)
  wanted <- .cell_columns(frame, list(batch = batch))
  options$batch_key <- wanted$keys$batch
  matrix <- .get_sce(object, assay, disk = TRUE)
  file <- .result_file(file, matrix, TRUE, overwrite, backend)
  named <- .named_genes(matrix, .sce_genes(object), gene.column, verbose)
  result <- .backend(backend)$impute(named, wanted$cells, options, verbose, file)
  SummarizedExperiment::assay(object, assay.name, withDimnames = FALSE) <-
    .unnamed_as(result$matrix, object)
  old <- isTRUE(overwrite) && sd.name %in% SummarizedExperiment::assayNames(object)
  if (!is.null(result$sd) || old) {
    SummarizedExperiment::assay(object, sd.name, withDimnames = FALSE) <-
      if (!is.null(result$sd)) .unnamed_as(result$sd, object)
  }
  if (verbose) .say_imputed(matrix, assay.name)
  result$provenance$assay.name <- assay.name
  .annotate_sce(object, "impute", result)
}

#' @rdname ScMambaImpute
#' @export
ScMambaImpute.dgCMatrix <- function(object, model = NULL, method = NULL, batch = NULL, values = "zeros",
                                    sd = FALSE, min.probability = 0.95, max.filled = 0.25, adapt = TRUE, passes = 10,
                                    min.value = NULL, to.counts = FALSE, batch.size = NULL,
                                    device = NULL, seed = 0,
                                    force = FALSE, overwrite = FALSE, backend = NULL, verbose = TRUE,
                                    file = NULL, ...) {
  .no_extra(...)
  options <- .impute_options(
    model, method, values, sd, min.probability, max.filled, adapt, passes, min.value, to.counts, batch.size,
    device, seed, force
  )
  matrix <- .check_matrix(object)
  wanted <- .cell_columns(NULL, list(batch = batch), ncol(matrix))
  options$batch_key <- wanted$keys$batch
  file <- .result_file(file, matrix, TRUE, overwrite, backend)
  result <- .backend(backend)$impute(.named_genes(matrix, verbose = verbose), wanted$cells, options, verbose, file)
  dimnames(result$matrix) <- dimnames(matrix)
  if (!is.null(result$sd)) dimnames(result$sd) <- dimnames(matrix)
  if (verbose) .say_imputed(matrix)
  structure(result$matrix, scmamba = result$provenance, sd = result$sd)
}

#' @rdname ScMambaImpute
#' @export
ScMambaImpute.default <- function(object, ...) {
  ScMambaImpute.dgCMatrix(.to_matrix(object, disk = TRUE), ...)
}

.impute_columns <- c("scmamba_low_depth", "scmamba_added")

.impute_options <- function(model, method, values, sd, min.probability, max.filled, adapt, passes, min.value, to.counts,
                            batch.size, device, seed, force) {
  list(
    model = .check_model(model),
    method = .check_method(method),
    values = match.arg(values, c("zeros", "posterior")),
    sd = .check_flag(sd, "sd"),
    min_probability = .check_share(min.probability, "min.probability"),
    max_filled = .check_share(max.filled, "max.filled"),
    adapt_steps = .check_adapt(adapt),
    passes = .check_integer(passes, "passes", lowest = 1L),
    min_value = if (is.null(min.value)) NULL else .check_number(min.value, "min.value"),
    batch_size = if (is.null(batch.size)) NULL else .check_integer(batch.size, "batch.size", 1L),
    to_counts = .check_flag(to.counts, "to.counts"),
    device = .check_device(device),
    seed = .check_integer(seed, "seed", lowest = 0L),
    force = .check_flag(force, "force")
  )
}

# "rates" and "published" are the names of these methods before version 0.2.0.
.check_method <- function(method) {
  if (is.null(method)) {
    return(NULL)
  }
  method <- match.arg(method, c("ensemble", "masked", "rates", "published"))
  switch(method, rates = "ensemble", published = "masked", method)
}

.say_imputed <- function(matrix, name = NULL) {
  where <- if (is.null(name)) "" else ": the assay {.val {name}}"
  cli::cli_inform(c(v = paste0("Imputed {nrow(matrix)} genes x {ncol(matrix)} cells", where)))
}

# The assay with the standard deviations of the values of another one.
.sd_name <- function(assay.name) paste0(assay.name, "_sd")

# Add the assay with standard deviations, or remove that of an earlier result, to which it belonged.
.add_sd_assay <- function(object, name, sd, source, layer) {
  if (is.null(sd)) {
    old <- name %in% SeuratObject::Assays(object) && isTRUE(.imputed_record(object, name)$sd)
    if (old && name == SeuratObject::DefaultAssay(object)) SeuratObject::DefaultAssay(object) <- source
    if (old) object[[name]] <- NULL
    return(object)
  }
  new <- .make_assay(sd, like = object[[source]])
  SeuratObject::Misc(new, slot = "scmamba") <- list(source = source, layer = layer, counts = "none", sd = TRUE)
  .add_assay(object, name, new, key = "imputedsd_")
}
