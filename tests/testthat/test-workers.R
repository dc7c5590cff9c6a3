# The number of processes: by number, or from the user's own set-up of BiocParallel or future.

cohort_of_two <- local({
  made <- NULL
  function() {
    if (is.null(made)) made <<- ScMambaCohort(n.cells = 120, n.donors = 4, n.genes = 200, seed = 3)
    made
  }
})

robust <- function(...) {
  suppressWarnings(ScMambaRobustness(cohort_of_two(), group.by = "disease", imputed.assay = NULL, ratios = c(0.4, 0.6),
    permutations = 2, donors = NULL, null.permutations = 0, min.degs = 1, verbose = FALSE, ...))
}

# The number that Python's function was called with, and the result.
with_number <- function(expr) {
  reticulate::py_run_string(paste(
    "import scmamba.deg as _scmamba_deg", "_scmamba_robustness = _scmamba_deg.robustness", "_scmamba_jobs = []",
    "def _counting(*a, **k):", "    _scmamba_jobs.append(k.get('n_jobs'))", "    return _scmamba_robustness(*a, **k)",
    "_scmamba_deg.robustness = _counting", sep = "\n"
  ))
  on.exit(reticulate::py_run_string("_scmamba_deg.robustness = _scmamba_robustness"))
  result <- expr
  list(result = result, number = reticulate::py_eval("_scmamba_jobs[-1]"))
}

test_that("the number of processes is that of workers, BPPARAM or the plan of future", {
  skip_without_python()
  scMamba:::.python()
  plain <- with_number(robust())
  expect_null(plain$number)
  expect_identical(with_number(robust(workers = 2))$number, 2L)
  skip_if_not_installed("future")
  old <- future::plan("sequential")
  on.exit(future::plan(old))
  expect_null(with_number(robust())$number)
  future::plan("multicore", workers = 2)
  planned <- with_number(robust())
  expect_identical(planned$number, 2L)
  expect_identical(planned$result, plain$result)
  # What is given comes before the plan.
  expect_identical(with_number(robust(workers = 1))$number, 1L)
})

test_that("BPPARAM gives its number of workers, for every class of object", {
  skip_without_python()
  skip_if_not_installed("BiocParallel")
  scMamba:::.python()
  two <- with_number(robust(BPPARAM = BiocParallel::MulticoreParam(2)))
  expect_identical(two$number, 2L)
  expect_identical(two$result, robust())
  expect_identical(with_number(robust(BPPARAM = BiocParallel::SerialParam()))$number, 1L)
  skip_if_not_installed("SingleCellExperiment")
  object <- SingleCellExperiment::SingleCellExperiment(list(counts = counts_of(cohort_of_two())),
    colData = cohort_of_two()[[]])
  of_sce <- with_number(suppressWarnings(ScMambaRobustness(object, group.by = "disease", imputed.assay = NULL,
    ratios = 0.5, permutations = 2, donors = NULL, null.permutations = 0, min.degs = 1, verbose = FALSE,
    BPPARAM = BiocParallel::SnowParam(2))))
  expect_identical(of_sce$number, 2L)
})

test_that("other values of BPPARAM are refused before any work", {
  expect_error(robust(BPPARAM = 4), "BiocParallel.*workers", class = "scmamba_error")
  expect_error(robust(BPPARAM = "MulticoreParam"), "BiocParallel", class = "scmamba_error")
  expect_error(robust(workers = 0), "workers", class = "scmamba_error")
  skip_if_not_installed("BiocParallel")
  expect_error(robust(workers = 2, BPPARAM = BiocParallel::SerialParam()), "both", class = "scmamba_error")
})
