# Arguments are checked before any long work; each error names the argument,
# what it was and what it should be.

.no_extra <- function(...) {
  if (...length() > 0) {
    names <- ...names() %||% rep("", ...length())
    names[is.na(names) | !nzchar(names)] <- "(without a name)"
    .abort("Unknown argument{?s}: {.arg {names}}.")
  }
}

.check_flag <- function(value, name) {
  if (!is.logical(value) || length(value) != 1 || is.na(value)) {
    .abort("{.arg {name}} must be TRUE or FALSE.")
  }
  value
}

.check_number <- function(value, name) {
  if (!is.numeric(value) || length(value) != 1 || !is.finite(value)) {
    .abort("{.arg {name}} must be one number.")
  }
  as.double(value)
}

.check_share <- function(value, name) {
  value <- .check_number(value, name)
  if (value < 0 || value > 1) .abort("{.arg {name}} is {value}; it must be between 0 and 1.")
  value
}

.check_integer <- function(value, name, lowest) {
  value <- .check_number(value, name)
  if (value != round(value) || value < lowest || value > .Machine$integer.max) {
    .abort("{.arg {name}} must be a whole number from {lowest} on, not {value}.")
  }
  as.integer(value)
}

.check_name <- function(value, name) {
  if (!is.character(value) || length(value) != 1 || is.na(value) || !nzchar(value)) {
    .abort("{.arg {name}} must be one name.")
  }
  value
}

.check_not_itself <- function(name, source, argument) {
  if (identical(name, source)) {
    .abort("{.arg {argument}} is the assay that is read, {.val {name}}; the
      result needs a name of its own.", class = "scmamba_exists")
  }
}

.check_adapt <- function(adapt) {
  # TRUE is the default number of steps of Python's ImputeOptions.
  if (is.logical(adapt)) {
    return(if (.check_flag(adapt, "adapt")) 300L else 0L)
  }
  .check_integer(adapt, "adapt", 0L)
}

# "gpu" is what people type; torch calls it cuda, and mps on a Mac.
.check_device <- function(device) {
  if (is.null(device)) {
    return(NULL)
  }
  device <- tolower(.check_name(device, "device"))
  if (device == "gpu") device <- if (identical(Sys.info()[["sysname"]], "Darwin")) "mps" else "cuda"
  if (!grepl("^(cpu|mps|cuda(:[0-9]+)?)$", device)) {
    .abort("{.arg device} must be \"cpu\", \"cuda\" (or \"gpu\") or \"mps\", not {.val {device}}.")
  }
  device
}

# A name or path for Python; a model object that Python made is passed on.
.check_model <- function(model) {
  if (is.null(model) || inherits(model, "python.builtin.object")) {
    return(model)
  }
  .check_name(model, "model")
  if (dir.exists(model) || file.exists(model)) normalizePath(model) else model
}

# For the command log, which must not hold a pointer into Python.
.describe_model <- function(model) {
  if (inherits(model, "python.builtin.object")) class(model)[[1]] else model
}

.check_matrix <- function(matrix) {
  if (any(dim(matrix) == 0)) {
    .abort("The matrix is empty: {nrow(matrix)} genes x {ncol(matrix)} cells.")
  }
  if (is.null(rownames(matrix))) {
    .abort("The matrix has no row names; scMamba needs the genes' names to match
      them with the model.")
  }
  matrix
}

# Other matrices become sparse; anything else is refused by its class. With `disk`, large matrices on disk and h5ad
# files stay there.
.to_matrix <- function(object, disk = FALSE) {
  if (.is_h5ad_path(object)) {
    from_file <- .new_from_file(path.expand(object))
    return(if (disk) from_file else .in_memory(from_file))
  }
  if (inherits(object, c("IterableMatrix", "DelayedMatrix", "Matrix")) || (is.matrix(object) && is.numeric(object))) {
    return(.as_dgc(object, what = "matrix", disk = disk))
  }
  .abort(c(
    "scMamba cannot read an object of class {.cls {class(object)}}.",
    i = "It takes a Seurat object, a SingleCellExperiment, a genes x cells matrix or the path of an h5ad file."
  ))
}

.is_h5ad_path <- function(object) is.character(object) && length(object) == 1 && grepl("[.]h5ad$", object)

# `batch`, `sample`, ...: a column of the metadata by its name, or one value for each cell.
.per_cell <- function(frame, value, argument, n = nrow(frame)) {
  if (is.character(value) && length(value) == 1 && !is.null(frame)) {
    return(.metadata_column(frame, value, argument))
  }
  if (!is.atomic(value) || length(value) != n) {
    advice <- if (is.null(frame)) "Give one value for each cell." else
      "Give the name of a column of the metadata, or one value for each cell."
    .abort(paste("{.arg {argument}} has {length(value)} value{?s} and the object {n} cell{?s}.", advice))
  }
  if (is.factor(value)) value else as.character(value)
}

# The columns a verb sends with the counts, and under which names: list(cells = data frame, keys = list).
.cell_columns <- function(frame, wanted, n = nrow(frame)) {
  wanted <- wanted[!vapply(wanted, is.null, NA)]
  cells <- keys <- list()
  for (argument in names(wanted)) {
    value <- wanted[[argument]]
    by_name <- is.character(value) && length(value) == 1 && !is.null(frame)
    keys[[argument]] <- if (by_name) value else argument
    groups <- .per_cell(frame, value, argument, n)
    # Numbers are names of groups, with the same names on every backend; a missing integer has no equal in Python.
    cells[[keys[[argument]]]] <- if (is.factor(groups)) groups else as.character(groups)
  }
  cells <- if (length(cells) > 0) as.data.frame(cells, optional = TRUE, stringsAsFactors = FALSE)
  list(cells = cells, keys = keys)
}

# A matrix whose row names can be matched with the model's genes: the gene column, without a prefix of the genome.
.named_genes <- function(matrix, frame = NULL, gene.column = NULL, verbose = TRUE) {
  genes <- rownames(matrix)
  if (!is.null(gene.column)) {
    frame <- frame[genes, , drop = FALSE]
    column <- as.character(.metadata_column(frame, gene.column, "gene.column", "the table of the assay's genes"))
    genes <- ifelse(is.na(column) | !nzchar(column), genes, column)
  }
  rownames(matrix) <- .without_prefix(genes, verbose)
  matrix
}

# What Cell Ranger and alevin put around names of genes: GRCh38_GFAP, ENSG00000131095_GFAP, GFAP-ENSG00000131095.
.gene_prefixes <- c(
  "^(GRCh3[78]|hg19|hg38)[_-]+" = "",
  "^ENSG[0-9]{11}([.][0-9]+)?[_|-](.+)$" = "\\2",
  "^.+[_|-](ENSG[0-9]{11})([.][0-9]+)?$" = "\\1"
)

.without_prefix <- function(genes, verbose) {
  for (pattern in names(.gene_prefixes)) {
    # Joined genomes (human and mouse) carry it on their human genes only.
    found <- grepl(pattern, genes)
    if (mean(found) < 0.2) next
    example <- genes[found][[1]]
    genes[found] <- sub(pattern, .gene_prefixes[[pattern]], genes[found])
    if (verbose) {
      read <- genes[found][[1]]
      cli::cli_inform(c(i = "{sum(found)} gene name{?s} of the form {.val {example}} {?is/are} read as {.val {read}};
        the names in your object stay."))
    }
  }
  genes
}
