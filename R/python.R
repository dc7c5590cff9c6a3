# Finding Python and the Python package scmamba. Nothing here runs before a
# verb needs it, and nothing is ever downloaded except by install_scmamba().

.envname <- "r-scmamba"
.state <- new.env(parent = emptyenv())

#' Is the Python side of scMamba ready?
#'
#' Finds out, without starting Python and without any message, whether the
#' Python that scMamba would use has the package `scmamba`. Handy to guard
#' examples and vignettes.
#'
#' @return `TRUE` or `FALSE`.
#' @seealso [scmamba_config()] shows what was found, [install_scmamba()]
#'   installs what is missing.
#' @examples
#' scmamba_available()
#' @export
scmamba_available <- function() {
  tryCatch({
    .find_python()
    TRUE
  }, error = function(e) FALSE)
}

# numpy 2 and today's scipy need a recent reticulate; older ones fail later
# with words nobody can act on.
.check_reticulate <- function(version = packageVersion("reticulate")) {
  if (version < "1.39") {
    .abort(c(
      "scMamba needs the R package {.pkg reticulate} 1.39 or newer;
       found {version}.",
      i = "Type {.code install.packages(\"reticulate\")}, restart R and try
           again."
    ), class = "scmamba_python_error")
  }
  invisible(TRUE)
}

.fix_hint <- function() {
  c(
    i = "Type {.code install_scmamba()} to make a Python environment for
         scMamba,",
    i = "or name a Python that has it: {.code options(scmamba.python =
         \"/path/to/python\")}."
  )
}

# What reticulate would choose, with our own environment before its guesses and
# without the download newer versions start when they find nothing.
.discover <- function() {
  if (is.na(Sys.getenv("RETICULATE_USE_MANAGED_VENV", NA))) {
    Sys.setenv(RETICULATE_USE_MANAGED_VENV = "false")
    on.exit(Sys.unsetenv("RETICULATE_USE_MANAGED_VENV"))
  }
  # It tries one Python after the other and prints what was wrong with each.
  quiet <- file(nullfile(), open = "w")
  old <- options(try.outFile = quiet)
  on.exit({
    options(old)
    close(quiet)
  }, add = TRUE)
  suppressWarnings(reticulate::py_discover_config("scmamba", use_environment = .envname))
}

# The Python to use: its configuration as reticulate describes it, or one
# error that says what to type.
.find_python <- function() {
  .check_reticulate()
  if (reticulate::py_available(initialize = FALSE)) {
    config <- reticulate::py_config()
    .check_module(config, running = TRUE)
    return(config)
  }
  .use_option()
  config <- tryCatch(.discover(), error = identity)
  if (!inherits(config, "py_config")) {
    why <- if (inherits(config, "error")) c(x = .verbatim(conditionMessage(config)))
    .abort(c("No Python was found that R can use.", why, .fix_hint()),
      class = "scmamba_python_error")
  }
  .check_version(config)
  .check_module(config, running = FALSE)
  config
}

# options(scmamba.python=) is our own name for RETICULATE_PYTHON, which wins.
.use_option <- function() {
  python <- getOption("scmamba.python")
  if (is.null(python) || nzchar(Sys.getenv("RETICULATE_PYTHON"))) {
    return(invisible())
  }
  python <- path.expand(python)
  if (dir.exists(python)) {
    below <- file.path(python, c("bin/python", "Scripts/python.exe"))
    python <- c(below[file.exists(below)], python)[[1]]
  }
  if (!file.exists(python)) {
    .abort(c(
      "The Python named by {.code options(scmamba.python)} does not exist:
       {.file {python}}.", .fix_hint()
    ), class = "scmamba_python_error")
  }
  Sys.setenv(RETICULATE_PYTHON = python)
}

.check_version <- function(config) {
  version <- as.character(config$version)
  if (numeric_version(sub("[^0-9.].*$", "", version)) < "3.10") {
    .abort(c(
      "scMamba needs Python 3.10 or newer; {.file {config$python}} is
       {version}.", .fix_hint()
    ), class = "scmamba_python_error")
  }
}

.check_module <- function(config, running) {
  found <- if (running) {
    reticulate::py_module_available("scmamba")
  } else {
    .has_module(config)
  }
  if (isTRUE(found)) {
    return(invisible(TRUE))
  }
  hint <- .fix_hint()
  if (running) {
    hint <- c(i = "This Python was started earlier in this session (by you or
      another package). Restart R, then load scMamba first.", hint)
  }
  .abort(c(
    "The Python that R uses has no package {.pkg scmamba}:
     {.file {config$python}}.", hint
  ), class = "scmamba_python_error")
}

# reticulate looks for the module by file name, which misses editable
# installations; asking the interpreter itself is certain, so its answer is kept.
.has_module <- function(config) {
  if (!is.null(config$required_module_path)) {
    return(TRUE)
  }
  key <- paste0("module:", config$python)
  if (is.null(.state[[key]])) {
    code <- "import importlib.util as u, sys; sys.exit(u.find_spec('scmamba') is None)"
    .state[[key]] <- identical(.run_python(config$python, c("-c", shQuote(code))), 0L)
  }
  .state[[key]]
}

# A Python outside R must not load the libraries R put on LD_LIBRARY_PATH.
.run_python <- function(python, args) {
  suppressWarnings(system2(
    python, args, stdout = FALSE, stderr = FALSE,
    env = paste0("LD_LIBRARY_PATH=", shQuote(.clean_library_path()))
  ))
}

# LD_LIBRARY_PATH without the folders R's own start script added.
.clean_library_path <- function(path = Sys.getenv("LD_LIBRARY_PATH")) {
  parts <- strsplit(path, ":", fixed = TRUE)[[1]]
  ours <- startsWith(parts, R.home()) | grepl("^/usr/lib(/|$)", parts) |
    grepl("/jvm/", parts, fixed = TRUE)
  paste(parts[!ours & nzchar(parts)], collapse = ":")
}

# The modules, imported once per session.
.python <- function() {
  if (!is.null(.state$modules)) {
    return(.state$modules)
  }
  config <- .find_python()
  if (!reticulate::py_available(initialize = FALSE)) {
    reticulate::use_python(config$python, required = TRUE)
  }
  .spare_subprocesses()
  .state$modules <- .translate_errors(list(
    scmamba = reticulate::import("scmamba", convert = FALSE),
    slots = reticulate::import("scmamba.interop.slots", convert = FALSE),
    progress = reticulate::import("scmamba._progress", convert = FALSE)
  ))
  .state$modules
}

# Python subprocesses (workers) inherit R's LD_LIBRARY_PATH and would load
# another libpython than their own.
.spare_subprocesses <- function() {
  if (nzchar(Sys.getenv("LD_LIBRARY_PATH"))) {
    environ <- reticulate::import("os", convert = FALSE)$environ
    environ$update(list(LD_LIBRARY_PATH = .clean_library_path()))
  }
}
