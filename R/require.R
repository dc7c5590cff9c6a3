#' Use scMamba without an installation step
#'
#' The alternative to [install_scmamba()] for reticulate 1.41 or newer: declares with
#' `reticulate::py_require()` which Python packages scMamba needs. When the first verb is called,
#' `uv` prepares a Python environment with them, which takes a few minutes the first time (0.7 GB to
#' download: Python from GitHub, packages from the Package Index) and seconds afterwards. Call it at
#' the start of every session, or put it in your `.Rprofile`, before anything else uses Python.
#'
#' The versions of PyTorch and scMamba are fixed by this R package. Other packages
#' that use `py_require()` share the environment.
#'
#' @inheritParams install_scmamba
#' @param torch `"auto"`: the build of PyTorch for processors, or the one for NVIDIA cards
#'   (4.5 GB) if this machine has such a card. `"cpu"` or `"cuda"` chooses the build.
#'
#' @return The declared requirements, invisibly.
#' @seealso [scmamba_config()] shows what is in use.
#' @examples
#' # Downloads Python packages when the first verb is used.
#' if (interactive()) {
#'   scmamba_require()
#'   ScMambaImpute(SeuratObject::pbmc_small, force = TRUE)
#' }
#' @export
scmamba_require <- function(source = NULL, torch = "auto", extras = "serve") {
  .check_reticulate(least = "1.41", what = "scmamba_require()")
  .check_name(torch, "torch")
  if (!torch %in% c("auto", "cpu", "cuda")) .abort("{.arg torch} must be \"auto\", \"cpu\" or \"cuda\".")
  .check_not_chosen()
  wanted <- c(.torch, .requirement(.pip_source(source), extras))
  # Looked up by name: reticulate exports it since 1.41.
  getExportedValue("reticulate", "py_require")(wanted, python_version = ">=3.10,<3.14")
  .state$managed <- list(requirements = wanted, cpu = .wants_cpu_torch(torch) && .answers(.torch_cpu_index))
  cli::cli_inform(c(i = "The first verb prepares Python with {.pkg uv}: some minutes the first time, seconds later."))
  invisible(wanted)
}

# Python cannot be exchanged once it runs, and a Python that was named explicitly comes before this one.
.check_not_chosen <- function() {
  if (reticulate::py_available(initialize = FALSE)) {
    .abort("Python runs already in this session. Restart R and call {.code scmamba_require()} first.",
      class = "scmamba_python_error")
  }
  python <- Sys.getenv("RETICULATE_PYTHON")
  chosen <- if (nzchar(python) && python != "managed") "RETICULATE_PYTHON"
  if (is.null(chosen) && !is.null(getOption("scmamba.python"))) chosen <- "options(scmamba.python)"
  if (!is.null(chosen)) {
    .abort("{chosen} names a Python. Remove that to use {.code scmamba_require()}.", class = "scmamba_python_error")
  }
}

# As uv reads it: "scmamba[serve] @ file:///folder" for what lies on this machine.
.requirement <- function(source, extras) {
  if (!file.exists(source)) {
    return(.with_extras(source, extras))
  }
  list <- if (length(extras) > 0) paste0("[", paste(extras, collapse = ","), "]")
  path <- .named_by_content(normalizePath(source, winslash = "/"))
  paste0("scmamba", list, " @ file://", if (!startsWith(path, "/")) "/", utils::URLencode(path))
}

# uv keeps the environment that it made for a path, also when other files lie there after an installation of the same
# version: a link whose name changes with the files. Windows makes no links without rights.
.named_by_content <- function(path) {
  if (.Platform$OS.type != "unix" || !file.exists(file.path(path, "pyproject.toml"))) {
    return(path)
  }
  files <- list.files(file.path(path, "python", "scmamba"), "[.](py|tsv|gz|safetensors|json)$", recursive = TRUE)
  files <- file.path(path, c("pyproject.toml", file.path("python", "scmamba", files)))
  listed <- tempfile()
  on.exit(unlink(listed))
  writeLines(c(path, unname(tools::md5sum(files))), listed)
  folder <- file.path(tools::R_user_dir("scmamba", "cache"), "sources")
  link <- file.path(folder, unname(tools::md5sum(listed)))
  dir.create(folder, showWarnings = FALSE, recursive = TRUE)
  if (!file.exists(link)) {
    unlink(link) # of a folder that is gone
    file.symlink(path, link)
  }
  if (file.exists(link)) file.path(normalizePath(folder, winslash = "/"), basename(link)) else path
}

# Starts Python: only uv can find out whether the requirements can be met.
.start_managed <- function() {
  index <- if (.state$managed$cpu) c(UV_INDEX = .torch_cpu_index, UV_INDEX_STRATEGY = "unsafe-best-match")
  # R's own folders would have uv's Python load another libpython.
  settings <- c(RETICULATE_PYTHON = "managed", RETICULATE_USE_MANAGED_VENV = "true",
    LD_LIBRARY_PATH = .clean_library_path(), index)
  config <- .with_environment(settings, tryCatch(reticulate::py_config(), error = identity))
  if (inherits(config, "error") || !reticulate::py_module_available("scmamba")) {
    why <- if (inherits(config, "error")) strsplit(conditionMessage(config), "\n")[[1]][[1]]
    .abort(c("{.pkg uv} could not prepare Python for scMamba.", if (!is.null(why)) c(x = .verbatim(why)),
      i = "Its output is above. A new {.pkg uv} needs a new reticulate: type {.code install.packages(\"reticulate\")},
        restart R and try again; or type {.code install_scmamba()} instead."),
      class = "scmamba_python_error")
  }
  config
}

# Environment variables that hold while `expr` is evaluated. (withr is no dependency.)
.with_environment <- function(settings, expr) {
  old <- Sys.getenv(names(settings), NA, names = TRUE)
  do.call(Sys.setenv, as.list(settings))
  on.exit({
    Sys.unsetenv(names(old)[is.na(old)])
    if (!all(is.na(old))) do.call(Sys.setenv, as.list(old[!is.na(old)]))
  })
  force(expr)
}
