# The package's own plots, element by element, of tables made here, so that they do not depend on a model.

compare_picture <- function(picture, title) {
  # A Seurat 5 without vdiffr must not remove the snapshots; the skip below omits the rest of the test.
  for (name in list.files(test_path("_snaps", "pictures"))) announce_snapshot_file(name = name)
  skip_if_not_installed("vdiffr")
  # Other versions of ggplot2 draw differently; the snapshots are from Debian 12's.
  skip_if_not(packageVersion("ggplot2") >= "3.4.0" && packageVersion("ggplot2") < "3.5.0", "ggplot2 3.4")
  vdiffr::expect_doppelganger(title, picture)
}

made_robustness <- function() {
  runs <- expand.grid(run = 1:8, ratio = c(0.1, 0.5, 0.9), layer = c("counts", "scmamba"),
    cell_type = c("Microglia", "Oligodendrocyte"), direction = c("up", "down"), stringsAsFactors = FALSE)
  runs$kind <- "cells"
  runs$overlap <- runs$ratio - 0.05 * (runs$run %% 4) + 0.04 * (runs$layer == "scmamba") -
    0.03 * (runs$direction == "up")
  runs$overlap <- pmax(runs$overlap, 0)
  runs$overlap[runs$run == 3 & runs$ratio == 0.1] <- NA
  donors <- transform(runs[runs$ratio == 0.5, ], kind = "donors", ratio = 1, overlap = overlap + 0.2)
  tests <- data.frame(kind = c("cells", "cells", "donors"), cell_type = "Microglia", direction = c("up", "down", "up"),
    ratio = c(0.5, 0.5, 1), layer = "scmamba", p_val = c(0.0004, 0.2, 0.01), stringsAsFactors = FALSE)
  structure(list(runs = rbind(runs, donors), tests = tests), class = "scmamba_robustness")
}

test_that("robustness: shares of cells and combinations of donors, and up and down, are in separate panels", {
  skip_if_not_installed("ggplot2")
  result <- made_robustness()
  bars <- ScMambaPlotRobustness(result)
  expect_setequal(as.character(bars$data$share), c("10%", "50%", "90%"))
  part <- result$runs[result$runs$kind == "cells" & result$runs$ratio == 0.1 & result$runs$layer == "counts" &
    result$runs$cell_type == "Microglia" & result$runs$direction == "up", "overlap"]
  drawn <- bars$data[bars$data$share == "10%" & bars$data$layer == "counts" & bars$data$cell_type == "Microglia" &
    grepl("^higher", bars$data$direction), ]
  expect_equal(c(drawn$mean, drawn$sd), c(mean(part, na.rm = TRUE), stats::sd(part, na.rm = TRUE)))
  expect_gte(min(bars$data$low), 0)
  expect_match(bars$labels$caption, "7 to 8 draws")
  boxes <- ScMambaPlotRobustness(result, type = "boxes")
  expect_identical(nrow(boxes$data), sum(result$runs$kind == "donors" & !is.na(result$runs$overlap)))
  tiles <- ScMambaPlotRobustness(result, type = "heatmap")$data
  stars <- tiles$label[tiles$cell_type == "Microglia" & tiles$layer == "scmamba"]
  expect_setequal(gsub("[0-9.]", "", stars), c("***", ""))
  expect_error(ScMambaPlotRobustness(result, type = "heatmap", ratio = 0.3),
    "no subsamples of 0.3", class = "scmamba_error")
  compare_picture(bars, "robustness-bars")
  compare_picture(boxes, "robustness-boxes")
  compare_picture(ScMambaPlotRobustness(result, type = "heatmap"), "robustness-heatmap")
})

made_comparison <- function() {
  table <- data.frame(
    cell_type = rep(c("Microglia", "Astrocyte"), each = 20), gene = paste0("G", seq_len(40)),
    log2FC_shrunk = c(seq(-2, 2, length.out = 20), seq(-1, 1, length.out = 20)),
    p_val = 10^-c(seq(8, 0, length.out = 10), seq(0, 6, length.out = 10), seq(2, 0, length.out = 20)),
    driven_by = "", stringsAsFactors = FALSE
  )
  table$p_val_adj <- pmin(table$p_val * 20, 1)
  table$driven_by[[2]] <- "D3"
  table$p_val[[12]] <- NA
  structure(list(table = table, settings = list(group1 = "AD", group2 = "Control", alpha = 0.05, interaction = NULL)),
    class = "scmamba_comparison")
}

test_that("comparison: called genes by direction, one panel per cell type, names of the most certain", {
  skip_if_not_installed("ggplot2")
  result <- made_comparison()
  figure <- ScMambaPlotCompare(result, n.genes = 3)
  drawn <- figure$data
  called <- !is.na(result$table$p_val) & result$table$p_val_adj < 0.05
  expect_identical(sum(drawn$call != "not called"), sum(called))
  expect_identical(sum(drawn$call == "higher in AD"), sum(called & result$table$log2FC_shrunk > 0))
  expect_identical(drawn$gene[drawn$single], "G2")
  expect_identical(levels(drawn$panel), c(sprintf("Microglia (%d genes)", sum(called)), "Astrocyte (0 genes)"))
  expect_setequal(figure$layers[[3]]$data$gene, c("G1", "G2", "G3"))
  expect_identical(nrow(ScMambaPlotCompare(result, cell.types = "Astrocyte")$data), 20L)
  expect_error(ScMambaPlotCompare(result, cell.types = "Neuron"), "no cell type \"Neuron\"", class = "scmamba_error")
  expect_error(ScMambaPlotCompare(result$table), "ScMambaCompare", class = "scmamba_error")
  compare_picture(figure, "comparison")
})

named_cells <- function() {
  data.frame(
    scmamba_type = rep(c("Astrocyte", "Microglia", "Unassigned"), c(12, 9, 6)),
    scmamba_probability = c(
      seq(0.7, 1, length.out = 12), seq(0.5, 0.98, length.out = 9), seq(0.2, 0.45, length.out = 6)
    )
  )
}

test_that("confidence: numbers of cells, the threshold, and accuracy against coverage", {
  skip_if_not_installed("ggplot2")
  cells <- structure(named_cells(), scmamba = list(summary = list(threshold = 0.48)))
  plain <- ScMambaPlotConfidence(cells)
  expect_identical(levels(plain$data$type), c("Unassigned (n = 6)", "Microglia (n = 9)", "Astrocyte (n = 12)"))
  expect_match(plain$labels$caption, "0.48")
  truth <- rep(c("Astrocyte", "Microglia", "Neuron"), c(14, 7, 6))
  # A name that no cell is called by may be another spelling.
  expect_message(curve <- ScMambaPlotConfidence(cells, truth = truth), "No cell is called \"Neuron\".*6 cells")
  curve <- curve$data
  # All cells: 12 + 7 of 27 are correct; above the threshold 19 of 21.
  expect_equal(curve$accuracy[curve$coverage == 1], 19 / 27)
  expect_equal(curve$accuracy[abs(curve$coverage - 21 / 27) < 1e-9], 19 / 21)
  compare_picture(plain, "confidence")
  compare_picture(suppressMessages(ScMambaPlotConfidence(cells, truth = truth)), "coverage")
  expect_no_message(ScMambaPlotConfidence(cells, truth = as.character(cells$scmamba_type)))
})

test_that("doublets: one panel for each sample with its own threshold", {
  skip_if_not_installed("ggplot2")
  cells <- data.frame(library = rep(c("a", "b"), c(30, 20)), scmamba_doublet_score = c(1:30 / 30, 1:20 / 25))
  cells$scmamba_doublet <- cells$scmamba_doublet_score > ifelse(cells$library == "a", 0.9, 0.7)
  picture <- ScMambaPlotDoublets(cells, sample = "library")
  expect_identical(levels(picture$data$panel), c("a: 3 of 30 called", "b: 3 of 20 called"))
  expect_equal(picture$layers[[2]]$data$cut, c(28 / 30, 18 / 25))
  expect_error(ScMambaPlotDoublets(named_cells()), "ScMambaDoublets", class = "scmamba_error")
  compare_picture(picture, "doublets")
})

test_that("markers: shares and means of the most expressed genes of each panel", {
  skip_if_not_installed("ggplot2")
  counts <- Matrix::Matrix(c(0, 4, 0, 2, 2, 0, 0, 0, 5, 1, 1, 1), 3, sparse = TRUE,
    dimnames = list(c("AQP4", "GFAP", "CSF1R"), paste0("c", 1:4)))
  object <- SeuratObject::CreateSeuratObject(as(as(counts, "generalMatrix"), "CsparseMatrix"))
  object$scmamba_type <- c("Astrocyte", "Astrocyte", "Microglia", "Microglia")
  picture <- ScMambaPlotMarkers(object, markers = list(Astrocyte = c("AQP4", "GFAP"), Microglia = c("CSF1R", "none")))
  table <- picture$data
  one <- table[table$gene == "GFAP" & grepl("^Astrocyte", table$group), ]
  expect_equal(c(one$share, one$mean), c(100, mean(log1p(c(1, 0.5) * 1e4))))
  expect_identical(nrow(table), 6L)
  expect_error(ScMambaPlotMarkers(object, markers = list(A = "none")), "None of the marker genes",
    class = "scmamba_error")
  compare_picture(picture, "markers")
})

# Two groups of three cells on a line; the first gene is imputed in the first group, the second gene against its
# neighbors.
made_imputed <- function() {
  counts <- matrix(c(4, 0, 2, 0, 0, 0, 0, 0, 0, 3, 1, 2, 6, 10, 8, 7, 9, 8), 3, byrow = TRUE,
    dimnames = list(c("GFAP", "CSF1R", "MALAT1"), paste0("c", 1:6)))
  object <- SeuratObject::CreateSeuratObject(as(as(counts, "dgCMatrix"), "generalMatrix"))
  imputed <- log1p(t(t(counts) / colSums(counts)) * 1e4)
  imputed["GFAP", "c2"] <- 7
  imputed["CSF1R", "c1"] <- 6
  new <- scMamba:::.make_assay(as(imputed, "dgCMatrix"), like = object[["RNA"]], observed = counts_of(object))
  object <- scMamba:::.add_assay(object, "scmamba", new)
  at <- matrix(c(1, 2, 3, 11, 12, 13, rep(0, 6)), 6, dimnames = list(colnames(object), c("u_1", "u_2")))
  object[["umap"]] <- SeuratObject::CreateDimReducObject(at, key = "u_", assay = "RNA")
  object$type <- rep(c("Astrocyte", "Microglia"), each = 3)
  object
}

test_that("a gene: measured values, the mean of the nearest neighbors, and imputed values", {
  skip_if_not_installed("ggplot2")
  skip_if_not_installed("RANN")
  object <- made_imputed()
  picture <- ScMambaPlotGene(object, c("GFAP", "CSF1R"), n.neighbors = 2)
  drawn <- picture$data[order(picture$data$cell), ]
  values <- function(gene, panel) drawn$value[drawn$gene == gene & drawn$panel == panel]
  measured <- log1p(c(4 / 10, 0, 2 / 10, 0, 0, 0) * 1e4)
  expect_equal(values("GFAP", "measured"), measured)
  near <- c(mean(measured[2:3]), mean(measured[c(1, 3)]), mean(measured[1:2]), 0, 0, 0)
  expect_equal(values("GFAP", "mean of 2 neighbors"), near)
  expect_equal(values("GFAP", "imputed"), c(measured[[1]], 7, measured[[3]], 0, 0, 0))
  expect_match(picture$labels$caption, "GFAP: a value in 33% of 6 cells, imputed in 50%")
  # Cells 2, 4, 5 and 6 have no count of GFAP.
  r <- stats::cor(c(7, 0, 0, 0), near[c(2, 4:6)])
  expect_match(picture$labels$caption, formatC(r, digits = 2, format = "f"), fixed = TRUE)
  groups <- ScMambaPlotGene(object, "GFAP", group.by = "type", n.neighbors = 2)
  expect_identical(levels(groups$data$group), c("Astrocyte (n = 3)", "Microglia (n = 3)"))
  means <- groups$layers[[2]]$data
  expect_equal(means$value[means$panel == "measured"], c(mean(measured[1:3]), 0))
  expect_error(ScMambaPlotGene(object, "NONE"), "NONE", class = "scmamba_error")
  expect_error(ScMambaPlotGene(object, "GFAP", imputed.assay = "magic"), "ScMambaImpute", class = "scmamba_error")
  expect_error(ScMambaPlotGene(object, "GFAP", reduction = "pca"), "umap", class = "scmamba_error")
  expect_error(ScMambaPlotGene(object, "GFAP", group.by = "none"), "none", class = "scmamba_error")
  bare <- object
  bare[["umap"]] <- NULL
  expect_error(ScMambaPlotGene(bare, "GFAP"), "RunUMAP", class = "scmamba_error")
  compare_picture(picture, "gene-map")
  compare_picture(groups, "gene-groups")
})

test_that("a cell is not its own neighbor, and a SingleCellExperiment is drawn too", {
  skip_if_not_installed("ggplot2")
  skip_if_not_installed("RANN")
  object <- made_imputed()
  # In the embedding each cell of one group has a neighbor in the other.
  far <- matrix(c(1, 11, 21, 1.1, 11.1, 21.1), 6, dimnames = list(colnames(object), "scmamba_1"))
  object[["scmamba_embedding"]] <- SeuratObject::CreateDimReducObject(far, key = "scmamba_", assay = "RNA")
  values <- function(picture) {
    drawn <- picture$data[order(picture$data$cell), ]
    drawn$value[drawn$panel == "mean of 1 neighbors" & drawn$gene == "GFAP"]
  }
  measured <- log1p(c(4 / 10, 0, 2 / 10) * 1e4)
  expect_equal(values(ScMambaPlotGene(object, "GFAP", n.neighbors = 1)), c(0, 0, 0, measured))
  chosen <- values(ScMambaPlotGene(object, "GFAP", n.neighbors = 1, neighbors = "umap"))
  expect_identical(chosen[4:6], c(0, 0, 0))
  # Cells with the same coordinates.
  same <- matrix(0, 6, 2)
  expect_equal(unname(scMamba:::.neighbor_means(matrix(1:6, 1), same, 5)), matrix((21 - 1:6) / 5, 1))
  skip_if_not_installed("SingleCellExperiment")
  sce <- SingleCellExperiment::SingleCellExperiment(
    list(counts = counts_of(object), scmamba = data_of(object)), colData = object[[]],
    reducedDims = list(UMAP = SeuratObject::Embeddings(object, "umap"), scmamba = far))
  expect_equal(values(ScMambaPlotGene(sce, "GFAP", n.neighbors = 1)), c(0, 0, 0, measured))
  expect_equal(ScMambaPlotGene(sce, "GFAP", group.by = "type", n.neighbors = 2)$data$value,
    ScMambaPlotGene(object, "GFAP", group.by = "type", n.neighbors = 2)$data$value)
})
