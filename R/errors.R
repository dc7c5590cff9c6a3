# Python's exceptions as R errors: scMamba's own are sentences meant for the
# user and are passed on alone, without class names or a Python traceback.

.translate_errors <- function(expr) {
  tryCatch(expr, python.builtin.BaseException = function(e) .abort_python(e))
}

.abort_python <- function(e) {
  if (inherits(e, "python.builtin.KeyboardInterrupt")) {
    cli::cli_abort("Interrupted; nothing was changed.",
      call = NULL, class = "scmamba_interrupted")
  }
  text <- .python_message(e)
  if (inherits(e, "scmamba._errors.ScMambaError")) {
    lines <- strsplit(text, "\n", fixed = TRUE)[[1]]
    cli::cli_abort(.verbatim(lines), call = NULL, class = "scmamba_error")
  }
  cli::cli_abort(c(
    "The Python side of scMamba failed: {class(e)[[1]]}",
    x = .verbatim(text),
    i = "{.code reticulate::py_last_error()} shows where. Nothing was changed."
  ), call = NULL, class = "scmamba_python_failure")
}

# cli reads braces as code.
.verbatim <- function(text) gsub("}", "}}", gsub("{", "{{", text, fixed = TRUE), fixed = TRUE)

# What Python's str() says of the exception.
.python_message <- function(e) {
  text <- tryCatch(reticulate::py_str(e), error = function(err) conditionMessage(e))
  trimws(sub("\nRun `reticulate::py_last_error\\(\\)` for details\\.$", "", text))
}
