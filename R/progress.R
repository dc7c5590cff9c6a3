# scMamba's Python side reports progress to one listener; here it becomes a cli
# progress bar, in the console's own style.

.progress_listener <- function() {
  bar <- NULL
  current <- ""
  frame <- environment()
  listener <- function(description, done, total) {
    if (is.null(bar) || !identical(description, current)) {
      if (!is.null(bar)) cli::cli_progress_done(id = bar, .envir = frame)
      bar <<- cli::cli_progress_bar(.verbatim(description), total = total,
        clear = FALSE, .auto_close = FALSE, .envir = frame)
      current <<- description
    }
    cli::cli_progress_update(set = done, id = bar, .envir = frame)
    if (done >= total) {
      cli::cli_progress_done(id = bar, .envir = frame)
      bar <<- NULL
    }
    NULL
  }
  finish <- function() {
    if (!is.null(bar)) cli::cli_progress_done(id = bar, .envir = frame)
    bar <<- NULL
  }
  list(listener = listener, finish = finish)
}

# Evaluate a call into Python with its progress and sentences shown by cli (or not
# at all) and its errors made readable.
.call_python <- function(expr, verbose) {
  modules <- .python()
  if (verbose) {
    progress <- .progress_listener()
    .hook(modules, "listener", progress$listener)
    .hook(modules, "speaker", .speaker)
    on.exit({
      .hook(modules, "listener", NULL)
      .hook(modules, "speaker", NULL)
      progress$finish()
    })
  }
  .translate_errors(expr)
}

.speaker <- function(text) {
  cli::cli_inform(c(i = .verbatim(.r_words(text))))
  NULL
}

# Called from Python, our functions are to see R values, not Python objects.
.hook <- function(modules, name, value) {
  reticulate::py_set_attr(modules$progress, name, reticulate::r_to_py(value, convert = TRUE))
}
