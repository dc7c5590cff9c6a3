#' Install the Python side of scMamba
#'
#' Creates a Python environment (or uses the one you name) and installs PyTorch and
#' the Python package `scmamba` in it. Run it once; every
#' later R session finds the environment, from any working directory. Run it
#' again to update or repair it. If a step fails, the error gives the command that helps.
#'
#' Nothing is ever deleted: an environment that no longer works, or that
#' `force = TRUE` replaces, is renamed to `NAME.before-DATE-TIME` first.
#'
#' @section Other Python installations:
#' * [scmamba_require()] needs no installation step (reticulate 1.41 or newer).
#' * Conda, or a Python that a cluster provides as a module: install into it with
#'   `pip install` followed by the folder `system.file("python", package = "scMamba")`,
#'   and name it with `options(scmamba.python = "/path/to/python")`.
#' * Cluster nodes without a network: run
#'   `install_scmamba(envname = "/shared/folder/r-scmamba")` once on a node with a
#'   network, and put `options(scmamba.python = "/shared/folder/r-scmamba")` in the
#'   `.Rprofile` of those who use it.
#' * RStudio Server: the environment belongs to your user; nothing else is needed.
#'
#' @param source Where the Python package comes from. By default the copy that is
#'   part of this R package. Otherwise the path of a checkout or of a wheel, the
#'   address of a git repository, or a requirement for pip. `getOption("scmamba.source")`
#'   and the environment variable `SCMAMBA_SOURCE` change the default.
#' @param envname Name or path of the virtual environment.
#' @param python The Python to create it with (3.10 or newer); by default the
#'   newest one found that R can use.
#' @param torch `"auto"`: the build of PyTorch for processors, which is small (0.2 GB), or the
#'   one for NVIDIA cards (4.5 GB) if this machine has such a card. `"cpu"` or
#'   `"cuda"` chooses the build. Anything else is passed to pip unchanged, for example
#'   `"torch==2.9.0"`. The version is the one scMamba was tested with, or the
#'   newest if there is no build of that.
#' @param extras Optional parts of `scmamba` to install as well; `"serve"` is for
#'   `backend = "server"`.
#' @param pip_options More options for pip, such as another package index.
#' @param force Replace an environment that exists? The old one is renamed, not deleted.
#' @param verbose Show pip's progress?
#'
#' @return The path of the environment's Python, invisibly.
#' @seealso [scmamba_config()] shows what is in use; [scmamba_require()].
#' @examples
#' # Needs a network and a few minutes, and writes to your home directory; so it is
#' # run in interactive sessions only.
#' if (interactive()) {
#'   install_scmamba()
#' }
#' @export
install_scmamba <- function(source = NULL, envname = "r-scmamba", python = NULL, torch = "auto", extras = "serve",
                            pip_options = character(), force = FALSE, verbose = TRUE) {
  .check_reticulate()
  package <- .with_extras(.pip_source(source), extras)
  .check_flag(force, "force")
  .check_flag(verbose, "verbose")
  folder <- .environment_folder(.check_name(envname, "envname"))
  torch <- .check_name(torch %||% "auto", "torch")
  found <- .make_environment(folder, python, force, verbose)
  # torch by name and first: with other packages pip may settle on another build.
  .install_torch(found, torch, pip_options, verbose)
  .install(found, c("--upgrade", "--upgrade-strategy", "only-if-needed", package), pip_options, verbose)
  .state[[paste0("python:", found)]] <- NULL
  .check_interpreter(found)
  .report_installed(found, verbose)
  invisible(found)
}

# The version the tests run with; elsewhere (setup, documents) it is the same.
.torch <- "torch==2.13.0"
.torch_cpu_index <- "https://download.pytorch.org/whl/cpu"

.install_torch <- function(python, torch, pip_options, verbose) {
  if (!torch %in% c("auto", "cpu", "cuda")) {
    return(.install(python, torch, pip_options, verbose))
  }
  cpu <- .wants_cpu_torch(torch)
  if (cpu && !.answers(.torch_cpu_index)) {
    cpu <- FALSE
    cli::cli_inform(c("!" = "{.url {(.torch_cpu_index)}}, which has the small builds of PyTorch, does not answer. If no
      other index of yours has them, the build for NVIDIA cards (4.5 GB) is installed; it computes on processors too."))
  }
  pip_options <- c(pip_options, if (cpu) c("--extra-index-url", .torch_cpu_index))
  tryCatch(.install(python, .torch, pip_options, verbose), scmamba_no_build = function(e) {
    .install(python, "torch", pip_options, verbose)
  })
}

# On macOS and Windows the Package Index serves the processor build anyway. The other index is used only if it answers:
# otherwise pip would try it for minutes.
.wants_cpu_torch <- function(torch) {
  wanted <- torch == "cpu" || (torch == "auto" && !.has_nvidia_card())
  wanted && identical(Sys.info()[["sysname"]], "Linux")
}

.has_nvidia_card <- function() file.exists("/proc/driver/nvidia/version") || nzchar(Sys.which("nvidia-smi"))

.answers <- function(url) {
  handle <- curl::new_handle(nobody = TRUE, connecttimeout = 5, timeout = 10)
  tryCatch(curl::curl_fetch_memory(url, handle)$status_code < 400, error = function(e) FALSE)
}

# Always absolute: virtualenv_root() is a text with "~", which a shell takes for the name of a folder once it is quoted.
.environment_folder <- function(envname = .envname) {
  folder <- if (grepl("[/\\\\]", envname)) envname else file.path(reticulate::virtualenv_root(), envname)
  folder <- path.expand(folder)
  if (!grepl("^([/\\\\]|[A-Za-z]:)", folder)) folder <- file.path(getwd(), folder)
  normalizePath(folder, winslash = "/", mustWork = FALSE)
}

# The interpreter of an environment that works, made if need be.
.make_environment <- function(folder, python, force, verbose) {
  if (dir.exists(folder) && !file.exists(file.path(folder, "pyvenv.cfg"))) {
    .abort("{.file {folder}} exists and is not a Python environment. Choose another {.arg envname}.")
  }
  found <- .interpreter_in(folder)
  dead <- dir.exists(folder) && !identical(attr(.ask_python(found), "status"), 0L)
  if (dir.exists(folder) && !dead && !force) {
    .check_version(list(python = found, version = sub(" .*", "", .ask_python(found)[[1]])))
    return(found)
  }
  python <- .check_starter(python %||% .starter())
  aside <- .move_aside(folder, dead, verbose)
  if (verbose) cli::cli_inform("Creating the Python environment {.file {folder}} with {.file {python}}")
  made <- FALSE
  # Only what this call has created is removed again, and what it moved is put back.
  on.exit(if (!made) {
    unlink(folder, recursive = TRUE)
    if (!is.null(aside)) file.rename(aside, folder)
  })
  .step(python, c("-I", "-m", "venv", "--without-pip", folder), verbose = FALSE)
  found <- .interpreter_in(folder)
  # By itself, because venv would keep its output to itself.
  .step(found, c("-I", "-m", "ensurepip", "--upgrade", "--default-pip"), verbose = FALSE, python = python)
  made <- TRUE
  found
}

# An environment is never deleted: the user may have put something there. NULL if there is none.
.move_aside <- function(folder, dead, verbose) {
  if (!dir.exists(folder)) {
    return(NULL)
  }
  aside <- paste0(folder, ".before-", format(Sys.time(), "%Y%m%d-%H%M%S"))
  if (file.exists(aside) || !suppressWarnings(file.rename(folder, aside))) {
    .abort(c("The Python environment {.file {folder}} cannot be renamed, and nothing is deleted.",
      i = "Rename or remove it yourself, or name another: {.code install_scmamba(envname = \"/path/to/folder\")}."),
      class = "scmamba_install_error")
  }
  if (verbose) {
    state <- if (dead) "does not run" else "is replaced"
    cli::cli_inform(c("!" = "The Python environment {.file {folder}} {state}; it was renamed to {.file {aside}}.",
      i = "Delete that folder when you are sure that you need nothing in it."))
  }
  aside
}

# The newest Python that can be the start of an environment R can load.
.starter <- function() {
  found <- .reticulate_quietly(reticulate::virtualenv_starter(version = ">=3.10", all = TRUE))
  # It gives up where any environment it comes across is dead.
  found <- if (is.data.frame(found)) found$path else .pythons_by_name()
  for (python in found) {
    if (identical(attr(.ask_python(python, .starter_question), "status"), 0L)) {
      return(python)
    }
  }
  .abort(c(
    "No Python was found to create the environment with: 3.10 or newer, with its shared library, venv and pip.",
    i = "Type {.code reticulate::install_python(\"3.12\")}, or on Debian and Ubuntu in a terminal
         {.code sudo apt-get install python3-venv python3-pip}; then {.code install_scmamba()} again.",
    i = "If yours was not found, name it: {.code install_scmamba(python = \"/path/to/python\")}."
  ), class = "scmamba_python_error")
}

.pythons_by_name <- function() {
  names <- c(paste0("python3.", 13:10), "python3", "python")
  folders <- c("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin", Sys.glob("~/.pyenv/versions/*/bin"))
  found <- c(Sys.which(names), file.path(rep(folders, each = length(names)), names))
  unique(found[nzchar(found) & file.exists(found)])
}

.starter_or_null <- function() tryCatch(.starter(), error = function(e) NULL)

# A Python with everything that is needed: new enough, a shared library, venv and pip.
.starter_question <- c(
  "import sys, sysconfig",
  "assert sys.version_info >= (3, 10)",
  "assert sys.platform in ('darwin', 'win32') or sysconfig.get_config_var('Py_ENABLE_SHARED')",
  "import ensurepip, venv",
  "print('fit'); print()"
)

.check_starter <- function(python) {
  python <- .check_name(python, "python")
  if (!grepl("[/\\\\]", python) && nzchar(Sys.which(python))) python <- Sys.which(python)[[1]]
  python <- .interpreter_in(path.expand(python))
  if (!file.exists(python)) {
    .abort("There is no Python at {.file {python}}; name one with
      {.code install_scmamba(python = \"/path/to/python\")}.", class = "scmamba_python_error")
  }
  said <- .ask_python(python)
  if (!identical(attr(said, "status"), 0L)) {
    words <- .verbatim(utils::tail(c("it prints nothing", said), 1))
    .abort(c("{.file {python}} does not run.", x = words,
      i = "Name another: {.code install_scmamba(python = \"/path/to/python\")}."), class = "scmamba_python_error")
  }
  if (numeric_version(said[[1]]) < "3.10") {
    .abort(c("scMamba needs Python 3.10 or newer; {.file {python}} is {said[[1]]}.",
      i = "Name a newer one: {.code install_scmamba(python = \"/path/to/python\")}; or install one:
           {.code install_scmamba(python = reticulate::install_python(\"3.12\"))}."), class = "scmamba_python_error")
  }
  python
}

.pip <- c("-I", "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")

.install <- function(python, packages, pip_options, verbose) {
  if (verbose) cli::cli_inform("Installing {.val {packages[[length(packages)]]}}")
  .step(python, c(.pip, pip_options, packages), verbose)
}

# Run one command; its failure becomes a sentence with what to type.
.step <- function(program, arguments, verbose, python = program) {
  ran <- .run_shown(program, arguments, verbose)
  if (ran$status != 0) .explain_step(python, arguments, ran$said)
  invisible(ran$said)
}

.run_shown <- function(python, arguments, verbose) {
  line <- paste(shQuote(c(python, arguments)), collapse = " ")
  if (.Platform$OS.type == "unix") {
    line <- paste0("LD_LIBRARY_PATH=", shQuote(.clean_library_path()), " ", line)
  }
  connection <- pipe(paste(line, "2>&1"), open = "r")
  said <- character()
  status <- NULL
  on.exit(if (is.null(status)) close(connection))
  while (length(text <- readLines(connection, n = 1, warn = FALSE)) > 0) {
    said <- c(said, text)
    if (verbose && grepl("^ *(Downloading|Installing|Building|Successfully)", text)) message("  ", trimws(text))
  }
  status <- close(connection)
  list(status = if (is.null(status)) 0L else as.integer(status), said = said)
}

# Output of pip and venv -> what it means. The first that fits; a missing network also ends in
# "no matching distribution".
.pip_failures <- c(
  disk = "No space left on device|Errno 28|Disk quota exceeded|Errno 122",
  venv = "ensurepip is not available|No module named '?(venv|ensurepip)|No module named pip|apt install python3",
  certificate = "CERTIFICATE_VERIFY_FAILED|SSLCertVerificationError",
  network = paste0("name resolution|NewConnectionError|Connection refused|Network is unreachable|ConnectTimeout|",
    "ProxyError|ReadTimeout|Max retries|Could not resolve host"),
  build = "No matching distribution found|Could not find a version that satisfies|requires a different Python",
  permission = "Permission denied|Errno 13|Read-only file system|Errno 30"
)

.explain_step <- function(python, arguments, said) {
  .state$pip <- said
  fits <- vapply(.pip_failures, function(pattern) any(grepl(pattern, said)), NA)
  kind <- c(names(.pip_failures)[fits], "other")[[1]]
  errors <- grep("^(ERROR|Error|error|OSError|fatal)|Errno", said, value = TRUE)
  if (length(errors) == 0) errors <- c("(it printed nothing)", said[nzchar(said)])
  words <- trimws(utils::tail(errors, 1))
  what <- if ("install" %in% arguments) arguments[[length(arguments)]] else "pip"
  version <- c(.ask_python(python), "?")[[1]]
  .abort(c(.install_failures[[kind]][1], x = .verbatim(words), .install_failures[[kind]][-1]),
    class = c(if (kind == "build") "scmamba_no_build", "scmamba_install_error"))
}

# What it means, and what to type.
.install_failures <- list(
  disk = c("The disk is full: {.val {what}} could not be installed.",
    i = "PyTorch and the other packages need 2 GB (10 GB with the parts for NVIDIA cards). Make room, or use another
      disk:
      {.code install_scmamba(envname = \"/big/disk/r-scmamba\")} and
      {.code options(scmamba.python = \"/big/disk/r-scmamba\")}.",
    i = "If {.file /tmp} is small: {.code Sys.setenv(TMPDIR = \"/big/disk/tmp\")} before."),
  venv = c("{.file {python}} cannot make Python environments: its parts {.pkg venv} and {.pkg pip} are missing.",
    i = "On Debian or Ubuntu type {.code sudo apt-get install python3-venv} in a terminal, then
      {.code install_scmamba()} again;",
    i = "or name another Python: {.code install_scmamba(python = \"/path/to/python\")}."),
  certificate = c("pip rejects the certificate of the Package Index, as behind the proxy of a company.",
    i = "Type {.code Sys.setenv(PIP_CERT = \"/path/to/certificates.pem\")}, then {.code install_scmamba()} again."),
  network = c("pip cannot reach the Package Index: no network, or a proxy or firewall in between.",
    i = "Check the connection, then type {.code install_scmamba()} again.",
    i = "A proxy is named by {.code Sys.setenv(HTTPS_PROXY = \"http://proxy:port\")}, an index of your own by
      {.code install_scmamba(pip_options = c(\"--index-url\", \"https://...\"))}."),
  build = c("There is no {.val {what}} for Python {version} on this system (as a rule, Python is too new or too old).",
    i = "Type {.code install_scmamba(python = reticulate::install_python(\"3.12\"), force = TRUE)}."),
  permission = c("The environment may not be written.",
    i = "Name a folder that you can write to: {.code install_scmamba(envname = \"/path/to/r-scmamba\")} and
      {.code options(scmamba.python = \"/path/to/r-scmamba\")}."),
  other = c("{.val {what}} could not be installed.", i = "The whole output: {.code scMamba:::.pip_said()}.")
)

# For reports of what went wrong.
.pip_said <- function() writeLines(.state$pip %||% "nothing yet")

.report_installed <- function(python, verbose) {
  if (!verbose) {
    return(invisible())
  }
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

# "scmamba" with its optional parts, whatever it is named by.
.with_extras <- function(source, extras) {
  if (length(extras) == 0 || grepl("]", source, fixed = TRUE)) {
    return(source)
  }
  list <- paste0("[", paste(extras, collapse = ","), "]")
  if (file.exists(source)) {
    return(paste0(source, list))
  }
  if (grepl("^git\\+", source)) {
    return(paste0("scmamba", list, " @ ", source))
  }
  sub("^([A-Za-z0-9._-]+)", paste0("\\1", list), source)
}

# What to give pip. The name of the package on an index is never guessed: whoever owns that name could be anybody.
.pip_source <- function(source) {
  source <- source %||% getOption("scmamba.source") %||% .env_or_null("SCMAMBA_SOURCE") %||%
    .packaged_source()
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

# The Python package that was installed with this R package: links in inst/python, which R follows.
.packaged_source <- function(folder = system.file("python", package = "scMamba")) {
  if (!nzchar(folder) || !.is_checkout(folder) || !dir.exists(file.path(folder, "python", "scmamba"))) {
    .abort(c("This installation of the R package lacks the Python package {.pkg scmamba}.",
      i = "Name a checkout of scMamba: {.code install_scmamba(\"path/to/scMamba\")}."),
      class = "scmamba_install_error")
  }
  normalizePath(folder, winslash = "/")
}

.pip_path <- function(path) {
  if (dir.exists(path) && !.is_checkout(path)) {
    .abort("The folder {.file {path}} is not a checkout of scMamba: it has no
      {.file pyproject.toml} that names the package.")
  }
  normalizePath(path)
}

.is_checkout <- function(path) {
  file <- file.path(path, "pyproject.toml")
  file.exists(file) && any(grepl("^name *= *\"scmamba\"", readLines(file, warn = FALSE)))
}

.env_or_null <- function(name) {
  value <- Sys.getenv(name)
  if (nzchar(value)) value else NULL
}
