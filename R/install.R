#' Install the Python side of scMamba
#'
#' Makes a Python environment of its own (or takes the one you name) and
#' installs PyTorch and the Python package `scmamba` in it. Run it once; every
#' later R session finds the environment by itself.
#'
#' @param source Where the Python package comes from: the path of a checkout or
#'   of a wheel, an address of a git repository, or the name of a package on
#'   the Python Package Index (`"scmamba"`, `"scmamba==0.1.0"`). By default
#'   `getOption("scmamba.source")`, then the environment variable
#'   `SCMAMBA_SOURCE`, then the current folder if it is a checkout of scMamba.
#' @param envname Name or path of the virtual environment.
#' @param python The Python to make it with (3.10 or newer); by default one
#'   that reticulate finds.
#' @param torch What to ask pip for, before anything else. Name a version to
#'   pin it. On Linux the Package Index serves the build for NVIDIA cards,
#'   which also runs without one.
#' @param pip_options More options for pip, such as an index of your own.
#' @param force Make the environment anew if it exists?
#'
#' @return The path of the environment's Python, invisibly.
#' @seealso [scmamba_config()] to see what is in use.
#' @examples
#' \dontrun{
#' # needs the network and a few minutes
#' install_scmamba("path/to/the/checkout")
#' }
#' @export
install_scmamba <- function(source = NULL, envname = "r-scmamba", python = NULL,
                            torch = "torch", pip_options = character(), force = FALSE) {
  .check_reticulate()
  package <- .pip_source(source)
  .check_flag(force, "force")
  if (force || !reticulate::virtualenv_exists(envname)) {
    cli::cli_inform("Making the Python environment {.val {envname}}")
    reticulate::virtualenv_create(envname, python = python %||% .starter(),
      packages = FALSE, force = force)
  }
  # torch by name and first: with other packages pip may settle on another build.
  cli::cli_inform("Installing {.val {torch}}")
  reticulate::virtualenv_install(envname, packages = torch, pip_options = pip_options)
  cli::cli_inform("Installing {.val {package}}")
  reticulate::virtualenv_install(envname, packages = package, pip_options = pip_options)
  found <- reticulate::virtualenv_python(envname)
  .tell_installed(found)
  invisible(found)
}

.starter <- function() {
  python <- reticulate::virtualenv_starter(version = ">=3.10")
  if (is.null(python)) {
    .abort(c(
      "No Python 3.10 or newer was found to make the environment with.",
      i = "Install one (for example {.code reticulate::install_python(\"3.11\")}) and name it:
           {.code install_scmamba(python = \"/path/to/python\")}."
    ), class = "scmamba_python_error")
  }
  python
}

.tell_installed <- function(python) {
  lines <- c(v = "scMamba is installed in {.file {python}}.")
  if (reticulate::py_available(initialize = FALSE)) {
    lines <- c(lines, i = "Python is running already in this session: restart R to use it.")
  }
  other <- Sys.getenv("RETICULATE_PYTHON")
  if (nzchar(other) && normalizePath(other, mustWork = FALSE) != normalizePath(python)) {
    lines <- c(lines, i = "RETICULATE_PYTHON is set to {.file {other}} and wins: unset it.")
  }
  cli::cli_inform(lines)
}

# What to give pip.
.pip_source <- function(source) {
  source <- source %||% getOption("scmamba.source") %||% .env_or_null("SCMAMBA_SOURCE") %||%
    .checkout_here()
  if (is.null(source)) {
    .abort(c(
      "Where should the Python package {.pkg scmamba} come from?",
      i = "From a checkout: {.code install_scmamba(\"path/to/scMamba\")}",
      i = "from git: {.code install_scmamba(\"git+https://...\")}",
      i = "from the Package Index: {.code install_scmamba(\"scmamba\")}"
    ))
  }
  .check_name(source, "source")
  if (file.exists(path.expand(source))) {
    return(.pip_path(path.expand(source)))
  }
  if (grepl("^git\\+", source)) {
    return(source)
  }
  if (grepl("^(https?|ssh|git)://|^git@|\\.git$", source)) {
    return(paste0("git+", source))
  }
  if (grepl("[/\\\\]", source)) {
    .abort("There is no folder or file {.file {source}}.")
  }
  source
}

.pip_path <- function(path) {
  if (dir.exists(path) && !.is_checkout(path)) {
    .abort("The folder {.file {path}} is no checkout of scMamba: it has no
      {.file pyproject.toml} that names the package.")
  }
  normalizePath(path)
}

.is_checkout <- function(path) {
  file <- file.path(path, "pyproject.toml")
  file.exists(file) && any(grepl("^name *= *\"scmamba\"", readLines(file, warn = FALSE)))
}

.checkout_here <- function() if (.is_checkout(".")) normalizePath(".") else NULL

.env_or_null <- function(name) {
  value <- Sys.getenv(name)
  if (nzchar(value)) value else NULL
}
