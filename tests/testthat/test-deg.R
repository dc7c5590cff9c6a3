# Numbers against R's own: Seurat's FindMarkers on the same object, and closed forms.

with_normalised <- function(object = pbmc()) {
  Seurat::NormalizeData(object, verbose = FALSE)
}

test_that("the table equals that of Seurat's FindMarkers with the Wilcoxon test", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  object <- with_normalised()
  ours <- ScMambaFindMarkers(object, "0", "1", test.use = "wilcox", verbose = FALSE)
  theirs <- suppressWarnings(Seurat::FindMarkers(object, ident.1 = "0", ident.2 = "1", test.use = "wilcox",
    verbose = FALSE))
  expect_setequal(rownames(ours), rownames(theirs))
  shared <- ours[rownames(theirs), ]
  expect_equal(shared$avg_log2FC, theirs$avg_log2FC, tolerance = 1e-10)
  expect_equal(shared$pct.1, theirs$pct.1)
  expect_equal(shared$pct.2, theirs$pct.2)
  expect_equal(shared$p_val, theirs$p_val, tolerance = 1e-6)
  expect_equal(shared$p_val_adj, pmin(1, shared$p_val * nrow(object)), tolerance = 1e-10)
})

test_that("MAST's table has Seurat's columns, and latent variables and subsets work", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  object <- with_normalised()
  table <- ScMambaFindMarkers(object, "0", verbose = FALSE)
  expect_identical(names(table)[1:5], c("p_val", "avg_log2FC", "pct.1", "pct.2", "p_val_adj"))
  expect_true(all(diff(table$p_val) >= 0))
  adjusted <- ScMambaFindMarkers(object, "g1", "g2", group.by = "groups", latent.vars = "nCount_RNA",
    verbose = FALSE)
  expect_s3_class(adjusted, "data.frame")
  object$half <- rep(c("a", "b"), length.out = ncol(object))
  one <- ScMambaFindMarkers(object, "a", "b", group.by = "half", subset.ident = "0", verbose = FALSE)
  cells <- Seurat::Idents(object) == "0"
  same <- ScMambaFindMarkers(object[, cells], "a", "b", group.by = "half", verbose = FALSE)
  expect_equal(one, same)
})

test_that("the recorded values of MAST are reproduced from R", {
  skip_without_python()
  path <- function(name) gzfile(testthat::test_path("reference", name))
  read <- function(name) utils::read.csv(path(name), stringsAsFactors = FALSE)
  values <- as(as(Matrix::readMM(path("lognorm.mtx.gz")), "generalMatrix"), "CsparseMatrix")
  cells <- read("cells.csv.gz")
  dimnames(values) <- list(read("genes.csv.gz")$gene, cells$cell)
  for (seurat in c("4", "5")) {
    truth <- read(sprintf("seurat_v%s_default.csv.gz", seurat))
    ours <- ScMambaFindMarkers(values, cells$group == "B", cells$group == "A", seurat = seurat, verbose = FALSE)
    expect_setequal(rownames(ours), truth$gene)
    ours <- ours[truth$gene, ]
    expect_equal(ours$avg_log2FC, truth$avg_log2FC, tolerance = 1e-12)
    expect_lt(max(abs(ours$p_val / truth$p_val - 1)), 5e-3)
    expect_equal(ours$pct.1, truth$pct.1)
  }
})

test_that("a matrix, a SingleCellExperiment and a Seurat object give the same table", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  object <- with_normalised()
  values <- data_of(object, "RNA")
  first <- which(Seurat::Idents(object) == "0")
  second <- which(Seurat::Idents(object) == "1")
  from_matrix <- ScMambaFindMarkers(values, first, second, seurat = "5", verbose = FALSE)
  from_seurat <- ScMambaFindMarkers(object, "0", "1", seurat = "5", verbose = FALSE)
  expect_equal(from_matrix, from_seurat)
  skip_if_not_installed("SingleCellExperiment")
  sce <- SingleCellExperiment::SingleCellExperiment(list(logcounts = values),
    colData = data.frame(cluster = as.character(Seurat::Idents(object))))
  expect_equal(ScMambaFindMarkers(sce, "0", "1", group.by = "cluster", verbose = FALSE), from_seurat)
})

test_that("comparisons that are not possible give an error", {
  skip_without_python()
  object <- pbmc()
  expect_error(ScMambaFindMarkers(object, "nobody"), "nobody", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(object, "a", group.by = "nothing"), "nothing", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(object, "0", latent.vars = "nothing"), "nothing", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(object, "0", test.use = "t"), "MAST", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(counts_of(object), 1:5, 5:9), "both", class = "scmamba_error")
})

test_that("robustness runs on a cohort, prints and plots", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 400, n.donors = 4, n.genes = 300)
  run <- function(...) {
    ScMambaRobustness(cohort, group.by = "disease", donor = "donor", imputed.assay = NULL, ratios = 0.5,
      permutations = 3, donors = "1v1", min.degs = 1, null.permutations = 2, workers = 1, verbose = FALSE, ...)
  }
  result <- suppressWarnings(run())
  expect_s3_class(result, "scmamba_robustness")
  expect_true(all(c("cell_type", "ratio", "layer", "overlap") %in% names(result$runs)))
  expect_gt(nrow(result$false_positives), 0)
  expect_equal(suppressWarnings(run())$runs, result$runs)
  expect_output(suppressMessages(print(result)))
  skip_if_not_installed("ggplot2")
  expect_s3_class(ScMambaPlotRobustness(result), "ggplot")
  nothing <- result
  nothing$runs$overlap <- NA_real_
  expect_error(ScMambaPlotRobustness(nothing), "too few DEGs", class = "scmamba_error")
  expect_error(ScMambaRobustness(cohort, group.by = "disease"), "ScMambaImpute", class = "scmamba_error")
})

test_that("the test between donors beside every draw is one of ScMambaCompare", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 2000, n.donors = 8, n.genes = 300, seed = 1)
  result <- suppressWarnings(ScMambaRobustness(cohort, group.by = "disease", donor = "donor", imputed.assay = NULL,
    ratios = 0.5, permutations = 2, donors = NULL, null.permutations = 0, workers = 1, min.degs = 1,
    donor.test = "likelihood_ratio", verbose = FALSE))
  table <- ScMambaCompare(cohort, "disease", donor = "donor", verbose = FALSE)$table
  found <- setNames(result$full$pseudobulk_degs, result$full$direction)
  expect_equal(found[["up"]], sum(table$p_val_adj < 0.05 & table$log2FC > 0.25))
  expect_equal(found[["down"]], sum(table$p_val_adj < 0.05 & table$log2FC < -0.25))
  expect_gt(found[["up"]], 0)
  expect_error(ScMambaRobustness(cohort, group.by = "disease", imputed.assay = NULL, donor.test = "anova"), "wald")
})

test_that("models are listed, and a model of the user is trained and used", {
  skip_without_python()
  listed <- ScMambaModels()
  expect_true("brain-mini" %in% listed$name)
  folder <- file.path(withr::local_tempdir(), "mine")
  ScMambaFineTune(pbmc(), folder, model = tiny_model(), steps = 2, force = TRUE, verbose = FALSE)
  expect_true(file.exists(file.path(folder, "model.safetensors")))
  expect_error(ScMambaFineTune(pbmc(), folder, model = tiny_model()), "exists", class = "scmamba_error")
  imputed <- ScMambaImpute(pbmc(), model = folder, adapt = FALSE, passes = 2, verbose = FALSE)
  expect_true("scmamba" %in% SeuratObject::Assays(imputed))
})
