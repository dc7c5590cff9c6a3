# Against Seurat itself: every argument that both functions have, to 1e-12.

with_normalised <- function(object = pbmc()) Seurat::NormalizeData(object, verbose = FALSE)

# Every argument that both functions have, and its tested values.
shared_arguments <- list(
  default = list(), features = list(features = c("LYZ", "CD3E", "MS4A1", "PPBP", "S100A8")),
  logfc = list(logfc.threshold = 1), pct = list(min.pct = 0.3), diff = list(min.diff.pct = 0.2),
  pos = list(only.pos = TRUE),
  drawn = list(max.cells.per.ident = 12), seed = list(max.cells.per.ident = 10, random.seed = 7),
  least = list(min.cells.group = 5), pseudocount = list(pseudocount.use = 0.1, logfc.threshold = 0.5),
  base = list(base = exp(1)), named = list(base = 10, logfc.threshold = 0.1), fold = list(fc.name = "change")
)

equal_tables <- function(ours, theirs) {
  expect_setequal(rownames(ours), rownames(theirs))
  ours <- ours[rownames(theirs), names(theirs)]
  # Seurat 5 has no number for a gene that is not expressed in any drawn cell; here there is no difference, p = 1.
  for (column in c("p_val", "p_val_adj")) theirs[[column]][is.nan(theirs[[column]])] <- 1
  for (column in names(theirs)) expect_equal(ours[[column]], theirs[[column]], tolerance = 1e-12, info = column)
}

test_that("every argument that FindMarkers() has gives its numbers", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  object <- with_normalised()
  object$part <- rep(c("a", "b", NA, "c"), length.out = ncol(object))
  groups <- list(list(ident.1 = "0", ident.2 = "1"), list(ident.1 = "0"), list(ident.1 = "a", group.by = "part"),
    list(ident.1 = c("0", "2"), ident.2 = "1"),
    list(ident.1 = colnames(object)[1:20], ident.2 = colnames(object)[31:60]),
    list(ident.1 = "a", ident.2 = "b", group.by = "part", subset.ident = c("0", "1")))
  both <- function(arguments) {
    arguments <- c(list(object, test.use = "wilcox", verbose = FALSE), arguments)
    theirs <- suppressWarnings(do.call(Seurat::FindMarkers, arguments))
    equal_tables(do.call(ScMambaFindMarkers, arguments), theirs)
  }
  for (group in groups) both(group)
  for (more in shared_arguments) both(c(groups[[1]], more))
  # The same if cells without a group are among "all others".
  for (name in c("drawn", "pseudocount")) both(c(groups[[3]], shared_arguments[[name]]))
  expect_identical(ScMambaFindMarkers(object, "0", group.by = "ident", test.use = "wilcox", verbose = FALSE),
    ScMambaFindMarkers(object, "0", test.use = "wilcox", verbose = FALSE))
  expect_error(ScMambaFindMarkers(object, "0", min.cells.group = 1000), "min.cells.group", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(object, c(colnames(object)[1:5], "nobody")), "no cell", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(object), "ScMambaFindAllMarkers", class = "scmamba_error")
})

test_that("a message gives what the matrix holds, once, unless verbose = FALSE", {
  skip_without_python()
  object <- with_normalised()
  expect_message(ScMambaFindMarkers(object, "0", "1"), "holds log-normalized values")
  # With another base the values are read again by R.
  shown <- testthat::capture_messages(ScMambaFindMarkers(object, "0", "1", layer = "counts", base = 10))
  expect_identical(sum(grepl("holds raw counts", shown)), 1L)
  expect_silent(ScMambaFindMarkers(object, "0", "1", verbose = FALSE))
})

test_that("a draw of cells does not change the state of R's random numbers", {
  skip_without_python()
  object <- with_normalised()
  set.seed(3)
  expected <- runif(1)
  set.seed(3)
  ScMambaFindMarkers(object, "0", "1", max.cells.per.ident = 10, test.use = "wilcox", verbose = FALSE)
  expect_identical(runif(1), expected)
})

test_that("the table of all groups equals that of FindAllMarkers()", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  object <- with_normalised()
  object$part <- rep(c("a", "b", NA, "c"), length.out = ncol(object))
  parts <- object
  SeuratObject::Idents(parts) <- "part"
  both <- function(object, more) {
    arguments <- c(list(object, test.use = "wilcox", verbose = FALSE), more)
    theirs <- suppressWarnings(do.call(Seurat::FindAllMarkers, arguments))
    ours <- do.call(ScMambaFindAllMarkers, arguments)
    expect_identical(names(ours)[1:7], names(theirs))
    key <- function(table) paste(table$cluster, table$gene)
    expect_setequal(key(ours), key(theirs))
    ours <- ours[match(key(theirs), key(ours)), ]
    for (column in c("p_val", "p_val_adj")) theirs[[column]][is.nan(theirs[[column]])] <- 1
    for (column in names(theirs)) expect_equal(ours[[column]], theirs[[column]], tolerance = 1e-12, info = column)
    ours
  }
  for (more in shared_arguments[!names(shared_arguments) %in% c("default", "seed", "pct", "named")]) both(object, more)
  both(object, list(return.thresh = 1e-4, logfc.threshold = 0.5))
  for (name in c("default", "drawn", "least")) both(parts, c(shared_arguments[[name]], return.thresh = 0.5))
  if ("group.by" %in% names(formals(Seurat::FindAllMarkers))) {
    both(object, list(group.by = "part", return.thresh = 0.5))
  }
  ours <- both(object, list())
  expect_identical(levels(ours$cluster), levels(Seurat::Idents(object)))
  expect_error(ScMambaFindAllMarkers(object, ident.1 = "0"), "takes no idents", class = "scmamba_error")
  expect_error(ScMambaFindAllMarkers(counts_of(object)), "Seurat object", class = "scmamba_error")
  # A group that is too small is named in a warning, and the others are in the table.
  object$few <- c("x", "x", rep(c("a", "b"), length.out = ncol(object) - 2))
  expect_warning(some <- ScMambaFindAllMarkers(object, group.by = "few", return.thresh = 1.1, test.use = "wilcox",
    verbose = FALSE), "No markers for \"x\"")
  expect_setequal(as.character(unique(some$cluster)), c("a", "b"))
})

test_that("all groups are compared in one call of the backend", {
  skip_without_python()
  matrix <- counts_of(pbmc())
  groups <- factor(rep(c("a", "b", NA, "", "none"), length.out = ncol(matrix)))
  options <- .marker_options(NULL, NULL, -Inf, FALSE, "wilcox", "5", NULL)
  by_hand <- .fold_options(1, 2, NULL, Inf, 1, 3)
  calls <- 0
  real <- .marker_test(matrix, NULL, NULL, FALSE)
  counted <- function(...) {
    calls <<- calls + 1
    real(...)
  }
  tables <- .find_every(matrix, groups, options, by_hand, counted, FALSE)
  expect_identical(calls, 1)
  expect_identical(names(tables), levels(groups))
  for (k in seq_along(tables)) {
    first <- which(as.integer(groups) == k)
    alone <- ScMambaFindMarkers(matrix, first, setdiff(seq_along(groups), first), test.use = "wilcox", verbose = FALSE)
    equal_tables(tables[[k]], alone)
  }
  # A server of an earlier version compares one group in each call.
  earlier <- function(groups, options) {
    if (!is.null(options$groups)) .abort("'markers' has no option 'groups'; it has groupby")
    counted(groups, options)
  }
  calls <- 0
  again <- .find_every(matrix, groups, options, by_hand, earlier, FALSE)
  expect_identical(calls, 4)
  for (k in seq_along(tables)) equal_tables(again[[k]], tables[[k]])
})

test_that("genes may be latent variables, and unknown ones are named", {
  skip_without_python()
  object <- with_normalised()
  with_gene <- ScMambaFindMarkers(object, "0", "1", latent.vars = "LYZ", verbose = FALSE)
  object$lyz <- SeuratObject::FetchData(object, "LYZ")[[1]]
  expect_equal(with_gene, ScMambaFindMarkers(object, "0", "1", latent.vars = "lyz", verbose = FALSE))
  expect_error(ScMambaFindMarkers(object, "0", "1", latent.vars = "nothing"), "nothing", class = "scmamba_error")
})

test_that("pseudobulk in R is the test on sums per donor of limma's paper", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 600, n.donors = 6, n.genes = 200)
  table <- ScMambaPseudobulk(cohort, "disease", donor = "donor", ident.1 = "AD", ident.2 = "Control", moderate = FALSE,
    paired = FALSE, verbose = FALSE)
  # By hand: sums per donor, log2 CPM with a prior count of 2 for a library of mean size, and R's own t-test.
  counts <- counts_of(cohort)
  sums <- sapply(split(seq_len(ncol(cohort)), cohort$donor), function(i) Matrix::rowSums(counts[, i, drop = FALSE]))
  library <- colSums(sums)
  prior <- 2 * library / mean(library)
  levels <- log2(t((t(sums) + prior) / (library + 2 * prior)) * 1e6)
  group <- cohort$disease[match(colnames(sums), cohort$donor)]
  for (gene in rownames(table)[c(1, 5, 50)]) {
    test <- stats::t.test(levels[gene, group == "AD"], levels[gene, group == "Control"], var.equal = TRUE)
    expect_equal(table[gene, "p_val"], test$p.value, tolerance = 1e-10)
    expect_equal(table[gene, "log2FC"], unname(test$estimate[[1]] - test$estimate[[2]]), tolerance = 1e-10)
  }
  expect_equal(table$p_val_adj, stats::p.adjust(table$p_val, "BH"))
  expect_identical(nrow(attr(table, "samples")), 6L)
  # Donors as a vector; the counts are read although the imputed values are the default assay.
  by_values <- ScMambaPseudobulk(cohort, "disease", donor = as.character(cohort$donor), ident.1 = "AD",
    ident.2 = "Control", moderate = FALSE, paired = FALSE, verbose = FALSE)
  expect_equal(by_values, table)
  expect_error(ScMambaPseudobulk(cohort, "disease", donor = "donor", ident.1 = "none"), "no group",
    class = "scmamba_error")
})
