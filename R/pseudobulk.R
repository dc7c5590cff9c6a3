#' Compare two groups of donors
#'
#' The test for a difference between patients and controls: counts are summed over
#' the cells of each donor and group, and the sums are compared by a linear model on
#' log2 counts per million whose gene variances are moderated (Smyth 2004). The unit
#' is the donor, not the cell. For groups of cells of the same donors use [ScMambaFindMarkers()].
#'
#' @inheritParams ScMambaFindMarkers
#' @param object A Seurat object or a SingleCellExperiment with counts.
#' @param group.by Column of the metadata with the groups, such as disease.
#' @param donor Column of the metadata with the donors, or one value for each cell. A donor with
#'   cells in both groups gives one sample in each.
#' @param ident.1,ident.2 The groups to compare: values of `group.by`. `ident.2 = NULL` means all other cells
#'   that have a value.
#' @param assay,layer,slot What is summed: the counts of the default assay (of the assay that an
#'   imputed one was made from). `slot` is Seurat 4's name for `layer`.
#' @param subset.ident Only cells of these identities, for example one cell type.
#' @param covariates Columns of the metadata that are constant within a donor (age, sex, batch), added to the
#'   model.
#' @param paired Compare within donors? `NULL`: yes, if every donor has both groups.
#' @param moderate Moderate the variances over genes? `FALSE` gives ordinary t-tests.
#' @param min.cells Samples with fewer cells are omitted.
#' @param min.total Genes with a smaller sum over all samples are omitted.
#' @param ... Not used; anything here is an error.
#'
#' @return A data frame with genes as row names, sorted by p-value: `log2FC` (`ident.1` over `ident.2`),
#'   `mean_log2` (expression), `t`, `df`, `p_val`, `p_val_adj` (Benjamini-Hochberg). Its attribute `"samples"` is the
#'   table of donors that were compared, and `"notes"` lists donors that were omitted and why.
#' @references Smyth (2004) Linear models and empirical Bayes methods for assessing differential expression in
#'   microarray experiments. Statistical Applications in Genetics and Molecular Biology 3:3.
#' @seealso [ScMambaFindMarkers()], [ScMambaRobustness()]
#' @examples
#' if (scmamba_available()) {
#'   seu <- ScMambaCohort(n.cells = 400, n.donors = 6, n.genes = 300)
#'   head(ScMambaPseudobulk(seu, "disease", donor = "donor", ident.1 = "AD", ident.2 = "Control"))
#' }
#' @export
ScMambaPseudobulk <- function(object, ...) {
  UseMethod("ScMambaPseudobulk")
}

#' @rdname ScMambaPseudobulk
#' @export
ScMambaPseudobulk.Seurat <- function(object, group.by, donor, ident.1, ident.2 = NULL, assay = NULL, layer = "counts",
                                     slot = NULL, subset.ident = NULL, covariates = NULL, paired = NULL,
                                     moderate = TRUE, min.cells = 10, min.total = 10, verbose = TRUE, ...) {
  .no_extra(...)
  if (!is.null(subset.ident)) {
    .check_known(subset.ident, levels(SeuratObject::Idents(object)), "identity", "subset.ident")
    keep <- SeuratObject::Idents(object) %in% subset.ident
    if (length(donor) == length(keep)) donor <- donor[keep]
    object <- object[, keep]
  }
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  .refuse_imputed(object, assay, layer)
  matrix <- .get_layer(object, assay, layer, verbose)
  .pseudobulk(matrix, object[[]], group.by, donor, ident.1, ident.2, covariates, paired, moderate, min.cells, min.total,
    verbose)
}

#' @rdname ScMambaPseudobulk
#' @export
ScMambaPseudobulk.SummarizedExperiment <- function(object, group.by, donor, ident.1, ident.2 = NULL, assay = "counts",
                                                   covariates = NULL, paired = NULL, moderate = TRUE, min.cells = 10,
                                                   min.total = 10, verbose = TRUE, ...) {
  .no_extra(...)
  .pseudobulk(.get_sce(object, assay), .sce_frame(object), group.by, donor, ident.1, ident.2, covariates, paired,
    moderate, min.cells, min.total, verbose)
}

.pseudobulk <- function(matrix, frame, group.by, donor, ident.1, ident.2, covariates, paired, moderate, min.cells,
                        min.total, verbose) {
  groups <- .metadata_column(frame, group.by, "group.by")
  .check_known(ident.1, stats::na.omit(groups), "group", "ident.1")
  if (!is.null(ident.2)) .check_known(ident.2, stats::na.omit(groups), "group", "ident.2")
  people <- as.character(.per_cell(frame, donor, "donor"))
  # Names of our own: a covariate may be called as we would call these.
  cells <- data.frame(scmamba_condition = as.character(groups), scmamba_donor = people, stringsAsFactors = FALSE)
  if (!is.null(covariates)) cells <- cbind(cells, .columns_for(frame, covariates, "covariates"))
  options <- list(
    condition_key = "scmamba_condition", donor_key = "scmamba_donor", group1 = as.list(as.character(ident.1)),
    group2 = if (is.null(ident.2)) NULL else as.list(as.character(ident.2)),
    covariates = if (is.null(covariates)) NULL else as.list(covariates),
    paired = if (is.null(paired)) NULL else .check_flag(paired, "paired"), moderate = .check_flag(moderate, "moderate"),
    min_cells = .check_integer(min.cells, "min.cells", 1L), min_total = .check_number(min.total, "min.total")
  )
  adata <- .to_adata(matrix, cells)
  table <- .call_python(.deg()$pseudobulk, c(list(adata), options), verbose)
  attribute <- function(name) reticulate::py_to_r(table$attrs$get(name))
  samples <- table$attrs$get("samples")
  frame <- .plain_frame(table)
  attr(frame, "samples") <- if (.is_frame(samples)) .plain_frame(samples) else attribute("samples")
  attr(frame, "notes") <- as.character(unlist(attribute("notes")))
  if (verbose) for (note in attr(frame, "notes")) .speaker(note)
  frame
}
