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

# Call Python with its progress and sentences shown by cli (or not at all) and its errors made readable. Python
# computes in a thread of its own; what it reports is shown from here, where code of the user that handles messages
# and leaves by them (tryCatch, an error, an interrupt) leaves no frame of Python behind.
.call_python <- function(call, arguments, verbose) {
  job <- do.call(.python()$background$Job, c(list(call, verbose), arguments))
  on.exit({
    suspendInterrupts(job$stop())
    job$join()
  })
  if (verbose) {
    progress <- .progress_listener()
    on.exit(progress$finish(), add = TRUE)
  }
  job$begin()
  while (!reticulate::py_to_r(job$finished)) {
    for (event in reticulate::py_to_r(job$wait(0.25))) {
      if (event[[1]] == "message") .speaker(event[[2]]) else do.call(progress$listener, event[-1])
    }
  }
  .translate_errors(job$result())
}

.speaker <- function(text) {
  cli::cli_inform(c(i = .verbatim(.r_words(text))))
  NULL
}
