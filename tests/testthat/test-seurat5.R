# Features of Seurat 5 only: Assay5 and its split layers.

assay5 <- function() {
  seu <- pbmc()
  suppressWarnings(seu[["RNA"]] <- as(seu[["RNA"]], "Assay5"))
  seu
}

test_that("an Assay5 gives an Assay5 with the same values as an Assay", {
  skip_without_python()
  skip_if_not(seurat5, "Seurat 5")
  seu <- assay5()
  after <- impute_tiny(seu)
  expect_s4_class(after[["scmamba"]], "Assay5")
  expect_identical(after[["RNA"]], seu[["RNA"]])
  expect_identical(data_of(after), data_of(impute_tiny(pbmc())))
  expect_s4_class(impute_tiny(pbmc())[["scmamba"]], "Assay")
})

test_that("all split layers are used, with a message, and stay split", {
  skip_without_python()
  skip_if_not(seurat5, "Seurat 5")
  seu <- assay5()
  whole <- data_of(impute_tiny(seu))
  split <- seu
  split[["RNA"]] <- split(split[["RNA"]], f = rep(c("b", "a", "c"), length.out = ncol(seu)))
  layers <- SeuratObject::Layers(split[["RNA"]])
  expect_gt(sum(startsWith(layers, "counts.")), 2)
  expect_message(after <- impute_tiny(split, verbose = TRUE), "split layers")
  expect_identical(SeuratObject::Layers(after[["RNA"]]), layers)
  expect_identical(after[["RNA"]], split[["RNA"]])
  expect_identical(data_of(after)[, colnames(seu)], whole)
  expect_identical(colnames(data_of(after)), colnames(seu))
  embedded <- SeuratObject::Embeddings(embed_tiny(split), "scmamba_embedding")
  expect_equal(embedded, SeuratObject::Embeddings(embed_tiny(seu), "scmamba_embedding"))
})

test_that("layers with different genes are joined with zeros", {
  skip_without_python()
  skip_if_not(seurat5, "Seurat 5")
  counts <- counts_of(pbmc())
  parts <- list(a = counts[1:200, 1:40], b = counts[31:230, 41:80])
  seu <- SeuratObject::CreateSeuratObject(SeuratObject::CreateAssay5Object(counts = parts))
  imputed <- data_of(impute_tiny(seu))
  expect_setequal(rownames(imputed), rownames(counts))
  expect_identical(colnames(imputed), colnames(seu))
  known <- as.matrix(parts$a) > 0
  normal <- log1p(sweep(as.matrix(parts$a), 2, Matrix::colSums(parts$a) / 1e4, "/"))
  expect_equal(as.matrix(imputed[rownames(parts$a), colnames(parts$a)])[known], normal[known],
    tolerance = 1e-6)
})
