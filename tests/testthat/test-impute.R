test_that("a Seurat object has one more assay after imputation and no other change", {
  skip_without_python()
  before <- pbmc()
  after <- impute_tiny(before)
  expect_setequal(SeuratObject::Assays(after), c("RNA", "scmamba"))
  expect_identical(SeuratObject::DefaultAssay(after), "RNA")
  expect_identical(after[["RNA"]], before[["RNA"]])
  expect_identical(SeuratObject::Idents(after), SeuratObject::Idents(before))
  expect_identical(after@reductions, before@reductions)
  expect_identical(after[[]][, names(before[[]])], before[[]])
  expect_true(all(startsWith(setdiff(names(after[[]]), names(before[[]])), "scmamba_")))
  expect_identical(dimnames(data_of(after)), dimnames(counts_of(before)))
  expect_s4_class(data_of(after), "dgCMatrix")
  expect_true(validObject(data_of(after)))
})

test_that("observed values are exactly log1p of counts per 10,000; only zeros are imputed", {
  skip_without_python()
  counts <- counts_of(pbmc())
  imputed <- data_of(impute_tiny(pbmc()))
  observed <- as.matrix(counts) > 0
  normal <- log1p(sweep(as.matrix(counts), 2, Matrix::colSums(counts) / 1e4, "/"))
  expect_equal(as.matrix(imputed)[observed], normal[observed], tolerance = 1e-6)
  expect_true(all(imputed@x >= 0))
  expect_gt(Matrix::nnzero(imputed), Matrix::nnzero(counts))
})

test_that("values, order and names agree with the Python package called directly", {
  skip_without_python()
  # Shuffled, so that sorting by name or by position would be detected.
  set.seed(7)
  shuffled <- pbmc()
  counts <- counts_of(shuffled)[sample(230), sample(80)]
  alone <- python_alone(counts, "impute", adapt_steps = 0L, passes = 2L)
  direct <- reticulate::py_to_r(
    reticulate::py_get_item(alone$layers, "scmamba")$toarray()
  )
  ours <- impute_tiny(SeuratObject::CreateSeuratObject(counts))
  expect_identical(rownames(data_of(ours)), rownames(counts))
  expect_identical(colnames(data_of(ours)), colnames(counts))
  expect_equal(unname(as.matrix(data_of(ours))), t(direct), tolerance = 1e-12)
})

test_that("the same seed gives the same result and the state of R's random numbers does not change", {
  skip_without_python()
  set.seed(1)
  expected <- runif(1)
  set.seed(1)
  one <- impute_tiny(pbmc(), adapt = 3, seed = 5)
  expect_identical(runif(1), expected)
  two <- impute_tiny(pbmc(), adapt = 3, seed = 5)
  expect_identical(data_of(one), data_of(two))
})

test_that("metadata of every type stays", {
  skip_without_python()
  seu <- pbmc()
  n <- ncol(seu)
  seu$an_ordered <- factor(rep(c("low", "high"), n / 2), levels = c("low", "high", "unused"),
    ordered = TRUE)
  seu$a_factor_with_na <- factor(c(NA, rep(c("\u00e9", "b"), length.out = n - 1)))
  seu$a_string_with_na <- c(NA, rep("x", n - 1))
  seu$an_integer_with_na <- c(NA, seq_len(n - 1))
  seu$a_flag_with_na <- c(NA, rep(TRUE, n - 1))
  seu$a_date <- as.Date("2024-01-01") + seq_len(n)
  after <- embed_tiny(impute_tiny(seu))
  expect_identical(after[[]][, names(seu[[]])], seu[[]])
  expect_identical(levels(after$an_ordered), c("low", "high", "unused"))
})

test_that("an existing assay is kept unless overwrite is TRUE", {
  skip_without_python()
  seu <- impute_tiny(pbmc())
  expect_error(impute_tiny(seu), "already has an assay", class = "scmamba_exists")
  expect_error(impute_tiny(seu, assay.name = "RNA"), class = "scmamba_exists")
  expect_error(impute_tiny(pbmc(), assay.name = "RNA", overwrite = TRUE),
    "a name of its own", class = "scmamba_exists")
  again <- impute_tiny(seu, overwrite = TRUE, min.value = 0.5)
  expect_false(identical(data_of(again), data_of(seu)))
  expect_setequal(SeuratObject::Assays(again), c("RNA", "scmamba"))
  other <- impute_tiny(seu, assay.name = "second")
  expect_identical(other[["scmamba"]], seu[["scmamba"]])
  expect_identical(data_of(other, "second"), data_of(seu))
})

test_that("log-normalized data can be read instead of counts", {
  skip_without_python()
  seu <- pbmc()
  from_data <- impute_tiny(seu, layer = "data")
  by_slot <- impute_tiny(seu, slot = "data")
  expect_identical(data_of(from_data), data_of(by_slot))
  observed <- as.matrix(counts_of(seu)) > 0
  expect_equal(as.matrix(data_of(from_data))[observed],
    as.matrix(data_of(seu, "RNA"))[observed], tolerance = 1e-6)
  expect_error(impute_tiny(seu, layer = "scale.data", force = TRUE), "scaled")
  expect_error(impute_tiny(seu, layer = "nothing"), "nothing")
})

test_that("expected counts are in the layer counts", {
  skip_without_python()
  after <- impute_tiny(pbmc(), to.counts = TRUE)
  imputed <- data_of(after, layer = "counts")
  observed <- as.matrix(counts_of(pbmc())) > 0
  expect_equal(as.matrix(imputed)[observed], as.matrix(counts_of(pbmc()))[observed])
})

test_that("the record has the options, and Command() shows the call", {
  skip_without_python()
  after <- impute_tiny(pbmc(), seed = 3)
  after <- embed_tiny(after)
  record <- SeuratObject::Misc(after, "scmamba")
  expect_setequal(names(record), c("impute", "embed"))
  expect_identical(as.integer(record$impute$params$seed), 3L)
  expect_identical(record$impute$params$passes, 2L)
  expect_identical(record$impute$model, "tiny")
  expect_identical(record$impute$r[["scMamba"]], as.character(packageVersion("scMamba")))
  commands <- SeuratObject::Command(after)
  expect_true(all(c("ScMambaImpute.RNA", "ScMambaEmbed.RNA") %in% commands))
  expect_identical(SeuratObject::Command(after, "ScMambaImpute.RNA", "seed"), 3)
})

test_that("Seurat's own functions work on the result without further steps", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  seu <- embed_tiny(impute_tiny(pbmc()))
  values <- SeuratObject::FetchData(seu, c("imputed_CD3E", "scmamba_1"))
  expect_identical(values[[1]], unname(data_of(seu)["CD3E", ]))
  expect_identical(values[[2]],
    unname(SeuratObject::Embeddings(seu, "scmamba_embedding")[, "scmamba_1"]))
  some <- subset(seu, cells = colnames(seu)[1:10])
  expect_identical(data_of(some), data_of(seu)[, 1:10])
})

test_that("Seurat's FindMarkers computes fold changes of imputed values on the natural scale", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  seu <- impute_tiny(pbmc())
  first <- levels(SeuratObject::Idents(seu))[1:2]
  found <- suppressWarnings(suppressMessages(Seurat::FindMarkers(seu, ident.1 = first[1], ident.2 = first[2],
    assay = "scmamba", logfc.threshold = 0, min.pct = 0)))
  values <- expm1(as.matrix(data_of(seu)[rownames(found), ]))
  group <- function(ident) values[, SeuratObject::Idents(seu) == ident, drop = FALSE]
  # Seurat 5 adds the pseudocount to the sum, Seurat 4 to the mean.
  mean_of <- if (seurat5) function(x) (rowSums(x) + 1) / ncol(x) else function(x) rowMeans(x) + 1
  expected <- log2(mean_of(group(first[1]))) - log2(mean_of(group(first[2])))
  expect_equal(found$avg_log2FC, unname(expected), tolerance = 1e-9)
  counts <- impute_tiny(pbmc(), to.counts = TRUE)
  expect_false("NormalizeData.scmamba" %in% SeuratObject::Command(counts))
})

test_that("gene names in which Seurat replaced _ by - are matched, and kept", {
  skip_without_python()
  counts <- counts_of(pbmc())
  hla <- grep("^HLA-", rownames(counts))
  rownames(counts)[hla] <- gsub("-", "_", rownames(counts)[hla])
  expect_gt(length(hla), 5)
  from_matrix <- impute_tiny(counts)
  expect_identical(dimnames(from_matrix), dimnames(counts))
  expect_warning(seu <- SeuratObject::CreateSeuratObject(counts), "_")
  after <- impute_tiny(seu)
  expect_identical(rownames(after[["scmamba"]]), rownames(counts_of(pbmc())))
  expect_equal(unname(as.matrix(data_of(after))), unname(as.matrix(from_matrix)))
})

test_that("batch correction by a named column is the same for every class of object", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 120, n.donors = 3, n.genes = 2500, seed = 5)
  impute <- function(object, ...) ScMambaImpute(object, ..., adapt = FALSE, force = TRUE, verbose = FALSE)
  plain <- data_of(impute(cohort))
  evened <- impute(cohort, batch = "donor")
  expect_identical(SeuratObject::Misc(evened, "scmamba")$impute$params$batch_key, "donor")
  values <- data_of(evened)
  counts <- counts_of(cohort)
  observed <- as.matrix(counts) > 0
  expect_identical(as.matrix(values)[observed], as.matrix(plain)[observed])
  expect_gt(max(abs(values - plain)), 0.1)
  from_matrix <- impute(counts, batch = cohort$donor)
  expect_equal(unname(as.matrix(from_matrix)), unname(as.matrix(values)), tolerance = 1e-6)
  served <- data_of(impute(cohort, batch = "donor", backend = "server"))
  expect_equal(as.matrix(served), as.matrix(values), tolerance = 1e-6)
  if (requireNamespace("SingleCellExperiment", quietly = TRUE)) {
    sce <- SingleCellExperiment::SingleCellExperiment(
      list(counts = counts),
      colData = S4Vectors::DataFrame(donor = cohort$donor)
    )
    of_sce <- SummarizedExperiment::assay(impute(sce, batch = "donor"), "scmamba")
    expect_equal(unname(as.matrix(of_sce)), unname(as.matrix(values)), tolerance = 1e-6)
  }
  expect_error(impute(cohort, batch = "nobody"), "nobody", class = "scmamba_error")
  expect_error(impute(cohort, batch = c("donor", "sex")), "one value for each cell", class = "scmamba_error")
  expect_error(impute(counts, batch = c("a", "b")), "one value for each cell", class = "scmamba_error")
})

test_that("posterior values sum to 10,000 in every cell and zeros are imputed by their probability", {
  skip_without_python()
  counts <- counts_of(pbmc())
  run <- function(...) ScMambaImpute(counts, adapt = FALSE, force = TRUE, verbose = FALSE, ...)
  posterior <- run(values = "posterior", min.value = 0)
  expect_equal(unname(Matrix::colSums(expm1(posterior))), rep(1e4, ncol(counts)), tolerance = 1e-3)
  seen <- counts > 0
  zeros <- run()
  observed <- log1p(1e4 * sweep(as.matrix(counts), 2, Matrix::colSums(counts), "/"))
  expect_equal(as.matrix(zeros)[as.matrix(seen)], observed[as.matrix(seen)], tolerance = 1e-5)
  expect_false(isTRUE(all.equal(as.matrix(posterior)[as.matrix(seen)], observed[as.matrix(seen)], tolerance = 0.01)))
  every <- run(min.probability = 0)
  expect_gt(Matrix::nnzero(every), Matrix::nnzero(zeros))
  # At most this share of a cell's genes, and the kept values are those of the result without a limit.
  added <- function(result) Matrix::colSums(result > 0 & !seen)
  few <- run(min.probability = 0, max.filled = 0.02)
  unlimited <- run(min.probability = 0, max.filled = 1)
  expect_true(all(added(every) <= 0.25 * nrow(counts)) && all(added(few) <= 0.02 * nrow(counts)))
  expect_gt(max(added(unlimited)), 0.25 * nrow(counts))
  expect_gt(sum(added(few)), 0)
  kept <- as.matrix(few > 0)
  expect_identical(as.matrix(few)[kept], as.matrix(unlimited)[kept])
  expect_error(run(max.filled = 1.5), "max.filled")
  expect_error(run(values = "mean"), "zeros.*posterior")
  expect_error(run(min.probability = 2), "min.probability")
  expect_error(run(min.probability = NA), "one number")
})

test_that("standard deviations are an assay of their own, of the same entries as the values", {
  skip_without_python()
  object <- ScMambaCohort(n.cells = 60, n.donors = 2, n.genes = 1500, seed = 6)
  impute <- function(object, ...) ScMambaImpute(object, adapt = FALSE, force = TRUE, verbose = FALSE, ...)
  after <- impute(object, sd = TRUE)
  expect_setequal(SeuratObject::Assays(after), c(SeuratObject::Assays(object), "scmamba", "scmamba_sd"))
  values <- data_of(after)
  sds <- data_of(after, "scmamba_sd")
  expect_identical(dimnames(sds), dimnames(values))
  expect_identical(list(sds@i, sds@p), list(values@i, values@p))
  expect_true(all(sds@x > 0))
  expect_identical(data_of(impute(object)), values)
  # The default model: the tiny one has no rates.
  alone <- python_alone(counts_of(object), "impute", adapt_steps = 0L, force = TRUE, sd = TRUE, model = NULL)
  direct <- reticulate::py_to_r(reticulate::py_get_item(alone$layers, "scmamba_sd")$toarray())
  expect_equal(unname(as.matrix(sds)), t(direct), tolerance = 1e-12)
  gene <- rownames(object)[[1]]
  expect_identical(SeuratObject::FetchData(after, paste0("imputedsd_", gene))[[1]], unname(sds[gene, ]))
  expect_error(ScMambaImpute(after, assay = "scmamba_sd", overwrite = TRUE, verbose = FALSE), class = "scmamba_imputed")
  # They do not outlast the values that they belong to.
  expect_false("scmamba_sd" %in% SeuratObject::Assays(impute(after, overwrite = TRUE)))
  matrix <- ScMambaImpute(counts_of(object), adapt = FALSE, force = TRUE, verbose = FALSE, sd = TRUE)
  expect_equal(attr(matrix, "sd"), sds)
  skip_if_not_installed("SingleCellExperiment")
  single <- impute(SingleCellExperiment::SingleCellExperiment(list(counts = counts_of(object))), sd = TRUE)
  expect_equal(SummarizedExperiment::assay(single, "scmamba_sd"), sds)
  expect_identical(SummarizedExperiment::assayNames(impute(single, overwrite = TRUE)), c("counts", "scmamba"))
})
