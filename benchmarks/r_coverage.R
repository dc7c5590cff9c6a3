# Share of the R code's lines that tests/testthat runs, by file, and the lines that it does not run.
#   Rscript benchmarks/r_coverage.R [processes]      (in the checkout, after make setup; needs covr)
# Also counted: code that the tests run in other R processes, unless those are killed.
stopifnot("run this in the checkout, and install covr" = file.exists("DESCRIPTION") && requireNamespace("covr"))
root <- normalizePath(".")
processes <- c(as.integer(commandArgs(trailingOnly = TRUE)), 2L)[[1]]

tests <- sub("^test-(.*)[.]R$", "\\1", list.files("tests/testthat", "^test-.*[.]R$"))
# Alone: tests that start processes and servers. The others in parallel.
heavy <- intersect(c("broken-python", "install", "python", "server", "deg", "coverage-objects"), tests)
groups <- c(as.list(heavy), list(setdiff(tests, heavy)))

one_group <- function(names) {
  code <- sprintf(
    "testthat::set_max_fails(Inf)
    testthat::test_dir('%s/tests/testthat', package = 'scMamba', load_package = 'installed', reporter = 'check',
      filter = '^(%s)$', stop_on_failure = FALSE)", root, paste(names, collapse = "|")
  )
  covr::tally_coverage(covr::package_coverage(root, type = "none", code = code), by = "line")
}
found <- parallel::mclapply(groups, one_group, mc.cores = processes, mc.preschedule = FALSE)
stopifnot("a group of tests did not end" = all(vapply(found, is.data.frame, NA)))
lines <- stats::aggregate(value ~ filename + line, do.call(rbind, found), max)

percent <- function(frame) 100 * mean(frame$value > 0)
files <- split(lines, basename(lines$filename))
ranges <- function(numbers) {
  runs <- split(numbers, cumsum(c(TRUE, diff(numbers) > 1)))
  paste(vapply(runs, function(run) paste(unique(range(run)), collapse = "-"), ""), collapse = ", ")
}
rows <- vapply(names(files), function(name) {
  frame <- files[[name]]
  missed <- sort(frame$line[frame$value == 0])
  sprintf("%-20s %4d %6.1f  %s", name, nrow(frame), percent(frame), if (length(missed) > 0) ranges(missed) else "")
}, "")
text <- c(
  "Coverage of R/*.R by tests/testthat: Rscript benchmarks/r_coverage.R",
  sprintf("R %s, Seurat %s, testthat %s, covr %s; 2 cores of an Intel Xeon with AVX-512/AMX, 24 GiB.", getRversion(),
    packageVersion("Seurat"), packageVersion("testthat"), packageVersion("covr")),
  "", sprintf("all files: %.1f%% of %d lines", percent(lines), nrow(lines)), "",
  sprintf("%-20s %4s %6s  %s", "file", "rows", "%", "lines not run"), unname(rows)
)
writeLines(text, "benchmarks/results/r_coverage.txt")
writeLines(text)
