# One interface between the verbs and whatever computes. A backend is a list of
# functions with these arguments and results:
#   impute(matrix, cells, options, verbose, file) -> list(matrix, sd or NULL, cells, provenance)
#   embed(matrix, options, verbose)  -> list(embedding, cells, provenance)
#   annotate(matrix, known, options, verbose), doublets(matrix, cells, options, verbose) -> list(cells, provenance)
#   markers(matrix, cells, options, verbose) -> data.frame; options$groups: of each of them against all other cells
#   robustness(matrix, imputed, cells, options, verbose) -> scmamba_robustness
#   finetune(matrix, cells, folder, options, verbose): writes the folder
# `matrix` is a genes x cells dgCMatrix with dimnames, or a matrix on disk (R/disk.R); `options` is a named list of the
# verb's arguments in Python's spelling; `file` is where imputed values are written that do not fit in memory, or NULL.

# `backend` of a verb, or options(scmamba.backend=): "reticulate" (in this process), "server" (a separate process
# on this machine) or what ScMambaServer() gave.
.backend <- function(backend = NULL) {
  backend <- backend %||% getOption("scmamba.backend", "reticulate")
  if (inherits(backend, "scmamba_server")) {
    return(.server_backend(backend))
  }
  if (identical(backend, "reticulate")) {
    return(.reticulate_backend)
  }
  if (identical(backend, "server")) {
    return(.server_backend(.local_server()))
  }
  .abort("{.arg backend} must be \"reticulate\", \"server\" or a server from {.code ScMambaServer()}.")
}

# For the command log, which must not hold a token.
.describe_backend <- function(backend) {
  if (inherits(backend, "scmamba_server")) backend$url else backend
}

.reticulate_backend <- list(
  impute = function(matrix, cells, options, verbose, file = NULL) {
    adata <- .to_adata(matrix, cells)
    # A result with more values than a dgCMatrix can hold goes to disk as well.
    most <- if (isTRUE(file$always)) 0L else .Machine$integer.max
    where <- list(file$path, max_values = most, overwrite = isTRUE(file$overwrite))
    arguments <- c(list(adata), where, options, verbose = verbose)
    result <- .call_python(.imputation()$impute_or_write, arguments, verbose)
    written <- !is.null(file) && .is_written(result, file$path)
    if (written) .at_exit(environment(), .close_h5ad, result)
    layer <- function(name) {
      if (written) .open_layer(file$path, matrix, name) else .layer_of(result, matrix, name)
    }
    list(
      matrix = layer("scmamba"),
      sd = if (options$sd) layer("scmamba_sd"),
      cells = .result_columns(result, cells),
      provenance = .provenance(result, "impute")
    )
  },
  embed = function(matrix, options, verbose) {
    adata <- .to_adata(matrix)
    result <- .call_python(.python()$scmamba$embed, c(list(adata), options, verbose = verbose), verbose)
    embedding <- reticulate::py_to_r(reticulate::py_get_item(result$obsm, "X_scmamba"))
    storage.mode(embedding) <- "double"
    rownames(embedding) <- colnames(matrix)
    list(
      embedding = embedding,
      cells = .result_columns(result),
      provenance = .provenance(result, "embed")
    )
  },
  annotate = function(matrix, known, options, verbose) {
    if (inherits(known, "scmamba_kept_reference")) .check_kept(known)
    adata <- .to_adata(matrix)
    reference <- if (is.list(known)) .to_adata(known$matrix, known$cells) else known
    arguments <- c(list(adata, reference = reference), options, verbose = verbose)
    result <- .call_python(.python()$scmamba$annotate, arguments, verbose)
    list(cells = .result_columns(result), provenance = .provenance(result, "annotate"))
  },
  doublets = function(matrix, cells, options, verbose) {
    adata <- .to_adata(matrix, cells)
    result <- .call_python(.python()$scmamba$find_doublets, c(list(adata), options, verbose = verbose), verbose)
    list(cells = .result_columns(result, cells), provenance = .provenance(result, "doublets"))
  },
  markers = function(matrix, cells, options, verbose) {
    adata <- .to_adata(matrix, cells)
    find <- if (is.null(options$groups)) .deg()$find_markers else .deg()$find_all_markers
    table <- .call_python(find, c(list(adata), options), verbose)
    about <- function(name) reticulate::py_to_r(table$attrs$get(name))
    structure(.plain_frame(table), read_as = about("read_as"), values = about("values"))
  },
  robustness = function(matrix, imputed, cells, options, verbose) {
    adata <- .to_adata(matrix, cells)
    if (!is.null(imputed)) {
      layer <- .to_adata(imputed)$X
      reticulate::py_set_item(adata$layers, "scmamba", layer)
    }
    result <- .call_python(.deg()$robustness, c(list(adata), options, verbose = verbose), verbose)
    table <- function(frame) .plain_frame(frame$reset_index(drop = TRUE))
    lines <- function(tuple) as.character(reticulate::py_to_r(tuple))
    structure(list(
      summary = table(result$summary()), tests = table(result$tests()),
      false_positives = table(result$false_positives()), runs = table(result$runs),
      full = table(result$full), notes = lines(result$notes), warnings = lines(result$warnings)
    ), class = "scmamba_robustness")
  },
  finetune = function(matrix, cells, folder, options, verbose) {
    arguments <- c(list(.to_adata(matrix, cells)), options, verbose = verbose)
    made <- .call_python(.training()$finetune_on, arguments, verbose)
    .translate_errors(.python()$scmamba$save_checkpoint(made[[0]], folder, card = made[[1]]))
  }
)

# A pandas table as a data frame. reticulate finds its own conversion by the name of pandas' class, which pandas 3
# changed; and this one keeps no pointer into Python, so the frame can be saved and compared.
.plain_frame <- function(table) {
  parts <- reticulate::py_to_r(.translate_errors(.python()$slots$frame_slots(table)))
  columns <- lapply(parts$columns, .plain_column)
  names(columns) <- as.character(unlist(parts$names))
  rows <- as.character(unlist(parts$rows))
  structure(columns, class = "data.frame", row.names = if (length(rows) > 0) rows else seq_len(parts$length))
}

.plain_column <- function(column) {
  values <- as.vector(column$values)
  levels <- as.character(unlist(column$levels))
  place <- if (column$kind %in% c("text", "factor", "ordered")) ifelse(values < 0, NA_integer_, values + 1L)
  switch(column$kind,
    text = levels[place],
    factor = structure(place, levels = levels, class = "factor"),
    ordered = structure(place, levels = levels, class = c("ordered", "factor")),
    flag = as.logical(values),
    time = as.POSIXct(replace(values, is.nan(values), NA), origin = "1970-01-01", tz = "UTC"),
    integer = as.integer(values),
    number = if (column$missing) replace(values, is.nan(values), NA) else values
  )
}

# A dict of tables.
.plain_frames <- function(tables) {
  names <- .keys(tables)
  structure(lapply(names, function(name) .plain_frame(reticulate::py_get_item(tables, name))), names = names)
}

.is_frame <- function(object) inherits(object, "python.builtin.object") && reticulate::py_has_attr(object, "iloc")

.imputation <- function() {
  .python()
  .translate_errors(reticulate::import("scmamba.imputation", convert = FALSE))
}

.layer_of <- function(result, matrix, name) {
  .from_slots(.translate_errors(.python()$slots$layer_slots(result, name)), dim(matrix), dimnames(matrix))
}

.deg <- function() {
  .python()
  .translate_errors(reticulate::import("scmamba.deg", convert = FALSE))
}

.training <- function() {
  .python()
  .translate_errors(reticulate::import("scmamba.training", convert = FALSE))
}

# The slots, not the matrix: numpy uses R's own memory, nothing is converted.
# A matrix on disk is read from there until the function that called this one returns.
.to_adata <- function(matrix, obs = NULL, frame = parent.frame()) {
  modules <- .python()
  if (.on_disk(matrix)) {
    return(.backed_adata(matrix, .used_levels(obs), frame))
  }
  if (!is.null(obs)) obs <- reticulate::r_to_py(.used_levels(obs))
  .translate_errors(modules$slots$adata_from_slots(
    x = reticulate::np_array(matrix@x),
    i = reticulate::np_array(matrix@i, dtype = "int32"),
    p = reticulate::np_array(matrix@p, dtype = "int32"),
    dim = as.list(dim(matrix)),
    genes = as.list(rownames(matrix)),
    cells = as.list(colnames(matrix) %||% as.character(seq_len(ncol(matrix)))),
    obs = obs
  ))
}

# Unused levels would be groups without a cell.
.used_levels <- function(obs) {
  if (is.null(obs)) {
    return(NULL)
  }
  obs[] <- lapply(obs, function(column) if (is.factor(column)) droplevels(column) else column)
  rownames(obs) <- NULL
  obs
}

# The names of the result are those that went in, by position.
.from_slots <- function(slots, expected, dimnames) {
  part <- function(name) reticulate::py_to_r(reticulate::py_get_item(slots, name))
  dim <- as.integer(unlist(part("dim")))
  if (!identical(dim, expected)) {
    .abort("The Python side returned {dim[1]} genes x {dim[2]} cells for
      {expected[1]} x {expected[2]}; please report this.")
  }
  new("dgCMatrix",
    x = as.double(part("x")), i = as.integer(part("i")), p = as.integer(part("p")),
    Dim = dim, Dimnames = dimnames
  )
}

# Per-cell results: the columns scmamba_* of obs, if the verb made any; not those that were sent.
.result_columns <- function(result, sent = NULL) .per_cell_results(.plain_frame(result$obs), sent)

# The same types of columns, whatever computed them.
.per_cell_results <- function(columns, sent = NULL) {
  if (is.null(columns)) {
    return(NULL)
  }
  keep <- startsWith(names(columns), "scmamba_") & !names(columns) %in% names(sent)
  if (!any(keep)) {
    return(NULL)
  }
  columns <- columns[, keep, drop = FALSE]
  factors <- grep("^scmamba_(class|type|subtype|doublet_parents)", names(columns), value = TRUE)
  for (name in factors) columns[[name]] <- .as_levels(columns[[name]])
  columns
}

# Levels in the order of their characters, in every locale.
.as_levels <- function(values) {
  values <- as.character(values)
  factor(values, levels = sort(unique(values), method = "radix"))
}

# How the result was made: the verb's entry in uns["scmamba"], and what only R can record.
.provenance <- function(result, verb) {
  uns <- .from_python(reticulate::py_get_item(result$uns, "scmamba"))
  c(uns[[verb]], list(r = .r_versions()))
}
