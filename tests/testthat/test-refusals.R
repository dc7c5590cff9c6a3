# Bad input gives one message with what to do, and the object is not
# changed.

test_that("matrices work, whatever their class, and others are refused by name", {
  skip_without_python()
  counts <- counts_of(pbmc())
  sparse <- impute_tiny(counts)
  expect_identical(impute_tiny(as.matrix(counts)), sparse)
  expect_identical(impute_tiny(as(counts, "TsparseMatrix")), sparse)
  expect_identical(impute_tiny(as(counts, "RsparseMatrix")), sparse)
  expect_named(attr(sparse, "scmamba"), ignore.order = TRUE,
    expected = names(attr(impute_tiny(counts), "scmamba")))
  expect_error(ScMambaImpute(data.frame(a = 1)), "data.frame")
  expect_error(ScMambaEmbed("a file"), "character")
  unnamed <- counts
  rownames(unnamed) <- NULL
  expect_error(impute_tiny(unnamed), "no row names")
  expect_error(impute_tiny(counts[, 0]), "empty")
  expect_error(impute_tiny(counts[0, ]), "empty")
})

test_that("a single cell works", {
  skip_without_python()
  one <- counts_of(pbmc())[, 1, drop = FALSE]
  expect_identical(dimnames(impute_tiny(one)), dimnames(one))
  expect_identical(nrow(embed_tiny(one)), 1L)
})

test_that("arguments are checked before the work starts", {
  expect_error(ScMambaImpute(pbmc(), passes = 0), "passes")
  expect_error(ScMambaImpute(pbmc(), passes = 1.5), "passes")
  expect_error(ScMambaImpute(pbmc(), adapt = NA), "adapt")
  expect_error(ScMambaImpute(pbmc(), min.value = "a"), "min.value")
  expect_error(ScMambaImpute(pbmc(), seed = -1), "seed")
  expect_error(ScMambaImpute(pbmc(), assay = "SCT"), "no assay")
  expect_error(ScMambaImpute(pbmc(), layr = "counts"), "layr")
  expect_error(ScMambaImpute(pbmc(), layer = c("counts", "data")), "layer")
  expect_error(ScMambaEmbed(pbmc(), reduction.name = ""), "reduction.name")
})

test_that("genes outside the model's list are refused unless forced", {
  skip_without_python()
  # pbmc_small has 230 genes; the default model reads thousands.
  expect_error(ScMambaImpute(pbmc(), verbose = FALSE), "force = TRUE")
  mouse <- counts_of(pbmc())
  rownames(mouse) <- paste0(substr(rownames(mouse), 1, 1), tolower(substring(rownames(mouse), 2)))
  expect_error(impute_tiny(mouse), "mouse")
  nonsense <- counts_of(pbmc())
  rownames(nonsense) <- paste0("gene-", seq_len(nrow(nonsense)))
  expect_error(impute_tiny(nonsense), "human")
})

test_that("bad values are refused and no Python traceback is shown", {
  skip_without_python()
  counts <- counts_of(pbmc())
  negative <- counts
  negative@x[[5]] <- -1
  expect_error(impute_tiny(negative), "negative|scaled", class = "scmamba_error")
  missing <- counts
  missing@x[[5]] <- NA
  expect_error(impute_tiny(missing), "NaN|missing", class = "scmamba_error")
  message <- tryCatch(impute_tiny(negative), error = conditionMessage)
  expect_false(grepl("Traceback|py_last_error", message))
  twice <- counts
  colnames(twice)[[2]] <- colnames(twice)[[1]]
  expect_error(impute_tiny(twice), "duplicated", class = "scmamba_error")
})

test_that("a missing or damaged checkpoint is named in the error", {
  skip_without_python()
  expect_error(ScMambaImpute(pbmc(), model = "no-such-model", verbose = FALSE), "no-such-model",
    class = "scmamba_error")
  broken <- tempfile()
  dir.create(broken)
  on.exit(unlink(broken, recursive = TRUE))
  file.copy(list.files(tiny_model(), full.names = TRUE), broken)
  weights <- file.path(broken, "model.safetensors")
  writeBin(readBin(weights, "raw", 1000), weights)
  expect_error(ScMambaImpute(pbmc(), model = broken, verbose = FALSE),
    class = "scmamba_error")
})
