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
# with messages that do not help.
.check_reticulate <- function(version = packageVersion("reticulate"), least = "1.39", what = "scMamba") {
  if (version < least) {
    where <- dirname(find.package("reticulate"))
    .abort(c(
      "{what} needs the R package {.pkg reticulate} {least} or newer; found {version} in {.file {where}}.",
      i = "Type {.code install.packages(\"reticulate\")}, restart R and try again.",
      i = "(Debian's and Ubuntu's own package, r-cran-reticulate, may be older than that.)"
    ), class = "scmamba_python_error")
  }
  invisible(TRUE)
}

# The Python to use: its configuration as reticulate describes it, or one
# error with the command that helps.
.find_python <- function() {
  .check_reticulate()
  if (reticulate::py_available(initialize = FALSE)) {
    config <- reticulate::py_config()
    .check_running(config$python)
    return(config)
  }
  if (!is.null(.state$managed)) {
    return(.start_managed())
  }
  .with_option(.choose_python())
}

# options(scmamba.python=) is our own name for RETICULATE_PYTHON, which wins. It is
# set for the search only, so that another choice can follow a wrong one.
.with_option <- function(expr) {
  python <- getOption("scmamba.python")
  if (is.null(python) || nzchar(Sys.getenv("RETICULATE_PYTHON"))) {
    return(expr)
  }
  old <- .state$option
  .state$option <- TRUE
  Sys.setenv(RETICULATE_PYTHON = .interpreter_in(path.expand(.check_name(python, "scmamba.python"))))
  on.exit({
    Sys.unsetenv("RETICULATE_PYTHON")
    .state$option <- old
  })
  expr
}

# A folder with an environment, or the interpreter itself.
.interpreter_in <- function(path) {
  if (!dir.exists(path)) {
    return(path)
  }
  below <- file.path(path, c("bin/python", "Scripts/python.exe", "python.exe"))
  # A link to nothing counts: it is named in the error.
  there <- file.exists(below) | nzchar(.link(below))
  if (any(there)) below[there][[1]] else path
}

# What named the Python, in the user's words; NULL if nothing did.
.chosen_by <- function() {
  if (isTRUE(.state$option)) {
    return("options(scmamba.python)")
  }
  named <- c("RETICULATE_PYTHON", "RETICULATE_PYTHON_ENV")
  named <- named[nzchar(Sys.getenv(named))]
  if (length(named) > 0) named[[1]] else .state$forced
}

# What is chosen, or else the first that serves: what reticulate finds, then the environment
# install_scmamba() made. A project's own .venv must not hide it.
.choose_python <- function() {
  python <- Sys.getenv("RETICULATE_PYTHON")
  if (nzchar(python) && python != "managed") {
    if (!grepl("[/\\\\]", python) && nzchar(Sys.which(python))) python <- Sys.which(python)[[1]]
    .check_interpreter(.interpreter_in(path.expand(python)))
  }
  config <- .discover()
  .state$forced <- if (inherits(config, "py_config") && isTRUE(grepl("use_python", config$forced))) "use_python()"
  found <- tryCatch(.checked(config), error = identity)
  if (inherits(found, "error")) {
    if (!is.null(.chosen_by()) || !dir.exists(.environment_folder())) stop(found)
    found <- .own_environment()
  }
  found
}

.own_environment <- function() {
  own <- .interpreter_in(.environment_folder())
  .check_interpreter(own)
  Sys.setenv(RETICULATE_PYTHON = own)
  on.exit(Sys.unsetenv("RETICULATE_PYTHON"))
  .checked(.discover())
}

# What reticulate would choose, with our own environment before its guesses.
.discover <- function() {
  .reticulate_quietly(reticulate::py_discover_config("scmamba", use_environment = .envname))
}

# Without the download newer versions start when they find nothing, and without what they print
# of every Python they try. An error is a value.
.reticulate_quietly <- function(expr) {
  if (is.na(Sys.getenv("RETICULATE_USE_MANAGED_VENV", NA))) {
    Sys.setenv(RETICULATE_USE_MANAGED_VENV = "false")
    on.exit(Sys.unsetenv("RETICULATE_USE_MANAGED_VENV"))
  }
  quiet <- file(nullfile(), open = "w")
  old <- options(try.outFile = quiet)
  on.exit({
    options(old)
    close(quiet)
  }, add = TRUE)
  tryCatch(suppressWarnings(expr), error = identity)
}

# The configuration, if R can use it for scMamba.
.checked <- function(config) {
  if (!inherits(config, "py_config")) {
    if (inherits(config, "try-error")) config <- attr(config, "condition")
    why <- if (inherits(config, "error")) conditionMessage(config)
    # An error inside of reticulate (pyenv's shims cause one) is not about this machine's Pythons.
    why <- if (!is.null(why) && !grepl("^object '.*' not found$", why)) c(x = .verbatim(why))
    .abort(c("No Python was found that R can use.", why, .fix_hint()), class = "scmamba_python_error")
  }
  .check_interpreter(config$python)
  .check_library(config)
  config
}

# Whether it is there, runs, is new enough and has what is needed; the interpreter is asked
# itself (reticulate goes by file names, and takes another Python when this one fails).
.check_interpreter <- function(python) {
  key <- paste0("python:", python)
  if (isTRUE(.state[[key]])) {
    return(invisible(TRUE))
  }
  .check_there(python)
  said <- .ask_python(python)
  if (!identical(attr(said, "status"), 0L)) {
    words <- .verbatim(utils::tail(c("it prints nothing", said), 1))
    .abort(c("{.file {python}} does not run.", x = words, .fix_hint()), class = "scmamba_python_error")
  }
  .check_version(list(python = python, version = sub(" .*", "", said[[1]])))
  .check_packages(python, strsplit(said[[2]], " ", fixed = TRUE)[[1]])
  .state[[key]] <- TRUE
}

.check_there <- function(python) {
  if (file.exists(python)) {
    return(invisible(TRUE))
  }
  target <- .link(python)
  why <- if (nzchar(target)) {
    c(x = "It is a link to {.file {target}}, which is gone: that Python was removed or replaced by a newer one, so
      the environment made from it no longer works.")
  }
  .abort(c("There is no Python at {.file {python}}.", why, .fix_hint(dead = nzchar(target))),
    class = "scmamba_python_error")
}

# Where links lead; "" for what is none (and on systems that have none).
.link <- function(paths) {
  target <- Sys.readlink(paths)
  ifelse(is.na(target), "", target)
}

.check_version <- function(config) {
  version <- as.character(config$version)
  if (numeric_version(sub("[^0-9.].*$", "", version)) < "3.10") {
    .abort(c(
      "scMamba needs Python 3.10 or newer; {.file {config$python}} is {version}.", .fix_hint()
    ), class = "scmamba_python_error")
  }
}

# Missing packages: the whole of scmamba, or packages that it needs.
.check_packages <- function(python, missing) {
  if ("scmamba" %in% missing) {
    .abort(c("The Python that R uses has no package {.pkg scmamba}: {.file {python}}.", .fix_hint()),
      class = "scmamba_python_error")
  }
  if (length(missing) > 0) {
    .abort(c(
      "scmamba is installed in {.file {python}}, but not the package{?s} {.pkg {missing}} that it needs.",
      .repair_hint(python, missing)
    ), class = "scmamba_python_error")
  }
}

# R needs Python as a library; some Pythons come without.
.check_library <- function(config) {
  library <- config$libpython
  if (.Platform$OS.type == "windows" || (is.character(library) && isTRUE(file.exists(library)))) {
    return(invisible(TRUE))
  }
  name <- paste0("libpython", config$version)
  .abort(c(
    "{.file {config$python}} came without its shared library {.file {name}}, which R needs.",
    i = "On Debian or Ubuntu type {.code sudo apt-get install {name}} in a terminal; a Python built by pyenv needs
      {.code PYTHON_CONFIGURE_OPTS=--enable-shared}.",
    .fix_hint()
  ), class = "scmamba_python_error")
}

# Another package started Python in this session; it cannot be exchanged.
.check_running <- function(python) {
  if (reticulate::py_module_available("scmamba")) {
    return(invisible(TRUE))
  }
  ready <- !is.null(tryCatch(.with_option(.choose_python()), error = function(e) NULL))
  .abort(c(
    "This R session runs a Python without {.pkg scmamba} already: {.file {python}}.",
    x = "You, your {.file .Rprofile} or another package started it, and a session can have only one.",
    i = if (ready) {
      "Restart R and type {.code library(scMamba); scmamba_config()} before anything else uses Python."
    } else {
      "Restart R, type {.code install_scmamba()}, and then {.code scmamba_config()} before anything else uses Python."
    }
  ), class = "scmamba_python_error")
}

# What to type, given who chose the Python that does not serve.
.fix_hint <- function(chosen = .chosen_by(), dead = FALSE) {
  if (is.null(chosen)) {
    return(.install_hint(dead))
  }
  if (chosen == "options(scmamba.python)") {
    return(c(i = "It was named by {.code options(scmamba.python)}. Name another, or type
      {.code options(scmamba.python = NULL); install_scmamba()} to create an environment for scMamba."))
  }
  if (chosen == "use_python()") {
    return(c(i = "It was named by {.code use_python()} or {.code use_virtualenv()} of reticulate. Restart R without that
      and type {.code install_scmamba()}."))
  }
  c(i = paste0("It was named by the environment variable ", chosen, ", which takes precedence. Type
    {.code Sys.unsetenv(\"", chosen, "\"); install_scmamba()}, and remove it from your {.file .Renviron}."))
}

.install_hint <- function(dead) {
  first <- if (is.null(.starter_or_null())) {
    c(i = "First install Python 3.10 or newer: type {.code reticulate::install_python(\"3.12\")}.")
  }
  c(first,
    i = if (dead) "Type {.code install_scmamba(force = TRUE)} to create the environment again," else
      "Type {.code install_scmamba()} to create a Python environment for scMamba,",
    i = "or name a Python that has it: {.code options(scmamba.python = \"/path/to/python\")}."
  )
}

.repair_hint <- function(python, packages) {
  first <- if ("torch" %in% packages) "torch" else packages
  command <- .verbatim(paste(shQuote(python), "-m pip install", paste(first, collapse = " ")))
  c(i = paste0("In a terminal type {.code ", command, "}; or in R {.code install_scmamba(force = TRUE)} to create the
    environment again."))
}

# Version and missing packages, one line each; written for any Python, however old.
.question <- c(
  "import sys",
  "print('.'.join(str(n) for n in sys.version_info[:3]))",
  "missing = ['scmamba']",
  "if sys.version_info >= (3, 10):",
  "    from importlib.util import find_spec",
  "    missing = [n for n in ('scmamba', 'numpy', 'scipy', 'pandas', 'anndata', 'torch') if find_spec(n) is None]",
  "print(' '.join(missing))"
)

# Its words, with the exit status as attribute.
.ask_python <- function(python, question = .question) {
  files <- tempfile(c("ask", "said"))
  on.exit(unlink(files))
  writeLines(question, files[[1]])
  status <- suppressWarnings(system2(python, shQuote(files[[1]]), stdout = files[[2]], stderr = files[[2]],
    env = paste0("LD_LIBRARY_PATH=", shQuote(.clean_library_path()))))
  said <- if (file.exists(files[[2]])) readLines(files[[2]], warn = FALSE) else character()
  structure(said, status = if (status == 0 && length(said) < 2) 1L else as.integer(status))
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
  modules <- .import_or_explain(config$python)
  .state$modules <- modules
  modules
}

.import_or_explain <- function(python) {
  tryCatch(
    {
      host <- reticulate::import("scmamba.utils.shared_libraries", convert = FALSE)
      .check_openmp(reticulate::py_to_r(host$openmp_clash()))
      # torch makes a folder for compiled models when it trains, otherwise beside R's temporary folder.
      reticulate::import("os", convert = FALSE)$environ$setdefault("TORCHINDUCTOR_CACHE_DIR",
        file.path(tempdir(), "torchinductor"))
      reticulate::import("torch", convert = FALSE)
      list(
        scmamba = reticulate::import("scmamba", convert = FALSE),
        slots = reticulate::import("scmamba.wire.slots", convert = FALSE),
        background = reticulate::import("scmamba.utils.background", convert = FALSE)
      )
    },
    python.builtin.BaseException = function(e) .abort_import(e, python)
  )
}

# A package that is there and cannot be loaded: half an installation, or one made for another machine.
.abort_import <- function(e, python) {
  text <- utils::tail(strsplit(.python_message(e), "\n", fixed = TRUE)[[1]], 1)
  name <- if (grepl("torch|c10|cuda|cudnn|cublas|nvidia", text, ignore.case = TRUE)) "torch" else "scmamba"
  .abort(c(
    "The Python package {.pkg {name}} is in {.file {python}}, but cannot be loaded.",
    x = .verbatim(text),
    i = "Type {.code install_scmamba(force = TRUE)} to create the environment again, then restart R."
  ), class = "scmamba_python_error")
}

# Two of Intel's or LLVM's OpenMP libraries in one process end it without a word to R.
.check_openmp <- function(clash) {
  if (is.null(clash)) {
    return(invisible(TRUE))
  }
  .abort(c(
    "Another package has started an OpenMP library in this R session, and PyTorch brings its own ({.file {clash}}):
     both together would end R (\"OMP: Error #15\").",
    i = "Restart R and type {.code library(scMamba); scmamba_config()} before the other package is used.",
    i = "If that does not help: {.code Sys.setenv(KMP_DUPLICATE_LIB_OK = \"TRUE\")} in a new session lets both run."
  ), class = "scmamba_python_error")
}

# Python subprocesses (workers) inherit R's LD_LIBRARY_PATH and would load
# another libpython than their own.
.spare_subprocesses <- function() {
  if (nzchar(Sys.getenv("LD_LIBRARY_PATH"))) {
    environ <- reticulate::import("os", convert = FALSE)$environ
    environ$update(list(LD_LIBRARY_PATH = .clean_library_path()))
  }
}
