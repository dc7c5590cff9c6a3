# Every verb gives the same result for every class of object.

small_cohort <- local({
  kept <- NULL
  function() {
    if (is.null(kept)) kept <<- ScMambaCohort(n.cells = 160, n.donors = 4, n.genes = 2500, seed = 5)
    kept
  }
})

as_sce <- function(object) {
  skip_if_not_installed("SingleCellExperiment")
  SingleCellExperiment::SingleCellExperiment(list(counts = counts_of(object)), colData = object[[]])
}

columns_of <- function(frame, pattern = "^scmamba_") {
  frame <- as.data.frame(frame)
  frame <- frame[grepl(pattern, names(frame))]
  frame[] <- lapply(frame, function(column) if (is.factor(column)) as.character(column) else column)
  rownames(frame) <- NULL
  frame
}

test_that("types agree for Seurat, SingleCellExperiment and matrix", {
  skip_without_python()
  object <- small_cohort()
  sce <- as_sce(object)
  named <- columns_of(ScMambaAnnotate(object, verbose = FALSE)[[]])
  experiment <- ScMambaAnnotate(sce, verbose = FALSE)
  expect_equal(columns_of(SummarizedExperiment::colData(experiment)), named)
  expect_identical(S4Vectors::metadata(experiment)$scmamba$annotate$summary$mode, "brain")
  frame <- ScMambaAnnotate(counts_of(object), verbose = FALSE)
  expect_identical(rownames(frame), colnames(object))
  expect_equal(columns_of(frame), named)
  expect_error(ScMambaAnnotate(experiment), "already has", class = "scmamba_exists")
  skip_if_not_installed("ggplot2")
  for (made in list(frame, experiment)) {
    drawn <- ggplot2::ggplot_build(ScMambaPlotConfidence(made))$data[[1]]
    # One point for every cell, at its probability.
    expect_equal(sort(drawn$x), sort(named$scmamba_probability))
  }
})

test_that("a panel of the user is used, and an invalid one refused", {
  skip_without_python()
  object <- small_cohort()
  panel <- list(Oligo = c("MBP", "MOBP", "PLP1", "ST18"), Neuron = c("SNAP25", "SYT1", "RBFOX3"))
  frame <- ScMambaAnnotate(counts_of(object), markers = panel, verbose = FALSE)
  expect_true(all(frame$scmamba_type %in% c(names(panel), "Unassigned")))
  expect_gt(mean(frame$scmamba_type[object$cell_type == "Oligodendrocyte"] == "Oligo"), 0.9)
  expect_gt(mean(frame$scmamba_type[object$cell_type == "Excitatory"] == "Neuron"), 0.9)
  expect_error(ScMambaAnnotate(object, markers = c("MBP", "SNAP25")), "named list", class = "scmamba_error")
  expect_error(
    ScMambaAnnotate(object, reference = 1:3, labels = "x"),
    "must be a Seurat object",
    class = "scmamba_error"
  )
})

test_that("a reference may be a SingleCellExperiment", {
  skip_without_python()
  object <- small_cohort()
  donors <- sort(unique(as.character(object$donor)))
  known <- object[, object$donor != donors[[1]]]
  query <- object[, object$donor == donors[[1]]]
  name <- function(reference) {
    columns_of(ScMambaAnnotate(query, reference = reference, labels = "cell_type", network = FALSE, cache = FALSE,
      verbose = FALSE)[[]])
  }
  expect_equal(name(as_sce(known)), name(known), tolerance = 1e-6)
})

test_that("the assay and layer of the reference can be chosen, and are named where it cannot be read", {
  skip_without_python()
  object <- ScMambaCohort(n.cells = 150, n.donors = 3, n.genes = 2000, seed = 6)
  annotate <- function(reference, ...) {
    found <- ScMambaAnnotate(object, reference = reference, labels = "cell_type", cache = FALSE, verbose = FALSE, ...)
    found$scmamba_probability
  }
  expected <- annotate(object)
  # The counts of RNA belong to other cells; those of `own` are right.
  mixed <- object
  mixed[["own"]] <- SeuratObject::CreateAssayObject(counts_of(object))
  shuffled <- counts_of(object)[, rev(colnames(object))]
  colnames(shuffled) <- colnames(object)
  # SeuratObject 5 warns that its own class of assays is replaced.
  suppressWarnings(mixed[["RNA"]] <- SeuratObject::CreateAssayObject(shuffled))
  expect_identical(annotate(mixed, reference.assay = "own"), expected)
  expect_false(identical(annotate(mixed, reference.assay = "RNA"), expected))
  logs <- Seurat::NormalizeData(object, verbose = FALSE)
  expect_equal(annotate(logs, reference.layer = "data"), expected, tolerance = 1e-3)
  expect_error(annotate(mixed, reference.assay = "none"), "no assay \"none\"", class = "scmamba_error")
  expect_error(annotate(logs, reference.layer = "scale.data"), "reference.assay", class = "scmamba_error")
})

test_that("doublets agree for Seurat and SingleCellExperiment, per sample, with the types of their parents", {
  skip_without_python()
  object <- small_cohort()
  find <- function(x) {
    ScMambaDoublets(x, sample = "donor", labels = "cell_type", expected.rate = 0.1, verbose = FALSE)
  }
  seurat <- find(object)
  sce <- find(as_sce(object))
  expect_equal(columns_of(SummarizedExperiment::colData(sce)), columns_of(seurat[[]]))
  expect_error(find(sce), "already has", class = "scmamba_exists")
  called <- tapply(seurat$scmamba_doublet, as.character(seurat$donor), sum)
  cells <- table(as.character(seurat$donor))
  expect_equal(as.vector(called), as.vector(round(0.1 * cells)))
  parents <- as.character(seurat$scmamba_doublet_parents)
  expect_true(all(parents[!seurat$scmamba_doublet] == ""))
  named <- unlist(strsplit(parents[seurat$scmamba_doublet], " + ", fixed = TRUE))
  expect_true(all(named %in% c(as.character(object$cell_type), "?")))
})

test_that("robustness compares layers on the same cells, for Seurat and SingleCellExperiment", {
  skip_without_python()
  object <- small_cohort()
  imputed <- ScMambaImpute(object, adapt = FALSE, force = TRUE, verbose = FALSE)
  run <- function(x, ...) {
    suppressWarnings(ScMambaRobustness(x, group.by = "disease", ident.1 = "AD", ident.2 = "Control", donor = "donor",
      ratios = 0.5, permutations = 3, donors = NULL, null.permutations = 0, min.degs = 1, workers = 1,
      verbose = FALSE, ...))
  }
  result <- run(imputed)
  expect_setequal(unique(result$runs$layer), c("counts", "scmamba"))
  # One seed per draw, for all layers.
  seeds <- unique(result$runs[c("run", "seed")])
  expect_equal(nrow(seeds), 3)
  sce <- as_sce(object)
  SummarizedExperiment::assay(sce, "scmamba") <- data_of(imputed)
  expect_equal(run(sce)$runs, result$runs)
  expect_true(all(run(sce, imputed.assay = NULL)$runs$layer == "counts"))
  fewer <- object[seq_len(2400), ]
  fewer[["scmamba"]] <- imputed[["scmamba"]]
  expect_error(run(fewer), "impute the same object again", class = "scmamba_error")
  expect_error(ScMambaPlotRobustness(1:3), "ScMambaRobustness", class = "scmamba_error")
  expect_error(ScMambaPlotRobustness(result, "magic"), "magic", class = "scmamba_error")
})

test_that("a model is fine-tuned on every class of object, and the same cells give the same model", {
  skip_without_python()
  folder <- withr::local_tempdir()
  tune <- function(x, name, ...) {
    suppressMessages(ScMambaFineTune(x, file.path(folder, name), model = tiny_model(), steps = 2, force = TRUE, ...))
  }
  tune(pbmc(), "seurat", verbose = TRUE)
  tune(as_sce(pbmc()), "sce", verbose = FALSE)
  tune(counts_of(pbmc()), "matrix", verbose = FALSE)
  weights <- tools::md5sum(file.path(folder, c("seurat", "sce", "matrix"), "model.safetensors"))
  embedded <- lapply(c("seurat", "sce", "matrix"), function(name) {
    ScMambaEmbed(counts_of(pbmc()), model = file.path(folder, name), verbose = FALSE)[, ]
  })
  expect_equal(embedded[[2]], embedded[[1]], tolerance = 1e-6)
  expect_equal(embedded[[3]], embedded[[1]], tolerance = 1e-6)
  expect_false(anyNA(weights))
  before <- ScMambaEmbed(counts_of(pbmc()), model = tiny_model(), verbose = FALSE)[, ]
  expect_gt(max(abs(embedded[[1]] - before)), 0)
})

test_that("columns of a matrix may be selected by name, number or logical vector", {
  skip_without_python()
  values <- data_of(Seurat::NormalizeData(pbmc(), verbose = FALSE), "RNA")
  by_number <- ScMambaFindMarkers(values, 1:30, 31:80, verbose = FALSE)
  expect_equal(ScMambaFindMarkers(values, colnames(values)[1:30], verbose = FALSE), by_number)
  expect_equal(ScMambaFindMarkers(values, seq_len(80) <= 30, verbose = FALSE), by_number)
  expect_error(ScMambaFindMarkers(values, c("nobody", "else")), "must name columns", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(values, 1:30, 31:81), "must name columns", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(values, 1:30, seurat = "3"), "must be \"5\" or \"4\"", class = "scmamba_error")
})

test_that("the cohort's true effects are the changes of its means", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 3000, n.donors = 8, n.genes = 300, seed = 2)
  truth <- SeuratObject::Misc(cohort, "true_log2fc")
  expect_identical(rownames(truth), rownames(cohort))
  expect_setequal(colnames(truth), as.character(unique(cohort$cell_type)))
  cells <- cohort$cell_type == "Oligodendrocyte"
  counts <- as.matrix(counts_of(cohort)[, cells])
  rate <- t(t(counts) / colSums(counts))
  ill <- cohort$disease[cells] == "AD"
  seen <- log2(rowMeans(rate[, ill]) / rowMeans(rate[, !ill]))
  changed <- truth[, "Oligodendrocyte"] != 0 & is.finite(seen) & rowSums(counts) > 200
  expect_gt(sum(changed), 5)
  expect_gt(stats::cor(seen[changed], truth[changed, "Oligodendrocyte"]), 0.7)
})
