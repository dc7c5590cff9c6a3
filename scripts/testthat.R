# Run the installed package's test suite; the last line has the numbers of passed and failed tests.
#   Rscript scripts/testthat.R          all files
#   Rscript scripts/testthat.R second   without those that need no second Seurat: the other run has them
#   Rscript scripts/testthat.R python   those in which Python's packages matter: verbs, files, tables, a server
Sys.setenv(NOT_CRAN = "true") # pictures are compared
testthat::set_max_fails(Inf)
reporter <- testthat::ListReporter$new()
# Finding and installing Python, signals, progress, documents, tables, names of genes, HTTP: nothing in them makes what differs
# between Seurat 4 and 5 (assays, layers, conversion, Seurat's own functions), and the cells are read as in all other files:
# test-tour.R goes through a server on both, test-coverage-objects.R annotates and finds doublets, test-odd-inputs.R has genes
# named in a column and by Ensembl IDs, test-mouse.R makes an assay of them.
once <- c(
  "broken-python", "compare", "documents", "evaluate", "frames", "genes", "install", "interrupt", "progress", "python",
  "server", "types", "workers"
)
files <- sub("^test-(.*)[.]R$", "\\1", list.files("tests/testthat", "^test-.*[.]R$"))
stopifnot(once %in% files)
if ("second" %in% commandArgs(TRUE)) {
  files <- setdiff(files, once)
  cat("Files that only the run on the other Seurat has:", paste(once, collapse = ", "), "\n")
}
if ("python" %in% commandArgs(TRUE)) {
  files <- c("compare", "coverage-corners", "disk", "embed", "evaluate", "frames", "h5ad", "impute", "mouse", "readme", "sce",
    "server", "types")
}
testthat::test_dir(
  "tests/testthat", filter = paste0("^(", paste(files, collapse = "|"), ")$"),
  package = "scMamba", load_package = "installed", stop_on_failure = FALSE,
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
