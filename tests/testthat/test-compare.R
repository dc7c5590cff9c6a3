test_that("the comparison between donors equals the Python package's, for every class of object", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 400, n.donors = 6, n.genes = 200)
  compare <- function(object, ...) {
    ScMambaCompare(object, "disease", donor = "donor", ident.1 = "AD", ident.2 = "Control", verbose = FALSE, ...)
  }
  ours <- compare(cohort)
  # Python simulates the same cohort, so the input does not pass through scMamba's R code.
  datasets <- reticulate::import("scmamba.datasets", convert = FALSE)
  adata <- datasets$brain_cohort(n_cells = 400L, n_donors = 6L, n_genes = 200L, seed = 0L)
  alone <- reticulate::import("scmamba.deg", convert = FALSE)$compare(adata, "disease", "donor", group1 = "AD",
    group2 = "Control", verbose = FALSE)
  alone <- scMamba:::.plain_frame(alone$table)
  expect_equal(ours$table$p_val, alone$p_val)
  expect_equal(ours$table$log2FC, alone$log2FC)
  expect_s3_class(ours$summary, "data.frame")
  expect_output(suppressMessages(print(ours)))
  expect_identical(ours$settings, list(group1 = "AD", group2 = "Control", alpha = 0.05, interaction = NULL))
  skip_if_not_installed("ggplot2")
  expect_identical(nrow(ScMambaPlotCompare(ours)$data), sum(!is.na(ours$table$p_val)))
  # Donors as a vector; several cell types.
  expect_equal(ScMambaCompare(cohort, "disease", donor = as.character(cohort$donor), ident.1 = "AD",
    ident.2 = "Control", verbose = FALSE)$table$p_val, ours$table$p_val)
  expect_error(compare(cohort, test.use = "t"), "should be one of")
  skip_if_not_installed("SingleCellExperiment")
  sce <- SingleCellExperiment::SingleCellExperiment(list(counts = counts_of(cohort)),
    colData = S4Vectors::DataFrame(disease = cohort$disease, donor = cohort$donor))
  expect_equal(compare(sce)$table, ours$table)
})

test_that("an interaction is the ratio of two fold changes", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 800, n.donors = 8, n.genes = 200)
  number <- as.integer(factor(cohort$donor))
  cohort$sex <- ifelse(number %% 2 == 0, "f", "m")
  counts <- counts_of(cohort)
  both <- cohort$disease == "AD" & cohort$sex == "m"
  counts[1, both] <- counts[1, both] + 20
  cohort <- SeuratObject::CreateSeuratObject(counts, meta.data = cohort[[]][c("donor", "disease", "sex")])
  found <- ScMambaCompare(cohort, "disease", donor = "donor", interaction = "sex", verbose = FALSE)
  expect_equal(found$table$gene[[1]], rownames(cohort)[[1]])
  expect_gt(found$table$log2FC[[1]], 1)
  expect_false("donors_higher" %in% names(found$table))
  expect_error(ScMambaCompare(cohort, "disease", donor = "donor", interaction = "height", verbose = FALSE), "height")
})
