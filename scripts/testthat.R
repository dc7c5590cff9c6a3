# Run the installed package's test suite; the last line has the numbers of passed and failed tests.
Sys.setenv(NOT_CRAN = "true") # pictures are compared
testthat::set_max_fails(Inf)
reporter <- testthat::ListReporter$new()
testthat::test_dir(
  "tests/testthat", package = "scMamba", load_package = "installed", stop_on_failure = FALSE,
  reporter = testthat::MultiReporter$new(list(testthat::CheckReporter$new(), reporter))
)
results <- as.data.frame(reporter$get_results())
failed <- sum(results$failed) + sum(results$error)
skipped <- sum(results$skipped)
# Skipped tests and reasons, for the list at the end of `make test`; an empty reason: the test ran.
reason <- function(result) {
  skips <- Filter(function(part) inherits(part, "expectation_skip"), result)
  if (length(skips) == 0) "" else gsub("[[:space:]]+", " ", sub("^Reason: ", "", conditionMessage(skips[[1]])))
}
kept <- Sys.getenv("SCMAMBA_SKIPS")
if (nzchar(kept)) {
  reasons <- vapply(results$result, reason, "")
  writeLines(paste0(results$file, "::", results$test, "\t", reasons)[!(results$failed > 0 | results$error)], kept)
}
seconds <- sort(tapply(results$real, results$file, sum), decreasing = TRUE)
cat("Slowest files:", paste0(names(seconds), " ", round(seconds), " s", collapse = ", "), "\n")
seurat <- tryCatch(as.character(packageVersion("Seurat")), error = function(e) "missing")
cat(sprintf(
  "R %s, Seurat %s, SeuratObject %s, reticulate %s\n", getRversion(), seurat,
  packageVersion("SeuratObject"), packageVersion("reticulate")
))
cat(sprintf(
  "testthat: %d passed, %d failed, %d skipped\n", sum(results$passed), failed, skipped
))
quit(status = failed > 0 || sum(results$passed) == 0)
