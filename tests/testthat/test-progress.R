test_that("Python's progress and messages are shown by cli, and can be switched off", {
  skip_without_python()
  expect_message(impute_tiny(pbmc(), verbose = TRUE), "genes matched")
  expect_message(embed_tiny(pbmc(), verbose = TRUE), "16 dimensions")
  expect_silent(impute_tiny(pbmc(), verbose = FALSE))
  progress <- reticulate::import("scmamba.utils.progress")
  expect_null(progress$listener)
  expect_null(progress$speaker)
})

test_that("the listener handles several bars, and braces in their names", {
  shown <- scMamba:::.progress_listener()
  expect_null(shown$listener("one {x}", 1L, 2L))
  expect_null(shown$listener("one {x}", 2L, 2L))
  expect_null(shown$listener("two", 1L, 5L))
  expect_null(shown$finish())
  expect_null(shown$finish())
})

test_that("an interrupt leaves the object unchanged", {
  skip_without_python()
  tiny_model()
  seu <- pbmc()
  before <- seu
  reticulate::py_run_string(paste(
    "import scmamba as _scmamba",
    "_scmamba_impute = _scmamba.impute",
    "def _interrupted(*a, **k): raise KeyboardInterrupt()",
    "_scmamba.impute = _interrupted", sep = "\n"
  ))
  on.exit(reticulate::py_run_string("_scmamba.impute = _scmamba_impute"))
  caught <- tryCatch({
    seu <- impute_tiny(seu, verbose = TRUE)
  }, interrupt = function(e) "back at the prompt")
  expect_identical(caught, "back at the prompt")
  expect_identical(seu, before)
  expect_null(reticulate::import("scmamba.utils.progress")$listener)
})
