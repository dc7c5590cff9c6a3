# The README's R blocks, as printed; only the adaptation of ScMambaImpute() is shortened to two steps.

blocks <- function() {
  file <- testthat::test_path("..", "..", "README.md")
  testthat::skip_if_not(file.exists(file), "a checkout with README.md")
  lines <- readLines(file)
  starts <- which(lines == "```r")
  ends <- vapply(starts, function(i) i + which(lines[-seq_len(i)] == "```")[[1]], 1)
  Map(function(from, to) lines[(from + 1):(to - 1)], starts, ends)
}

test_that("the README's R blocks run", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  withr::local_options(Seurat.warn.umap.uwot = FALSE, cli.progress_show_after = 1e6)
  here <- new.env(parent = globalenv())
  object <- Seurat::NormalizeData(ScMambaCohort(n.cells = 320, n.donors = 4, n.genes = 3000, seed = 2), verbose = FALSE)
  expect_true("APOE" %in% rownames(object))
  here$ScMambaImpute <- function(...) scMamba::ScMambaImpute(..., adapt = 2)
  found <- blocks()
  expect_gte(length(found), 1)
  grDevices::pdf(NULL)
  on.exit(grDevices::dev.off())
  here$seu <- object
  for (block in found) suppressMessages(suppressWarnings(eval(parse(text = block), here)))
  expect_true(all(c("scmamba_type", "scmamba_doublet") %in% names(here$seu[[]])))
  expect_true("umap" %in% SeuratObject::Reductions(here$seu))
  expect_true("scmamba" %in% SeuratObject::Assays(here$seu))
  expect_gt(nrow(here$result$table), 100)
})

test_that("citation() names the paper and the version", {
  text <- format(citation("scMamba"), style = "text")
  expect_match(paste(text, collapse = " "), "2502.19429", fixed = TRUE)
  expect_match(paste(text, collapse = " "), as.character(packageVersion("scMamba")), fixed = TRUE)
})
