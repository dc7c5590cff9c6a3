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
  shown <- scMamba:::.cli_listener()
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
    "import scmamba.imputation as _imputation",
    "_kept = _imputation.impute_or_write",
    "def _interrupted(*a, **k): raise KeyboardInterrupt()",
    "_imputation.impute_or_write = _interrupted", sep = "\n"
  ))
  on.exit(reticulate::py_run_string("_imputation.impute_or_write = _kept"))
  caught <- tryCatch({
    seu <- impute_tiny(seu, verbose = TRUE)
  }, interrupt = function(e) "back at the prompt")
  expect_identical(caught, "back at the prompt")
  expect_identical(seu, before)
  expect_null(reticulate::import("scmamba.utils.progress")$listener)
})

test_that("a handler may leave at any message, and R and Python are usable afterwards", {
  skip_without_python()
  # Without protection such a session is killed, hence a separate one.
  output <- fresh_session(env = paste0("RETICULATE_PYTHON=", reticulate::import("sys")$executable), code = c(
    "object <- ScMambaCohort(n.cells = 40, n.donors = 2, n.genes = 2000)",
    "verb <- function() ScMambaEmbed(object, force = TRUE)",
    "raised <- function(m) stop('raised at ', substr(conditionMessage(m), 3, 12))",
    "interrupted <- function(m) {tools::pskill(Sys.getpid(), tools::SIGINT); Sys.sleep(20); stop('not interrupted')}",
    "cases <- list(",
    "  error = function() tryCatch(withCallingHandlers(verb(), message = raised), error = conditionMessage),",
    "  exit = function() tryCatch(verb(), message = function(m) 'left at a message'),",
    "  condition = function() tryCatch(verb(), condition = function(m) 'left at a condition'),",
    "  restart = function() withRestarts(",
    "    withCallingHandlers(verb(), message = function(m) invokeRestart('mine', 'left by a restart')),",
    "    mine = function(x) x),",
    "  nested = function() tryCatch(verb(), message = function(m) class(suppressMessages(verb()))[[1]]),",
    "  interrupt = function() tryCatch(withCallingHandlers(verb(), message = interrupted),",
    "    interrupt = function(e) 'left by Ctrl-C'),",
    "  warning = function() class(tryCatch(suppressMessages(verb()), warning = conditionMessage))[[1]])",
    "for (name in names(cases)) {",
    "  cat(name, ':', cases[[name]](), '\\n')",
    "  again <- ScMambaEmbed(object, force = TRUE, verbose = FALSE)",
    "  cat('then:', ncol(again[['scmamba_embedding']]), 'dimensions\\n')",
    "}",
    "invisible(gc())"
  ))
  expect_null(attr(output, "status"), info = output)
  expect_identical(trimws(output), as.vector(rbind(
    c("error : raised at The matrix", "exit : left at a message", "condition : left at a condition",
      "restart : left by a restart", "nested : Seurat", "interrupt : left by Ctrl-C", "warning : Seurat"),
    "then: 64 dimensions"
  )))
})

test_that("what Python prints while it computes appears, and its functions are put back", {
  skip_without_python()
  reticulate::py_run_string(paste(
    "import sys as _sys",
    "def _printing(): _sys.stderr.write('printed by Python\\n'); print('and this'); return 7",
    "_streams = (_sys.stdout, _sys.stderr)", sep = "\n"
  ))
  main <- reticulate::import_main(convert = FALSE)
  result <- NULL
  shown <- reticulate::py_capture_output(result <- scMamba:::.call_python(main[["_printing"]], list(), TRUE))
  expect_identical(shown, "printed by Python\nand this\n")
  expect_identical(reticulate::py_to_r(result), 7L)
  expect_true(reticulate::py_eval("_streams == (_sys.stdout, _sys.stderr)"))
})

test_that("inside of with_progress() the handlers of progressr show the progress, and no other bar", {
  skip_without_python()
  skip_if_not_installed("progressr")
  expect_false(scMamba:::.progressr_on())
  tiny_model()
  seen <- list()
  # A handler of progressr, as its own ones are made.
  record <- function(config, state, progression, ...) {
    seen[[length(seen) + 1]] <<- list(type = progression$type, step = state$step, max = config$max_steps,
      message = paste(state$message, collapse = ""))
  }
  handler <- progressr::make_progression_handler("record", intrusiveness = 0, enable = TRUE, interval = 0,
    reporter = list(initiate = record, update = record, finish = record))
  run <- function() impute_tiny(pbmc(), passes = 3, verbose = TRUE)
  plain <- suppressMessages(run())
  withr::local_options(cli.progress_show_after = 0)
  suppressMessages(shown <- progressr::with_progress(run(), handlers = handler, enable = TRUE))
  expect_identical(data_of(shown), data_of(plain))
  updates <- Filter(function(one) one$type == "update", seen)
  expect_gt(length(updates), 0)
  steps <- vapply(updates, function(one) one$step / one$max, 1)
  expect_equal(max(steps), 1)
  expect_false(scMamba:::.progressr_on())
})

test_that("Python's warnings are messages, or with verbose = FALSE warnings of R, in R's words and each time", {
  skip_without_python()
  scMamba:::.python()
  reticulate::py_run_string(paste(
    "import warnings as _w",
    "def _warning(**k): _w.warn(\"obs['a'] holds 2 values; pass n_jobs=1\"); return 7", sep = "\n"
  ))
  call <- reticulate::import_main(convert = FALSE)[["_warning"]]
  in_r <- "metadata column \"a\" holds 2 values; pass workers"
  for (again in 1:2) {
    shown <- reticulate::py_capture_output({
      expect_message(scMamba:::.call_python(call, list(), TRUE), in_r)
      expect_warning(scMamba:::.call_python(call, list(), FALSE), in_r)
    })
    expect_identical(shown, "")
  }
  # Other calls of Python are as before.
  expect_identical(reticulate::py_eval("_w.showwarning.__module__"), "warnings")
})
