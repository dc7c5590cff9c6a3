#' Read and write h5ad files
#'
#' `ScMambaReadH5ad()` reads the file of an AnnData (scanpy's format) as a Seurat object or a SingleCellExperiment;
#' `ScMambaWriteH5ad()` writes either of them for Python. Counts, normalized values, metadata, the cell coordinates of
#' reductions, the table of genes, the variable features and all results of scMamba are kept in both directions; slots
#' without a counterpart in the other format (graphs, images, loadings, records of other programs) are not.
#'
#' The results of scMamba are the metadata columns, the embedding, the imputed assays with their standard deviations
#' (`scmamba`, `scmamba_sd`, or the names that you chose), corrected counts, and the records of how they were made, with
#' their tables (`Misc(object, "scmamba")`; `metadata(object)$scmamba`). An imputed assay with other genes than the
#' assay that is written is named in a message and not written.
#'
#' Counts are the layer `counts` of the file, or else its main matrix or its raw matrix, whichever holds whole numbers.
#' Logarithms become the layer `data` (assay `logcounts`). A main matrix with negative values is scaled; it becomes
#' `scale.data`, if the file has other values, too.
#'
#' Files of scanpy often have the variable genes only in the main matrix, and all genes in the raw one. Then the assay
#' has all genes of the raw matrix, and the genes of the main one are the variable features. A Seurat object holds
#' imputed values in assays with their own genes; a SingleCellExperiment has the main matrix and its layers as the
#' alternative experiment `"variable"`. With `raw = FALSE` only the genes of the main matrix are read.
#'
#' @param file Path of the file.
#' @param object A Seurat object, a SingleCellExperiment or a SummarizedExperiment.
#' @param assay Seurat: name of the assay to create, or to write (by default the default assay, or the one that an
#'   imputed one was made from). SingleCellExperiment, when writing: name of the assay with the counts; all assays are
#'   written.
#' @param raw Read all genes of the raw matrix, if the main one has some of them only?
#' @param as Class of the object.
#' @param overwrite Replace the file if it exists?
#' @param verbose Show messages?
#' @param ... Not used; a misspelled argument is an error.
#'
#' @return `ScMambaReadH5ad()`: an object of the class `as`. `ScMambaWriteH5ad()`: the path, invisibly.
#' @seealso [ScMambaImpute()]
#' @examples
#' if (scmamba_available()) {
#'   file <- tempfile(fileext = ".h5ad")
#'   ScMambaWriteH5ad(SeuratObject::pbmc_small, file)
#'   ScMambaReadH5ad(file)
#' }
#' @export
ScMambaReadH5ad <- function(file, assay = "RNA", raw = TRUE, as = c("Seurat", "SingleCellExperiment"), verbose = TRUE) {
  file <- path.expand(.check_name(file, "file"))
  .check_flag(raw, "raw")
  as <- match.arg(as)
  if (!file.exists(file)) .abort("There is no file {.file {file}}.")
  if (as == "SingleCellExperiment" && !requireNamespace("SingleCellExperiment", quietly = TRUE)) {
    .abort("{.code as = \"SingleCellExperiment\"} needs the R package {.pkg SingleCellExperiment}.")
  }
  adata <- .translate_errors(.anndata()$read_h5ad(file))
  found <- .h5ad_layers(adata, raw, seurat = as == "Seurat")
  if (verbose) .say_read(found, file)
  if (as == "Seurat") .seurat_from(adata, found, assay, verbose) else .sce_from(adata, found)
}

.anndata <- function() {
  .python()
  .translate_errors(reticulate::import("anndata", convert = FALSE))
}

.keys <- function(mapping) {
  list <- reticulate::import_builtins(convert = FALSE)$list
  as.character(unlist(reticulate::py_to_r(list(mapping))))
}

.is_none <- function(value) is.null(reticulate::py_to_r(value))

.are_counts <- function(matrix) length(matrix@x) > 0 && all(matrix@x >= 0) && all(matrix@x == round(matrix@x))

.are_scaled <- function(matrix) any(matrix@x < 0)

# A matrix of the file, genes x cells.
.h5ad_matrix <- function(adata, layer = NULL, seurat = TRUE) {
  slots <- .translate_errors(.python()$slots$layer_slots(adata, layer))
  genes <- .gene_names(adata, seurat)
  names <- list(if (seurat) make.unique(genes) else genes, .index(adata$obs_names))
  .from_slots(slots, lengths(names), names)
}

# What is counts, normalized and scaled in a file, as matrices of genes x cells: `counts` and `data` have the genes of
# the object, `scaled` those of the main matrix. `read` gives a layer of the file.
.h5ad_layers <- function(adata, raw, seurat) {
  read <- function(layer = NULL) .h5ad_matrix(adata, layer, seurat)
  layers <- .keys(adata$layers)
  found <- list(read = read, layers = setdiff(layers, "counts"), from = character())
  main <- if (!.is_none(adata$X)) read()
  all <- if (!.is_none(adata$raw)) .h5ad_matrix(adata$raw$to_adata(), NULL, seurat)
  found$genes <- if (is.null(main)) .gene_names(adata, seurat) else rownames(main)
  found$variable <- raw && .has_more_genes(all, found$genes)
  counts <- if ("counts" %in% layers) function() read("counts")
  found <- if (found$variable) .filed_variable(found, all, counts) else .filed_matrices(found, main, all, counts)
  scaled <- !is.null(main) && .are_scaled(main)
  if (scaled) found <- .filed(found, main, "X", if (.has_no_values(found)) "data" else "scaled")
  if (.has_no_values(found)) .abort("The file has no matrix with values of cells.")
  if (seurat && found$variable) found$omitted <- .omitted(found, main, all)
  c(found, list(first = found$counts %||% found$data))
}

# Seurat has no underscores in names of genes.
.gene_names <- function(adata, seurat) {
  genes <- .index(adata$var_names)
  if (seurat) gsub("_", "-", genes) else genes
}

# What has the variable genes only and is not in the raw matrix.
.omitted <- function(found, main, all) {
  used <- is.null(main) || "X" %in% found$from || identical(main, all[found$genes, , drop = FALSE])
  c(if (!used) "values of the main matrix", if (!is.null(found$main_counts)) "layer of counts")
}

.has_no_values <- function(found) is.null(found$counts) && is.null(found$data)

# Whether the raw matrix has all genes of the main one, and others.
.has_more_genes <- function(all, genes) {
  !is.null(all) && nrow(all) > length(genes) && !anyDuplicated(rownames(all)) && all(genes %in% rownames(all))
}

# The main matrix has the variable genes only: all come from the raw one. `counts` reads the layer of counts.
.filed_variable <- function(found, all, counts) {
  found <- .filed(found, all, "raw/X")
  if (!is.null(counts) && is.null(found$counts)) found$main_counts <- counts()
  found
}

# The main matrix comes first, and the raw one has what it lacks.
.filed_matrices <- function(found, main, all, counts) {
  if (!is.null(counts)) found <- .filed(found, counts(), "layers/counts", "counts")
  all <- if (!is.null(all) && setequal(rownames(all), found$genes)) all[found$genes, , drop = FALSE]
  for (from in c("X", "raw/X")) {
    matrix <- if (from == "X") main else all
    if (!is.null(matrix) && !.are_scaled(matrix)) found <- .filed(found, matrix, from)
  }
  found
}

# A matrix under the name of what it holds, unless that is there already.
.filed <- function(found, matrix, from, kind = if (.are_counts(matrix)) "counts" else "data") {
  if (is.null(found[[kind]])) {
    found[[kind]] <- matrix
    found$from[[kind]] <- from
  }
  found
}

.say_read <- function(found, file) {
  kinds <- sub("scaled", "scale.data", names(found$from))
  from <- c("layers/counts" = "the layer counts", X = "the main matrix", "raw/X" = "the raw matrix")[found$from]
  cli::cli_inform(c(i = "Read {.val {kinds}} from {from} of {.file {basename(file)}}."))
  if (isTRUE(found$variable)) {
    cli::cli_inform(c(i = "The raw matrix has {nrow(found$first)} genes and the main one {length(found$genes)} of them:
      read all genes, with those of the main matrix as the variable ones."))
  }
  if (!is.null(found$omitted)) {
    cli::cli_inform(c("!" = "{cli::qty(length(found$omitted))}The {found$omitted} {?is/are} not read, because
      {?it has/they have} {length(found$genes)} genes only; {.code raw = FALSE} reads {?it/them}."))
  }
  if (identical(unname(found$from["data"]), "X") && .are_scaled(found$data)) {
    cli::cli_inform(c("!" = "The file holds scaled values and no others; they are read as {.val data}."))
  }
}

# The table of genes: of all, with the columns that only the genes of the main matrix have.
.h5ad_genes <- function(adata, found) {
  table <- .plain_frame(adata$var)
  table[c("highly_variable", "highly_variable_rank")] <- NULL
  if (!found$variable) {
    return(table)
  }
  all <- .plain_frame(adata$raw$to_adata()$var)
  all[c("highly_variable", "highly_variable_rank")] <- NULL
  place <- match(rownames(found$first), found$genes)
  for (column in setdiff(names(table), names(all))) all[[column]] <- table[[column]][place]
  all
}

.h5ad_variable <- function(adata, found) {
  if (found$variable) {
    return(found$genes)
  }
  table <- .plain_frame(adata$var)
  marked <- which(as.logical(as.character(table$highly_variable)))
  rank <- table$highly_variable_rank
  found$genes[if (is.numeric(rank)) marked[order(rank[marked])] else marked]
}

# The records of scMamba, and those of its assays.
.h5ad_record <- function(adata, key) {
  record <- if (key %in% .keys(adata$uns)) .from_python(reticulate::py_get_item(adata$uns, key))
  if (!is.list(record)) {
    return(NULL)
  }
  lapply(record, function(entry) {
    # Files have no names of the elements of a vector, only of the entries of a list.
    if (is.list(entry) && is.list(entry$r)) entry$r <- unlist(entry$r)
    entry
  })
}

.from_python <- function(value) {
  if (inherits(value, "python.builtin.dict")) {
    names <- .keys(value)
    return(structure(lapply(names, function(name) .from_python(reticulate::py_get_item(value, name))), names = names))
  }
  if (.is_frame(value)) {
    return(.plain_frame(value))
  }
  # Single values of numpy have `item`, arrays of one value as well.
  if (inherits(value, "numpy.generic")) value <- value$item()
  value <- reticulate::py_to_r(value)
  if (is.atomic(value) && length(dim(value)) == 1) as.vector(value) else value
}

# The layers that hold results of scMamba, with the record of each: as R wrote them, or by the record of the last call.
.h5ad_results <- function(adata, found, assay) {
  made <- .h5ad_record(adata, "scmamba")
  counts <- if (is.null(.counts_of(found))) "none" else "observed"
  if (isTRUE(made$impute$params$to_counts)) counts <- "expected"
  name <- made$impute$assay.name %||% "scmamba"
  known <- list(
    list(source = assay, layer = "counts", counts = counts),
    list(source = assay, layer = "counts", counts = "none", sd = TRUE)
  )
  names(known) <- c(name, .sd_name(name))
  own <- .h5ad_record(adata, "scmamba_assays")
  for (name in names(own)) {
    record <- utils::modifyList(own[[name]], list(source = assay))
    known[[name]] <- record[intersect(c("source", "layer", "counts", "sd", "key"), names(record))]
  }
  corrected <- made$ambient_rna$corrected.assay %||% made$ambient_rna$params$corrected_layer
  if (!is.null(corrected)) known[[corrected]] <- list(counts = "corrected")
  known[intersect(names(known), found$layers)]
}

.seurat_from <- function(adata, found, assay, verbose) {
  metadata <- .plain_frame(adata$obs)
  rownames(metadata) <- colnames(found$first)
  object <- SeuratObject::CreateSeuratObject(found$first, assay = assay, meta.data = if (ncol(metadata) > 0) metadata)
  object@meta.data <- object@meta.data[c(setdiff(names(object@meta.data), names(metadata)), names(metadata))]
  # Without counts, the values are data and not counts: CreateSeuratObject() has put them there and summed them.
  sums <- setdiff(paste0(c("nCount_", "nFeature_"), assay), names(metadata))
  if (is.null(found$counts)) object@meta.data[sums] <- NULL
  if (!is.null(found$data)) {
    new <- .make_assay(found$data, like = object[[assay]], observed = found$counts)
    columns <- object@meta.data
    .without_layer_warnings(object[[assay]] <- new)
    object@meta.data <- columns
  }
  if (!is.null(found$scaled)) object[[assay]] <- .with_scaled(object[[assay]], as.matrix(found$scaled))
  object <- .with_gene_table(object, assay, .h5ad_genes(adata, found))
  variable <- .h5ad_variable(adata, found)
  if (length(variable) > 0) SeuratObject::VariableFeatures(object[[assay]]) <- variable
  object <- .with_reductions(object, adata, assay)
  results <- .h5ad_results(adata, found, assay)
  others <- setdiff(found$layers, names(results))
  if (verbose && length(others) > 0) {
    cli::cli_inform(c("!" = "{cli::qty(length(others))}The layer{?s} {.val {others}} {?is/are} not read; {.code as =
      \"SingleCellExperiment\"} reads {?it/them}."))
  }
  for (name in names(results)) object <- .with_result(object, name, results[[name]], found, assay)
  record <- .h5ad_record(adata, "scmamba")
  if (!is.null(record)) suppressWarnings(SeuratObject::Misc(object, slot = "scmamba") <- record)
  object
}

.with_scaled <- function(assay, values) {
  if (.seurat5()) {
    SeuratObject::SetAssayData(assay, layer = "scale.data", new.data = values)
  } else {
    SeuratObject::SetAssayData(assay, slot = "scale.data", new.data = values)
  }
}

.with_gene_table <- function(object, assay, table) {
  if (ncol(table) > 0) {
    rownames(table) <- rownames(object[[assay]])
    object[[assay]] <- SeuratObject::AddMetaData(object[[assay]], metadata = table)
  }
  object
}

.h5ad_coordinates <- function(adata) {
  keys <- .keys(adata$obsm)
  values <- lapply(keys, function(key) reticulate::py_to_r(reticulate::py_get_item(adata$obsm, key)))
  usable <- vapply(values, function(value) is.matrix(value) && is.numeric(value), NA)
  structure(values[usable], names = sub("^X_", "", keys[usable]))
}

.with_reductions <- function(object, adata, assay) {
  found <- .h5ad_coordinates(adata)
  for (name in names(found)) {
    values <- found[[name]]
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

.counts_of <- function(found) found$counts %||% found$main_counts

# An assay of results, with the observed counts of its genes beside imputed values.
.with_result <- function(object, name, record, found, assay) {
  values <- found$read(name)
  expected <- record$counts %in% c("expected", "corrected")
  observed <- if (identical(record$counts, "observed")) .counts_of(found)[rownames(values), , drop = FALSE]
  new <- .make_assay(values, like = object[[assay]], observed, expected = expected)
  if (identical(record$counts, "corrected")) {
    return(.add_assay(object, name, new, .plain_key(name)))
  }
  key <- record$key %||% if (isTRUE(record$sd)) "imputedsd_" else "imputed_"
  record$key <- NULL
  SeuratObject::Misc(new, slot = "scmamba") <- record
  object <- .add_assay(object, name, new, key = key)
  if (expected || isTRUE(record$sd)) object else .note_normalised(object, name)
}

.sce_from <- function(adata, found) {
  frame <- function(table, rows) {
    rownames(table) <- rows
    S4Vectors::DataFrame(table, check.names = FALSE)
  }
  genes <- .h5ad_genes(adata, found)
  if (length(variable <- .h5ad_variable(adata, found)) > 0) genes$highly_variable <- rownames(found$first) %in% variable
  main <- .named_list(counts = found$counts, logcounts = found$data)
  layers <- lapply(stats::setNames(nm = found$layers), found$read)
  scaled <- .named_list(scaled = found$scaled)
  if ("scaled" %in% names(layers)) scaled <- list()
  object <- SingleCellExperiment::SingleCellExperiment(
    if (found$variable) main else c(main, scaled, layers),
    colData = frame(.plain_frame(adata$obs), colnames(found$first)), rowData = frame(genes, rownames(found$first))
  )
  if (found$variable) {
    x <- found$read()
    kind <- if (.are_scaled(x)) "scaled" else if (.are_counts(x)) "counts" else "logcounts"
    own <- stats::setNames(list(x), kind)
    if ("counts" %in% .keys(adata$layers)) own$counts <- found$read("counts")
    SingleCellExperiment::altExp(object, "variable") <- SingleCellExperiment::SingleCellExperiment(c(own, layers))
  }
  coordinates <- .h5ad_coordinates(adata)
  for (name in names(coordinates)) {
    upper <- if (name %in% c("pca", "umap", "tsne")) toupper(name) else name
    values <- coordinates[[name]]
    rownames(values) <- colnames(object)
    SingleCellExperiment::reducedDim(object, upper) <- values
  }
  S4Vectors::metadata(object)$scmamba <- .h5ad_record(adata, "scmamba")
  object
}

.named_list <- function(...) Filter(Negate(is.null), list(...))
