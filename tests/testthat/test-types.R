# Types and doublets: thin wrappers, so the tests check that the right cells get the right results and nothing is lost.

test_that("types are those of the simulated cohort, by default and from markers", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 160, n.donors = 2, n.genes = 4000, seed = 2)
  named <- ScMambaAnnotate(cohort, markers = "panel", verbose = FALSE)
  expect_identical(counts_of(named), counts_of(cohort))
  expect_true(all(names(cohort[[]]) %in% names(named[[]])))
  expect_true(all(c("scmamba_type", "scmamba_probability", "scmamba_alternatives") %in% names(named[[]])))
  first <- function(x) tolower(substr(as.character(x), 1, 5))
  sure <- named$scmamba_type != "Unassigned"
  expect_gt(mean(first(named$scmamba_type[sure]) == first(cohort$cell_type[sure])), 0.7)
  expect_true(any(grepl("ScMambaAnnotate", SeuratObject::Command(named))))
  expect_error(ScMambaAnnotate(named), "already has", class = "scmamba_exists")
  default <- ScMambaAnnotate(cohort, verbose = FALSE)
  sure <- default$scmamba_type != "Unassigned"
  expect_gt(mean(sure), 0.9)
  expect_gt(mean(first(default$scmamba_type[sure]) == first(cohort$cell_type[sure])), 0.9)
  expect_true(all(c("scmamba_class", "scmamba_subtype") %in% names(default[[]])))
  expect_error(ScMambaAnnotate(default), "scmamba_class", class = "scmamba_exists")
  skip_if_not_installed("ggplot2")
  expect_s3_class(ScMambaPlotConfidence(named), "ggplot")
  expect_error(ScMambaPlotConfidence(cohort), "ScMambaAnnotate", class = "scmamba_error")
})

# Counts drawn from the expected counts themselves, so the type of every cell is known.
drawn_brain <- function(types, each = 20) {
  kept <- reticulate::import("scmamba.annotation.brain_reference", convert = FALSE)$load_reference()
  rates <- reticulate::py_to_r(kept$rates)
  table <- scMamba:::.plain_frame(kept$table)
  set.seed(1)
  counts <- do.call(cbind, lapply(types, function(type) stats::rmultinom(each, 3000, rates[, match(type, table$type)])))
  dimnames(counts) <- list(as.character(reticulate::py_to_r(kept$genes)), paste0("cell", seq_len(ncol(counts))))
  SeuratObject::CreateSeuratObject(methods::as(counts, "dgCMatrix"))
}

test_that("nuclei of the brain get types at three levels without labels or marker genes", {
  skip_without_python()
  types <- c("Oligodendrocyte", "Microglia", "Astrocyte")
  object <- drawn_brain(types)
  truth <- rep(types, each = 20)
  named <- ScMambaAnnotate(object, reference = "human-brain", verbose = FALSE)
  expect_gt(mean(as.character(named$scmamba_type) == truth), 0.95)
  expect_s3_class(named$scmamba_class, "factor")
  expect_s3_class(named$scmamba_subtype, "factor")
  cortex <- ScMambaAnnotate(counts_of(object), reference = "human-brain", region = "cortex", verbose = FALSE)
  expect_gt(mean(as.character(cortex$scmamba_type) == truth), 0.95)
  expect_error(ScMambaAnnotate(named, reference = "human-brain"), "scmamba_class", class = "scmamba_exists")
  expect_error(ScMambaAnnotate(object, reference = "mouse-brain"), "human-brain", class = "scmamba_error")
  expect_error(ScMambaAnnotate(object, reference = "human-brain", region = "liver"), "cortex")
  # Levels of the former result do not stay beside other types.
  again <- ScMambaAnnotate(named, markers = "panel", overwrite = TRUE, verbose = FALSE)
  expect_false(any(c("scmamba_class", "scmamba_subtype") %in% names(again[[]])))
  listed <- ScMambaReferences()
  expect_true(all(types %in% listed$type))
  expect_identical(nrow(listed), 33L)
})

test_that("types come from a labeled reference, in the order of the cells", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 240, n.donors = 4, n.genes = 4000, seed = 3)
  donors <- unique(cohort$donor)
  reference <- cohort[, cohort$donor != donors[[1]]]
  query <- cohort[, cohort$donor == donors[[1]]]
  named <- ScMambaAnnotate(query, reference = reference, labels = "cell_type", network = FALSE, cache = FALSE,
    verbose = FALSE)
  best <- sub(" [0-9.]+;.*", "", named$scmamba_alternatives)
  expect_gt(mean(best == query$cell_type), 0.8)
  backwards <- ScMambaAnnotate(query[, rev(colnames(query))], reference = reference, labels = "cell_type",
    network = FALSE, cache = FALSE, verbose = FALSE)
  expect_equal(backwards$scmamba_probability[colnames(query)], named$scmamba_probability, tolerance = 1e-6)
  expect_error(ScMambaAnnotate(query, reference = reference), "labels", class = "scmamba_error")
  expect_error(ScMambaAnnotate(query, reference = reference, labels = "none"), "none", class = "scmamba_error")
})

test_that("doublets are scored within samples and nothing is removed", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 160, n.donors = 2, n.genes = 2000, seed = 4)
  scored <- ScMambaDoublets(cohort, sample = "donor", identification.rate = 0.1, verbose = FALSE)
  expect_identical(dim(scored), dim(cohort))
  expect_type(scored$scmamba_doublet, "logical")
  expect_true(abs(mean(scored$scmamba_doublet) - 0.1) < 0.03)
  expect_true(all(scored$scmamba_doublet_score >= 0 & scored$scmamba_doublet_score <= 1))
  again <- ScMambaDoublets(counts_of(cohort[, cohort$donor == cohort$donor[[1]]]), identification.rate = 0.1,
    verbose = FALSE)
  expect_s3_class(again, "data.frame")
  expect_error(ScMambaDoublets(cohort, sample = "nothing"), "nothing", class = "scmamba_error")
  expect_error(ScMambaDoublets(cohort, method = "magic"), "fast", class = "scmamba_error")
})
