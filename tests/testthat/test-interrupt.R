# A real Ctrl-C (SIGINT) in a real R process, during the computation: it returns to the prompt, the object is unchanged,
# and R and Python are still usable.

# On a busy machine an interrupt may be lost; a user presses the keys again.
interrupt_again <- function(child, last) {
  if (difftime(Sys.time(), last, units = "secs") < 30) {
    return(last)
  }
  child$interrupt()
  Sys.time()
}

# One session for both backends: starting R, Seurat and Python takes longer than the rest.
interrupted_session <- function() {
  script <- withr::local_tempfile(fileext = ".R", lines = c(
    "suppressPackageStartupMessages(library(scMamba))",
    "seu <- ScMambaCohort(n.cells = 100, n.donors = 2, n.genes = 2000, seed = 1)",
    "before <- serialize(seu, NULL)",
    "for (backend in c('reticulate', 'server')) {",
    "  run <- function(...) ScMambaImpute(seu, force = TRUE, backend = backend, ...)",
    "  cat('BEGIN', backend, '\\n')",
    "  result <- tryCatch(run(method = 'masked', adapt = 50000), interrupt = function(e) 'interrupted',",
    "    error = conditionMessage)",
    "  cat('RESULT', backend, if (is.character(result)) result else 'finished', '\\n')",
    "  cat('UNCHANGED', backend, identical(before, serialize(seu, NULL)), '\\n')",
    "  cat('AGAIN', backend, class(run(adapt = FALSE, verbose = FALSE)), '\\n')",
    "}"
  ))
  child <- processx::process$new(file.path(R.home("bin"), "Rscript"), c("--vanilla", script),
    stdout = "|", stderr = "2>&1",
    env = c("current", R_LIBS = paste(.libPaths(), collapse = .Platform$path.sep)))
  withr::defer(child$kill_tree())
  output <- character()
  sent <- 0
  last <- Sys.time()
  until <- Sys.time() + 1800 # only for a session that hangs; a busy machine is not a failure
  line <- ""
  while ((child$is_alive() || length(line) > 0) && Sys.time() < until) {
    child$poll_io(1000)
    line <- child$read_output_lines()
    output <- c(output, line)
    begun <- which(startsWith(output, "BEGIN"))
    if (sent < length(begun) && any(grepl("Adapting", output[-seq_len(max(begun))], fixed = TRUE))) {
      child$interrupt()
      sent <- sent + 1
      last <- Sys.time()
    }
    if (sent > sum(startsWith(output, "RESULT"))) last <- interrupt_again(child, last)
  }
  output
}

test_that("Ctrl-C returns to the prompt with nothing changed, on both backends", {
  skip_on_os("windows")
  skip_without_python()
  skip_if_not_installed("processx")
  output <- interrupted_session()
  for (backend in c("reticulate", "server")) {
    for (line in paste(c("RESULT", "UNCHANGED", "AGAIN"), backend, c("interrupted", "TRUE", "Seurat"), "")) {
      expect_true(line %in% output, info = paste(c(line, output), collapse = "\n"))
    }
  }
})

test_that("an interrupt that reticulate reports as an error of its own is an interrupt", {
  fails <- function(text) {
    tryCatch(.interruptible(stop(text)), interrupt = function(e) "interrupted", error = conditionMessage)
  }
  expect_identical(fails("Exception raised by 'inspect.getmro(<pyobj>)'; unable to build R 'class'"), "interrupted")
  expect_identical(fails("another"), "another")
  expect_identical(.interruptible(5), 5)
})
