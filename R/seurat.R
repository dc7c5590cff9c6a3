# Everything that differs between Seurat 4 and 5, and nothing else.

.seurat5 <- function() packageVersion("SeuratObject") >= "5.0.0"

# What only SeuratObject 5 exports, looked up when it is used.
.so5 <- function(name) getExportedValue("SeuratObject", name)

# Both words are in use: `layer` since Seurat 5, `slot` before.
.layer_argument <- function(layer, slot) {
  value <- if (is.null(slot)) layer else slot
  if (!is.character(value) || length(value) != 1 || is.na(value) || !nzchar(value)) {
    .abort("{.arg layer} must be one name, such as {.val counts} or
      {.val data}.")
  }
  value
}

# The genes x cells matrix of a layer as a dgCMatrix, in the assay's own order.
# Split layers (counts.1, counts.2, ...) are joined in a copy, with a message.
# With `disk`, a large matrix on disk stays there (R/disk.R).
.get_layer <- function(object, assay, layer, verbose, disk = FALSE) {
  if (layer == "counts") .say_corrected(object, assay, verbose)
  if (layer == "scale.data") {
    .abort(c(
      "The layer {.val scale.data} holds scaled values; scMamba needs counts or log-normalized values.",
      i = "Use {.code layer = \"counts\"} or {.code layer = \"data\"}."
    ))
  }
  data <- if (!.seurat5()) {
    .get_slot(object, assay, layer)
  } else {
    .get_layer5(object[[assay]], assay, layer, verbose)
  }
  if (is.null(data) || any(dim(data) == 0)) {
    .abort_empty(object, assay, layer)
  }
  .as_dgc(data, what = "layer {.val {layer}} of assay {.val {assay}}", disk = disk,
    layer = layer, assay = assay)
}

# Imputed values are never proposed as something to read.
.abort_empty <- function(object, assay, layer) {
  filled <- .filled_layers(object, assay)
  ours <- .imputed_record(object, assay)
  hint <- if (!is.null(ours)) {
    "It holds imputed values. Name the assay with the counts: {.code assay = \"{ours$source}\"}."
  } else {
    "It has: {.val {filled}}. Name one of them,
     for example {.code layer = \"data\"}, or another {.arg assay}."
  }
  .abort(c("The layer {.val {layer}} of assay {.val {assay}} is empty.", i = hint))
}

.get_slot <- function(object, assay, layer) {
  if (!layer %in% c("counts", "data", "scale.data")) {
    .abort("Seurat 4 has the layers (slots) {.val counts}, {.val data}
      and {.val scale.data}, not {.val {layer}}.")
  }
  SeuratObject::GetAssayData(object, slot = layer, assay = assay)
}

.get_layer5 <- function(assay_object, assay, layer, verbose) {
  if (!inherits(assay_object, "StdAssay")) {
    # A version 3 assay: its layers are the three slots.
    if (!layer %in% .so5("Layers")(assay_object)) {
      return(NULL)
    }
    return(.so5("LayerData")(assay_object, layer = layer))
  }
  parts <- .split_parts(assay_object, layer)
  if (length(parts) == 0) {
    return(NULL)
  }
  if (!identical(parts, layer)) {
    if (verbose) {
      cli::cli_inform("Assay {.val {assay}} has {length(parts)} split layers
        ({.val {parts}}); they are joined for the computation. Yours stay split.")
    }
    assay_object <- .so5("JoinLayers")(assay_object, layers = layer, new = layer)
  }
  data <- .so5("LayerData")(assay_object, layer = layer)
  # Layers may list their cells and genes in an order of their own.
  data[.so5("Features")(assay_object, layer = layer),
    intersect(colnames(assay_object), colnames(data)), drop = FALSE]
}

.split_parts <- function(assay_object, layer) {
  layers <- .so5("Layers")(assay_object)
  if (layer %in% layers) {
    return(layer)
  }
  layers[startsWith(layers, paste0(layer, "."))]
}

.filled_layers <- function(object, assay) {
  if (.seurat5()) {
    return(.so5("Layers")(object[[assay]]))
  }
  slots <- c("counts", "data", "scale.data")
  filled <- vapply(slots, function(name) {
    all(dim(SeuratObject::GetAssayData(object, slot = name, assay = assay)) > 0)
  }, logical(1))
  slots[filled]
}

# Sparse stays sparse. Matrices on disk are read in blocks of cells, so that no dense copy of the whole exists.
.as_dgc <- function(data, what, ..., disk = FALSE) {
  if (disk && .is_large_on_disk(data)) {
    return(.new_on_disk(data))
  }
  vars <- list2env(list(..., class = class(data)[[1]]), parent = environment())
  if (is(data, "dgCMatrix")) {
    return(data)
  }
  if (is(data, "Matrix") || (is.matrix(data) && is.numeric(data))) {
    return(.to_dgc(data))
  }
  if (inherits(data, c("DelayedMatrix", "IterableMatrix"))) {
    return(tryCatch(.in_blocks(data), error = function(e) {
      vars$why <- .verbatim(conditionMessage(e))
      .abort(c(paste0("The ", what, " is a {.cls {class}} and cannot be read."), x = vars$why), .envir = vars)
    }))
  }
  .abort(c(
    paste0("The ", what, " is a {.cls {class}}; scMamba reads numeric matrices, sparse, dense or on disk."),
    i = "Convert it first: {.code as(x, \"dgCMatrix\")}."
  ), .envir = vars)
}

.to_dgc <- function(data) as(as(as(data, "dMatrix"), "generalMatrix"), "CsparseMatrix")

# SCTransform's counts are corrected for depth; the observed ones are usually beside them.
.say_corrected <- function(object, assay, verbose) {
  if (!verbose || !inherits(object[[assay]], "SCTAssay")) {
    return(invisible())
  }
  other <- intersect("RNA", SeuratObject::Assays(object))
  cli::cli_inform(c("!" = "Assay {.val {assay}} holds counts that SCTransform corrected, of the genes it kept.",
    i = if (length(other) > 0) "For the observed counts type {.code assay = \"RNA\"}."))
}

.check_assay <- function(object, assay) {
  assay <- assay %||% SeuratObject::DefaultAssay(object)
  known <- SeuratObject::Assays(object)
  if (!is.character(assay) || length(assay) != 1 || !assay %in% known) {
    .abort("This object has no assay {.val {assay}}; it has
      {.val {known}}.")
  }
  assay
}

# What ScMambaImpute() wrote on an assay of its own (from which assay, and what its counts are); NULL for others.
# merge() loses the note and keeps the key.
.imputed_record <- function(object, assay) {
  record <- suppressWarnings(SeuratObject::Misc(object[[assay]], slot = "scmamba"))
  if (is.list(record) && is.character(record$source)) {
    return(record)
  }
  if (!unname(SeuratObject::Key(object[[assay]])) %in% c("imputed_", "imputedsd_")) {
    return(NULL)
  }
  others <- setdiff(SeuratObject::Assays(object), assay)
  list(source = c(intersect("RNA", others), others, assay)[[1]], counts = "unknown")
}

# The assay a verb reads. If none is named and the default one holds imputed values: the one they were made from.
.source_assay <- function(object, assay, verbose) {
  named <- !is.null(assay)
  assay <- .check_assay(object, assay)
  record <- .imputed_record(object, assay)
  if (named || is.null(record) || !record$source %in% setdiff(SeuratObject::Assays(object), assay)) {
    return(assay)
  }
  if (verbose) {
    cli::cli_inform(c(i = "The default assay {.val {assay}} holds imputed values; reading {.val {record$source}}, from
      which they were made."))
  }
  record$source
}

# Predictions are no observations: a second prediction from them is refused unless forced.
.refuse_imputed <- function(object, assay, layer, force = FALSE) {
  record <- .imputed_record(object, assay)
  if (is.null(record) || isTRUE(force) || (layer == "counts" && record$counts %in% c("observed", "unknown"))) {
    return(invisible())
  }
  advice <- if (record$source %in% setdiff(SeuratObject::Assays(object), assay)) {
    "Name the assay with the counts: {.code assay = \"{record$source}\"}."
  } else {
    "Use an object that still has the counts."
  }
  .abort(c("The layer {.val {layer}} of assay {.val {assay}} holds imputed values, and this verb needs observed ones.",
    i = advice), class = "scmamba_imputed")
}

# NormalizeData() on the imputed assay replaces its values by the normalized counts beside them.
.check_still_imputed <- function(object, assay, layer, values) {
  record <- .imputed_record(object, assay)
  if (is.null(record) || layer != "data" || !identical(record$counts, "observed") || .on_disk(values)) {
    return(invisible())
  }
  counts <- tryCatch(.get_layer(object, assay, "counts", FALSE), error = function(e) NULL)
  if (.same_entries(counts, values)) {
    .abort(c("The layer {.val data} of assay {.val {assay}} is its normalized counts and holds no imputed values.",
      i = "{.code NormalizeData()} replaces imputed values. Run {.code ScMambaImpute(overwrite = TRUE)} again."),
      class = "scmamba_imputed")
  }
}

.same_entries <- function(one, other) {
  !is.null(one) && identical(one@i, other@i) && identical(one@p, other@p)
}

# Nothing of the user's is replaced without `overwrite`; checked before any long work.
.check_free <- function(name, taken, what, argument, overwrite) {
  if (name %in% taken && !isTRUE(overwrite)) {
    .abort(c(
      "This object already has {what} {.val {name}}.",
      i = "Choose another name with {.arg {argument}}, or replace it with
           {.code overwrite = TRUE}."
    ), class = "scmamba_exists")
  }
}

# Columns of metadata have fixed names. `always`: refused whoever made it; `beside`: only if no verb of ours made it.
.check_columns <- function(taken, record, verbs, always, beside = NULL, overwrite = FALSE) {
  found <- c(intersect(always, taken), if (length(intersect(verbs, names(record))) == 0) intersect(beside, taken))
  if (length(found) > 0 && !isTRUE(overwrite)) {
    .abort(c("This object already has the metadata column{?s} {.val {found}}.",
      i = "Rename {cli::qty(found)}{?it/them}, or replace {?it/them} with {.code overwrite = TRUE}."),
      class = "scmamba_exists")
  }
}

# Columns of an earlier result of this verb that the new one does not have, such as levels of types.
.old_columns <- function(record, verb, there, new) {
  setdiff(intersect(as.character(unlist(record[[verb]]$summary$columns)), there), new)
}

.seurat_record <- function(object) {
  kept <- SeuratObject::Misc(object, slot = "scmamba")
  if (is.list(kept)) kept else list()
}

# Seurat keeps assays, reductions and graphs under one set of names, and would
# only report it after the work.
.check_free_seurat <- function(object, name, own, what, argument, overwrite) {
  .check_free(name, own, what, argument, overwrite)
  if (name %in% setdiff(names(object), own)) {
    .abort("{.arg {argument}}: the name {.val {name}} is in use in this object for
      something else. Choose another.", class = "scmamba_exists")
  }
}

# An assay of the same kind as the one it was made from. The observed counts stand beside the imputed values, so that
# functions that need counts (AggregateExpression, FindVariableFeatures, SCTransform) find the observed ones.
.make_assay <- function(data, like, observed = NULL, expected = FALSE) {
  five <- .seurat5() && inherits(like, "StdAssay")
  create <- if (five) .so5("CreateAssay5Object") else SeuratObject::CreateAssayObject
  if (expected) {
    return(create(counts = data))
  }
  if (is.null(observed)) {
    return(create(data = data))
  }
  if (five) {
    return(create(counts = observed, data = data))
  }
  new <- create(counts = observed)
  if (.seurat5()) {
    SeuratObject::SetAssayData(new, layer = "data", new.data = data)
  } else {
    SeuratObject::SetAssayData(new, slot = "data", new.data = data)
  }
}

# The counts that belong to what was imputed, or NULL.
.observed_counts <- function(object, assay, layer, matrix) {
  counts <- if (layer == "counts") {
    matrix
  } else {
    tryCatch(.get_layer(object, assay, "counts", FALSE, disk = TRUE), error = function(e) NULL)
  }
  if (!identical(dimnames(counts), dimnames(matrix))) {
    return(NULL)
  }
  if (.on_disk(counts)) counts$data else counts
}

# Put an assay in, in place of an older one of this name; its key stays. Seurat's own sums of it (nCount_scmamba, ...)
# would be columns that the user does not expect, and without counts it warns that there are none.
.add_assay <- function(object, name, assay, key = "imputed_") {
  metadata <- object@meta.data
  default <- SeuratObject::DefaultAssay(object)
  if (name %in% SeuratObject::Assays(object)) {
    key <- unname(SeuratObject::Key(object[[name]]))
    if (name == default) SeuratObject::DefaultAssay(object) <- setdiff(SeuratObject::Assays(object), name)[[1]]
    object[[name]] <- NULL
  }
  if (!key %in% SeuratObject::Key(object)) SeuratObject::Key(assay) <- key
  .without_layer_warnings(object[[name]] <- assay)
  SeuratObject::DefaultAssay(object) <- default
  object@meta.data <- metadata
  object
}

# Seurat's warnings that an assay without counts, or without data, has none.
.without_layer_warnings <- function(expr) {
  harmless <- "isn't present in the assay|No layers found matching search pattern"
  withCallingHandlers(expr,
    warning = function(w) if (grepl(harmless, conditionMessage(w))) invokeRestart("muffleWarning"))
}

# A key for a reduction that no other has: names of dimensions must be unique.
.reduction_key <- function(object, name) {
  taken <- SeuratObject::Key(object)[setdiff(names(SeuratObject::Key(object)), name)]
  own <- paste0(gsub("[^[:alnum:]]", "", name), "_")
  free <- setdiff(c("scmamba_", own, paste0("scmamba", 2:99, "_")), taken)
  free[[1]]
}

# Provenance and per-cell results; the user's own metadata columns stay.
.annotate_seurat <- function(object, verb, result) {
  if (!is.null(result$cells)) {
    columns <- result$cells
    rownames(columns) <- colnames(result$matrix) %||% rownames(result$embedding)
    for (old in .old_columns(.seurat_record(object), verb, names(object[[]]), names(columns))) object[[old]] <- NULL
    object <- SeuratObject::AddMetaData(object, metadata = columns)
  }
  kept <- .seurat_record(object)
  kept[[verb]] <- result$provenance
  # Misc<- warns when it replaces, which here is the purpose.
  suppressWarnings(SeuratObject::Misc(object, slot = "scmamba") <- kept)
  object
}

`%||%` <- function(x, y) if (is.null(x)) y else x

# FindMarkers() reads from the command log how an assay was normalized, and takes fold changes of Seurat 4 from the
# mean of the logs if it finds no entry. Imputed values are on NormalizeData()'s scale, so the log has such an entry.
.note_normalised <- function(object, assay.name) {
  name <- paste0("NormalizeData.", assay.name)
  object[[name]] <- methods::new("SeuratCommand",
    name = name, time.stamp = Sys.time(), assay.used = assay.name,
    call.string = "ScMambaImpute: values are log1p of counts per 10,000, as NormalizeData() makes them",
    params = list(assay = assay.name, normalization.method = "LogNormalize", scale.factor = 10000, margin = 1,
      verbose = FALSE)
  )
  object
}
