#' The genes that differ between conditions
#'
#' One panel per cell type: shrunken fold change against p, with the genes that are called in color. Genes whose result
#' depends on one donor are rings.
#'
#' @param result The result of [ScMambaCompare()].
#' @param cell.types Cell types to draw; by default all, in the order of the table.
#' @param n.genes Number of called genes, by p, whose names are drawn in each panel; names that would overlap are
#'   omitted.
#' @return A ggplot. Numbers of called genes are in the titles of the panels, the false discovery rate in the caption.
#' @seealso [ScMambaCompare()]
#' @examples
#' if (scmamba_available() && requireNamespace("ggplot2", quietly = TRUE)) {
#'   seu <- ScMambaCohort(n.cells = 400, n.donors = 6, n.genes = 300)
#'   result <- ScMambaCompare(seu, "disease", donor = "donor", cell.type = "cell_type",
#'     ident.1 = "AD", ident.2 = "Control", test.use = "voom", verbose = FALSE)
#'   ScMambaPlotCompare(result)
#' }
#' @export
ScMambaPlotCompare <- function(result, cell.types = NULL, n.genes = 8) {
  .needs_ggplot2()
  if (!inherits(result, "scmamba_comparison")) {
    .abort("{.arg result} must be the result of {.fn ScMambaCompare}, not {.cls {class(result)[[1]]}}.")
  }
  n.genes <- .check_integer(n.genes, "n.genes", 0L)
  table <- result$table
  known <- unique(as.character(table$cell_type))
  types <- if (is.null(cell.types)) known else as.character(cell.types)
  .check_known(types, known, "cell type", "cell.types")
  settings <- result$settings
  table <- table[as.character(table$cell_type) %in% types & !is.na(table$p_val), , drop = FALSE]
  called <- !is.na(table$p_val_adj) & table$p_val_adj < settings$alpha
  higher <- paste("higher in", c(settings$group1, settings$group2))
  table$call <- factor(ifelse(!called, "not called", ifelse(table$log2FC_shrunk > 0, higher[[1]], higher[[2]])),
    c(higher, "not called"))
  table$single <- called & !is.na(table$driven_by) & nzchar(as.character(table$driven_by))
  table$y <- -log10(pmax(table$p_val, 1e-300))
  counts <- vapply(types, function(type) sum(called & as.character(table$cell_type) == type), 0L)
  table$panel <- factor(as.character(table$cell_type), types,
    paste0(types, " (", counts, ifelse(counts == 1, " gene)", " genes)")))
  .volcano(table, .named_genes_of(table, n.genes), settings)
}

.volcano <- function(table, named, settings) {
  .data <- ggplot2::.data
  what <- if (is.null(settings$interaction)) "fold change" else paste("ratio of fold changes by", settings$interaction)
  rings <- table[table$single, , drop = FALSE]
  caption <- paste0("in color: false discovery rate below ", signif(100 * settings$alpha, 3), "%",
    if (nrow(rings) > 0) "; rings: the result depends on one donor")
  ggplot2::ggplot(table, ggplot2::aes(.data$log2FC_shrunk, .data$y, colour = .data$call)) +
    ggplot2::geom_point(data = table[!table$single, , drop = FALSE], size = 0.8, alpha = 0.7) +
    ggplot2::geom_point(data = rings, size = 1.6, shape = 1) +
    ggplot2::geom_text(ggplot2::aes(label = .data$gene), data = named, size = 2.6, vjust = -0.6, show.legend = FALSE,
      check_overlap = TRUE) +
    ggplot2::facet_wrap(ggplot2::vars(.data$panel)) +
    ggplot2::scale_y_continuous(expand = ggplot2::expansion(c(0.02, 0.1))) +
    ggplot2::scale_colour_manual(values = c(.colours[c(6, 1)], "grey70"), drop = FALSE,
      guide = ggplot2::guide_legend(override.aes = list(size = 2, alpha = 1, shape = 16))) +
    ggplot2::labs(x = sprintf("log2 %s, %s over %s (shrunken)", what, settings$group1, settings$group2),
      y = expression(-log[10] ~ p), colour = NULL, caption = caption) +
    .theme()
}

# The most certain called genes of each panel.
.named_genes_of <- function(table, n) {
  called <- table[table$call != "not called", , drop = FALSE]
  called <- called[order(called$p_val), , drop = FALSE]
  place <- stats::ave(seq_len(nrow(called)), called$panel, FUN = seq_along)
  called[place <= n, , drop = FALSE]
}
