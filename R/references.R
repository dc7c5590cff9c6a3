#' References: of the package, and kept on a server
#'
#' `ScMambaReferences()` lists the cell types of the reference that comes with the package, for
#' `ScMambaAnnotate(object, reference = "human-brain")`, or your own labeled cells on a server. A reference that many
#' objects are annotated by can be sent once: `ScMambaKeepReference()` sends it, and what it returns is the `reference`
#' of [ScMambaAnnotate()]; `ScMambaDropReference()` deletes it there. The server deletes references after some days.
#'
#' @param backend `NULL` or `"reticulate"`: the reference of the package. A server ([ScMambaServer()], or `"server"`):
#'   your references there.
#' @param reference `ScMambaKeepReference()`: a labeled Seurat object or SingleCellExperiment with counts; only its
#'   counts, labels and donors are sent. `ScMambaDropReference()`: what `ScMambaKeepReference()` returned, or the `id`
#'   in the list of the server.
#' @param labels Column of its metadata with the types, or several from coarse to fine.
#' @param donor Column of its metadata with donors; ignored if there is none.
#' @param reference.assay,reference.layer,reference.gene.column As in [ScMambaAnnotate()].
#' @param verbose Show messages?
#'
#' @return
#'   * `ScMambaReferences()`: a data frame with one row per cell type: `reference`, `class`, `type`, `subtype`,
#'     `ontology_id` (Cell Ontology), `region` (empty: all), `cells` (labeled nuclei; 0: published means whose number
#'     per type is not stated), `studies` and `licence`. Of a server: `id`, `bytes` and `sent` (time).
#'   * `ScMambaKeepReference()`: a handle, which can be saved and holds no token.
#'   * `ScMambaDropReference()`: the id, invisibly.
#' @seealso [ScMambaAnnotate()], [ScMambaServer()]
#' @examples
#' if (scmamba_available()) head(ScMambaReferences())
#' if (nzchar(Sys.getenv("SCMAMBA_SERVER"))) {
#'   server <- ScMambaServer(Sys.getenv("SCMAMBA_SERVER"))
#'   seu <- ScMambaCohort(n.cells = 80, n.donors = 2, n.genes = 3000)
#'   kept <- ScMambaKeepReference(seu, labels = "cell_type", backend = server)
#'   ScMambaReferences(backend = server)
#'   seu <- ScMambaAnnotate(seu, reference = kept, backend = server)
#'   ScMambaDropReference(kept, backend = server)
#' }
#' @export
ScMambaReferences <- function(backend = NULL) {
  if (is.null(backend) || identical(backend, "reticulate")) {
    return(.plain_frame(.translate_errors(.python()$scmamba$references())))
  }
  found <- .server_json(.server_of(backend), "GET", "/v2/references")$references
  if (length(found) == 0) found <- data.frame(id = character(), bytes = numeric(), sent = numeric())
  data.frame(id = as.character(found$id), bytes = as.numeric(found$bytes),
    sent = as.POSIXct(as.numeric(found$sent), origin = "1970-01-01"), stringsAsFactors = FALSE)
}

#' @rdname ScMambaReferences
#' @export
ScMambaKeepReference <- function(reference, labels, donor = "donor", backend = getOption("scmamba.backend"),
                                 reference.assay = NULL, reference.layer = "counts", reference.gene.column = NULL,
                                 verbose = TRUE) {
  server <- .server_of(backend)
  known <- .labelled_cells(reference, labels, donor, verbose, reference.assay, reference.layer, reference.gene.column)
  if (!is.list(known) || is.null(known$matrix)) {
    .abort("{.arg reference} must be a Seurat object or a SingleCellExperiment.")
  }
  id <- .server_reference(server, known)
  if (verbose) cli::cli_inform(c(v = "Sent {ncol(known$matrix)} labeled cells to {server$url}: reference {.val {id}}."))
  structure(list(id = id, url = server$url, labels = labels, donor = intersect(donor, names(known$cells))),
    class = "scmamba_kept_reference")
}

#' @rdname ScMambaReferences
#' @export
ScMambaDropReference <- function(reference, backend = getOption("scmamba.backend")) {
  server <- .server_of(backend)
  id <- if (inherits(reference, "scmamba_kept_reference")) reference$id else .check_name(reference, "reference")
  .server_json(server, "DELETE", paste0("/v2/references/", curl::curl_escape(id)))
  invisible(id)
}

#' @method print scmamba_kept_reference
#' @export
print.scmamba_kept_reference <- function(x, ...) {
  cat("Labeled cells (", paste(x$labels, collapse = ", "), ") kept on ", x$url, ": ", x$id, "\n", sep = "")
  invisible(x)
}

# The server that `backend` names.
.server_of <- function(backend) {
  if (identical(backend, "server")) {
    return(.local_server())
  }
  if (!inherits(backend, "scmamba_server")) {
    .abort("{.arg backend} must be \"server\" or a server from {.code ScMambaServer()}.")
  }
  backend
}

# Kept cells can be used where they are.
.check_kept <- function(kept, server = NULL) {
  if (is.null(server) || !identical(server$url, kept$url)) {
    .abort(c("These labeled cells are kept on {kept$url}.",
      i = "Pass that server as {.arg backend}, as in {.code backend = ScMambaServer(\"{kept$url}\")}."))
  }
}
