# Figures for a paper: one theme, and colors for color-blind readers (Okabe and Ito 2008). Save them
# with ggsave(dpi = 300).

.colours <- c("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

.needs_ggplot2 <- function() {
  if (!requireNamespace("ggplot2", quietly = TRUE)) {
    .abort("The figure needs the R package {.pkg ggplot2}: {.code install.packages(\"ggplot2\")}.")
  }
}

.theme <- function() {
  ggplot2::theme_classic(base_size = 11) + ggplot2::theme(
    strip.background = ggplot2::element_blank(), strip.text = ggplot2::element_text(face = "bold"),
    legend.position = "bottom"
  )
}

# Wide enough for its numbers.
.bar <- function() ggplot2::guide_colourbar(barwidth = ggplot2::unit(4, "cm"), barheight = ggplot2::unit(0.35, "cm"))

# The table of cells of whatever a verb gave.
.cell_table <- function(object) {
  if (is.data.frame(object)) object else if (inherits(object, "Seurat")) object[[]] else .sce_frame(object)
}

.record_of <- function(object, verb) {
  record <- if (inherits(object, "Seurat")) {
    .seurat_record(object)[[verb]]
  } else if (is.data.frame(object)) {
    attr(object, "scmamba")
  } else {
    .sce_record(object)[[verb]]
  }
  if (is.list(record$summary)) c(record$summary, record) else record
}

.with_n <- function(values, order = sort(unique(as.character(values)))) {
  n <- table(as.character(values))[order]
  factor(as.character(values), levels = order, labels = paste0(order, " (n = ", n, ")"))
}

#' The robustness figure
#'
#' Subsamples of cells and combinations of donors are never in one panel, because they answer different questions; genes
#' that go up and down are separate.
#'
#' @param result The result of [ScMambaRobustness()].
#' @param measure `"overlap"`, the share of the full data's DEGs that are found again, or
#'   another measure named in `result$runs`.
#' @param type `"heatmap"`: mean by cell type and layer at one share of the cells, with stars for the paired tests of
#'   the layers (the paper's Fig. 7a). `"bars"`: mean and standard deviation by share of the cells (7b). `"boxes"`:
#'   combinations of donors, one point each (7c).
#' @param ratio Share of the cells of the heat map; by default the one closest to a half.
#' @return A ggplot. Numbers of runs are in its caption.
#' @examples
#' if (scmamba_available() && requireNamespace("ggplot2", quietly = TRUE)) {
#'   seu <- ScMambaCohort(n.cells = 400, n.donors = 4, n.genes = 300)
#'   result <- ScMambaRobustness(seu, group.by = "disease", imputed.assay = NULL,
#'     ratios = c(0.5, 0.9), min.degs = 1, permutations = 3, donors = NULL,
#'     null.permutations = 2, workers = 1)
#'   ScMambaPlotRobustness(result)
#' }
#' @export
ScMambaPlotRobustness <- function(result, measure = "overlap", type = c("bars", "heatmap", "boxes"), ratio = NULL) {
  if (!inherits(result, "scmamba_robustness")) {
    .abort("{.arg result} must be a result of {.code ScMambaRobustness()}.")
  }
  .needs_ggplot2()
  type <- match.arg(type)
  runs <- result$runs
  .check_known(measure, names(runs)[vapply(runs, is.numeric, logical(1))], "measure", "measure")
  runs <- .robustness_runs(runs, measure, if (type == "boxes") "donors" else "cells")
  switch(type,
    bars = .robustness_bars(runs, measure),
    heatmap = .robustness_heatmap(runs, measure, ratio, result$tests),
    boxes = .robustness_boxes(runs, measure)
  )
}

.directions <- c(up = "higher in the first group", down = "lower in the first group", both = "both directions")

.robustness_runs <- function(runs, measure, kind) {
  if (!is.null(runs$kind)) runs <- runs[runs$kind == kind, , drop = FALSE]
  runs$value <- runs[[measure]]
  runs <- runs[!is.na(runs$value), , drop = FALSE]
  if (nrow(runs) == 0) {
    what <- if (kind == "cells") "draw of cells" else "combination of donors"
    .abort("No {what} has a value of {.val {measure}}: there were none, or the full data have too few DEGs (see
      {.code result$notes}, {.code result$full} and {.arg min.degs}).")
  }
  runs$direction <- factor(.directions[as.character(runs$direction %||% rep("both", nrow(runs)))], levels = .directions)
  runs
}

.percent <- function(ratio) {
  label <- function(x) paste0(signif(100 * x, 3), "%")
  factor(label(ratio), levels = label(sort(unique(ratio))))
}

.n_runs <- function(groups) {
  n <- range(table(groups)[table(groups) > 0])
  if (n[[1]] == n[[2]]) n[[1]] else paste(n, collapse = " to ")
}

.robustness_bars <- function(runs, measure) {
  runs$share <- .percent(runs$ratio)
  by <- runs[c("share", "layer", "cell_type", "direction")]
  means <- stats::aggregate(list(mean = runs$value), by, mean)
  means$sd <- stats::aggregate(list(sd = runs$value), by, stats::sd)$sd
  # No share is below 0 or above 1, and no bar of a share either.
  limits <- if (all(runs$value >= 0 & runs$value <= 1)) c(0, 1) else c(-Inf, Inf)
  means$low <- pmax(means$mean - means$sd, limits[[1]])
  means$high <- pmin(means$mean + means$sd, limits[[2]])
  .data <- ggplot2::.data
  beside <- ggplot2::position_dodge(width = 0.8)
  ggplot2::ggplot(means, ggplot2::aes(.data$share, .data$mean, fill = .data$layer)) +
    ggplot2::geom_col(position = beside, width = 0.7) +
    ggplot2::geom_errorbar(ggplot2::aes(ymin = .data$low, ymax = .data$high), position = beside, width = 0.2,
      na.rm = TRUE) +
    (if (limits[[2]] == 1) ggplot2::scale_y_continuous(limits = c(0, 1), expand = c(0, 0, 0.02, 0))) +
    ggplot2::facet_grid(ggplot2::vars(.data$cell_type), ggplot2::vars(.data$direction)) +
    ggplot2::scale_fill_manual(values = .colours) +
    ggplot2::labs(x = "share of the cells", y = paste(measure, "of DEGs with all cells"), fill = NULL,
      caption = paste("mean and standard deviation of", .n_runs(interaction(by)), "draws")) +
    .theme()
}

.robustness_heatmap <- function(runs, measure, ratio, tests) {
  known <- sort(unique(runs$ratio))
  ratio <- if (is.null(ratio)) known[[which.min(abs(known - 0.5))]] else .check_number(ratio, "ratio")
  runs <- runs[abs(runs$ratio - ratio) < 1e-9, , drop = FALSE]
  if (nrow(runs) == 0) .abort("{.arg ratio}: there are no subsamples of {.val {ratio}}; there are {.val {known}}.")
  by <- runs[c("layer", "cell_type", "direction")]
  means <- stats::aggregate(list(mean = runs$value), by, mean)
  means$label <- paste0(formatC(means$mean, digits = 2, format = "f"), .stars_of(means, tests, ratio, measure))
  .data <- ggplot2::.data
  ggplot2::ggplot(means, ggplot2::aes(.data$layer, .data$cell_type, fill = .data$mean)) +
    ggplot2::geom_tile(colour = "white") +
    ggplot2::geom_text(ggplot2::aes(label = .data$label), size = 3,
      colour = ifelse(means$mean > 0.55, "white", "black")) +
    ggplot2::facet_wrap(ggplot2::vars(.data$direction)) +
    ggplot2::scale_fill_gradient(low = "#F7FBFF", high = "#08519C", limits = c(0, 1), guide = .bar()) +
    ggplot2::labs(x = NULL, y = NULL, fill = measure, caption = paste0(
      "mean of ", .n_runs(interaction(by)), " draws of ", signif(100 * ratio, 3),
      "% of the cells\n* p < 0.05, ** p < 0.01, *** p < 0.001 against the first layer (paired t-test)"
    )) +
    .theme()
}

# The stars of the table of paired tests, where it has a row for a tile.
.stars_of <- function(tiles, tests, ratio, measure) {
  stars <- rep("", nrow(tiles))
  if (is.null(tests) || nrow(tests) == 0 || measure != "overlap") {
    return(stars)
  }
  tests <- tests[tests$kind == "cells" & abs(tests$ratio - ratio) < 1e-9, , drop = FALSE]
  key <- function(table, way) paste(table$layer, table$cell_type, way, sep = "\r")
  ways <- .directions[as.character(tests$direction)]
  p <- tests$p_val[match(key(tiles, as.character(tiles$direction)), key(tests, ways))]
  for (limit in c(0.05, 0.01, 0.001)) stars[!is.na(p) & p < limit] <- paste0(stars[!is.na(p) & p < limit], "*")
  stars
}

.robustness_boxes <- function(runs, measure) {
  .data <- ggplot2::.data
  by <- runs[c("layer", "cell_type", "direction")]
  beside <- ggplot2::position_dodge(width = 0.8)
  ggplot2::ggplot(runs, ggplot2::aes(.data$cell_type, .data$value, fill = .data$layer)) +
    ggplot2::geom_boxplot(position = beside, width = 0.6, outlier.shape = NA) +
    ggplot2::geom_point(position = beside, size = 0.7, alpha = 0.6, show.legend = FALSE) +
    ggplot2::facet_wrap(ggplot2::vars(.data$direction)) +
    ggplot2::scale_fill_manual(values = .colours) +
    ggplot2::labs(x = NULL, y = paste(measure, "of DEGs with all donors"), fill = NULL,
      caption = paste(.n_runs(interaction(by)), "combinations of donors")) +
    .theme() + ggplot2::theme(axis.text.x = ggplot2::element_text(angle = 30, hjust = 1))
}

#' Probabilities of the cell types
#'
#' @param object The result of [ScMambaAnnotate()]: a Seurat object, a SingleCellExperiment or a
#'   data frame.
#' @param truth Column of the metadata with known types, or one value for each cell: then the figure is the accuracy of
#'   the cells above each threshold against their share.
#' @return A ggplot: the probabilities of every type's cells, with `Unassigned` cells below the
#'   threshold shown separately and numbers of cells; or, with `truth`, coverage and accuracy.
#' @examples
#' if (scmamba_available() && requireNamespace("ggplot2", quietly = TRUE)) {
#'   seu <- ScMambaCohort(n.cells = 80, n.donors = 2, n.genes = 3000)
#'   seu <- ScMambaAnnotate(seu, verbose = FALSE)
#'   ScMambaPlotConfidence(seu)
#'   ScMambaPlotConfidence(seu, truth = "cell_type")
#' }
#' @export
ScMambaPlotConfidence <- function(object, truth = NULL) {
  .needs_ggplot2()
  frame <- .cell_table(object)
  if (!all(c("scmamba_type", "scmamba_probability") %in% names(frame))) {
    .abort("There are no types in this object; run {.code ScMambaAnnotate()} first.")
  }
  threshold <- suppressWarnings(as.numeric(.record_of(object, "annotate")$threshold))
  threshold <- if (length(threshold) == 1 && is.finite(threshold)) threshold
  if (is.null(truth)) .confidence_points(frame, threshold) else
    .coverage_curve(frame, as.character(.per_cell(frame, truth, "truth")), threshold)
}

.confidence_points <- function(frame, threshold) {
  .data <- ggplot2::.data
  order <- sort(unique(as.character(frame$scmamba_type)), method = "radix", decreasing = TRUE)
  # Cells without a type stand last.
  frame$type <- .with_n(frame$scmamba_type, c(intersect("Unassigned", order), setdiff(order, "Unassigned")))
  frame$named <- ifelse(frame$scmamba_type == "Unassigned", "Unassigned", "assigned")
  # Spread by rank, not by chance: the same figure every time.
  frame$at <- as.integer(frame$type) + 0.35 * (((seq_len(nrow(frame)) * 0.618034) %% 1) * 2 - 1)
  ggplot2::ggplot(frame, ggplot2::aes(.data$scmamba_probability, .data$at, colour = .data$named)) +
    ggplot2::geom_point(size = 0.6, alpha = 0.6) +
    (if (!is.null(threshold)) ggplot2::geom_vline(xintercept = threshold, linetype = 2)) +
    ggplot2::scale_y_continuous(breaks = seq_along(levels(frame$type)), labels = levels(frame$type)) +
    ggplot2::scale_colour_manual(values = c(assigned = .colours[[1]], Unassigned = "grey60"),
      guide = ggplot2::guide_legend(override.aes = list(size = 2, alpha = 1))) +
    ggplot2::coord_cartesian(xlim = c(0, 1)) +
    ggplot2::labs(x = "probability of the most likely type", y = NULL, colour = NULL,
      caption = if (!is.null(threshold)) paste0("dashed: threshold ", signif(threshold, 3))) +
    .theme()
}

# What share of the cells lies above each threshold, and how many of those are right. The type of an Unassigned cell is
# the first of its alternatives.
.coverage_curve <- function(frame, truth, threshold) {
  called <- as.character(frame$scmamba_type)
  if (!is.null(frame$scmamba_alternatives)) {
    first <- sub(" [0-9.]+$", "", sub(";.*$", "", as.character(frame$scmamba_alternatives)))
    called <- ifelse(called == "Unassigned" & nzchar(first), first, called)
  }
  known <- !is.na(truth)
  never <- setdiff(truth[known], called)
  if (length(never) > 0) {
    cli::cli_inform(c("!" = "No cell is called {.val {never}}, as {.arg truth} names {sum(truth %in% never)} cell{?s};
      these count as errors. Calls are {.val {sort(unique(called))}}: give {.arg truth} the same names."))
  }
  right <- (called == truth)[known]
  p <- frame$scmamba_probability[known]
  order <- order(p, decreasing = TRUE)
  n <- seq_along(order)
  curve <- data.frame(coverage = n / length(n), accuracy = cumsum(right[order]) / n, p = p[order])
  # Cells of one probability are above a threshold together.
  curve <- curve[!duplicated(curve$p, fromLast = TRUE), , drop = FALSE]
  .data <- ggplot2::.data
  at <- if (!is.null(threshold) && any(curve$p >= threshold)) utils::tail(curve[curve$p >= threshold, ], 1)
  ggplot2::ggplot(curve, ggplot2::aes(.data$coverage, .data$accuracy)) +
    ggplot2::geom_line(colour = .colours[[1]]) +
    (if (!is.null(at)) ggplot2::geom_point(data = at, size = 2, colour = .colours[[6]])) +
    ggplot2::coord_cartesian(xlim = c(0, 1), ylim = c(min(0.5, min(curve$accuracy)), 1)) +
    ggplot2::labs(x = "coverage", y = "accuracy", caption = paste0(
      "share of the cells with a type, and share of these that are correct\nn = ", length(n),
      if (!is.null(at)) paste0("; point: threshold ", signif(threshold, 3)))) +
    .theme()
}

#' Doublet scores
#'
#' @param object The result of [ScMambaDoublets()]: a Seurat object, a SingleCellExperiment or a data frame.
#' @param sample Column of the metadata with the samples, or one value for each cell; one panel each.
#' @param reduction Name of a reduction, such as `"umap"` of a Seurat object or `"UMAP"` of a SingleCellExperiment:
#'   draws the cells there instead of a histogram.
#' @return A ggplot.
#' @examples
#' if (scmamba_available() && requireNamespace("ggplot2", quietly = TRUE)) {
#'   seu <- ScMambaCohort(n.cells = 120, n.donors = 2, n.genes = 1500)
#'   seu <- ScMambaDoublets(seu, sample = "donor", verbose = FALSE)
#'   ScMambaPlotDoublets(seu, sample = "donor")
#' }
#' @export
ScMambaPlotDoublets <- function(object, sample = NULL, reduction = NULL) {
  .needs_ggplot2()
  frame <- .cell_table(object)
  if (!all(c("scmamba_doublet", "scmamba_doublet_score") %in% names(frame))) {
    .abort("There are no scores in this object; run {.code ScMambaDoublets()} first.")
  }
  samples <- if (is.null(sample)) rep("all cells", nrow(frame)) else as.character(.per_cell(frame, sample, "sample"))
  frame$panel <- samples
  called <- tapply(frame$scmamba_doublet, samples, sum)
  label <- function(names) paste0(names, ": ", called[names], " of ", table(samples)[names], " called")
  frame$panel <- factor(samples, levels = sort(unique(samples)), labels = label(sort(unique(samples))))
  frame$call <- ifelse(frame$scmamba_doublet, "doublet", "singlet")
  if (!is.null(reduction)) {
    return(.doublet_map(object, frame, reduction))
  }
  # Every sample has its own cut: between the highest score of a singlet and the lowest of a doublet.
  doublets <- frame[frame$scmamba_doublet, ]
  low <- tapply(doublets$scmamba_doublet_score, doublets$panel, min)
  cuts <- data.frame(panel = factor(names(low), levels = levels(frame$panel)), cut = as.numeric(low))
  .data <- ggplot2::.data
  ggplot2::ggplot(frame, ggplot2::aes(.data$scmamba_doublet_score, fill = .data$call)) +
    ggplot2::geom_histogram(bins = 40, boundary = 0) +
    ggplot2::geom_vline(data = cuts[!is.na(cuts$cut), ], ggplot2::aes(xintercept = .data$cut), linetype = 2) +
    ggplot2::facet_wrap(ggplot2::vars(.data$panel), scales = "free_y") +
    ggplot2::scale_fill_manual(values = c(singlet = "grey70", doublet = .colours[[6]])) +
    ggplot2::labs(x = "doublet score", y = "cells", fill = NULL,
      caption = if (nrow(doublets) > 0) "dashed: lowest score of a called doublet") +
    .theme()
}

.doublet_map <- function(object, frame, reduction) {
  if (is.data.frame(object)) .abort("{.arg reduction} needs a Seurat object or a SingleCellExperiment.")
  reduction <- .reduction_named(object, reduction, NULL, "reduction")
  at <- .coordinates(object, reduction)
  axes <- colnames(at) %||% paste(reduction, 1:2)
  frame$x <- at[, 1]
  frame$y <- at[, 2]
  frame <- frame[order(frame$scmamba_doublet_score), ]
  .data <- ggplot2::.data
  ggplot2::ggplot(frame, ggplot2::aes(.data$x, .data$y, colour = .data$scmamba_doublet_score)) +
    ggplot2::geom_point(size = 0.6) +
    ggplot2::geom_point(data = frame[frame$scmamba_doublet, ], shape = 1, size = 1.6, colour = .colours[[6]]) +
    ggplot2::scale_colour_gradient(low = "grey85", high = "black", guide = .bar()) +
    ggplot2::labs(x = sub("_", " ", axes[[1]]), y = sub("_", " ", axes[[2]]), colour = "doublet score",
      caption = "circled: called") +
    .theme()
}

#' Dot plot of marker genes
#'
#' Marker genes by annotated type: the share of cells that express a gene, and its mean.
#'
#' @param object A Seurat object or SingleCellExperiment annotated by [ScMambaAnnotate()].
#' @param markers A named list of types and genes; by default the panels of the eight major types of the human brain.
#' @param group.by Column of the metadata with the types.
#' @param assay Assay with the counts; by default as in [ScMambaAnnotate()].
#' @param n.genes At most this many genes of a panel, the most expressed ones.
#' @return A ggplot.
#' @examples
#' if (scmamba_available() && requireNamespace("ggplot2", quietly = TRUE)) {
#'   seu <- ScMambaCohort(n.cells = 80, n.donors = 2, n.genes = 3000)
#'   ScMambaPlotMarkers(ScMambaAnnotate(seu, verbose = FALSE))
#' }
#' @export
ScMambaPlotMarkers <- function(object, markers = NULL, group.by = "scmamba_type", assay = NULL, n.genes = 4) {
  .needs_ggplot2()
  groups <- as.character(.metadata_column(.cell_table(object), group.by, "group.by"))
  matrix <- if (inherits(object, "Seurat")) {
    .get_layer(object, .source_assay(object, assay, FALSE), "counts", FALSE)
  } else {
    .get_sce(object, assay %||% "counts")
  }
  markers <- markers %||% .brain_markers()
  markers <- lapply(markers, function(genes) intersect(as.character(genes), rownames(matrix)))
  markers <- markers[lengths(markers) > 0]
  if (length(markers) == 0) .abort("None of the marker genes is in this object; are its row names gene symbols?")
  table <- .dot_table(matrix, groups, markers, .check_integer(n.genes, "n.genes", 1L))
  .data <- ggplot2::.data
  ggplot2::ggplot(table, ggplot2::aes(.data$gene, .data$group, size = .data$share, colour = .data$mean)) +
    ggplot2::geom_point() +
    ggplot2::facet_grid(cols = ggplot2::vars(.data$panel), scales = "free_x", space = "free_x") +
    ggplot2::scale_size_area(max_size = 5, limits = c(0, 100)) +
    ggplot2::scale_colour_gradient(low = "grey85", high = .colours[[1]], guide = .bar()) +
    ggplot2::labs(x = NULL, y = NULL, size = "% of cells", colour = "mean log1p(CP10k)") +
    .theme() +
    ggplot2::theme(axis.text.x = ggplot2::element_text(angle = 90, hjust = 1, vjust = 0.5),
      strip.text = ggplot2::element_text(angle = 90, hjust = 0))
}

.brain_markers <- function() {
  .python()
  panels <- reticulate::import("scmamba.datasets.marker_panels", convert = TRUE)$brain_markers()
  lapply(panels, function(genes) as.character(unlist(genes)))
}

.dot_table <- function(matrix, groups, markers, most) {
  totals <- Matrix::colSums(matrix)
  rows <- do.call(rbind, lapply(names(markers), function(panel) {
    values <- log1p(t(t(as.matrix(matrix[markers[[panel]], , drop = FALSE])) / totals) * 1e4)
    values <- values[utils::head(order(rowMeans(values), decreasing = TRUE), most), , drop = FALSE]
    do.call(rbind, lapply(sort(unique(groups)), function(group) {
      part <- values[, groups == group, drop = FALSE]
      data.frame(panel = panel, gene = rownames(values), group = group, share = 100 * rowMeans(part > 0),
        mean = rowMeans(part), row.names = NULL, stringsAsFactors = FALSE)
    }))
  }))
  order <- sort(unique(groups), method = "radix", decreasing = TRUE)
  n <- table(groups)[order]
  rows$group <- factor(rows$group, levels = order, labels = paste0(order, " (n = ", n, ")"))
  rows$panel <- factor(rows$panel, levels = names(markers))
  rows
}
