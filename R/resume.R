# Sending a large file so that a broken line costs only what was under way (tus 1.0.0,
# https://tus.io/protocols/resumable-upload); python/scmamba/client/upload.py is its twin.

# Files up to here are sent whole: sending them again costs less than asking. In bytes, as the parts are.
.whole <- 16 * 2^20
.part <- 64 * 2^20

# A file and its task; the server's answer.
.server_send <- function(server, path, file, whole = getOption("scmamba.whole", .whole)) {
  if (file.size(file) <= whole) {
    return(.server_json(server, "POST", path, file))
  }
  upload <- .send_in_parts(server, file)
  taken <- FALSE
  on.exit(if (!taken) try(.server_once(server, "DELETE", upload), silent = TRUE))
  path <- paste0(path, if (grepl("?", path, fixed = TRUE)) "&" else "?", "upload=", basename(upload))
  answer <- .server_json(server, "POST", path)
  taken <- TRUE
  answer
}

# The upload's path there, once all has come.
.send_in_parts <- function(server, file, part = getOption("scmamba.part", .part)) {
  size <- file.size(file)
  where <- .tus(server, function(again) {
    .server_once(server, "POST", "/v2/uploads", headers = .tus_headers(`Upload-Length` = size))
  })$location
  offset <- stalls <- 0
  on.exit(if (offset < size) try(.server_once(server, "DELETE", where), silent = TRUE))
  while (offset < size) {
    came <- as.numeric(.tus(server, function(again) {
      # After a dropped connection only the server has the number of bytes received.
      if (again) .server_once(server, "HEAD", where, headers = .tus_headers())
      else .tus_patch(server, where, file, offset, min(part, size - offset))
    })$`upload-offset`)
    stalls <- if (came > offset) 0 else stalls + 1
    if (stalls >= .patient) {
      .abort("The connection to {server$url} keeps dropping; {offset} of {size} bytes were uploaded.",
        class = "scmamba_server_error")
    }
    offset <- came
  }
  where
}

# The answer's headers. 408 and 409: the server and we are not of one mind about how much came.
.tus <- function(server, request) {
  answer <- .insist(server, .patient, request, busy = c(408, 409, 502, 503, 504))
  curl::parse_headers_list(answer$headers)
}

.tus_patch <- function(server, where, file, offset, count) {
  headers <- .tus_headers(`Upload-Offset` = offset, `Content-Type` = "application/offset+octet-stream")
  .server_once(server, "PATCH", where, file, headers = headers, from = offset, count = count)
}

.tus_headers <- function(...) {
  lapply(list(`Tus-Resumable` = "1.0.0", ...), function(value) {
    if (is.numeric(value)) sprintf("%.0f", value) else value
  })
}
