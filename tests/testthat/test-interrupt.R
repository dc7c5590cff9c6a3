# A real Ctrl-C (SIGINT) in a real R process, during the computation: it returns to the prompt, the object is unchanged,
# and R and Python are still usable.

interrupted_session <- function(backend) {
  script <- withr::local_tempfile(fileext = ".R", lines = c(
    "suppressPackageStartupMessages(library(scMamba))",
    "seu <- ScMambaCohort(n.cells = 300, n.donors = 2, n.genes = 2000, seed = 1)",
    "before <- serialize(seu, NULL)",
    sprintf("run <- function(...) ScMambaImpute(seu, force = TRUE, backend = '%s', ...)", backend),
    "result <- tryCatch(run(method = 'masked', adapt = 5000), interrupt = function(e) 'interrupted',",
    "  error = conditionMessage)",
    "cat('RESULT', if (is.character(result)) result else 'finished', '\\n')",
    "cat('UNCHANGED', identical(before, serialize(seu, NULL)), '\\n')",
    "cat('AGAIN', class(run(adapt = FALSE, verbose = FALSE)), '\\n')"
  ))
  child <- processx::process$new(file.path(R.home("bin"), "Rscript"), c("--vanilla", script),
    stdout = "|", stderr = "2>&1",
    env = c("current", R_LIBS = paste(.libPaths(), collapse = .Platform$path.sep)))
  withr::defer(child$kill_tree())
  output <- character()
  sent <- FALSE
  until <- Sys.time() + 1800 # only for a session that hangs; a busy machine is not a failure
  line <- ""
  while ((child$is_alive() || length(line) > 0) && Sys.time() < until) {
    child$poll_io(1000)
    line <- child$read_output_lines()
    output <- c(output, line)
    if (!sent && any(grepl("Adapting", output, fixed = TRUE))) {
      child$interrupt()
      sent <- TRUE
    }
  }
  expect_true(sent, info = paste(output, collapse = "\n"))
  output
}

for (backend in c("reticulate", "server")) {
  test_that(paste("Ctrl-C returns to the prompt with nothing changed:", backend), {
    skip_on_os("windows")
    skip_without_python()
    skip_if_not_installed("processx")
    output <- interrupted_session(backend)
    expect_true("RESULT interrupted " %in% output, info = paste(output, collapse = "\n"))
    expect_true("UNCHANGED TRUE " %in% output)
    expect_true("AGAIN Seurat " %in% output)
  })
}
