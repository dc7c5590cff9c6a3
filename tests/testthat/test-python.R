# Finding Python, and one sentence for each way in which it can be missing. Tests
# that need a session without Python run in a separate R.

in_new_session <- function(code, env = character()) {
  script <- tempfile(fileext = ".R")
  on.exit(unlink(script))
  writeLines(c("library(scMamba)", code), script)
  suppressWarnings(system2(
    file.path(R.home("bin"), "Rscript"), c("--vanilla", script),
    stdout = TRUE, stderr = TRUE,
    env = c(paste0("R_LIBS=", paste(.libPaths(), collapse = ":")), env)
  ))
}

no_python <- c("RETICULATE_PYTHON=", "RETICULATE_USE_MANAGED_VENV=false",
  paste0("WORKON_HOME=", tempdir()), "VIRTUAL_ENV=")

show_error <- "cat(tryCatch(ScMambaEmbed(SeuratObject::pbmc_small), error = conditionMessage))"

test_that("loading the package starts no Python", {
  out <- in_new_session("cat(reticulate::py_available(initialize = FALSE))")
  expect_identical(tail(out, 1), "FALSE")
})

test_that("a Python without scmamba gives the command to type", {
  skip_on_os("windows")
  skip_without_python()
  scMamba:::.python()
  # The interpreter from which our environment was made.
  bare <- reticulate::import("sys")[["_base_executable"]]
  out <- in_new_session(
    c(sprintf("options(scmamba.python = '%s')", bare), "cat(scmamba_available())", show_error),
    no_python
  )
  text <- paste(out, collapse = " ")
  expect_match(text, "FALSE")
  expect_match(text, "install_scmamba()", fixed = TRUE)
  expect_match(text, "scmamba.python", fixed = TRUE)
})

test_that("a missing Python gives the command to type", {
  out <- paste(in_new_session(
    c("options(scmamba.python = '/no/such/python')", show_error), no_python
  ), collapse = " ")
  expect_match(out, "There is no Python at")
  expect_match(out, "/no/such/python", fixed = TRUE)
  expect_match(out, "install_scmamba()", fixed = TRUE)
  out <- paste(in_new_session(show_error, c(no_python[-1], "RETICULATE_PYTHON=/no/such/python")),
    collapse = " ")
  expect_match(out, "install_scmamba()", fixed = TRUE)
})

test_that("the configuration prints, with and without Python", {
  out <- paste(in_new_session(
    c("options(scmamba.python = '/no/such/python')", "scmamba_config()"), no_python
  ), collapse = "\n")
  expect_match(out, "reticulate")
  expect_match(out, "install_scmamba")
  skip_without_python()
  config <- scmamba_config()
  expect_null(config$problem)
  expect_identical(config$packages[["scmamba"]],
    reticulate::import("scmamba")[["__version__"]])
  expect_true("reference" %in% names(config$backends))
  expect_message(print(config), "torch")
})

test_that("old software is refused with the required version", {
  expect_error(scMamba:::.check_reticulate(package_version("1.28")), "1.39",
    class = "scmamba_python_error")
  expect_error(scMamba:::.check_version(list(version = "3.8", python = "old")), "3.10",
    class = "scmamba_python_error")
  expect_silent(scMamba:::.check_version(list(version = "3.13", python = "new")))
})

test_that("R's library folders are not passed to Python's subprocesses", {
  path <- paste(file.path(R.home(), "lib"), "/usr/lib/x86_64-linux-gnu", "/opt/cuda/lib64",
    sep = ":")
  expect_identical(scMamba:::.clean_library_path(path), "/opt/cuda/lib64")
  expect_identical(scMamba:::.clean_library_path(""), "")
  skip_without_python()
  skip_on_os("windows")
  scMamba:::.python()
  seen <- reticulate::import("subprocess")$check_output(
    c("sh", "-c", "printf %s \"$LD_LIBRARY_PATH\""), text = TRUE
  )
  expect_false(grepl(R.home(), seen, fixed = TRUE))
})

test_that("the Python package is found in the folder that the user names", {
  source_of <- scMamba:::.pip_source
  checkout <- tempfile()
  dir.create(checkout)
  on.exit(unlink(checkout, recursive = TRUE))
  expect_error(source_of(checkout), "pyproject.toml")
  writeLines(c("[project]", "name = \"scmamba\""), file.path(checkout, "pyproject.toml"))
  expect_identical(source_of(checkout), normalizePath(checkout))
  # R's current working directory is not used; the copy in this package is.
  packaged <- normalizePath(system.file("python", package = "scMamba"))
  withr::with_dir(checkout, expect_identical(source_of(NULL), packaged))
  withr::with_options(list(scmamba.source = "scmamba==0.1.0"),
    expect_identical(source_of(NULL), "scmamba==0.1.0"))
  expect_identical(source_of("https://example.org/a.git"), "git+https://example.org/a.git")
  expect_identical(source_of("git+https://example.org/a"), "git+https://example.org/a")
  expect_error(source_of("no/such/folder"), "no/such/folder")
  expect_error(scMamba:::.packaged_source(""), "lacks the Python package", class = "scmamba_install_error")
  expect_error(scMamba:::.packaged_source(tempdir()), "lacks the Python package")
})
