#' Rename mouse genes to their human orthologs
#'
#' The models read human genes. This function keeps the mouse genes that have a human one-to-one ortholog
#' (Ensembl 105) and names them by it; the names and values of your own assay stay.
#'
#' @param object A Seurat object, a SingleCellExperiment, a genes x cells matrix, or a vector of names of mouse genes
#'   (symbols or Ensembl IDs).
#' @param assay Assay to read; by default the default assay.
#' @param gene.column Column of the assay's table of genes (SingleCellExperiment: `rowData(object)`) with the mouse
#'   symbols or Ensembl IDs, if the row names are something else.
#' @param assay.name Name of the new assay.
#' @param overwrite Replace an existing assay of this name?
#' @param verbose Report how many genes have an ortholog?
#' @param ... Not used; a misspelled argument is an error.
#'
#' @return
#'   * Seurat: the object with an assay `human`, whose counts (and normalized values, if there are any) are those of the
#'     genes with an ortholog: `ScMambaAnnotate(object, assay = "human")`.
#'   * SingleCellExperiment or matrix: the rows with an ortholog under their human names; for the former the
#'     mouse names are in the column `mouse_gene` of `rowData()`.
#'   * names: the human names, `NA` for genes without an ortholog.
#'
#'   Names are human symbols, or Ensembl IDs where a symbol is not unique.
#' @seealso [ScMambaAnnotate()], [ScMambaImpute()]
#' @examples
#' ScMambaMouseToHuman(c("Snap25", "ENSMUSG00000000001", "Gm42418"))
#' @export
ScMambaMouseToHuman <- function(object, ...) {
  UseMethod("ScMambaMouseToHuman")
}

#' @rdname ScMambaMouseToHuman
#' @export
ScMambaMouseToHuman.character <- function(object, ...) {
  .no_extra(...)
  table <- .orthologs()
  id <- sub("^(ENSMUSG[0-9]{11})[.][0-9]+$", "\\1", object)
  at <- match(id, table$mouse_symbol)
  table$human[ifelse(is.na(at), match(id, table$mouse_ensembl_id), at)]
}

#' @rdname ScMambaMouseToHuman
#' @export
ScMambaMouseToHuman.Seurat <- function(object, assay = NULL, gene.column = NULL, assay.name = "human",
                                       overwrite = FALSE, verbose = TRUE, ...) {
  .no_extra(...)
  assay <- .source_assay(object, assay, verbose)
  .check_name(assay.name, "assay.name")
  .check_free_seurat(object, assay.name, SeuratObject::Assays(object), "an assay", "assay.name", overwrite)
  .check_not_itself(assay.name, assay, "assay.name")
  .refuse_imputed(object, assay, "counts")
  counts <- .get_layer(object, assay, "counts", verbose)
  human <- .human_rows(rownames(.named_genes(counts, object[[assay]][[]], gene.column, FALSE)), verbose)
  counts <- .renamed_rows(counts, human)
  data <- tryCatch(.get_layer(object, assay, "data", FALSE), error = function(e) NULL)
  data <- if (!is.null(data)) .renamed_rows(data, human)
  new <- if (is.null(data)) .make_assay(counts, object[[assay]], expected = TRUE) else
    .make_assay(data, object[[assay]], counts)
  default <- SeuratObject::DefaultAssay(object)
  if (assay.name %in% SeuratObject::Assays(object)) {
    if (assay.name == default) SeuratObject::DefaultAssay(object) <- assay
    object[[assay.name]] <- NULL
  }
  object[[assay.name]] <- new
  SeuratObject::DefaultAssay(object) <- default
  if (verbose) cli::cli_inform(c(v = "They are the assay {.val {assay.name}}: {.code assay = \"{assay.name}\"}."))
  object
}

#' @rdname ScMambaMouseToHuman
#' @export
ScMambaMouseToHuman.SummarizedExperiment <- function(object, gene.column = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  named <- .named_genes(matrix(0, nrow(object), 0, dimnames = list(rownames(object), NULL)), .sce_genes(object),
    gene.column, FALSE)
  human <- .human_rows(rownames(named), verbose)
  object <- object[!is.na(human), ]
  SummarizedExperiment::rowData(object)$mouse_gene <- rownames(named)[!is.na(human)]
  rownames(object) <- human[!is.na(human)]
  object
}

#' @rdname ScMambaMouseToHuman
#' @export
ScMambaMouseToHuman.default <- function(object, verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .check_matrix(.to_matrix(object))
  human <- .human_rows(rownames(matrix), verbose)
  .renamed_rows(matrix, human)
}

.renamed_rows <- function(matrix, human) {
  matrix <- matrix[!is.na(human), , drop = FALSE]
  rownames(matrix) <- human[!is.na(human)]
  matrix
}

# The human name of each row; NA without an ortholog, or if an earlier row has it.
.human_rows <- function(genes, verbose) {
  human <- ScMambaMouseToHuman.character(as.character(genes))
  human[duplicated(human)] <- NA
  found <- sum(!is.na(human))
  if (found < 0.05 * length(genes)) {
    example <- utils::head(genes, 3)
    .abort(c("Only {found} of {length(genes)} genes are mouse genes with a human one-to-one ortholog.",
      i = "Names like {.val {example}} should be mouse symbols or ENSMUSG IDs."))
  }
  if (verbose) {
    cli::cli_inform(c(i = "{found} of {length(genes)} mouse genes have a human one-to-one ortholog; the others are
      omitted."))
  }
  human
}

# The tables that come with the Python package, which is part of this one.
.orthologs <- function() {
  if (is.null(.state$orthologs)) {
    table <- .resource_table("orthologs_mouse_human.tsv.gz")
    genes <- .resource_table("genes_grch38.tsv.gz")
    genes <- genes[nzchar(genes$symbol) & !genes$symbol %in% genes$symbol[duplicated(genes$symbol)], ]
    symbol <- genes$symbol[match(table$human_ensembl_id, genes$ensembl_id)]
    table$human <- ifelse(is.na(symbol), table$human_ensembl_id, symbol)
    .state$orthologs <- table
  }
  .state$orthologs
}

.resource_table <- function(name) {
  path <- system.file("python", "python", "scmamba", "resources", name, package = "scMamba", mustWork = TRUE)
  utils::read.delim(path, quote = "", na.strings = character(), comment.char = "#", stringsAsFactors = FALSE)
}
