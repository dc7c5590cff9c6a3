# The R blocks of the README and of the site's start page, as printed; only the adaptation of ScMambaImpute() is
# shortened to two steps.

blocks <- function(page) {
  file <- testthat::test_path("..", "..", page)
  testthat::skip_if_not(file.exists(file), paste("a checkout with", page))
  lines <- readLines(file)
  starts <- grep("^ *```r$", lines)
  ends <- vapply(starts, function(i) i + grep("^ *```$", lines[-seq_len(i)])[[1]], 1)
  Map(function(from, to) sub("^    ", "", lines[(from + 1):(to - 1)]), starts, ends)
}

for (page in c("README.md", "docs/index.md")) {
  test_that(paste("the R blocks run:", page), {
    skip_without_python()
    skip_if_not_installed("Seurat")
    withr::local_options(Seurat.warn.umap.uwot = FALSE, cli.progress_show_after = 1e6)
    here <- new.env(parent = globalenv())
    object <- ScMambaCohort(n.cells = 320, n.donors = 4, n.genes = 3000, seed = 2)
    object <- Seurat::NormalizeData(object, verbose = FALSE)
    expect_true("APOE" %in% rownames(object))
    here$ScMambaImpute <- function(...) scMamba::ScMambaImpute(..., adapt = 2)
    found <- blocks(page)
    expect_gte(length(found), 1)
    grDevices::pdf(NULL)
    on.exit(grDevices::dev.off())
    here$seu <- object
    for (block in found) suppressMessages(suppressWarnings(eval(parse(text = block), here)))
    expect_true(all(c("scmamba_type", "scmamba_doublet") %in% names(here$seu[[]])))
    expect_true("scmamba_embedding" %in% SeuratObject::Reductions(here$seu))
    expect_true("scmamba" %in% SeuratObject::Assays(here$seu))
    if (page == "README.md") {
      expect_true("umap" %in% SeuratObject::Reductions(here$seu))
      expect_gt(nrow(here$result$table), 100)
    }
  })
}

test_that("citation() names the paper and the version", {
  text <- format(citation("scMamba"), style = "text")
  expect_match(paste(text, collapse = " "), "2502.19429", fixed = TRUE)
  expect_match(paste(text, collapse = " "), as.character(packageVersion("scMamba")), fixed = TRUE)
})
