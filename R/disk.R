# Matrices on disk: layers of HDF5Array, DelayedArray, TileDBArray or BPCells, and h5ad files. A large one is never held
# in memory: its cells are written, block by block, to a temporary h5ad file that Python reads in blocks, and imputed
# values are written to an h5ad file that the object then refers to.

# Entries, zeros included, above which a matrix on disk is not read into memory.
.disk_entries <- function() getOption("scmamba.disk", 2e8)

.is_large_on_disk <- function(data) {
  inherits(data, c("DelayedMatrix", "IterableMatrix")) && prod(dim(data)) > .disk_entries()
}

# What verbs and backends pass on in place of a dgCMatrix: it has dimensions and names, and its values stay on disk.
.new_on_disk <- function(data) {
  structure(list(data = data, path = NULL, size = dim(data), names = dimnames(data)), class = "scmamba_on_disk")
}

# The cells of an h5ad file.
.new_from_file <- function(path) {
  if (!file.exists(path)) .abort("There is no file {.file {path}}.")
  path <- normalizePath(path)
  adata <- .open_h5ad(path)
  on.exit(.close_h5ad(adata))
  names <- list(.names_of(adata$var_names), .names_of(adata$obs_names))
  structure(list(data = NULL, path = path, size = lengths(names), names = names), class = "scmamba_on_disk")
}

.names_of <- function(index) as.character(reticulate::py_to_r(index$to_list()))

#' @export
dim.scmamba_on_disk <- function(x) x$size

#' @export
dimnames.scmamba_on_disk <- function(x) x$names

#' @export
`dimnames<-.scmamba_on_disk` <- function(x, value) {
  x$names <- value
  x
}

.on_disk <- function(matrix) inherits(matrix, "scmamba_on_disk")

# The values, for work that needs them in R.
.in_memory <- function(matrix) {
  if (!.on_disk(matrix)) {
    return(matrix)
  }
  if (is.null(matrix$path)) {
    whole <- .in_blocks(matrix$data)
  } else {
    adata <- .open_h5ad(matrix$path)
    on.exit(.close_h5ad(adata))
    slots <- .translate_errors(.python()$slots$layer_slots(adata$to_memory()))
    return(.from_slots(slots, dim(matrix), dimnames(matrix)))
  }
  dimnames(whole) <- dimnames(matrix)
  whole
}

.h5ad_files <- function() {
  .python()
  .translate_errors(reticulate::import("scmamba.data.h5ad_files", convert = FALSE))
}

.open_h5ad <- function(path) .translate_errors(.h5ad_files()$open_backed(path))

.close_h5ad <- function(adata) if (.is_backed(adata)) adata$file$close()

.is_backed <- function(adata) reticulate::py_to_r(adata$isbacked)

.is_written <- function(adata, path) {
  .is_backed(adata) && basename(reticulate::py_str(adata$filename)) == basename(path)
}

# As an AnnData that reads from disk. Its temporary file is removed when the function of `frame` returns.
.backed_adata <- function(matrix, cells, frame) {
  path <- matrix$path
  if (is.null(path)) {
    path <- tempfile("scmamba-", fileext = ".h5ad")
    .at_exit(frame, unlink, path)
    .write_blocks(matrix, cells, path)
    adata <- .open_h5ad(path)
  } else {
    adata <- .open_h5ad(path)
    for (name in names(cells)) reticulate::py_set_item(adata$obs, name, reticulate::r_to_py(cells[[name]]))
    if (!identical(.names_of(adata$var_names), rownames(matrix))) adata$var_names <- as.list(rownames(matrix))
  }
  .at_exit(frame, .close_h5ad, adata)
  adata
}

# on.exit() of another function; the last one runs first.
.at_exit <- function(frame, call, argument) {
  do.call("on.exit", list(as.call(list(call, argument)), add = TRUE, after = FALSE), envir = frame)
}

.write_blocks <- function(matrix, cells, path) {
  .python()
  module <- .translate_errors(reticulate::import("scmamba.data.h5ad_writer", convert = FALSE))
  writer <- .translate_errors(module$H5adWriter(path, as.list(rownames(matrix)), as.list(colnames(matrix))))
  on.exit(writer$close())
  .each_block(matrix$data, function(block) {
    .translate_errors(writer$append(reticulate::np_array(block@x), reticulate::np_array(block@i, dtype = "int32"),
      reticulate::np_array(block@p, dtype = "int32")))
  })
  .translate_errors(writer$finish(if (!is.null(cells)) reticulate::r_to_py(.used_levels(cells))))
}

# Calls `use` with consecutive cells as dgCMatrix, through the ordinary methods of matrices.
.each_block <- function(data, use, entries = getOption("scmamba.block", 5e7)) {
  width <- max(1, floor(entries / max(1, nrow(data))))
  for (from in seq(1, max(1, ncol(data)), by = width)) {
    block <- data[, from:min(from + width - 1, ncol(data)), drop = FALSE]
    use(if (inherits(block, "IterableMatrix")) as(block, "dgCMatrix") else .to_dgc(as.matrix(block)))
  }
}

.in_blocks <- function(data) {
  parts <- list()
  .each_block(data, function(block) parts[[length(parts) + 1]] <<- block)
  whole <- do.call(cbind, parts)
  dimnames(whole) <- dimnames(data)
  whole
}

# Where imputed values go that are not held in memory, or NULL if they have to be: `file`, or a name beside the file of
# the layer. Checked before any work. `holds`: whether the object can refer to a matrix on disk. `always`: they go there
# even if they would fit in memory.
.result_file <- function(file, matrix, holds, overwrite, backend) {
  why <- .no_file_reason(matrix, holds, backend)
  if (!is.null(why)) {
    if (!is.null(file)) .abort(why)
    return(NULL)
  }
  if (is.null(file)) .default_file(matrix) else .named_file(file, matrix, overwrite)
}

# Why values cannot stay on disk, or NULL.
.no_file_reason <- function(matrix, holds, backend) {
  if (!identical(backend %||% getOption("scmamba.backend", "reticulate"), "reticulate")) {
    return("{.arg file} is for {.code backend = \"reticulate\"}; a server sends its results to memory.")
  }
  if (!holds) {
    return("{.arg file}: this object cannot refer to values on disk. An {.cls Assay5} of Seurat 5 and a
      {.cls SingleCellExperiment} can.")
  }
  if (!.reads_layers(matrix)) {
    return(c("{.arg file} needs the R package {.pkg HDF5Array}, which reads the values from the file.",
      i = "Type {.code BiocManager::install(\"HDF5Array\")}."))
  }
}

.default_file <- function(matrix) {
  folder <- .folder_of(matrix)
  if (!is.null(folder)) {
    path <- .free_name(file.path(folder, "scmamba_imputed.h5ad"))
    list(path = path, always = .on_disk(matrix), overwrite = FALSE)
  }
}

.named_file <- function(file, matrix, overwrite) {
  file <- path.expand(.check_name(file, "file"))
  if (!grepl("[.]h5ad$", file)) .abort("{.arg file} must end in {.val .h5ad}; {.file {file}} does not.")
  if (!dir.exists(dirname(file))) .abort("There is no folder {.file {dirname(file)}}.")
  if (.on_disk(matrix) && identical(matrix$path, normalizePath(file, mustWork = FALSE))) {
    .abort("{.arg file} is the file that is read; the result needs another name.", class = "scmamba_exists")
  }
  if (file.exists(file) && !isTRUE(overwrite)) {
    .abort(c("{.file {file}} exists already.",
      i = "Choose another {.arg file}, or replace it with {.code overwrite = TRUE}."), class = "scmamba_exists")
  }
  path <- file.path(normalizePath(dirname(file)), basename(file))
  list(path = path, always = TRUE, overwrite = isTRUE(overwrite))
}

.reads_layers <- function(matrix) {
  (.on_disk(matrix) && .is_bpcells(matrix$data)) || requireNamespace("HDF5Array", quietly = TRUE)
}

# BPCells is in no repository of CRAN or Bioconductor, so DESCRIPTION cannot name it. The function is looked up because
# that loads the methods of its matrices.
.is_bpcells <- function(data) {
  inherits(data, "IterableMatrix") && nzchar(system.file(package = "BPCells")) && is.function(.open_bpcells())
}

.open_bpcells <- function() getExportedValue("BPCells", "open_matrix_anndata_hdf5")

# The folder of the file that a layer is read from, or the working directory; NULL if neither can be written in.
.folder_of <- function(matrix) {
  path <- if (.on_disk(matrix)) {
    if (!is.null(matrix$path)) matrix$path else tryCatch(DelayedArray::path(matrix$data), error = function(e) NULL)
  }
  folders <- c(if (length(path) == 1 && is.character(path)) dirname(path), getwd())
  writable <- folders[file.access(folders, 2) == 0]
  if (length(writable) > 0) writable[[1]]
}

.free_name <- function(file) {
  stem <- sub("[.]h5ad$", "", file)
  names <- c(file, paste0(stem, "_", 2:999, ".h5ad"))
  names[!file.exists(names)][[1]]
}

# A sparse matrix of an h5ad file, genes x cells. After the first error of HDF5 in a session, rhdf5 2.42 gives FALSE in
# place of errors, which HDF5Array does not expect.
.h5_sparse <- function(path, group) {
  if (isNamespaceLoaded("rhdf5")) getExportedValue("rhdf5", "h5errorHandling")("normal")
  HDF5Array::H5SparseMatrix(path, group)
}

# A layer of an h5ad file as a genes x cells matrix that stays on disk.
.open_layer <- function(path, matrix, name = "scmamba") {
  layer <- if (.on_disk(matrix) && .is_bpcells(matrix$data)) {
    .open_bpcells()(path, group = paste0("layers/", name))
  } else {
    .h5_sparse(path, paste0("/layers/", name))
  }
  dimnames(layer) <- dimnames(matrix)
  layer
}
