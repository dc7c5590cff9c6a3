# A broken Python gives one message with the command that helps; each is made for real, in a real R session.

for (name in names(broken_pythons)) {
  test_that(paste("one message gives the command that helps:", broken_pythons[[name]]$title), {
    skip_on_os("windows")
    skip_without_python()
    output <- meet_broken(broken_pythons[[name]])
    text <- gsub("\\s+", " ", paste(output, collapse = " "))
    # No other output, and a message of scMamba.
    expect_match(text, "^\\[scmamba_python_error\\]", info = text)
    for (words in broken_pythons[[name]]$expect) expect_match(text, words, fixed = TRUE, info = text)
    expect_false(grepl("Traceback|py_last_error|Error in", text), info = text)
  })
}

test_that("after an invalid option a valid one works in the same session", {
  skip_on_os("windows")
  skip_without_python()
  good <- reticulate::import("sys")$executable
  output <- fresh_session(c("options(scmamba.python = '/no/such/python')", verb_or_message, named_by_option(good),
    "cat(scmamba_available(), is.null(scmamba_config()$problem), Sys.getenv('RETICULATE_PYTHON'))"))
  expect_match(output[[1]], "no Python at", info = output)
  expect_match(tail(output, 1), "^TRUE TRUE *$", info = output)
})

test_that("a project's own environment does not hide the one made for scMamba", {
  skip_on_os("windows")
  skip_without_python()
  folder <- normalizePath(withr::local_tempdir())
  empty_environment(file.path(folder, ".venv"))
  dir.create(file.path(folder, "environments"))
  own <- environment_without(file.path(folder, "environments", "r-scmamba"), character())
  code <- "cat(scMamba:::.find_python()$python)"
  env <- paste0("WORKON_HOME=", file.path(folder, "environments"))
  expect_identical(tail(fresh_session(code, env, folder), 1), own$python)
  # A Python chosen by name is not replaced.
  output <- fresh_session(c(named_by_option(file.path(folder, ".venv")), verb_or_message), env, folder)
  expect_match(paste(output, collapse = " "), "no package scmamba.*named by")
})

test_that("a Python without its shared library is named with its package", {
  config <- list(python = "/usr/bin/python3", version = "3.11", libpython = NA_character_)
  expect_error(scMamba:::.check_library(config), "apt-get install libpython3.11", class = "scmamba_python_error")
  config$libpython <- NULL
  expect_error(scMamba:::.check_library(config), "libpython3.11", class = "scmamba_python_error")
})
