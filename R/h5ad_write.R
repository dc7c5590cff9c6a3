# Writing h5ad files: the counterpart of R/h5ad.R.

#' @rdname ScMambaReadH5ad
#' @export
ScMambaWriteH5ad <- function(object, ...) {
  UseMethod("ScMambaWriteH5ad")
}

#' @rdname ScMambaReadH5ad
#' @export
ScMambaWriteH5ad.default <- function(object, ...) {
  .abort("{.arg object} must be a Seurat object or a SingleCellExperiment, not {.cls {class(object)[[1]]}}.")
}

#' @rdname ScMambaReadH5ad
#' @export
ScMambaWriteH5ad.Seurat <- function(object, file, assay = NULL, overwrite = FALSE, verbose = TRUE, ...) {
  .no_extra(...)
  file <- .new_file(file, overwrite)
  assay <- .source_assay(object, assay, verbose)
  layer <- function(name) tryCatch(.get_layer(object, assay, name, FALSE), error = function(e) NULL)
  counts <- layer("counts")
  data <- layer("data")
  # Seurat 4 keeps a copy of the counts as data until they are normalized.
  if (!is.null(counts) && identical(data, counts)) data <- NULL
  first <- counts %||% data
  if (is.null(first)) .abort("The assay {.val {assay}} has neither counts nor data.")
  adata <- .to_adata(data %||% counts, object[[]])
  if (!is.null(counts) && !is.null(data)) .set_layer(adata, "counts", counts)
  genes <- object[[assay]][[]]
  variable <- SeuratObject::VariableFeatures(object[[assay]])
  if (length(variable) > 0) {
    genes$highly_variable <- rownames(genes) %in% variable
    genes$highly_variable_rank <- match(rownames(genes), variable) - 1
  }
  .write_gene_table(adata, genes, rownames(first))
  record <- .seurat_record(object)
  .write_results(adata, object, assay, first, record, verbose)
  reductions <- stats::setNames(nm = SeuratObject::Reductions(object))
  coordinates <- lapply(reductions, SeuratObject::Embeddings, object = object)
  names(coordinates) <- sub("^scmamba_embedding$", "scmamba", names(coordinates))
  .write_coordinates(adata, coordinates, ncol(object))
  .write_file(adata, record, file, first, verbose)
}

#' @rdname ScMambaReadH5ad
#' @export
ScMambaWriteH5ad.SummarizedExperiment <- function(object, ...) {
  ScMambaWriteH5ad(.as_sce(object), ...)
}

#' @rdname ScMambaReadH5ad
#' @export
ScMambaWriteH5ad.SingleCellExperiment <- function(object, file, assay = "counts", overwrite = FALSE, verbose = TRUE,
                                                  ...) {
  .no_extra(...)
  file <- .new_file(file, overwrite)
  known <- SummarizedExperiment::assayNames(object)
  if (!assay %in% known) assay <- intersect("logcounts", known)
  if (length(assay) == 0) {
    .abort("This object has neither the assay {.val counts} nor {.val logcounts}; it has {.val {known}}. Name the assay
      with the counts: {.code assay = \"NAME\"}.")
  }
  first <- .get_sce(object, assay)
  if (is.null(colnames(first))) .abort("The cells have no names; set {.code colnames(object)}.")
  main <- c(intersect("logcounts", known), assay)[[1]]
  adata <- .to_adata(.get_sce(object, main), .sce_frame(object))
  for (name in setdiff(known, main)) .set_layer(adata, if (name == assay) "counts" else name, .get_sce(object, name))
  rows <- SummarizedExperiment::rowData(object)
  simple <- vapply(seq_along(rows), function(i) is.atomic(rows[[i]]) && is.null(dim(rows[[i]])), NA)
  genes <- as.data.frame(rows[, simple, drop = FALSE], optional = TRUE)
  rownames(genes) <- rownames(object)
  .write_gene_table(adata, genes, rownames(first))
  coordinates <- as.list(SingleCellExperiment::reducedDims(object, withDimnames = FALSE))
  upper <- names(coordinates) %in% c("PCA", "UMAP", "TSNE")
  names(coordinates)[upper] <- tolower(names(coordinates)[upper])
  .write_coordinates(adata, lapply(coordinates, as.matrix), ncol(object))
  .write_file(adata, .sce_record(object), file, first, verbose)
}

.new_file <- function(file, overwrite) {
  file <- path.expand(.check_name(file, "file"))
  if (file.exists(file) && !isTRUE(overwrite)) {
    .abort(c("{.file {file}} exists already.", i = "Name another file, or replace it with {.code overwrite = TRUE}."),
      class = "scmamba_exists")
  }
  file
}

.write_file <- function(adata, record, file, first, verbose) {
  if (length(record) > 0) reticulate::py_set_item(adata$uns, "scmamba", .to_python(record))
  .translate_errors(.h5ad_files()$write_h5ad(adata, file, verbose = verbose))
  if (verbose) cli::cli_inform(c(v = "Wrote {nrow(first)} genes x {ncol(first)} cells to {.file {file}}."))
  invisible(file)
}

.set_layer <- function(adata, name, values) {
  reticulate::py_set_item(adata$layers, name, .to_adata(values)$X)
}

# The columns of a table of genes.
.write_gene_table <- function(adata, frame, genes) {
  frame <- frame[match(genes, rownames(frame)), , drop = FALSE]
  rownames(frame) <- genes
  frame <- .storable(frame)
  if (ncol(frame) > 0) reticulate::py_set_attr(adata, "var", reticulate::r_to_py(frame))
}

# Columns in forms that a file can hold with missing values.
.storable <- function(frame) {
  simple <- vapply(frame, function(column) is.atomic(column) && is.null(dim(column)), NA)
  frame <- frame[simple]
  frame[] <- lapply(frame, function(column) {
    if (!anyNA(column) && !is.factor(column)) {
      column
    } else if (is.numeric(column)) {
      as.double(column)
    } else {
      factor(column, levels = if (is.factor(column)) levels(column) else unique(column[!is.na(column)]))
    }
  })
  frame
}

# Imputed assays, their standard deviations and corrected counts become layers, with a record for each.
.write_results <- function(adata, object, assay, like, record, verbose) {
  corrected <- record$ambient_rna$corrected.assay
  records <- list()
  for (name in setdiff(SeuratObject::Assays(object), assay)) {
    own <- if (name %in% corrected) list(counts = "corrected") else .imputed_record(object, name)
    values <- .result_values(object, name, own)
    if (is.null(values)) next
    if (identical(dimnames(values), dimnames(like))) {
      .set_layer(adata, name, values)
      if (!name %in% corrected) records[[name]] <- c(own, list(key = unname(SeuratObject::Key(object[[name]]))))
    } else if (verbose) {
      cli::cli_inform(c("!" = "The assay {.val {name}} has {nrow(values)} genes and {.val {assay}} {nrow(like)}: it is
        not written. {.code assay = \"{name}\"} writes it to a file of its own."))
    }
  }
  if (length(records) > 0) reticulate::py_set_item(adata$uns, "scmamba_assays", .to_python(records))
}

# The values of an assay that holds a result with the record `own`; NULL if there are none.
.result_values <- function(object, name, own) {
  if (is.null(own)) {
    return(NULL)
  }
  layer <- if (own$counts %in% c("expected", "corrected")) "counts" else "data"
  tryCatch(.get_layer(object, name, layer, FALSE), error = function(e) NULL)
}

.write_coordinates <- function(adata, coordinates, cells) {
  for (name in names(coordinates)) {
    values <- unname(coordinates[[name]])
    if (nrow(values) == cells) reticulate::py_set_item(adata$obsm, paste0("X_", name), reticulate::np_array(values))
  }
}

# A record as Python's types that a file can hold: tables, dicts and arrays.
.to_python <- function(value) {
  if (is.data.frame(value)) {
    return(reticulate::r_to_py(.storable(value)))
  }
  if (is.list(value) || !is.null(names(value))) {
    value <- Filter(Negate(is.null), as.list(value))
    if (length(value) > 0 && is.null(names(value))) names(value) <- seq_along(value)
    return(do.call(reticulate::dict, c(lapply(value, .to_python), convert = FALSE)))
  }
  if (is.factor(value)) value <- as.character(value)
  if (length(value) == 1) reticulate::r_to_py(value) else reticulate::np_array(as.vector(value))
}
