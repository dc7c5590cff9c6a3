#' A simulated brain cohort for examples
#'
#' Simulates the cohort that comes with scMamba
#' (`scmamba.datasets.brain_cohort()` in Python) as a Seurat object: raw counts
#' of eight brain cell types from several donors, half of them with a disease
#' effect. It is simulated: for examples and teaching, not for biology.
#'
#' @param n.cells,n.donors Number of cells and donors.
#' @param n.genes Keep this many of the most expressed genes; `NULL` keeps all.
#' @param seed The same seed gives the same cohort.
#'
#' @return A Seurat object with the metadata columns `cell_type`, `donor`,
#'   `disease` and others; `Misc(object, "true_log2fc")` is the matrix of true
#'   log2 fold changes, genes x cell types.
#' @examples
#' if (scmamba_available()) {
#'   ScMambaCohort(n.cells = 50, n.donors = 2, n.genes = 500)
#' }
#' @export
ScMambaCohort <- function(n.cells = 500, n.donors = 8, n.genes = NULL, seed = 0) {
  options <- list(
    n_cells = .check_integer(n.cells, "n.cells", 1L),
    n_donors = .check_integer(n.donors, "n.donors", 1L),
    n_genes = if (is.null(n.genes)) NULL else .check_integer(n.genes, "n.genes", 1L),
    seed = .check_integer(seed, "seed", 0L)
  )
  modules <- .python()
  datasets <- .translate_errors(reticulate::import("scmamba.datasets", convert = FALSE))
  adata <- .translate_errors(do.call(datasets$brain_cohort, options))
  slots <- .translate_errors(modules$slots$layer_slots(adata))
  names <- list(.index(adata$var_names), .index(adata$obs_names))
  counts <- .from_slots(slots, lengths(names), names)
  object <- SeuratObject::CreateSeuratObject(counts, meta.data = reticulate::py_to_r(adata$obs),
    project = "brain_cohort")
  # A matrix: Misc() keeps a data frame as a mere list.
  truth <- as.matrix(.plain_frame(reticulate::py_get_item(adata$varm, "true_log2fc")))
  rownames(truth) <- rownames(object)
  SeuratObject::Misc(object, "true_log2fc") <- truth
  object
}

.index <- function(index) as.character(reticulate::py_to_r(index$tolist()))
