#' Read and write h5ad files
#'
#' `ScMambaReadH5ad()` reads the file of an AnnData (scanpy's format) as a Seurat object;
#' `ScMambaWriteH5ad()` writes a Seurat object for Python. Counts, normalized values, metadata, the cell coordinates of
#' reductions and the table of genes are kept in both directions; slots without a counterpart in the other format
#' (graphs, images, `uns` of other programs) are not.
#'
#' Of the results of scMamba, the metadata columns, the embedding and the imputed values (assay or layer `scmamba`) are
#' kept in both directions. `ScMambaReadH5ad()` also keeps the records of how results were made
#' (`Misc(object, "scmamba")`), but not a layer `scmamba_sd`; `ScMambaWriteH5ad()` also writes imputed assays of other
#' names and `scmamba_sd` as layers, but not the records and not results that are tables.
#'
#' Counts are the layer `counts` of the file, or else `X` or `raw.X`, whichever holds whole numbers.
#' If `X` holds other values, they become the layer `data`.
#'
#' @param file Path of the file.
#' @param object A Seurat object.
#' @param assay Name of the assay to create, or to write (by default the default assay, or the one that an
#'   imputed one was made from).
#' @param overwrite Replace the file if it exists?
#' @param verbose Show messages?
#'
#' @return `ScMambaReadH5ad()`: a Seurat object. `ScMambaWriteH5ad()`: the path, invisibly.
#' @seealso [ScMambaImpute()]
#' @examples
#' if (scmamba_available()) {
#'   file <- tempfile(fileext = ".h5ad")
#'   ScMambaWriteH5ad(SeuratObject::pbmc_small, file)
#'   ScMambaReadH5ad(file)
#' }
#' @export
ScMambaReadH5ad <- function(file, assay = "RNA", verbose = TRUE) {
  file <- path.expand(.check_name(file, "file"))
  if (!file.exists(file)) .abort("There is no file {.file {file}}.")
  anndata <- .anndata()
  adata <- .translate_errors(anndata$read_h5ad(file))
  found <- .h5ad_layers(adata)
  if (verbose) {
    from <- c(counts = found$counts_from, data = found$data_from)
    cli::cli_inform(c(i = "Read {.val {names(from)}} from {.val {unname(from)}} of {.file {basename(file)}}."))
  }
  metadata <- .plain_frame(adata$obs)
  rownames(metadata) <- colnames(found$first)
  object <- SeuratObject::CreateSeuratObject(found$first, assay = assay, meta.data = metadata)
  object@meta.data <- object@meta.data[c(setdiff(names(object@meta.data), names(metadata)), names(metadata))]
  object <- .with_layers(object, assay, found)
  object <- .with_gene_table(object, assay, .plain_frame(adata$var))
  object <- .with_reductions(object, adata, assay)
  .with_imputed(object, adata, assay, found)
}

.anndata <- function() {
  .python()
  .translate_errors(reticulate::import("anndata", convert = FALSE))
}

.keys <- function(mapping) {
  list <- reticulate::import_builtins(convert = FALSE)$list
  as.character(unlist(reticulate::py_to_r(list(mapping))))
}

.are_counts <- function(matrix) length(matrix@x) > 0 && all(matrix@x >= 0) && all(matrix@x == round(matrix@x))

# What is counts and what is normalized in a file, as matrices of genes x cells.
.h5ad_layers <- function(adata) {
  read <- function(layer = NULL) {
    names <- list(.index(adata$var_names), .index(adata$obs_names))
    slots <- .translate_errors(.python()$slots$layer_slots(adata, layer))
    matrix <- .from_slots(slots, lengths(names), names)
    # Seurat has no underscores in names of genes.
    rownames(matrix) <- make.unique(gsub("_", "-", rownames(matrix)))
    matrix
  }
  x <- read()
  layers <- .keys(adata$layers)
  if ("counts" %in% layers) {
    counts <- read("counts")
    from <- "layers/counts"
  } else {
    counts <- if (.are_counts(x)) x
    from <- "X"
  }
  data <- if (.are_counts(x)) NULL else x
  has_raw <- !is.null(reticulate::py_to_r(adata$raw))
  if (is.null(counts) && has_raw && identical(.index(adata$raw$var_names), .index(adata$var_names))) {
    raw <- adata$raw$to_adata()
    slots <- .translate_errors(.python()$slots$layer_slots(raw))
    raw <- .from_slots(slots, dim(x), dimnames(x))
    if (.are_counts(raw)) {
      counts <- raw
      from <- "raw/X"
    }
  }
  list(counts = counts, data = data, first = counts %||% data, counts_from = if (!is.null(counts)) from,
    data_from = if (!is.null(data)) "X", read = read)
}

.with_layers <- function(object, assay, found) {
  if (is.null(found$data)) {
    return(object)
  }
  # Without counts, the values are data and not counts: CreateSeuratObject() has put them there.
  object[[assay]] <- .make_assay(found$data, like = object[[assay]], observed = found$counts)
  object
}

.with_gene_table <- function(object, assay, table) {
  if (ncol(table) > 0) {
    rownames(table) <- rownames(object[[assay]])
    object[[assay]] <- SeuratObject::AddMetaData(object[[assay]], metadata = table)
  }
  object
}

.with_reductions <- function(object, adata, assay) {
  for (key in .keys(adata$obsm)) {
    values <- reticulate::py_to_r(reticulate::py_get_item(adata$obsm, key))
    if (!is.matrix(values) || !is.numeric(values)) next
    name <- sub("^X_", "", key)
    if (name == "scmamba") name <- "scmamba_embedding"
    prefix <- .reduction_key_for(object, name)
    dimnames(values) <- list(colnames(object), paste0(prefix, seq_len(ncol(values))))
    storage.mode(values) <- "double"
    object[[name]] <- SeuratObject::CreateDimReducObject(embeddings = values, key = prefix, assay = assay)
  }
  object
}

.reduction_key_for <- function(object, name) {
  usual <- c(pca = "PC_", umap = "UMAP_", tsne = "tSNE_", scmamba_embedding = "scmamba_")
  key <- if (name %in% names(usual)) usual[[name]] else paste0(gsub("[^[:alnum:]]", "", name), "_")
  while (key %in% SeuratObject::Key(object)) key <- sub("_$", "x_", key)
  key
}

.with_imputed <- function(object, adata, assay, found) {
  if ("scmamba" %in% .keys(adata$layers)) {
    new <- .make_assay(found$read("scmamba"), like = object[[assay]], observed = found$counts)
    SeuratObject::Misc(new, slot = "scmamba") <- list(source = assay, layer = "counts",
      counts = if (is.null(found$counts)) "none" else "observed")
    object <- .note_normalised(.add_assay(object, "scmamba", new), "scmamba")
  }
  if ("scmamba" %in% .keys(adata$uns)) {
    record <- tryCatch(reticulate::py_to_r(reticulate::py_get_item(adata$uns, "scmamba")), error = function(e) NULL)
    if (is.list(record)) suppressWarnings(SeuratObject::Misc(object, slot = "scmamba") <- record)
  }
  object
}

#' @rdname ScMambaReadH5ad
#' @export
ScMambaWriteH5ad <- function(object, file, assay = NULL, overwrite = FALSE, verbose = TRUE) {
  if (!inherits(object, "Seurat")) .abort("{.arg object} must be a Seurat object, not {.cls {class(object)[[1]]}}.")
  file <- .new_file(file, overwrite)
  assay <- .source_assay(object, assay, verbose)
  layer <- function(name, from = assay) tryCatch(.get_layer(object, from, name, FALSE), error = function(e) NULL)
  counts <- layer("counts")
  data <- layer("data")
  # Seurat 4 keeps a copy of the counts as data until they are normalized.
  if (!is.null(counts) && identical(data, counts)) data <- NULL
  first <- counts %||% data
  if (is.null(first)) .abort("The assay {.val {assay}} has neither counts nor data.")
  adata <- .to_adata(data %||% counts, object[[]])
  if (!is.null(counts) && !is.null(data)) .set_layer(adata, "counts", counts, data)
  .write_gene_table(adata, object[[assay]][[]], rownames(first))
  .write_imputed(adata, object, assay, first)
  .write_reductions(adata, object)
  .translate_errors(.h5ad_files()$write_h5ad(adata, file, verbose = verbose))
  if (verbose) cli::cli_inform(c(v = "Wrote {nrow(first)} genes x {ncol(first)} cells to {.file {file}}."))
  invisible(file)
}

# The columns of the assay's table of genes, in forms that a file can hold with missing values.
.write_gene_table <- function(adata, frame, genes) {
  simple <- vapply(frame, function(column) is.atomic(column) && is.null(dim(column)), NA)
  frame <- frame[match(genes, rownames(frame)), simple, drop = FALSE]
  if (ncol(frame) == 0) {
    return(invisible())
  }
  frame[] <- lapply(frame, function(column) {
    if (is.numeric(column)) as.double(column) else if (anyNA(column) || !is.logical(column)) factor(column) else column
  })
  rownames(frame) <- genes
  reticulate::py_set_attr(adata, "var", reticulate::r_to_py(frame))
}

.new_file <- function(file, overwrite) {
  file <- path.expand(.check_name(file, "file"))
  if (file.exists(file) && !isTRUE(overwrite)) {
    .abort(c("{.file {file}} exists already.", i = "Name another file, or replace it with {.code overwrite = TRUE}."),
      class = "scmamba_exists")
  }
  file
}

.write_imputed <- function(adata, object, assay, like) {
  for (name in setdiff(SeuratObject::Assays(object), assay)) {
    if (is.null(.imputed_record(object, name))) next
    values <- tryCatch(.get_layer(object, name, "data", FALSE), error = function(e) NULL)
    .set_layer(adata, name, values, like)
  }
}

.write_reductions <- function(adata, object) {
  for (name in SeuratObject::Reductions(object)) {
    values <- unname(SeuratObject::Embeddings(object, name))
    key <- paste0("X_", if (name == "scmamba_embedding") "scmamba" else name)
    if (nrow(values) == ncol(object)) reticulate::py_set_item(adata$obsm, key, reticulate::np_array(values))
  }
}

.set_layer <- function(adata, name, values, like) {
  if (!identical(dimnames(values), dimnames(like))) {
    return(invisible())
  }
  reticulate::py_set_item(adata$layers, name, .to_adata(values)$X)
}
