# scMamba's Python side reports progress to one listener; here it becomes a cli
# progress bar, in the console's own style, or the user's own bars of progressr.

.progress_listener <- function() {
  if (.progressr_on()) .progressr_listener() else .cli_listener()
}

# Inside of with_progress(), or after handlers(global = TRUE).
.progressr_on <- function() {
  if (!isNamespaceLoaded("progressr")) {
    return(FALSE)
  }
  inside <- vapply(seq_len(sys.nframe()), function(i) identical(sys.function(i), progressr::with_progress), NA)
  any(inside) || isTRUE(tryCatch(progressr::handlers(global = NA), error = function(e) FALSE))
}

.progressr_listener <- function() {
  step <- NULL
  current <- ""
  reached <- 0
  finish <- function() {
    # A complete one has finished by itself.
    if (!is.null(step)) step(type = "finish")
    step <<- NULL
  }
  listener <- function(description, done, total) {
    if (is.null(step) || !identical(description, current)) {
      finish()
      step <<- progressr::progressor(steps = total, message = description, auto_finish = TRUE, on_exit = FALSE)
      current <<- description
      reached <<- 0
    }
    step(message = description, amount = done - reached)
    reached <<- done
    if (done >= total) step <<- NULL
    NULL
  }
  list(listener = listener, finish = finish)
}

.cli_listener <- function() {
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

# Call Python, show its progress and messages by cli (or not at all) and make its errors readable. Python runs in a
# separate thread, and R signals the messages: a handler that exits early (tryCatch, an error, an interrupt) then
# unwinds no Python frames.
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
  while (!.interruptible(reticulate::py_to_r(job$finished))) {
    for (event in .interruptible(reticulate::py_to_r(job$wait(0.25)))) {
      switch(event[[1]],
        message = .speaker(event[[2]]),
        warning = warning(.r_words(event[[2]]), call. = FALSE),
        do.call(progress$listener, event[-1])
      )
    }
  }
  .translate_errors(job$result())
}

# An interrupt that arrives while reticulate reads the class of a Python object becomes an error there.
.interruptible <- function(expr) {
  tryCatch(expr, error = function(e) {
    if (!grepl("Exception raised by 'inspect.getmro", conditionMessage(e), fixed = TRUE)) stop(e)
    signalCondition(structure(class = c("interrupt", "condition"), list(message = "", call = NULL)))
    invokeRestart("abort")
  })
}

.speaker <- function(text) {
  cli::cli_inform(c(i = .verbatim(.r_words(text))))
  NULL
}
