#' Use a scMamba server
#'
#' Connects to a server that runs scMamba (`python -m scmamba.serve`); pass it to the
#' verbs as `backend`. Only counts and names are sent, your machine needs no Python, and
#' the result is the same.
#'
#' @param url Address of the server, such as `"https://gpu-box:8642"`.
#' @param token Token from the person who runs the server; by default the environment
#'   variable `SCMAMBA_TOKEN`. It is never stored in an object or its command log.
#' @param insecure Send the token over plain `http` to another machine, where others can
#'   read it.
#'
#' @return A server, for `ScMambaImpute(seu, backend = server)` and the other verbs;
#'   `options(scmamba.backend = server)` makes it the default of all verbs.
#' @seealso [ScMambaImpute()], [ScMambaEmbed()], [ScMambaAnnotate()], [ScMambaDoublets()]
#' @examples
#' server <- ScMambaServer("https://gpu-box:8642")
#' server
#' @export
ScMambaServer <- function(url, token = Sys.getenv("SCMAMBA_TOKEN", NA), insecure = FALSE) {
  .check_name(url, "url")
  if (!grepl("^https?://", url)) {
    .abort("{.arg url} must begin with http:// or https://, not {.val {url}}.")
  }
  if (is.null(token) || is.na(token) || !nzchar(token)) token <- NULL
  if (!is.null(token) && !insecure) .check_encrypted(url)
  structure(list(url = sub("/+$", "", url), token = function() token), class = "scmamba_server")
}

# A token is sent over https, or within this machine.
.check_encrypted <- function(url) {
  here <- grepl("^http://(localhost|127\\.[0-9.]+|\\[::1\\])(:[0-9]+)?(/|$)", url)
  if (!here && !grepl("^https://", url)) {
    .abort(c("{.val {url}} has no TLS: others could read the token and the cells.",
      i = "Use https://, or allow it with {.code insecure = TRUE}."))
  }
}

#' @method print scmamba_server
#' @export
print.scmamba_server <- function(x, ...) {
  cat("scMamba server at ", x$url, if (is.null(x$token())) "" else " (with a token)", "\n", sep = "")
  invisible(x)
}

# What the verbs call.
.server_backend <- function(server) {
  task <- function(name, verb = name) {
    function(matrix, options, verbose, cells = NULL) {
      server_run(server, name, matrix, cells, options, verbose)
    }
  }
  list(
    impute = function(matrix, cells, options, verbose, file = NULL) {
      got <- task("impute")(matrix, options, verbose, cells)
      list(
        matrix = .from_arrays(got, matrix, "x"), sd = if (options$sd) .from_arrays(got, matrix, "sd"),
        cells = .per_cell_results(got$cells, cells), provenance = got$provenance
      )
    },
    embed = function(matrix, options, verbose) {
      got <- task("embed")(matrix, options, verbose)
      embedding <- got$arrays$embedding
      rownames(embedding) <- colnames(matrix)
      list(embedding = embedding, cells = .per_cell_results(got$cells), provenance = got$provenance)
    },
    annotate = function(matrix, known, options, verbose) {
      if (is.null(known)) {
        options <- options[c("markers", "region", "error_rate", "seed", "force")]
      } else if (is.character(known)) {
        options <- c(options[c("region", "error_rate", "seed", "force")], reference = known)
      } else {
        kept <- inherits(known, "scmamba_kept_reference")
        if (kept) .check_kept(known, server)
        reference <- if (kept) known$id else .server_reference(server, known)
        drop <- function() .server_json(server, "DELETE", paste0("/v2/references/", reference))
        if (!kept) on.exit(try(drop(), silent = TRUE), add = TRUE)
        options <- options[c("model", "label_key", "donor_key", "finetune_steps", "error_rate", "across_studies",
          "seed", "force")]
        options$reference <- reference
      }
      got <- task("annotate")(matrix, options, verbose)
      list(cells = .per_cell_results(got$cells), provenance = got$provenance)
    },
    doublets = function(matrix, cells, options, verbose) {
      got <- task("doublets")(matrix, options, verbose, cells)
      list(cells = .per_cell_results(got$cells, cells), provenance = got$provenance)
    },
    markers = function(matrix, cells, options, verbose) {
      if (!is.finite(options$min_diff_pct)) options$min_diff_pct <- NULL # no limit, JSON has no infinity
      got <- server_run(server, "markers", matrix, cells, options, verbose)
      structure(got$tables$markers, read_as = got$about$read_as, values = got$about$values)
    },
    robustness = function(matrix, imputed, cells, options, verbose) {
      if (!is.null(options$resume)) {
        .abort("{.arg resume} names a folder on this machine; a server resumes its jobs by itself. Omit {.arg resume}.")
      }
      options$n_jobs <- NULL # the server's cores are the server's
      got <- server_run(server, "robustness", matrix, cells, options, verbose, imputed)
      lines <- function(name) as.character(unlist(got$about[[name]]))
      structure(c(
        got$tables[c("summary", "tests", "false_positives", "runs", "full")],
        list(notes = lines("notes"), warnings = lines("warnings"))
      ), class = "scmamba_robustness")
    },
    finetune = function(matrix, cells, folder, options, verbose) {
      archive <- server_run(server, "finetune", matrix, cells, options, verbose, format = "zip")
      on.exit(unlink(archive))
      # Whole or not at all.
      part <- tempfile("scmamba-", tmpdir = dirname(folder))
      on.exit(unlink(part, recursive = TRUE), add = TRUE)
      .unpack_model(archive, part)
      if (!file.rename(part, folder)) .abort("{.file {folder}} cannot be written.")
    }
  )
}

# Unpacks the files of a checkpoint, and nothing else that an archive holds or names.
.unpack_model <- function(archive, folder) {
  known <- c("config.json", "genes.tsv", "labels.json", "model.safetensors", "model_card.md")
  inside <- utils::unzip(archive, list = TRUE)$Name
  inside <- inside[basename(inside) %in% known]
  if (anyDuplicated(basename(inside)) > 0 || !all(known[c(1, 2, 4)] %in% basename(inside))) {
    .abort("The file from the server is not a model.", class = "scmamba_server_error")
  }
  dir.create(folder)
  utils::unzip(archive, files = inside, exdir = folder, junkpaths = TRUE)
  invisible(folder)
}

# Labeled cells, sent: what the server calls them.
.server_reference <- function(server, known) {
  upload <- tempfile(fileext = ".scmb")
  on.exit(unlink(upload))
  .write_plain(upload, known$matrix, known$cells)
  .server_send(server, "/v2/references", upload)$id
}

# Send, wait, fetch, delete. An interrupt or error cancels the job there.
server_run <- function(server, task, matrix, cells = NULL, options = list(), verbose = TRUE, layer = NULL,
                       format = "scmb") {
  model <- options$model %||% "brain-mini"
  if (!is.character(model) || file.exists(model)) {
    .abort("A server uses its own models; pass the name of one as {.arg model}.")
  }
  options <- options[!vapply(options, is.null, logical(1))]
  options <- options[setdiff(names(options), c("model", "device"))]
  upload <- tempfile(fileext = ".scmb")
  on.exit(unlink(upload), add = TRUE)
  .write_plain(upload, .in_memory(matrix), cells, layer)
  text <- if (length(options) == 0) "{}" else jsonlite::toJSON(options, auto_unbox = TRUE, digits = NA)
  path <- sprintf("/v2/models/%s/%s?options=%s", curl::curl_escape(model), task, curl::curl_escape(text))
  job <- .server_send(server, path, upload)$id
  finished <- FALSE
  on.exit(try(.server_json(server, "DELETE", paste0("/v2/jobs/", job)), silent = TRUE), add = TRUE)
  .server_wait(server, job, verbose)
  result <- tempfile(fileext = paste0(".", format))
  .server_request(server, "GET", sprintf("/v2/jobs/%s/result?format=%s", job, format), to = result, tries = .patient)
  if (format == "zip") {
    return(result)
  }
  on.exit(unlink(result), add = TRUE)
  .read_plain(result, colnames(matrix))
}

.server_wait <- function(server, job, verbose) {
  progress <- if (verbose) .progress_listener()
  if (verbose) on.exit(progress$finish())
  printed <- 0
  pause <- 0.05
  repeat {
    now <- .server_json(server, "GET", paste0("/v2/jobs/", job), tries = .patient)
    if (verbose) {
      # A job that is begun again reports the same messages again. A server of version 0.1 reports none.
      reported <- as.character(now$messages)
      for (text in reported[seq_along(reported) > printed]) .speaker(text)
      printed <- max(printed, length(reported))
    }
    if (now$state == "done") {
      return(invisible(now))
    }
    if (now$state %in% c("failed", "cancelled")) {
      # As it is: the server's sentence is meant for the user.
      stop(errorCondition(.r_words(now$message), class = "scmamba_error", call = NULL))
    }
    if (verbose && nzchar(now$message)) progress$listener(now$message, round(100 * now$done), 100)
    # Short pauses at first, because a small job ends at once; longer ones for long jobs.
    Sys.sleep(pause)
    pause <- min(1.3 * pause, 0.5)
  }
}

# Tries while a job is under way: a minute and a half, in which a server may start again.
.patient <- 15

.server_json <- function(server, method, path, file = NULL, tries = 4) {
  answer <- .server_request(server, method, path, file, tries = tries)
  jsonlite::fromJSON(rawToChar(answer$content), simplifyVector = TRUE)
}

# One request; tried again when the line breaks or the server is busy. What makes something there has a key of its own,
# by which the server recognizes it when it arrives a second time because the first answer was lost.
.server_request <- function(server, method, path, file = NULL, to = NULL, tries = 4) {
  headers <- if (method == "POST") list(`Idempotency-Key` = .new_key(), `Content-Type` = "application/octet-stream")
  .insist(server, tries, function(again) .server_once(server, method, path, file, to, headers), to)
}

# The answer to `request(again)`, repeated while the connection drops or the server answers one of `busy`.
.insist <- function(server, tries, request, to = NULL, busy = c(502, 503, 504)) {
  for (attempt in seq_len(tries)) {
    answer <- tryCatch(request(attempt > 1), error = identity)
    if (!inherits(answer, "error") && !answer$status_code %in% busy) break
    if (attempt < tries) .server_pause(attempt)
  }
  .server_checked(server, answer, to)
}

.server_pause <- function(attempt) Sys.sleep(min(0.5 * 2^(attempt - 1), 8))

# The answer, or an error.
.server_checked <- function(server, answer, to = NULL) {
  if (inherits(answer, "error")) {
    .abort(c("The server {server$url} cannot be reached.", x = .verbatim(conditionMessage(answer)),
      i = "Check that it is running and that the address is correct."), class = "scmamba_server_error")
  }
  if (answer$status_code >= 300 && answer$status_code < 400) {
    .abort("The server {server$url} redirects to another address; use the address of the server itself.",
      class = "scmamba_server_error")
  }
  if (answer$status_code >= 400) {
    body <- if (is.null(to)) rawToChar(answer$content) else paste(readLines(to, warn = FALSE), collapse = "")
    detail <- tryCatch(jsonlite::fromJSON(body)$detail, error = function(e) body)
    # Something that does not fit the verb: the sentence alone, as without a server.
    if (answer$status_code == 422 && is.character(detail)) {
      sentence <- sub("^option '([^']+)'", "\\1", paste(detail, collapse = " "))
      stop(errorCondition(.r_words(sentence), class = c("scmamba_server_error", "scmamba_error"), call = NULL))
    }
    .abort(c("The server answered {answer$status_code}.", x = .verbatim(.r_words(paste(detail, collapse = " ")))),
      class = "scmamba_server_error")
  }
  answer
}

# Unlike any other, without a draw from the user's random numbers.
.new_key <- function() {
  text <- paste0(basename(tempfile("")), basename(tempfile("")), format(Sys.time(), "%Y%m%d%H%M%OS6"))
  gsub("[^A-Za-z0-9]", "", text)
}

# Sends `count` bytes of the file from `from` on, if there is one; the answer comes into memory or into the file `to`.
.server_once <- function(server, method, path, file = NULL, to = NULL, headers = NULL, from = 0,
                         count = file.size(file)) {
  # A line that hangs for two minutes is a broken one.
  handle <- curl::new_handle(customrequest = method, connecttimeout = 20, low_speed_limit = 1, low_speed_time = 120,
    followlocation = FALSE) # the token is for this server alone
  token <- server$token()
  if (!is.null(token)) headers$Authorization <- paste("Bearer", token)
  if (method == "HEAD") curl::handle_setopt(handle, nobody = TRUE)
  if (!is.null(file)) {
    connection <- base::file(file, "rb")
    on.exit(close(connection))
    seek(connection, from)
    left <- count
    curl::handle_setopt(handle, upload = TRUE, infilesize_large = count, readfunction = function(n) {
      bytes <- readBin(connection, raw(), min(n, left))
      left <<- left - length(bytes)
      bytes
    })
    headers$Expect <- ""
  }
  if (length(headers) > 0) curl::handle_setheaders(handle, .list = headers)
  url <- paste0(server$url, path)
  if (is.null(to)) curl::curl_fetch_memory(url, handle) else curl::curl_fetch_disk(url, to, handle)
}

# scMamba's plain form (python/scmamba/wire/scmb.py): a JSON header and raw arrays.
.write_plain <- function(path, matrix, cells, layer = NULL) {
  names <- colnames(matrix) %||% as.character(seq_len(ncol(matrix)))
  arrays <- .plain_matrix(matrix)
  if (!is.null(layer)) {
    second <- .plain_matrix(layer)
    arrays <- c(arrays, stats::setNames(second, paste0("layer/", base::names(second))))
  }
  header <- list(genes = I(rownames(matrix)), cells = I(names))
  if (!is.null(cells)) {
    columns <- .plain_columns(cells)
    header <- c(header, columns$header)
    arrays <- c(arrays, columns$arrays)
  }
  header$arrays <- unname(Map(function(name, values) {
    list(name = name, kind = if (is.integer(values)) "int32" else "float64", shape = I(length(values)))
  }, base::names(arrays), arrays))
  text <- charToRaw(enc2utf8(as.character(jsonlite::toJSON(header, auto_unbox = TRUE, na = "null"))))
  connection <- file(path, "wb")
  on.exit(close(connection))
  writeBin(charToRaw("SCMB1\n"), connection)
  writeBin(c(length(text), 0L), connection, endian = "little")
  writeBin(text, connection)
  for (values in arrays) writeBin(values, connection, endian = "little")
}

.plain_matrix <- function(matrix) list(p = matrix@p, i = matrix@i, x = as.double(matrix@x))

# Text stays in the header; numbers, codes of levels and truths go as they are in memory, not as digits.
.plain_columns <- function(cells) {
  arrays <- list()
  header <- list(obs = list(), levels = list(), flags = character())
  for (name in names(cells)) {
    column <- cells[[name]]
    place <- paste0("obs/", name)
    if (is.factor(column)) {
      column <- droplevels(column) # unused levels would be groups without a cell
      header$levels[[name]] <- I(levels(column))
      codes <- as.integer(column) - 1L
      arrays[[place]] <- ifelse(is.na(codes), -1L, codes)
    } else if (is.logical(column) && !anyNA(column)) {
      header$flags <- c(header$flags, name)
      arrays[[place]] <- as.integer(column)
    } else if (is.numeric(column)) {
      arrays[[place]] <- as.double(column)
    } else {
      header$obs[[name]] <- I(as.character(column))
    }
  }
  header$flags <- I(header$flags)
  list(header = header[lengths(header) > 0], arrays = arrays)
}

.read_plain <- function(path, cells) {
  connection <- file(path, "rb")
  on.exit(close(connection))
  stopifnot(identical(rawToChar(readBin(connection, raw(), 6)), "SCMB1\n"))
  length <- readBin(connection, "integer", 2, endian = "little")[[1]]
  header <- jsonlite::fromJSON(rawToChar(readBin(connection, raw(), length)), simplifyDataFrame = FALSE)
  arrays <- list()
  for (about in header$arrays) {
    shape <- as.integer(unlist(about$shape))
    what <- if (about$kind == "int32") "integer" else "double"
    values <- readBin(connection, what, prod(shape), endian = "little")
    arrays[[about$name]] <- if (length(shape) == 2) array(values, shape) else values
  }
  if (!is.null(header$tables)) {
    return(list(tables = Map(.plain_table, header$tables, names(header$tables), list(arrays)), about = header$about))
  }
  columns <- lapply(header$obs, function(column) {
    if (is.list(column)) unlist(lapply(column, function(value) value %||% NA)) else column
  })
  frame <- if (length(columns) == 0) NULL else as.data.frame(columns, stringsAsFactors = FALSE, check.names = FALSE)
  if (!is.null(frame)) rownames(frame) <- cells
  list(arrays = arrays, cells = frame, provenance = c(header$provenance, list(r = .r_versions())))
}

.plain_table <- function(about, name, arrays) {
  columns <- lapply(about$columns, function(column) {
    if (column$kind == "text") {
      return(as.character(unlist(lapply(column$values, function(value) value %||% NA_character_))))
    }
    values <- as.vector(arrays[[paste0(name, "/", column$name)]])
    if (column$kind == "flag") as.logical(values) else values
  })
  names(columns) <- vapply(about$columns, function(column) column$name, "")
  rows <- as.character(unlist(about$rows))
  structure(columns, class = "data.frame", row.names = if (length(rows) > 0) rows else seq_len(about$n))
}

# Values and standard deviations are of the same entries.
.from_arrays <- function(got, matrix, values) {
  new("dgCMatrix", x = got$arrays[[values]], i = got$arrays$i, p = got$arrays$p, Dim = dim(matrix),
    Dimnames = dimnames(matrix))
}

# A local server, started at first use and stopped with the session.
.local_server <- function() {
  if (!is.null(.state$server)) {
    return(.state$server)
  }
  if (.Platform$OS.type == "windows") {
    .abort(c("The local server runs on Linux and macOS only.",
      i = "Omit {.arg backend}, or name a server on another machine:
        {.code ScMambaServer(\"https://...\", token)}."),
      class = "scmamba_server_error")
  }
  config <- .find_python()
  data <- file.path(tempdir(), "scmamba-server")
  dir.create(data, showWarnings = FALSE, mode = "0700")
  log <- file.path(data, "server.log")
  pid <- file.path(data, "pid")
  token <- file.path(data, "local-token")
  unlink(c(log, pid, token)) # of a server that ended
  # Port 0: the system gives a free one. The log is in a private folder: no other program can name an address there.
  line <- sprintf("echo $$ > %s; exec %s -m scmamba.serve --data %s --port 0 > %s 2>&1", shQuote(pid),
    shQuote(config$python), shQuote(data), shQuote(log))
  system2("sh", c("-c", shQuote(line)), wait = FALSE,
    env = paste0("LD_LIBRARY_PATH=", shQuote(.clean_library_path())))
  server <- .server_at(log, token, pid)
  if (is.null(server)) {
    said <- utils::tail(readLines(log, warn = FALSE), 3)
    .abort(c("The local server did not start.", x = .verbatim(paste(said, collapse = " "))),
      class = "scmamba_server_error")
  }
  .state$server <- server
  reg.finalizer(.state, function(e) {
    if (file.exists(pid)) tools::pskill(as.integer(readLines(pid)))
  }, onexit = TRUE)
  server
}

# The server whose address is in a log, once it answers; NULL if it ends before, or within a minute.
.server_at <- function(log, token, pid) {
  for (look in seq_len(600)) {
    url <- .address_in(log)
    if (length(url) == 1 && file.exists(token)) {
      server <- ScMambaServer(url, token = readLines(token, n = 1, warn = FALSE))
      alive <- tryCatch(.server_once(server, "GET", "/v2/jobs", NULL, NULL)$status_code == 200,
        error = function(e) FALSE)
      if (alive) {
        return(server)
      }
    }
    if (look > 20 && .has_ended(pid)) break
    Sys.sleep(0.1)
  }
  NULL
}

# The address that a server printed at its start, if it did.
.address_in <- function(log) {
  lines <- if (file.exists(log)) readLines(log, warn = FALSE)
  found <- grep("^scMamba is served at http", lines, value = TRUE)
  sub("^.* (http://[0-9.]+:[0-9]+)/.*$", "\\1", found)
}

# Whether the process whose number is in a file is gone.
.has_ended <- function(pid) {
  number <- if (file.exists(pid)) suppressWarnings(as.integer(readLines(pid, n = 1, warn = FALSE)))
  length(number) == 1 && !is.na(number) && !tools::pskill(number, 0)
}
