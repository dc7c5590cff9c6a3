# Unusual but real inputs: each works, or gives an error with what to do.

renamed <- function(counts, names) {
  rownames(counts) <- names
  counts
}

# Ensembl IDs of the vocabulary.
ensembl_of <- function(symbols) {
  reticulate::py_run_string(paste(
    "def _ensembl(names):",
    "    from scmamba.genes import Vocabulary, match_genes",
    "    vocabulary = Vocabulary.published()",
    "    return [vocabulary.ensembl_ids[p] if p >= 0 else '' for p in match_genes(list(names)).positions]",
    sep = "\n"
  ))
  unlist(reticulate::py$`_ensembl`(symbols))
}

test_that("Ensembl IDs, with or without versions, give the same result as the symbols", {
  skip_without_python()
  counts <- counts_of(pbmc())
  ids <- ensembl_of(rownames(counts))
  expect_gt(sum(nzchar(ids)), 150)
  known <- counts[nzchar(ids), ]
  ids <- ids[nzchar(ids)]
  expect_match(ids, "^ENSG[0-9]{11}$")
  wanted <- unname(as.matrix(impute_tiny(known)))
  versions <- paste0(ids, ".", seq_along(ids) %% 20 + 1)
  for (names in list(ids, versions)) {
    imputed <- impute_tiny(renamed(known, names))
    expect_identical(rownames(imputed), names)
    expect_identical(unname(as.matrix(imputed)), wanted)
  }
  # Seurat 5 and 4 keep the names too.
  object <- SeuratObject::CreateSeuratObject(renamed(known, versions))
  expect_identical(unname(as.matrix(data_of(impute_tiny(object)))), wanted)
})

test_that("names in another case are matched if no other gene is meant", {
  skip_without_python()
  counts <- counts_of(pbmc())
  mixed <- rownames(counts)
  some <- seq(1, length(mixed), by = 7)
  mixed[some] <- tolower(mixed[some])
  expect_identical(unname(as.matrix(impute_tiny(renamed(counts, mixed)))), unname(as.matrix(impute_tiny(counts))))
})

test_that("counts of a duplicated gene are summed with a message, or refused; both rows stay", {
  skip_without_python()
  counts <- counts_of(pbmc())
  gene <- rownames(counts)[nzchar(ensembl_of(rownames(counts)))][[1]]
  twice <- rbind(counts, counts[gene, , drop = FALSE])
  imputed <- impute_tiny(twice)
  expect_identical(dimnames(imputed), dimnames(twice))
  expect_message(impute_tiny(twice, verbose = TRUE), "1 rows repeat a gene")
  # A Seurat object makes the names unique before scMamba reads them: GENE.1 is not a known gene, and stays unchanged.
  object <- suppressWarnings(SeuratObject::CreateSeuratObject(renamed(twice, make.unique(rownames(twice)))))
  after <- data_of(impute_tiny(object))
  expect_identical(Matrix::nnzero(after[paste0(gene, ".1"), ]), Matrix::nnzero(counts[gene, ]))
})

test_that("identities without cells and unused levels stay without effect", {
  skip_without_python()
  object <- pbmc()
  SeuratObject::Idents(object) <- factor(as.character(SeuratObject::Idents(object)), levels = c("0", "1", "2", "empty"))
  object$groups <- factor(object$groups, levels = c("g2", "nobody", "g1"))
  after <- embed_tiny(impute_tiny(object))
  expect_identical(SeuratObject::Idents(after), SeuratObject::Idents(object))
  expect_identical(after$groups, object$groups)
  table <- ScMambaFindMarkers(object, "g1", "g2", group.by = "groups", verbose = FALSE)
  expect_gt(nrow(table), 0)
  expect_error(ScMambaFindMarkers(object, "empty", verbose = FALSE), "empty", class = "scmamba_error")
  expect_error(ScMambaFindMarkers(object, "g1", "nobody", group.by = "groups"), "nobody", class = "scmamba_error")
  scored <- ScMambaDoublets(object, sample = "groups", verbose = FALSE)
  expect_identical(scored$groups, object$groups)
})

test_that("of two assays the named one is read, and one without genes of the model gives an error", {
  skip_without_python()
  object <- pbmc()
  tags <- matrix(rep(0:4, length.out = 5 * 80), 5, dimnames = list(paste0("AB-", 1:5), colnames(object)))
  object[["ADT"]] <- SeuratObject::CreateAssayObject(counts = as(tags, "CsparseMatrix"))
  SeuratObject::DefaultAssay(object) <- "ADT"
  after <- impute_tiny(object, assay = "RNA")
  expect_identical(data_of(after), data_of(impute_tiny(pbmc())))
  expect_identical(SeuratObject::DefaultAssay(after), "ADT")
  expect_identical(after[["ADT"]], object[["ADT"]])
  expect_error(impute_tiny(object), "gene", class = "scmamba_error")
})

test_that("SCTransform: the corrected counts are read, with a message, also in subsets", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  object <- suppressWarnings(Seurat::SCTransform(pbmc(), verbose = FALSE, ncells = 80, variable.features.n = 50))
  expect_identical(SeuratObject::DefaultAssay(object), "SCT")
  some <- suppressWarnings(object[, colnames(object)[c(5:30, 60:71)]])
  expect_message(after <- impute_tiny(some, verbose = TRUE), "assay = \"RNA\"")
  expect_identical(dim(data_of(after)), dim(some[["SCT"]]))
  expect_identical(after[["SCT"]], some[["SCT"]])
  observed <- as.matrix(data_of(after, "SCT", "counts")) > 0
  expect_true(all(as.matrix(data_of(after))[observed] > 0))
  from_rna <- impute_tiny(some, assay = "RNA")
  expect_identical(data_of(from_rna), data_of(impute_tiny(pbmc()[, colnames(some)])))
  expect_identical(SeuratObject::DefaultAssay(from_rna), "SCT")
  fewer <- suppressWarnings(some[rownames(some[["SCT"]])[1:150], ])
  expect_s4_class(embed_tiny(fewer), "Seurat")
  expect_error(impute_tiny(some, layer = "scale.data", force = TRUE), "scaled", class = "scmamba_error")
})

test_that("matrices on disk are read in blocks and give the same values", {
  skip_without_python()
  counts <- counts_of(pbmc())
  expect_error(ScMambaImpute(structure(list(), class = "other")), "cannot read", class = "scmamba_error")
  setClass("IterableMatrix", representation(dim = "integer"), where = environment())
  expect_error(ScMambaImpute(new("IterableMatrix", dim = dim(counts))), "IterableMatrix.*cannot be read",
    class = "scmamba_error")
  skip_if_not_installed("DelayedArray")
  # Seven blocks, the last one smaller.
  withr::local_options(scmamba.block = 12 * nrow(counts))
  delayed <- DelayedArray::DelayedArray(counts)
  expect_identical(scMamba:::.as_dgc(delayed, "matrix"), counts)
  doubled <- delayed * 2
  expect_identical(scMamba:::.as_dgc(doubled, "matrix"), counts * 2)
  skip_if_not_installed("SingleCellExperiment")
  sce <- SingleCellExperiment::SingleCellExperiment(list(counts = delayed))
  after <- impute_tiny(sce)
  expect_identical(SummarizedExperiment::assay(after, "scmamba"), data_of(impute_tiny(pbmc())))
  expect_s4_class(SummarizedExperiment::assay(after, "counts"), "DelayedMatrix")
  skip_if_not(seurat5, "Seurat 5")
  object <- SeuratObject::CreateSeuratObject(SeuratObject::CreateAssay5Object(counts = counts))
  object[["RNA"]]@layers$counts <- unname(delayed)
  expect_identical(unname(data_of(impute_tiny(object))), unname(data_of(impute_tiny(pbmc()))))
})

test_that("names with a prefix of the genome or an ID are read without it, with a message, and kept", {
  skip_without_python()
  counts <- counts_of(pbmc())
  wanted <- unname(as.matrix(impute_tiny(counts)))
  ids <- ensembl_of(rownames(counts))
  ids <- ifelse(nzchar(ids), ids, sprintf("ENSG%011d", seq_along(ids)))
  forms <- list(paste0("GRCh38_", rownames(counts)), paste0("hg19-", rownames(counts)),
    paste0(ids, "_", rownames(counts)))
  for (names in forms) {
    expect_message(imputed <- impute_tiny(renamed(counts, names), verbose = TRUE), "read as")
    expect_identical(rownames(imputed), names)
    expect_identical(unname(as.matrix(imputed)), wanted)
  }
  strip <- function(x) scMamba:::.without_prefix(x, FALSE)
  expect_identical(strip(c("GFAP-ENSG00000131095", "AQP4-ENSG00000171885.12")), c("ENSG00000131095", "ENSG00000171885"))
  # Names that only contain a dash or a bar are not changed, and a few unusual ones do not affect the rest.
  plain <- c("HLA-DRA", "MT-CO1", "NKX2-1", "RP11-34P13.7", "A_B")
  expect_identical(strip(plain), plain)
})

test_that("symbols in a column of the feature metadata are used", {
  skip_without_python()
  counts <- counts_of(pbmc())
  object <- SeuratObject::CreateSeuratObject(renamed(counts, paste0("g", seq_len(nrow(counts)))))
  known <- seq_len(nrow(counts) - 1)
  symbols <- data.frame(symbol = c(rownames(counts)[known], NA), row.names = rownames(object))
  object[["RNA"]] <- SeuratObject::AddMetaData(object[["RNA"]], symbols)
  imputed <- data_of(impute_tiny(object, gene.column = "symbol"))
  expect_identical(rownames(imputed), rownames(object))
  # A row without a symbol keeps its name, which is in no model.
  wanted <- impute_tiny(renamed(counts, c(rownames(counts)[known], utils::tail(rownames(object), 1))))
  expect_equal(unname(as.matrix(imputed)), unname(as.matrix(wanted)))
  expect_error(impute_tiny(object, gene.column = "nothing"), "no column \"nothing\"", class = "scmamba_error")
})

test_that("scMamba's columns are not overwritten, and columns that were sent are not written back", {
  skip_without_python()
  object <- pbmc()
  object$scmamba_low_depth <- "mine"
  expect_error(impute_tiny(object), "scmamba_low_depth", class = "scmamba_exists")
  expect_type(impute_tiny(object, overwrite = TRUE)$scmamba_low_depth, "logical")
  object$scmamba_low_depth <- NULL
  object$scmamba_added <- "mine"
  expect_error(impute_tiny(object), "scmamba_added", class = "scmamba_exists")
  object$scmamba_added <- NULL
  object$scmamba_doublet_score <- 1
  expect_error(ScMambaDoublets(object), "scmamba_doublet_score", class = "scmamba_exists")
  object$scmamba_doublet_score <- NULL
  object$scmamba_type <- factor(rep(c("a", "b"), 40), levels = c("b", "a", "unused"))
  scored <- ScMambaDoublets(object, labels = "scmamba_type", verbose = FALSE)
  expect_identical(scored$scmamba_type, object$scmamba_type)
  # One value for each cell instead of the name of a column.
  by_values <- ScMambaDoublets(object, sample = object$groups, labels = object$scmamba_type, verbose = FALSE)
  by_name <- ScMambaDoublets(object, sample = "groups", labels = "scmamba_type", verbose = FALSE)
  expect_equal(by_values$scmamba_doublet_score, by_name$scmamba_doublet_score)
  expect_error(ScMambaDoublets(object, sample = 1:3), "one value for each cell", class = "scmamba_error")
})

test_that("clusters have the type of most of their cells", {
  cells <- data.frame(scmamba_type = c("A", "A", "B", "B", "Unassigned", "Unassigned", "B", "A"))
  found <- scMamba:::.with_clusters(cells, c(1, 1, 1, 2, 2, 2, 3, 3))
  expect_identical(as.character(found$scmamba_group_type), c("A", "A", "A", "Unassigned", "Unassigned", "Unassigned",
    "Unassigned", "Unassigned"))
  expect_equal(found$scmamba_group_share, c(2, 2, 2, 1, 1, 1, 1.5, 1.5) / 3)
  none <- scMamba:::.with_clusters(data.frame(scmamba_type = rep("Unassigned", 3)), c("x", "x", "y"))
  expect_identical(as.character(none$scmamba_group_type), rep("Unassigned", 3))
})

test_that("Python's messages use R's words", {
  words <- scMamba:::.r_words
  expect_identical(words("2 cells (obs['scmamba_low_depth']): pass force=True, or gene_column='symbol'."),
    "2 cells (the metadata column \"scmamba_low_depth\"): pass force = TRUE, or gene.column = \"symbol\".")
  python <- "Give human gene names as var_names, or name the column of var that holds them (gene_column=...)."
  expect_identical(words(python),
    "Give human gene names as row names, or name the column that holds them (gene.column = \"...\").")
  expect_identical(words("obs has no column 'x'; set min_value=0.5"),
    "The metadata have no column 'x'; set min.value = 0.5")
  expect_error(ScMambaImpute(pbmc(), device = "quantum"), "\"mps\", not \"quantum\"", class = "scmamba_error")
  expect_identical(scMamba:::.check_device("gpu"), if (Sys.info()[["sysname"]] == "Darwin") "mps" else "cuda")
})

test_that("images stay in the object", {
  skip_without_python()
  object <- pbmc()
  places <- data.frame(x = seq_len(80), y = rep(1:8, 10), cell = colnames(object))
  object[["fov"]] <- SeuratObject::CreateFOV(places, type = "centroids", assay = "RNA", key = "fov_")
  after <- embed_tiny(impute_tiny(object))
  expect_identical(after@images, object@images)
})

test_that("missing values in the metadata stay, and are named in an error if a group is needed", {
  skip_without_python()
  object <- pbmc()
  object$groups <- ifelse(seq_len(80) %% 5 == 0, NA, object$groups)
  after <- embed_tiny(impute_tiny(object))
  expect_identical(after$groups, object$groups)
  # Cells without a group are in no group.
  markers <- ScMambaFindMarkers(object, "g1", "g2", group.by = "groups", verbose = FALSE)
  without <- ScMambaFindMarkers(object[, !is.na(object$groups)], "g1", "g2", group.by = "groups", verbose = FALSE)
  expect_equal(markers[rownames(without), "p_val"], without$p_val)
  # Cells without a sample form one more sample, with a message.
  expect_message(scored <- ScMambaDoublets(object, sample = "groups"), "have no groups")
  expect_false(anyNA(scored$scmamba_doublet_score))
  cohort <- ScMambaCohort(n.cells = 120, n.donors = 2, n.genes = 2000, seed = 3)
  cohort$label <- ifelse(seq_len(120) %% 4 == 0, NA, as.character(cohort$cell_type))
  named <- ScMambaAnnotate(cohort, reference = cohort, labels = "label", network = FALSE, cache = FALSE,
    verbose = FALSE)
  expect_false(any(c("NA", "nan") %in% named$scmamba_type))
})

test_that("a test of scaled values is refused for every argument that selects them", {
  object <- pbmc()
  for (call in list(
    quote(ScMambaFindMarkers(object, ident.1 = 0, layer = "scale.data")),
    quote(ScMambaFindMarkers(object, ident.1 = 0, slot = "scale.data"))
  )) {
    expect_error(eval(call), "holds scaled values", class = "scmamba_error")
  }
})
