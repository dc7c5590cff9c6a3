#' scMamba: imputation, embedding and annotation of single-nucleus RNA-seq
#'
#' [ScMambaImpute()] and [ScMambaEmbed()] take a Seurat object (version 4 or
#' 5), a `SingleCellExperiment` or a sparse genes x cells matrix and return
#' the same object with the results added; your own data are never changed.
#' The computation is done by the Python package `scmamba`;
#' [install_scmamba()] sets it up and [scmamba_config()] shows what is used.
#'
#' @section Which Python is used:
#' The first of these that is set: the environment variable
#' `RETICULATE_PYTHON`; `options(scmamba.python = "/path/to/python")`; what
#' `reticulate::use_python()` or `reticulate::use_virtualenv()` chose; the
#' environment `r-scmamba` that [install_scmamba()] makes.
#' Nothing is started before the first call that needs Python.
#'
#' @keywords internal
#' @importClassesFrom Matrix dgCMatrix
#' @importFrom methods as is new
#' @importFrom utils packageVersion
"_PACKAGE"
