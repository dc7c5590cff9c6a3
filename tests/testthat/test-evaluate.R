# Evaluation against what is known: by hand, or by the Python package alone.

test_that("types and doublets are scored against a column, as counted by hand", {
  skip_without_python()
  object <- pbmc()
  truth <- rep(c("a", "b", NA), c(40, 30, 10))
  object$truth <- truth
  object$scmamba_type <- factor(rep(c("a", "b", "a", "Unassigned", "a"), c(30, 10, 5, 25, 10)))
  object$scmamba_probability <- seq(0.5, 1, length.out = 80)
  object$other <- ifelse(is.na(truth), "b", truth)
  found <- ScMambaEvaluate(object, "annotation", truth = "truth", called = c("scmamba_type", "other"), verbose = FALSE)
  expect_identical(found$summary$calls, c("scmamba_type", "other"))
  # 35 of 70 cells have a type of the 45 that were named... 30 are right.
  expect_equal(found$summary$coverage, c(45 / 70, 1))
  confusion <- found$tables$confusion
  cells <- function(true, called) {
    sum(confusion$cells[confusion$calls == "scmamba_type" & confusion$truth == true & confusion$called == called])
  }
  expect_identical(c(cells("a", "a"), cells("a", "b"), cells("b", "a"), cells("b", "Unassigned")) + 0,
    c(30, 10, 5, 25))
  expect_setequal(found$tables$per_type$type, c("a", "b"))
  one <- ScMambaEvaluate(object, "annotation", truth = "truth", verbose = FALSE)
  expect_equal(one$tables$coverage$coverage[which.max(one$tables$coverage$coverage)], 1)
  expect_match(one$notes, "calibration error", all = FALSE)
  expect_output(suppressMessages(print(one)), "coverage")

  object$hashed <- rep(c("doublet", "singlet"), c(20, 60))
  object$scmamba_doublet_score <- c(seq(1, 0.6, length.out = 20), seq(0.55, 0, length.out = 60))
  object$noise <- rep(0:1, 40)
  scores <- ScMambaEvaluate(object, "doublets", truth = "hashed", called = c("scmamba_doublet_score", "noise"),
    verbose = FALSE)
  expect_equal(scores$summary$AUROC, c(1, 0.5))
  expect_gt(nrow(scores$tables$identification_rates), 2)

  expect_error(ScMambaEvaluate(object, "annotation"), "truth", class = "scmamba_error")
  expect_error(ScMambaEvaluate(object, "annotation", truth = "none"), "none", class = "scmamba_error")
  expect_error(ScMambaEvaluate(object, "doublets", truth = "truth"), "doublet", class = "scmamba_error")
  expect_error(ScMambaEvaluate(object, "magic"), "should be one of")
  skip_if_not_installed("SingleCellExperiment")
  columns <- S4Vectors::DataFrame(truth = truth, scmamba_type = object$scmamba_type,
    scmamba_probability = object$scmamba_probability)
  sce <- SingleCellExperiment::SingleCellExperiment(list(counts = counts_of(object)), colData = columns)
  expect_equal(ScMambaEvaluate(sce, "annotation", truth = "truth", verbose = FALSE), one)
})

test_that("masked counts and clusters are evaluated as in Python", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 60, n.donors = 2, n.genes = 600, seed = 2)
  measure <- function(object, ...) {
    ScMambaEvaluate(object, "imputation", predictors = c("one", "gene_rate"), min.total = 100, verbose = FALSE, ...)
  }
  ours <- measure(cohort)
  expect_true(all(c("one", "gene_rate") %in% ours$summary[[1]]))
  expect_gt(nrow(ours$summary), 2) # the model
  expect_lt(ours$summary$deviance[ours$summary[[1]] == "gene_rate"], ours$summary$deviance[ours$summary[[1]] == "one"])
  # Python simulates the same cohort, so these counts do not pass through scMamba's R code.
  adata <- reticulate::import("scmamba.datasets", convert = FALSE)$brain_cohort(n_cells = 60L, n_donors = 2L,
    n_genes = 600L, seed = 2L)
  alone <- reticulate::import("scmamba.evaluation", convert = FALSE)$nonzero_imputation(adata,
    reticulate::dict(`brain-mini` = "brain-mini"), predictors = list("one", "gene_rate"), min_total = 100,
    verbose = FALSE)
  expect_equal(ours$summary$deviance, scMamba:::.plain_frame(alone)$deviance, tolerance = 1e-6)
  expect_match(ours$notes, "counted values were hidden", all = FALSE)

  imputed <- ScMambaImpute(cohort, adapt = FALSE, force = TRUE, verbose = FALSE)
  clusters <- ScMambaEvaluate(imputed, "clusters", truth = "cell_type", donor = "donor", verbose = FALSE)
  expect_identical(clusters$summary[[1]], c("counts", "scmamba"))
  expect_true(all(c("NMI", "NMI_donor") %in% names(clusters$summary)))
  expect_error(ScMambaEvaluate(cohort, "clusters", truth = "cell_type"), "scmamba", class = "scmamba_error")
})

test_that("a classifier of one's own types is trained and names the cells of another object, on both backends", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 150, n.donors = 4, n.genes = 1500, seed = 5)
  cohort$type <- as.character(cohort$cell_type)
  cohort$type[1:4] <- NA
  folder <- file.path(withr::local_tempdir(), c("here", "there", "values"))
  tune <- function(to, ...) {
    ScMambaFineTune(cohort, to, steps = 2, name = "mine", force = TRUE, ...)
  }
  expect_message(tune(folder[[1]], labels = "type"), "1 of 4 donors, which were held out")
  labels <- jsonlite::fromJSON(file.path(folder[[1]], "labels.json"))
  expect_true("temperature" %in% names(unlist(labels)) || "temperature" %in% names(labels$calibration))
  expect_setequal(labels$labels, unique(stats::na.omit(cohort$type)))
  expect_match(paste(readLines(file.path(folder[[1]], "model_card.md")), collapse = " "), "name cell types on")
  # One value for each cell; the same model.
  tune(folder[[3]], labels = cohort$type, donor = as.character(cohort$donor), verbose = FALSE)
  weights <- function(i) unname(tools::md5sum(file.path(folder[[i]], "model.safetensors")))
  expect_identical(weights(3), weights(1))
  other <- ScMambaCohort(n.cells = 60, n.donors = 2, n.genes = 1500, seed = 9)
  named <- ScMambaAnnotate(other, model = folder[[1]], force = TRUE, verbose = FALSE)
  best <- sub(" [0-9.]+;.*", "", named$scmamba_alternatives)
  expect_gt(mean(best == other$cell_type), 0.6)
  expect_error(tune(file.path(folder[[1]], "x"), labels = "none"), "none", class = "scmamba_error")
  skip_if_not(.Platform$OS.type == "unix")
  tune(folder[[2]], labels = "type", backend = "server", verbose = FALSE)
  expect_identical(weights(2), weights(1))
})
