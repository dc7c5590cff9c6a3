# One sentence per error, formatted by cli, without the backtrace rlang would add
# in scripts: the reader is a biologist, not a developer.
.abort <- function(message, class = NULL, .envir = parent.frame()) {
  text <- cli::format_message(message, .envir = .envir)
  stop(errorCondition(text, class = c(class, "scmamba_error"), call = NULL))
}

# Python's exceptions as R errors: scMamba's own are sentences meant for the
# user and are passed on alone, without class names or a Python traceback. An
# interrupt is none: reticulate hands it to R, which returns to the prompt.

.translate_errors <- function(expr) {
  tryCatch(expr, python.builtin.BaseException = function(e) .abort_python(e))
}

.abort_python <- function(e) {
  text <- .python_message(e)
  if (inherits(e, "scmamba.utils.errors.ScMambaError")) {
    # As it is: it may hold a table, which cli would run together.
    stop(errorCondition(.r_words(text), class = "scmamba_error", call = NULL))
  }
  .abort(c(
    "The Python side of scMamba failed: {class(e)[[1]]}",
    x = .verbatim(text),
    i = "{.code reticulate::py_last_error()} shows where. Nothing was changed."
  ), class = "scmamba_python_failure")
}

# cli reads braces as code.
.verbatim <- function(text) gsub("}", "}}", gsub("{", "{{", text, fixed = TRUE), fixed = TRUE)

# Python's str() of the exception.
.python_message <- function(e) {
  text <- tryCatch(reticulate::py_str(e), error = function(err) conditionMessage(e))
  trimws(sub("\nRun `reticulate::py_last_error\\(\\)` for details\\.$", "", text))
}
