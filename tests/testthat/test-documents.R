# The index of the web site is not part of the built package, so these tests run in a checkout only.
index <- function() {
  file <- testthat::test_path("..", "..", "_pkgdown.yml")
  testthat::skip_if_not(file.exists(file), "a checkout with _pkgdown.yml")
  file
}

test_that("every exported function and every vignette is in the site's index", {
  lines <- trimws(readLines(index()))
  listed <- sub("^- +", "", lines[startsWith(lines, "- ")])
  listed <- c(listed, sub("^contents: +", "", lines[startsWith(lines, "contents: ")]))
  exported <- getNamespaceExports("scMamba")
  expect_equal(setdiff(exported[!startsWith(exported, ".")], listed), character())
  pages <- list.files(testthat::test_path("..", "..", "vignettes"), "[.]Rmd$")
  expect_gte(length(pages), 3)
  expect_equal(setdiff(sub("[.]Rmd$", "", pages), listed), character())
})

test_that("pkgdown finds nothing missing", {
  skip_if_not_installed("pkgdown")
  withr::local_options(pkgdown.internet = FALSE)
  # By name, because a package that only this line uses does not belong in DESCRIPTION.
  check <- getExportedValue("pkgdown", "check_pkgdown")
  expect_no_error(suppressMessages(check(dirname(index()))))
})

test_that("every exported function has an example that R CMD check runs", {
  folder <- file.path(dirname(index()), "man")
  pages <- lapply(list.files(folder, "[.]Rd$", full.names = TRUE), tools::parse_Rd)
  tags <- function(page) vapply(page, function(part) attr(part, "Rd_tag"), "")
  named <- lapply(pages, function(page) vapply(page[tags(page) == "\\alias"], as.character, ""))
  code <- vapply(pages, function(page) {
    file <- tempfile()
    on.exit(unlink(file))
    tools::Rd2ex(page, file)
    lines <- if (file.exists(file)) readLines(file) else character()
    # \dontrun leaves its code behind "##D".
    paste(lines[!startsWith(lines, "##") & !startsWith(lines, "###")], collapse = "\n")
  }, "")
  for (name in getNamespaceExports("scMamba")) {
    page <- which(vapply(named, function(aliases) name %in% aliases, NA))
    expect_length(page, 1)
    expect_match(code[page], paste0(name, "("), fixed = TRUE, info = name)
    expect_no_error(parse(text = code[page]))
  }
})

test_that("an installation from the folder has the vignettes, made from today's text", {
  root <- dirname(index())
  files <- list.files(file.path(root, "vignettes"), "[.]Rmd$", full.names = TRUE)
  for (file in files) {
    name <- tools::file_path_sans_ext(basename(file))
    page <- file.path(root, "inst", "doc", paste0(name, ".html"))
    expect_true(file.exists(page), info = name)
    lines <- readLines(page)
    made <- sprintf("<!-- made from vignettes/%s, md5 %s -->", basename(file), tools::md5sum(file))
    expect_true(made %in% lines, info = paste(name, "is older than its text: make docs"))
    expect_identical(readLines(file.path(root, "inst", "doc", basename(file))), readLines(file), info = name)
    # Its code was run, and no folder of the machine that ran it is on the page.
    expect_false(any(grepl("Python side of scMamba was not found", lines)), info = name)
    expect_false(any(grepl("/[.]venv/|/tmp/|/root/|/home/", lines)), info = name)
  }
  listed <- utils::vignette(package = "scMamba")$results[, "Item"]
  expect_setequal(listed, tools::file_path_sans_ext(basename(files)))
})
