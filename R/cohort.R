#' A simulated brain cohort for examples
#'
#' Simulates the cohort that comes with scMamba
#' (`scmamba.datasets.brain_cohort()` in Python) as a Seurat object: raw counts
#' of eight brain cell types from several donors, half of them with a disease
#' effect. It is simulated: for examples and teaching, not for biology.
#'
#' With `disease` it is semi-synthetic: the changes are those that were
#' published. `"AD"`: genes of Mathys et al. (Nature 570:332, 2019), type by
#' type. `"PD"`: as many and as large changes as Smajic et al. (Brain 145:964,
#' 2022) published for the midbrain, of genes drawn at random; pass their table
#' as `effects` for their genes. Both studies used tests over cells, so their
#' genes may be false. Finding a gene here shows that a test works; it is no
#' evidence about the disease.
#'
#' @param n.cells,n.donors Number of cells and donors.
#' @param n.genes Keep this many of the most expressed genes; `NULL` keeps all.
#' @param seed The same seed gives the same cohort.
#' @param disease `"AD"` or `"PD"`: published changes, and donors that differ as
#'   real controls do. `NULL`: which genes change is random, and patients are
#'   called AD.
#' @param effects Log2 fold changes of your own, a matrix or data frame with
#'   genes in rows and cell types in columns, in place of those that come with
#'   `disease`; `NA` is no change.
#' @param ambient Mean share of a cell's counts that is ambient RNA, the average
#'   over all cells of its donor.
#' @param ambient.ratio,depth.ratio Factors on the ambient share and on the
#'   counts per cell of patients; other than 1, they are confounded with the
#'   disease.
#'
#' @return A Seurat object with the metadata columns `cell_type`, `donor`,
#'   `disease` and others; `Misc(object, "true_log2fc")` is the matrix of true
#'   log2 fold changes, genes x cell types.
#' @examples
#' if (scmamba_available()) {
#'   ScMambaCohort(n.cells = 50, n.donors = 2, n.genes = 500)
#' }
#' @export
ScMambaCohort <- function(n.cells = 500, n.donors = 8, n.genes = NULL, seed = 0, disease = NULL, effects = NULL,
                          ambient = 0, ambient.ratio = 1, depth.ratio = 1) {
  options <- list(
    n_cells = .check_integer(n.cells, "n.cells", 1L),
    n_donors = .check_integer(n.donors, "n.donors", 1L),
    n_genes = if (is.null(n.genes)) NULL else .check_integer(n.genes, "n.genes", 1L),
    seed = .check_integer(seed, "seed", 0L),
    disease = if (is.null(disease)) NULL else .check_name(disease, "disease"),
    effects = if (is.null(effects)) NULL else reticulate::r_to_py(as.data.frame(effects)),
    ambient = .check_number(ambient, "ambient"), ambient_ratio = .check_number(ambient.ratio, "ambient.ratio"),
    depth_ratio = .check_number(depth.ratio, "depth.ratio")
  )
  modules <- .python()
  datasets <- .translate_errors(reticulate::import("scmamba.datasets", convert = FALSE))
  adata <- .translate_errors(do.call(datasets$brain_cohort, options))
  slots <- .translate_errors(modules$slots$layer_slots(adata))
  names <- list(.index(adata$var_names), .index(adata$obs_names))
  counts <- .from_slots(slots, lengths(names), names)
  object <- SeuratObject::CreateSeuratObject(counts, meta.data = .plain_frame(adata$obs),
    project = "brain_cohort")
  # A matrix: Misc() keeps a data frame as a mere list.
  truth <- as.matrix(.plain_frame(reticulate::py_get_item(adata$varm, "true_log2fc")))
  rownames(truth) <- rownames(object)
  SeuratObject::Misc(object, "true_log2fc") <- truth
  object
}

.index <- function(index) as.character(reticulate::py_to_r(index$tolist()))
