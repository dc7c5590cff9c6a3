#' Show versions and devices
#'
#' Prints which R, Python, versions, device and implementations of the selective
#' scan are used. Look here first if something does not work, and add the output
#' to a bug report.
#'
#' @return A list of class `scmamba_config`; printing it shows a table. Its entry
#'   `road` names how Python was found: a name you gave, the environment of
#'   [install_scmamba()], [scmamba_require()], or reticulate's own search. If
#'   no usable Python is found, its entry `problem` gives the error and what to do.
#' @examples
#' scmamba_config()
#' @export
scmamba_config <- function() {
  config <- list(r = .r_versions(), python = NULL, road = NULL, packages = NULL, device = NULL,
    backends = NULL, problem = NULL)
  found <- tryCatch(.find_python(), error = identity)
  if (inherits(found, "error")) {
    config$problem <- conditionMessage(found)
  } else {
    config[c("python", "packages", "device", "backends")] <- .python_versions()
    config$road <- .road(config$python[["path"]])
  }
  structure(config, class = "scmamba_config")
}

# How this Python was chosen.
.road <- function(python) {
  if (!is.null(.state$managed)) {
    return("scmamba_require(): prepared by uv")
  }
  if (startsWith(normalizePath(dirname(python), "/"), normalizePath(.environment_folder(), "/", mustWork = FALSE))) {
    return("install_scmamba(): its environment")
  }
  named <- .with_option(.chosen_by())
  if (is.null(named)) "found by reticulate" else paste("named by", named)
}

.r_versions <- function() {
  version <- function(package) {
    tryCatch(as.character(packageVersion(package)), error = function(e) NA_character_)
  }
  packages <- c("scMamba", "reticulate", "Seurat", "SeuratObject", "SingleCellExperiment")
  c(R = as.character(getRversion()), vapply(packages, version, ""))
}

.python_versions <- function() {
  modules <- .python()
  running <- reticulate::py_config()
  metadata <- reticulate::import("importlib.metadata", convert = TRUE)
  version <- function(package) {
    tryCatch(metadata$version(package), error = function(e) NA_character_)
  }
  packages <- c("scmamba", "torch", "numpy", "scipy", "pandas", "anndata", "numba")
  list(
    python = c(path = running$python, version = as.character(running$version)),
    packages = vapply(packages, version, ""),
    device = .device(),
    backends = .backends()
  )
}

# The device the model would run on, and its name.
.device <- function() {
  torch <- reticulate::import("torch", convert = TRUE)
  if (torch$cuda$is_available()) {
    return(paste0("cuda (", torch$cuda$get_device_name(0L), ")"))
  }
  if (isTRUE(tryCatch(torch$backends$mps$is_available(), error = function(e) FALSE))) {
    return("mps (Apple graphics)")
  }
  paste0("cpu (", torch$get_num_threads(), " threads)")
}

.backends <- function() {
  tryCatch(
    unlist(reticulate::import("scmamba.ops", convert = TRUE)$available_backends()),
    error = function(e) NULL
  )
}

#' @method print scmamba_config
#' @export
print.scmamba_config <- function(x, ...) {
  cli::cli_text("{.strong scMamba} {x$r[['scMamba']]}")
  .print_versions("R", x$r[-2])
  if (!is.null(x$problem)) {
    cli::cli_verbatim(strsplit(x$problem, "\n", fixed = TRUE)[[1]])
    return(invisible(x))
  }
  .print_versions("Python", c(x$python, "chosen by" = x$road, x$packages))
  .print_versions("Computes on", c(device = x$device))
  if (length(x$backends) > 0) .print_versions("Selective scan", x$backends)
  invisible(x)
}

.print_versions <- function(title, values) {
  values[is.na(values)] <- "not installed"
  cli::cli_text("{.emph {title}}")
  cli::cli_ul(paste0(names(values), ": ", .verbatim(values)))
  cli::cli_end()
}
