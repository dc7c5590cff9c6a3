#' Marker genes by MAST's or the Wilcoxon test
#'
#' The table of Seurat's `FindMarkers(test.use = "MAST")`, computed in closed form
#' from sums over cells (Finak et al. 2015): the same genes and the same numbers, hundreds of
#' times faster. `ScMambaFindAllMarkers()` compares every group with all other cells, as
#' `FindAllMarkers()` does.
#'
#' Cells of one donor are not independent, but these tests assume that they are: compare
#' patients with controls by [ScMambaCompare()] or [ScMambaPseudobulk()]. Do not trust
#' p-values of imputed values before you have measured their false-positive rate
#' ([ScMambaRobustness()]).
#'
#' @param object A Seurat object, a SingleCellExperiment, or a genes x cells matrix.
#' @param ident.1,ident.2 The groups to compare: identities of the object, or values
#'   of `group.by`, or the names of cells. `ident.2 = NULL` means all other cells, those without a group
#'   included. For a matrix: names or numbers of its columns.
#' @param group.by Column of the metadata that holds the groups. By default, and with `"ident"`, the
#'   identities of the object; for a SingleCellExperiment its `colLabels()`.
#' @param subset.ident Only cells of these identities are compared (with `group.by`).
#' @param assay,layer,slot What to test: the default assay's layer `data`, log
#'   values as `NormalizeData()` makes them. `assay = "scmamba"` tests imputed values; if the
#'   default assay is an imputed one, the assay it was made from is tested. Raw
#'   counts are normalized first. `slot` is Seurat 4's name for `layer`.
#' @param features Test only these genes (the correction still counts all genes).
#' @param logfc.threshold,min.pct,min.diff.pct,only.pos As in `FindMarkers()`; the
#'   defaults are those of the Seurat version chosen by `seurat`.
#' @param max.cells.per.ident,random.seed Draw at most this many cells of each group for the test, with
#'   this seed, as `FindMarkers()` draws them. A gene that none of the drawn cells expresses has the
#'   p-value 1 (Seurat 5: `NaN`).
#' @param min.cells.group Fewest cells of a group; at least 3.
#' @param pseudocount.use,base,fc.name Of the fold change, as in `FindMarkers()`.
#' @param latent.vars Columns of the metadata, or genes, added to MAST's model.
#' @param test.use `"MAST"` or `"wilcox"`.
#' @param seurat Version of Seurat whose fold change, filters and order are used: `"5"` or `"4"`;
#'   default the installed version.
#' @param return.thresh Only genes with a smaller p-value are returned.
#' @param backend As in [ScMambaImpute()].
#' @param verbose Show messages and progress?
#' @param ... `ScMambaFindAllMarkers()`: the other arguments of `ScMambaFindMarkers()`.
#'   Otherwise not used; anything here is an error.
#'
#' @return A data frame with genes as row names, like `FindMarkers()` gives it:
#'   `p_val`, `avg_log2FC`, `pct.1`, `pct.2`, `p_val_adj` (Bonferroni over all genes
#'   of the object), and `p_val_bh` (Benjamini-Hochberg over the genes tested).
#'   `ScMambaFindAllMarkers()`: the same for every group, with the columns `cluster` and `gene`.
#' @references Finak et al. (2015) MAST: a flexible statistical framework for assessing transcriptional
#'   changes and characterizing heterogeneity in single-cell RNA sequencing data. Genome Biology 16:278.
#' @seealso [ScMambaPseudobulk()], [ScMambaRobustness()]
#' @examples
#' if (scmamba_available()) {
#'   head(ScMambaFindMarkers(SeuratObject::pbmc_small, ident.1 = "0", ident.2 = "1"))
#'   head(ScMambaFindAllMarkers(SeuratObject::pbmc_small, test.use = "wilcox"))
#' }
#' @export
ScMambaFindMarkers <- function(object, ...) {
  UseMethod("ScMambaFindMarkers")
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindMarkers.Seurat <- function(object, ident.1, ident.2 = NULL, group.by = NULL,
                                      subset.ident = NULL, assay = NULL, layer = "data", slot = NULL,
                                      features = NULL, logfc.threshold = NULL, min.pct = NULL,
                                      min.diff.pct = -Inf, only.pos = FALSE, max.cells.per.ident = Inf,
                                      random.seed = 1, latent.vars = NULL, min.cells.group = 3,
                                      pseudocount.use = 1, base = 2, fc.name = NULL,
                                      test.use = "MAST", seurat = NULL, backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  if (missing(ident.1)) .abort_no_ident()
  if (!is.null(subset.ident)) {
    .check_known(subset.ident, levels(SeuratObject::Idents(object)), "identity", "subset.ident")
    object <- object[, SeuratObject::Idents(object) %in% subset.ident]
  }
  if (!is.null(group.by) && !identical(group.by, "ident")) {
    SeuratObject::Idents(object) <- .metadata_column(object[[]], group.by, "group.by")
  }
  every <- inherits(ident.1, "scmamba_every_group")
  first <- if (every) SeuratObject::Idents(object) else .cells_of(object, ident.1, "ident.1")
  second <- if (every) NULL else .other_cells(object, first, ident.2)
  read <- .marker_values(object, assay, layer, slot, seurat, verbose)
  options <- .marker_options(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, read$seurat, features)
  options$fold_change <- read$fold_change
  by_hand <- .fold_options(pseudocount.use, base, fc.name, max.cells.per.ident, random.seed, min.cells.group)
  latent <- .latent_columns(object, latent.vars)
  .find_markers(read$matrix, first, second, latent, options, by_hand, backend, verbose)
}

.abort_no_ident <- function() {
  .abort("{.arg ident.1} names the group to compare. {.code ScMambaFindAllMarkers()} compares all groups.")
}

# The matrix that is tested, and whose rules hold.
.marker_values <- function(object, assay, layer, slot, seurat, verbose) {
  assay <- .source_assay(object, assay, verbose)
  layer <- .layer_argument(layer, slot)
  seurat <- seurat %||% if (.seurat5()) "5" else "4"
  normalised <- paste0("NormalizeData.", assay) %in% SeuratObject::Command(object)
  # Seurat 4.2 and 4.3 take the fold change of the logs where no normalization is recorded.
  change <- if (!.seurat5() && seurat == "4" && layer == "data" && !normalised) "log"
  matrix <- .get_layer(object, assay, layer, verbose, disk = TRUE)
  .check_still_imputed(object, assay, layer, matrix)
  list(matrix = matrix, seurat = seurat, fold_change = change)
}

# As Seurat reads an identity: several names of which some are cells are cells, otherwise groups.
.cells_of <- function(object, ident, argument) {
  ident <- as.character(ident)
  if (length(ident) > 1 && any(ident %in% colnames(object))) {
    unknown <- setdiff(ident, colnames(object))
    if (length(unknown) > 0) .abort("{.arg {argument}}: the object has no cell{?s} {.val {unknown}}.")
    return(ident)
  }
  .check_known(ident, stats::na.omit(SeuratObject::Idents(object)), "group", argument)
  # Without its seed, which would set the user's random numbers.
  SeuratObject::WhichCells(object, idents = ident, seed = NULL)
}

.other_cells <- function(object, first, ident.2) {
  if (is.null(ident.2)) setdiff(colnames(object), first) else .cells_of(object, ident.2, "ident.2")
}

# Columns of metadata, or genes of the default assay.
.latent_columns <- function(object, latent.vars) {
  if (is.null(latent.vars)) {
    return(NULL)
  }
  known <- names(object[[]])
  unknown <- setdiff(latent.vars, c(known, rownames(object), "ident"))
  if (length(unknown) > 0) {
    .abort("{.arg latent.vars}: there is no column and no gene {.val {unknown}}; there are {.val {known}}.")
  }
  columns <- SeuratObject::FetchData(object, vars = latent.vars)
  rownames(columns) <- NULL
  columns
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindMarkers.SummarizedExperiment <- function(object, ...) {
  ScMambaFindMarkers(.as_sce(object), ...)
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindMarkers.SingleCellExperiment <- function(object, ident.1, ident.2 = NULL, group.by = NULL,
                                                    assay = "logcounts", features = NULL,
                                                    logfc.threshold = NULL, min.pct = NULL,
                                                    min.diff.pct = -Inf, only.pos = FALSE,
                                                    max.cells.per.ident = Inf, random.seed = 1,
                                                    latent.vars = NULL, min.cells.group = 3,
                                                    pseudocount.use = 1, base = 2, fc.name = NULL, test.use = "MAST",
                                                    seurat = "5", backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  if (missing(ident.1)) .abort_no_ident()
  frame <- .sce_frame(object)
  groups <- .sce_groups(object, frame, group.by)
  every <- inherits(ident.1, "scmamba_every_group")
  first <- if (every) factor(groups) else .cells_in(groups, ident.1, "ident.1")
  second <- if (every) {
    NULL
  } else if (is.null(ident.2)) {
    setdiff(seq_along(groups), first)
  } else {
    .cells_in(groups, ident.2, "ident.2")
  }
  options <- .marker_options(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, seurat, features)
  by_hand <- .fold_options(pseudocount.use, base, fc.name, max.cells.per.ident, random.seed, min.cells.group)
  latent <- .columns_for(frame, latent.vars, "latent.vars")
  .find_markers(.get_sce(object, assay, disk = TRUE), first, second, latent, options, by_hand, backend, verbose)
}

.cells_in <- function(groups, ident, argument) {
  .check_known(ident, stats::na.omit(groups), "group", argument)
  which(groups %in% ident)
}

.sce_groups <- function(object, frame, group.by) {
  if (!is.null(group.by)) {
    return(as.character(.metadata_column(frame, group.by, "group.by")))
  }
  labels <- SingleCellExperiment::colLabels(object)
  if (is.null(labels)) {
    .abort("{.arg group.by} names the column of the metadata with the groups; {.code colLabels()} are not set either.")
  }
  as.character(labels)
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindMarkers.default <- function(object, ident.1, ident.2 = NULL, features = NULL,
                                       logfc.threshold = NULL, min.pct = NULL, min.diff.pct = -Inf,
                                       only.pos = FALSE, max.cells.per.ident = Inf, random.seed = 1,
                                       min.cells.group = 3, pseudocount.use = 1, base = 2, fc.name = NULL,
                                       test.use = "MAST", seurat = "5", backend = NULL, verbose = TRUE, ...) {
  .no_extra(...)
  matrix <- .check_matrix(.to_matrix(object, disk = TRUE))
  first <- .column_numbers(matrix, ident.1, "ident.1")
  second <- if (is.null(ident.2)) {
    setdiff(seq_len(ncol(matrix)), first)
  } else {
    .column_numbers(matrix, ident.2, "ident.2")
  }
  options <- .marker_options(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, seurat, features)
  by_hand <- .fold_options(pseudocount.use, base, fc.name, max.cells.per.ident, random.seed, min.cells.group)
  .find_markers(matrix, first, second, NULL, options, by_hand, backend, verbose)
}

# `first` and `second` name columns of the matrix or number them; the order is kept for draws. Without `second`, `first`
# is a factor, and each of its levels is compared with all other columns.
.find_markers <- function(matrix, first, second, latent, options, by_hand, backend, verbose) {
  test <- .marker_test(matrix, latent, backend, verbose)
  if (is.null(second)) {
    return(.find_every(matrix, first, options, by_hand, test, verbose))
  }
  if (is.character(first)) first <- match(first, colnames(matrix))
  if (is.character(second)) second <- match(second, colnames(matrix))
  if (length(both <- intersect(first, second)) > 0) {
    .abort("{length(both)} cell{?s} {?is/are} in both groups.")
  }
  if (!is.null(few <- .too_few(length(first), length(second), by_hand))) .abort("{few}")
  .tested(matrix, first, second, options, by_hand, test)
}

# Why two groups of these sizes cannot be compared, or NULL.
.too_few <- function(first, second, by_hand) {
  sizes <- c(first, second)
  if (min(sizes) < by_hand$min_cells) {
    cells <- if (min(sizes) == 1) "cell" else "cells"
    sprintf("Group %d has %d %s; `min.cells.group` is %d.", which.min(sizes), min(sizes), cells, by_hand$min_cells)
  }
}

.tested <- function(matrix, first, second, options, by_hand, test) {
  pair <- function(first, second, options) {
    groups <- rep("neither", ncol(matrix))
    groups[first] <- "first"
    groups[second] <- "second"
    test(groups, c(list(group1 = list("first"), group2 = list("second")), options))
  }
  if (by_hand$plain) {
    return(.fold_named(pair(first, second, options), by_hand))
  }
  .markers_by_hand(.in_memory(matrix), first, second, options, by_hand, pair)
}

# A function of the groups of the columns and the options that gives the backend's table; what the values are is said
# once.
.marker_test <- function(matrix, latent, backend, verbose) {
  told <- !verbose
  function(groups, options) {
    frame <- data.frame(group = groups, stringsAsFactors = FALSE)
    if (!is.null(latent)) {
      names <- make.unique(c(names(frame), names(latent)))[-1]
      frame <- cbind(frame, stats::setNames(latent, names))
      options$covariates <- as.list(names)
    }
    table <- .backend(backend)$markers(matrix, frame, c(list(groupby = "group"), options), verbose)
    if (!told) .speaker(attr(table, "values"))
    told <<- TRUE
    as.data.frame(table)
  }
}

# A list in the order of the levels: tables, or errors. The matrix is handed over and read once; draws of cells and
# other fold changes need a call for each level, and so does a server of an earlier version.
.find_every <- function(matrix, groups, options, by_hand, test, verbose) {
  sizes <- tabulate(groups, nlevels(groups))
  tables <- lapply(sizes, function(n) {
    few <- .too_few(n, length(groups) - n, by_hand)
    if (!is.null(few)) simpleError(few)
  })
  wanted <- which(vapply(tables, is.null, NA))
  found <- if (by_hand$plain && length(wanted) > 0) {
    if (verbose) cli::cli_inform("Comparing each of {length(wanted)} group{?s} with all other cells")
    tryCatch(.in_one_call(groups, wanted, options, by_hand, test), scmamba_error = function(e) {
      if (!grepl("has no option 'groups'", conditionMessage(e), fixed = TRUE)) stop(e)
    })
  }
  if (is.null(found)) found <- .in_many_calls(matrix, groups, wanted, options, by_hand, test, verbose)
  tables[wanted] <- found
  stats::setNames(tables, levels(groups))
}

.in_one_call <- function(groups, wanted, options, by_hand, test) {
  names <- levels(groups)[wanted]
  # Cells without a group count among the others.
  none <- utils::tail(make.unique(c(levels(groups), "none")), 1)
  whole <- test(ifelse(is.na(groups), none, as.character(groups)), c(list(groups = as.list(names)), options))
  lapply(names, function(name) {
    own <- as.character(whole$cluster) == name
    part <- whole[own, setdiff(names(whole), c("cluster", "gene")), drop = FALSE]
    rownames(part) <- whole$gene[own]
    .fold_named(part, by_hand)
  })
}

.in_many_calls <- function(matrix, groups, wanted, options, by_hand, test, verbose) {
  matrix <- .in_memory(matrix)
  lapply(wanted, function(level) {
    if (verbose) cli::cli_inform("Comparing {.val {levels(groups)[[level]]}} with all other cells")
    first <- which(as.integer(groups) == level)
    second <- setdiff(seq_along(groups), first)
    tryCatch(.tested(matrix, first, second, options, by_hand, test), scmamba_error = function(e) e)
  })
}

.fold_named <- function(table, by_hand) {
  attr(table, "read_as") <- attr(table, "values") <- NULL
  names(table)[names(table) == "avg_log2FC"] <- by_hand$name
  table
}

# What FindMarkers() does around its tests and Python's function does not: other fold changes, and a draw of cells for
# the test alone.
.fold_options <- function(pseudocount.use, base, fc.name, max.cells.per.ident, random.seed, min.cells.group) {
  pseudocount <- .check_number(pseudocount.use, "pseudocount.use")
  base <- .check_number(base, "base")
  if (!identical(max.cells.per.ident, Inf)) {
    max.cells.per.ident <- .check_integer(max.cells.per.ident, "max.cells.per.ident", 3L)
  }
  name <- fc.name %||% paste0("avg_log", if (base == exp(1)) "" else base, "FC")
  list(
    plain = pseudocount == 1 && base == 2 && is.infinite(max.cells.per.ident), pseudocount = pseudocount, base = base,
    name = .check_name(name, "fc.name"), most = max.cells.per.ident, seed = random.seed,
    min_cells = .check_integer(min.cells.group, "min.cells.group", 3L)
  )
}

# Python says what the values are: where it read them otherwise than was assumed, everything is computed again.
.markers_by_hand <- function(matrix, first, second, options, by_hand, test) {
  whole <- length(matrix@x) > 0 && isTRUE(all(matrix@x == round(matrix@x)))
  assumed <- list(scale = if (whole) "counts" else "log", base = exp(1))
  table <- .markers_read_as(assumed, matrix, first, second, options, by_hand, test)
  found <- attr(table, "read_as") %||% assumed # a server of version 0.1 does not say
  found <- found[c("scale", "base")]
  if (!isTRUE(all.equal(found, assumed))) {
    table <- .markers_read_as(found, matrix, first, second, options, by_hand, test)
  }
  .fold_named(table, by_hand)
}

.markers_read_as <- function(read_as, matrix, first, second, options, by_hand, test) {
  values <- .log_values(matrix, read_as)
  screen <- .screen_genes(values, first, second, options, by_hand)
  wanted <- if (is.null(options$genes)) TRUE else rownames(screen) %in% unlist(options$genes)
  passed <- screen[screen$passed & wanted, , drop = FALSE]
  drawn <- .draw_cells(first, second, by_hand)
  options[c("logfc_threshold", "min_pct", "min_diff_pct", "only_pos")] <- list(0, 0, -Inf, FALSE)
  options$genes <- as.list(rownames(passed))
  table <- test(drawn$first, drawn$second, options)
  found <- attr(table, "read_as")
  passed <- passed[rownames(table), , drop = FALSE]
  table[c("avg_log2FC", "pct.1", "pct.2")] <- passed[c("change", "pct.1", "pct.2")]
  spread <- if (options$seurat == "5") -abs(table$pct.1 - table$pct.2) else 0 * table$pct.1
  structure(table[order(table$p_val, spread), , drop = FALSE], read_as = found)
}

# Natural logarithms; counts are normalized as NormalizeData() does it.
.log_values <- function(matrix, read_as) {
  if (read_as$scale == "log") {
    matrix@x <- matrix@x * log(read_as$base)
  } else {
    totals <- rep.int(Matrix::colSums(matrix), diff(matrix@p))
    matrix@x <- log1p(matrix@x / totals * 1e4)
  }
  matrix
}

.screen_genes <- function(values, first, second, options, by_hand) {
  side <- function(cells) {
    part <- values[, cells, drop = FALSE]
    expressed <- part
    expressed@x <- as.double(expressed@x > 0)
    linear <- part
    linear@x <- expm1(linear@x)
    list(pct = round(Matrix::rowSums(expressed) / length(cells), 3), n = length(cells),
      level = .group_level(part, linear, options, by_hand))
  }
  one <- side(first)
  two <- side(second)
  change <- one$level - two$level
  least <- if (options$seurat == "5") c(0.01, 0.1) else c(0.1, 0.25)
  passed <- pmax(one$pct, two$pct) >= (options$min_pct %||% least[[1]])
  if (is.finite(options$min_diff_pct)) passed <- passed & abs(one$pct - two$pct) >= options$min_diff_pct
  size <- if (options$only_pos) change else abs(change)
  passed <- passed & size >= (options$logfc_threshold %||% least[[2]])
  passed <- passed & !is.na(passed)
  data.frame(change = change, pct.1 = one$pct, pct.2 = two$pct, passed = passed, row.names = rownames(values))
}

# The logarithm of a group's mean: Seurat 5 adds the pseudocount to the sum, Seurat 4 to the mean.
.group_level <- function(logs, linear, options, by_hand) {
  n <- ncol(logs)
  mean <- if (identical(options$fold_change, "log")) {
    Matrix::rowSums(logs) / n + by_hand$pseudocount
  } else if (options$seurat == "5") {
    (Matrix::rowSums(linear) + by_hand$pseudocount) / n
  } else {
    Matrix::rowSums(linear) / n + by_hand$pseudocount
  }
  log(mean, base = by_hand$base)
}

# The draw FindMarkers() makes from this seed; the user's random numbers stay as they are.
.draw_cells <- function(first, second, by_hand) {
  if (is.infinite(by_hand$most)) {
    return(list(first = first, second = second))
  }
  old <- get0(".Random.seed", globalenv(), inherits = FALSE)
  on.exit(if (is.null(old)) rm(".Random.seed", envir = globalenv()) else assign(".Random.seed", old, globalenv()))
  set.seed(by_hand$seed)
  draw <- function(cells) if (length(cells) > by_hand$most) sample(cells, by_hand$most) else cells
  first <- draw(first)
  list(first = first, second = draw(second))
}

#' @rdname ScMambaFindMarkers
#' @export
ScMambaFindAllMarkers <- function(object, group.by = NULL, only.pos = FALSE, return.thresh = 0.01, seurat = NULL,
                                  verbose = TRUE, ...) {
  .check_number(return.thresh, "return.thresh")
  given <- c("ident.1", "ident.2") %in% ...names()
  if (any(given)) .abort("{.fn ScMambaFindAllMarkers} compares every group with all other cells and takes no idents.")
  if (inherits(object, "SummarizedExperiment")) {
    object <- .as_sce(object)
    groups <- .sce_groups(object, .sce_frame(object), group.by)
    groups <- factor(groups)
  } else if (inherits(object, "Seurat")) {
    by_ident <- is.null(group.by) || identical(group.by, "ident")
    groups <- if (by_ident) SeuratObject::Idents(object) else .metadata_column(object[[]], group.by, "group.by")
    groups <- if (is.factor(groups)) droplevels(groups) else factor(groups)
  } else {
    .abort("{.fn ScMambaFindAllMarkers} needs a Seurat object or a SingleCellExperiment, which hold groups of cells.")
  }
  seurat <- seurat %||% if (inherits(object, "Seurat") && !.seurat5()) "4" else "5"
  every <- structure(list(), class = "scmamba_every_group")
  found <- ScMambaFindMarkers(object, ident.1 = every, group.by = group.by, only.pos = only.pos, seurat = seurat,
    verbose = verbose, ...)
  tables <- lapply(levels(groups), function(group) {
    at <- match(group, names(found))
    table <- if (is.na(at)) simpleError("No cell of this group is compared.") else found[[at]]
    .of_cluster(table, group, levels(groups), return.thresh, seurat)
  })
  .all_markers(tables, levels(groups), only.pos)
}

# One cluster's part of the table, or the error.
.of_cluster <- function(table, group, groups, threshold, seurat) {
  if (inherits(table, "error")) {
    return(table)
  }
  order <- if (seurat == "5") -abs(table$pct.1 - table$pct.2) else -table[[2]]
  table <- table[order(table$p_val, order), , drop = FALSE]
  table <- table[!is.na(table$p_val) & table$p_val < threshold, , drop = FALSE]
  first <- names(table)[1:5]
  table$cluster <- factor(rep(group, nrow(table)), levels = groups)
  table$gene <- rownames(table)
  table[c(first, "cluster", "gene", setdiff(names(table), c(first, "cluster", "gene")))]
}

.all_markers <- function(tables, groups, only.pos) {
  failed <- vapply(tables, inherits, NA, "error")
  reasons <- vapply(tables[failed], conditionMessage, "")
  if (all(failed)) .abort(c("No group could be compared.", x = .verbatim(reasons[[1]])))
  for (i in which(failed)) {
    why <- .verbatim(conditionMessage(tables[[i]]))
    warning(cli::format_message(c(paste0("No markers for {.val {groups[[i]]}}: ", why))), call. = FALSE)
  }
  whole <- do.call(rbind, lapply(tables[!failed], function(table) {
    rownames(table) <- NULL
    table
  }))
  if (only.pos) whole <- whole[whole[[2]] > 0, , drop = FALSE]
  rownames(whole) <- make.unique(as.character(whole$gene))
  whole
}

.marker_options <- function(logfc.threshold, min.pct, min.diff.pct, only.pos, test.use, seurat, features) {
  seurat <- as.character(seurat)
  if (!identical(seurat, "5") && !identical(seurat, "4")) .abort("{.arg seurat} must be \"5\" or \"4\".")
  if (!is.character(test.use) || !isTRUE(test.use %in% c("MAST", "wilcox"))) {
    .abort("{.arg test.use} must be \"MAST\" or \"wilcox\", not {.val {test.use}}.")
  }
  optional <- function(value, name) if (is.null(value)) NULL else .check_number(value, name)
  list(
    logfc_threshold = optional(logfc.threshold, "logfc.threshold"),
    min_pct = optional(min.pct, "min.pct"),
    min_diff_pct = as.double(min.diff.pct),
    only_pos = .check_flag(only.pos, "only.pos"),
    test = test.use, seurat = seurat,
    genes = if (is.null(features)) NULL else as.list(as.character(features))
  )
}

.check_known <- function(values, known, what, argument) {
  missing <- setdiff(as.character(values), as.character(known))
  if (length(values) == 0 || length(missing) > 0) {
    known <- utils::head(sort(unique(as.character(known))), 12)
    .abort("{.arg {argument}}: there is no {what} {.val {missing}}; there are {.val {known}}.")
  }
}

.metadata_column <- function(frame, name, argument, where = "the metadata") {
  .check_name(name, argument)
  if (!name %in% names(frame)) {
    columns <- names(frame)
    .abort("{.arg {argument}}: there is no column {.val {name}} in {where}; there are {.val {columns}}.")
  }
  frame[[name]]
}

.columns_for <- function(frame, names, argument) {
  if (is.null(names)) {
    return(NULL)
  }
  for (name in names) .metadata_column(frame, name, argument)
  columns <- frame[, names, drop = FALSE]
  rownames(columns) <- NULL
  columns
}

.column_numbers <- function(matrix, which, argument) {
  if (is.logical(which)) which <- base::which(which)
  if (is.character(which)) which <- match(which, colnames(matrix))
  if (length(which) == 0 || anyNA(which) || any(which < 1 | which > ncol(matrix))) {
    .abort("{.arg {argument}} must name columns of the matrix: names, numbers or TRUE/FALSE.")
  }
  as.integer(which)
}
