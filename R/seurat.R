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
# Split layers (counts.1, counts.2, ...) are joined in a copy, and this is said.
.get_layer <- function(object, assay, layer, verbose) {
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
    filled <- .filled_layers(object, assay)
    .abort(c(
      "The layer {.val {layer}} of assay {.val {assay}} is empty.",
      i = "It has: {.val {filled}}. Name one of them,
           for example {.code layer = \"data\"}, or another {.arg assay}."
    ))
  }
  .as_dgc(data, what = "layer {.val {layer}} of assay {.val {assay}}",
    layer = layer, assay = assay)
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

# Sparse stays sparse; what lives on disk is refused rather than loaded unasked.
.as_dgc <- function(data, what, ...) {
  vars <- list2env(list(..., class = class(data)[[1]]), parent = environment())
  if (is(data, "dgCMatrix")) {
    return(data)
  }
  if (is(data, "Matrix") || is.matrix(data)) {
    if (is(data, "Matrix") || is.numeric(data)) {
      data <- as(as(as(data, "dMatrix"), "generalMatrix"), "CsparseMatrix")
      return(data)
    }
  }
  memory <- if ("layer" %in% names(vars)) {
    "{.code seu[[\"{assay}\"]]${layer} <- as(seu[[\"{assay}\"]]${layer}, \"dgCMatrix\")} (your object for
      {.code seu})."
  } else {
    "{.code as(x, \"dgCMatrix\")}."
  }
  .abort(c(
    paste0("The ", what, " is a {.cls {class}}, which lives on disk or is computed when read; scMamba reads matrices
      in memory."),
    i = paste("Load it as a sparse matrix first:", memory)
  ), .envir = vars)
}

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

# Nothing of the user's is replaced unless asked; said before any long work.
.check_free <- function(name, taken, what, argument, overwrite) {
  if (name %in% taken && !isTRUE(overwrite)) {
    .abort(c(
      "This object already has {what} {.val {name}}.",
      i = "Choose another name with {.arg {argument}}, or replace it with
           {.code overwrite = TRUE}."
    ), class = "scmamba_exists")
  }
}

# Seurat keeps assays, reductions and graphs under one set of names, and would
# only say so when the work is done.
.check_free_seurat <- function(object, name, own, what, argument, overwrite) {
  .check_free(name, own, what, argument, overwrite)
  if (name %in% setdiff(names(object), own)) {
    .abort("{.arg {argument}}: the name {.val {name}} is in use in this object for
      something else. Choose another.", class = "scmamba_exists")
  }
}

# An assay of the same kind as the one it was made from.
.make_assay <- function(data, like, counts) {
  create <- if (.seurat5() && inherits(like, "StdAssay")) {
    .so5("CreateAssay5Object")
  } else {
    SeuratObject::CreateAssayObject
  }
  if (counts) create(counts = data) else create(data = data)
}

# Seurat 5 looks for counts in a new assay to add them up, and warns when it has none:
# ours holds none on purpose.
.add_assay <- function(object, name, assay) {
  withCallingHandlers(
    object[[name]] <- assay,
    warning = function(w) {
      if (grepl("isn't present in the assay", conditionMessage(w), fixed = TRUE)) {
        invokeRestart("muffleWarning")
      }
    }
  )
  object
}

# Provenance and per-cell results; the user's own metadata columns stay.
.annotate_seurat <- function(object, verb, result) {
  if (!is.null(result$cells)) {
    columns <- result$cells
    rownames(columns) <- colnames(result$matrix) %||% rownames(result$embedding)
    object <- SeuratObject::AddMetaData(object, metadata = columns)
  }
  kept <- SeuratObject::Misc(object, slot = "scmamba")
  kept <- if (is.list(kept)) kept else list()
  kept[[verb]] <- result$provenance
  # Misc<- warns when it replaces, which here is the purpose.
  suppressWarnings(SeuratObject::Misc(object, slot = "scmamba") <- kept)
  object
}

`%||%` <- function(x, y) if (is.null(x)) y else x

# FindMarkers() asks the command log how an assay was normalised, and takes fold changes of Seurat 4 from the mean of
# the logs where it finds no answer. Imputed values are on NormalizeData()'s scale, so the log says so.
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
