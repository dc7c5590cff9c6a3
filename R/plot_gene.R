# A gene before and after imputation, beside what the nearest neighbors have.

#' A gene before and after imputation
#'
#' Three panels on one scale: the measured values, the mean of the measured values of each cell's nearest neighbors, and
#' the imputed values. Imputed values that the neighbors do not support appear in the third panel only.
#'
#' @param object A Seurat object or a SingleCellExperiment with the result of [ScMambaImpute()].
#' @param genes Names of genes; one row of panels each.
#' @param reduction Name of the reduction to draw; by default `"umap"` or `"tsne"` if there is one.
#' @param group.by Column of the metadata (`"ident"`: the identities): draws the values of each of its groups instead of
#'   a map.
#' @param assay Assay with the counts; by default the one that was imputed.
#' @param imputed.assay Assay with the imputed values.
#' @param neighbors Reduction in which the nearest neighbors are found; by default the embedding of [ScMambaEmbed()], or
#'   the principal components, or the reduction that is drawn.
#' @param n.neighbors Number of nearest neighbors.
#' @return A ggplot. Its caption has, for each gene, the share of cells with a value before and after imputation and the
#'   correlation of imputed values with the mean of the neighbors over the cells without a count of the gene.
#' @seealso [ScMambaImpute()], [ScMambaEvaluate()]
#' @examples
#' if (scmamba_available() && requireNamespace("ggplot2", quietly = TRUE) &&
#'   requireNamespace("RANN", quietly = TRUE)) {
#'   seu <- ScMambaImpute(SeuratObject::pbmc_small, adapt = FALSE, force = TRUE, verbose = FALSE)
#'   ScMambaPlotGene(seu, c("LYZ", "CD3E"), reduction = "tsne")
#'   ScMambaPlotGene(seu, "LYZ", group.by = "ident")
#' }
#' @export
ScMambaPlotGene <- function(object, genes, reduction = NULL, group.by = NULL, assay = NULL, imputed.assay = "scmamba",
                            neighbors = NULL, n.neighbors = 15) {
  .needs_ggplot2()
  if (!requireNamespace("RANN", quietly = TRUE)) {
    .abort("The figure needs the R package {.pkg RANN}: {.code install.packages(\"RANN\")}.")
  }
  values <- .before_and_after(object, genes, assay, imputed.assay)
  n.neighbors <- min(.check_integer(n.neighbors, "n.neighbors", 1L), ncol(values$measured) - 1L)
  drawn <- if (is.null(group.by) || is.null(neighbors)) {
    .reduction_named(object, reduction, c("umap", "UMAP", "tsne", "TSNE"), "reduction")
  }
  first <- c("scmamba_embedding", "scmamba", "pca", "PCA")
  space <- .reduction_named(object, neighbors, c(first, drawn), "neighbors")
  values$near <- .neighbor_means(values$measured, .coordinates(object, space), n.neighbors)
  table <- .gene_table(values, paste("mean of", n.neighbors, "neighbors"))
  caption <- .gene_caption(values)
  if (!is.null(group.by)) {
    return(.gene_groups(table, .groups_to_draw(object, group.by), caption))
  }
  .gene_map(table, .coordinates(object, drawn)[, 1:2, drop = FALSE], drawn, caption)
}

# Measured and imputed log1p(CP10k) of the genes, as small dense matrices.
.before_and_after <- function(object, genes, assay, imputed.assay) {
  if (inherits(object, "Seurat")) {
    if (!imputed.assay %in% SeuratObject::Assays(object)) .abort_not_imputed(imputed.assay)
    record <- .imputed_record(object, imputed.assay)
    assay <- .check_assay(object, assay %||% record$source)
    read <- function(name, layer) .get_layer(object, name, layer, FALSE)
    measured <- tryCatch(.cp10k(read(assay, "counts")), scmamba_error = function(e) read(assay, "data"))
    expected <- identical(record$counts, "expected")
    imputed <- if (expected) .cp10k(read(imputed.assay, "counts")) else read(imputed.assay, "data")
  } else {
    if (!imputed.assay %in% SummarizedExperiment::assayNames(object)) .abort_not_imputed(imputed.assay)
    measured <- .cp10k(.get_sce(object, assay %||% "counts"))
    imputed <- .get_sce(object, imputed.assay)
    if (isTRUE(.sce_record(object)$impute$params$to_counts)) imputed <- .cp10k(imputed)
  }
  genes <- unique(as.character(genes))
  unknown <- setdiff(genes, intersect(rownames(measured), rownames(imputed)))
  if (length(genes) == 0 || length(unknown) > 0) {
    .abort("{.arg genes}: the object has no imputed gene {.val {unknown}}.")
  }
  list(measured = as.matrix(measured[genes, , drop = FALSE]), imputed = as.matrix(imputed[genes, , drop = FALSE]))
}

.abort_not_imputed <- function(name) {
  .abort("There is no assay {.val {name}} with imputed values; run {.code ScMambaImpute()} first.")
}

.cp10k <- function(counts) .log_values(counts, list(scale = "counts"))

# The reduction that is named, or the first of the usual ones that the object has, or any.
.reduction_named <- function(object, name, usual, argument) {
  known <- if (inherits(object, "Seurat")) {
    SeuratObject::Reductions(object)
  } else {
    SingleCellExperiment::reducedDimNames(object)
  }
  if (length(known) == 0) {
    .abort("The object has no reduction to draw or to find neighbors in; run {.code ScMambaEmbed()} and
      {.code RunUMAP(object, reduction = \"scmamba_embedding\", dims = 1:30)} first.")
  }
  if (is.null(name)) {
    return(c(intersect(usual, known), known)[[1]])
  }
  .check_known(.check_name(name, argument), known, "reduction", argument)
  name
}

.coordinates <- function(object, reduction) {
  if (inherits(object, "Seurat")) {
    return(SeuratObject::Embeddings(object, reduction))
  }
  as.matrix(SingleCellExperiment::reducedDim(object, reduction))
}

# The mean over the nearest neighbors, without the cell itself.
.neighbor_means <- function(values, at, k) {
  near <- RANN::nn2(at[, seq_len(min(30, ncol(at))), drop = FALSE], k = k + 1)$nn.idx
  n <- nrow(near)
  # A cell with the coordinates of others is not always listed first; if it is not listed at all, the last one goes.
  itself <- near == seq_len(n)
  itself[rowSums(itself) == 0, k + 1] <- TRUE
  means <- vapply(seq_len(nrow(values)), function(gene) {
    found <- matrix(values[gene, near], n)
    found[itself] <- 0
    rowSums(found) / k
  }, numeric(n))
  matrix(t(means), nrow(values), n, dimnames = dimnames(values))
}

.gene_table <- function(values, middle) {
  panels <- c("measured", middle, "imputed")
  genes <- rownames(values$measured)
  n <- ncol(values$measured)
  rows <- lapply(genes, function(gene) {
    data.frame(gene = gene, panel = rep(panels, each = n), cell = rep(seq_len(n), 3),
      value = c(values$measured[gene, ], values$near[gene, ], values$imputed[gene, ]), stringsAsFactors = FALSE)
  })
  table <- do.call(rbind, rows)
  table$gene <- factor(table$gene, levels = genes)
  table$panel <- factor(table$panel, levels = panels)
  table
}

.gene_caption <- function(values) {
  lines <- vapply(rownames(values$measured), function(gene) {
    zero <- values$measured[gene, ] == 0
    r <- suppressWarnings(stats::cor(values$imputed[gene, zero], values$near[gene, zero]))
    shares <- round(100 * c(mean(!zero), mean(values$imputed[gene, ] > 0)))
    paste0(gene, ": a value in ", shares[[1]], "% of ", length(zero), " cells, imputed in ", shares[[2]], "%",
      if (is.finite(r)) paste0("; r with the neighbors, cells without a count: ", formatC(r, digits = 2, format = "f")))
  }, "")
  paste(lines, collapse = "\n")
}

.gene_map <- function(table, at, name, caption) {
  table$x <- at[table$cell, 1]
  table$y <- at[table$cell, 2]
  # Cells with high values are drawn last.
  table <- table[order(table$value), , drop = FALSE]
  .data <- ggplot2::.data
  ggplot2::ggplot(table, ggplot2::aes(.data$x, .data$y, colour = .data$value)) +
    ggplot2::geom_point(size = 0.6) +
    ggplot2::facet_grid(ggplot2::vars(.data$gene), ggplot2::vars(.data$panel), switch = "y") +
    ggplot2::scale_colour_gradient(low = "grey88", high = "#08306B", limits = c(0, NA), guide = .bar()) +
    ggplot2::labs(x = paste(name, 1), y = paste(name, 2), colour = "log1p(CP10k)", caption = caption) +
    .theme() +
    ggplot2::theme(axis.text = ggplot2::element_blank(), axis.ticks = ggplot2::element_blank(),
      strip.placement = "outside")
}

.groups_to_draw <- function(object, group.by) {
  if (identical(group.by, "ident") && inherits(object, "Seurat")) {
    return(as.character(SeuratObject::Idents(object)))
  }
  groups <- as.character(.per_cell(.cell_table(object), group.by, "group.by"))
  ifelse(is.na(groups), "NA", groups)
}

.gene_groups <- function(table, groups, caption) {
  n <- table(groups)
  table$group <- factor(groups[table$cell], levels = names(n), labels = paste0(names(n), " (n = ", n, ")"))
  # Spread by rank, not by chance: the same figure every time.
  table$at <- as.integer(table$group) + 0.35 * (((table$cell * 0.618034) %% 1) * 2 - 1)
  means <- stats::aggregate(list(value = table$value), table[c("gene", "panel", "group")], mean)
  means$at <- as.integer(means$group)
  .data <- ggplot2::.data
  ggplot2::ggplot(table, ggplot2::aes(.data$at, .data$value)) +
    ggplot2::geom_point(size = 0.4, alpha = 0.5, colour = .colours[[1]]) +
    ggplot2::geom_segment(data = means, ggplot2::aes(x = .data$at - 0.4, xend = .data$at + 0.4, yend = .data$value)) +
    ggplot2::facet_grid(ggplot2::vars(.data$gene), ggplot2::vars(.data$panel), switch = "y") +
    ggplot2::scale_x_continuous(breaks = seq_along(n), labels = levels(table$group)) +
    ggplot2::labs(x = NULL, y = "log1p(CP10k)", caption = paste0(caption, "\nlines: means")) +
    .theme() +
    ggplot2::theme(strip.placement = "outside", axis.text.x = ggplot2::element_text(angle = 45, hjust = 1))
}
