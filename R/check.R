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

.check_device <- function(device) {
  if (is.null(device)) NULL else .check_name(device, "device")
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

# Other matrices become sparse; anything else is refused by its class.
.to_matrix <- function(object) {
  on_disk <- inherits(object, c("IterableMatrix", "DelayedMatrix")) # refused with what to type
  if (is(object, "Matrix") || on_disk || (is.matrix(object) && is.numeric(object))) {
    return(.as_dgc(object, what = "matrix"))
  }
  .abort(c(
    "scMamba cannot read an object of class {.cls {class(object)}}.",
    i = "It takes a Seurat object, a SingleCellExperiment or a genes x cells matrix."
  ))
}
