# A table of Seurat's functions on an object with imputed values: each runs, with no warning that it does not also give
# on the object before imputation. On Seurat 4 and 5 (the suite runs on both), with the counts' assay and with
# the imputed one as the default.

before_imputation <- local({
  made <- NULL
  function() {
    if (is.null(made)) {
      object <- pbmc()
      if (seurat5) suppressWarnings(object[["RNA"]] <- as(object[["RNA"]], "Assay5"))
      object <- Seurat::NormalizeData(object, verbose = FALSE)
      made <<- Seurat::FindVariableFeatures(object, verbose = FALSE)
    }
    made
  }
})

with_imputed <- local({
  made <- NULL
  function(default) {
    if (is.null(made)) made <<- impute_tiny(before_imputation())
    object <- made
    if (default == "scmamba") {
      SeuratObject::DefaultAssay(object) <- "scmamba"
      SeuratObject::VariableFeatures(object) <- SeuratObject::VariableFeatures(object, assay = "RNA")
    }
    object
  }
})

warned <- function(expr) {
  found <- character()
  withCallingHandlers(force(expr), warning = function(w) {
    found <<- c(found, conditionMessage(w))
    invokeRestart("muffleWarning")
  })
  gsub("scmamba|RNA|imputed_|rna_", "ASSAY", unique(found))
}

drawn <- function(plot) {
  grDevices::pdf(NULL)
  on.exit(grDevices::dev.off())
  print(plot)
}

calls <- list(
  AggregateExpression = function(x) {
    sums <- Seurat::AggregateExpression(x, group.by = "groups", return.seurat = TRUE, verbose = FALSE)
    # Observed counts are summed, whichever assay is the default; Seurat 4.3 sums normalized values.
    observed <- sum(counts_of(x, "RNA"))
    if (seurat5) for (name in SeuratObject::Assays(sums)) expect_equal(sum(counts_of(sums, name)), observed)
  },
  AverageExpression = function(x) Seurat::AverageExpression(x, group.by = "groups", verbose = FALSE),
  FindVariableFeatures = function(x) Seurat::FindVariableFeatures(x, verbose = FALSE),
  SCTransform = function(x) Seurat::SCTransform(x, assay = "RNA", ncells = 80, verbose = FALSE),
  ScaleData = function(x) Seurat::ScaleData(x, verbose = FALSE),
  RunPCA = function(x) Seurat::RunPCA(Seurat::ScaleData(x, verbose = FALSE), npcs = 5, approx = FALSE, verbose = FALSE),
  merge = function(x) {
    expect_identical(ncol(merge(x, x, add.cell.ids = c("a", "b"))), 2L * ncol(x))
  },
  SplitObject = function(x) expect_length(Seurat::SplitObject(x, split.by = "groups"), 2),
  subset = function(x) subset(x, subset = groups == "g1"),
  DietSeurat = function(x) Seurat::DietSeurat(x, assays = SeuratObject::Assays(x)),
  RenameCells = function(x) Seurat::RenameCells(x, add.cell.id = "a"),
  saveRDS = function(x) {
    file <- withr::local_tempfile()
    saveRDS(x, file)
    expect_equal(readRDS(file), x)
  },
  DotPlot = function(x) drawn(Seurat::DotPlot(x, features = c("CD3E", "LYZ"))),
  VlnPlot = function(x) drawn(Seurat::VlnPlot(x, features = "LYZ", pt.size = 0)),
  FindMarkers = function(x) Seurat::FindMarkers(x, ident.1 = "0", ident.2 = "1", test.use = "t", verbose = FALSE),
  AddModuleScore = function(x) Seurat::AddModuleScore(x, features = list(c("CD3E", "LYZ")), ctrl = 5, nbin = 5)
)
if (seurat5) {
  halves <- function(x) {
    x[["RNA"]] <- split(x[["RNA"]], f = x$groups)
    x
  }
  calls$split <- function(x) expect_true("counts.g1" %in% SeuratObject::Layers(halves(x), assay = "RNA"))
  calls$JoinLayers <- function(x) {
    joined <- SeuratObject::JoinLayers(halves(x), assay = "RNA")
    expect_true("counts" %in% SeuratObject::Layers(joined, assay = "RNA"))
  }
  calls$IntegrateLayers <- function(x) {
    # With another default assay than the one that is split, whoever made it, Seurat's CCAIntegration() fails by itself.
    SeuratObject::DefaultAssay(x) <- "RNA"
    x <- Seurat::FindVariableFeatures(halves(x), assay = "RNA", verbose = FALSE)
    x <- Seurat::ScaleData(x, assay = "RNA", verbose = FALSE)
    x <- Seurat::RunPCA(x, assay = "RNA", npcs = 10, approx = FALSE, verbose = FALSE)
    for (method in c("CCAIntegration", "RPCAIntegration")) {
      joined <- Seurat::IntegrateLayers(x, method = getExportedValue("Seurat", method), assay = "RNA",
        orig.reduction = "pca", new.reduction = "joined", dims = 1:10, k.weight = 20, verbose = FALSE)
      expect_equal(dim(SeuratObject::Embeddings(joined, "joined")), c(ncol(x), 10))
    }
  }
}

# What a function warns about without imputed values; asked once for both default assays.
usual_warnings <- new.env()
usual <- function(name) {
  if (is.null(usual_warnings[[name]])) usual_warnings[[name]] <- warned(calls[[name]](before_imputation()))
  usual_warnings[[name]]
}

for (name in names(calls)) {
  for (default in c("RNA", "scmamba")) {
    local({
      name <- name
      default <- default
      test_that(paste0(name, "() works with imputed values in the object, default assay ", default), {
        skip_without_python()
        skip_if_not_installed("Seurat")
        found <- warned(calls[[name]](with_imputed(default)))
        expect_identical(setdiff(found, usual(name)), character())
      })
    })
  }
}

test_that("imputing prints no warning, keeps the key, and adds no columns of sums", {
  skip_without_python()
  object <- before_imputation()
  expect_no_warning(once <- impute_tiny(object))
  expect_no_warning(twice <- impute_tiny(once, overwrite = TRUE))
  expect_identical(unname(SeuratObject::Key(twice[["scmamba"]])), "imputed_")
  expect_identical(data_of(twice), data_of(once))
  expect_identical(grep("^n(Count|Feature)_scmamba$", names(twice[[]]), value = TRUE), character())
  # Also if it is the default assay, which cannot be removed.
  SeuratObject::DefaultAssay(twice) <- "scmamba"
  expect_no_warning(again <- impute_tiny(twice, overwrite = TRUE))
  expect_identical(SeuratObject::DefaultAssay(again), "scmamba")
  gene <- rownames(again)[[1]]
  expect_identical(names(SeuratObject::FetchData(again, paste0("imputed_", gene))), paste0("imputed_", gene))
  expect_identical(counts_of(again, "scmamba"), counts_of(again, "RNA"))
})

test_that("verbs read the counts when the default assay is imputed, with a message", {
  skip_without_python()
  right <- with_imputed("RNA")
  object <- with_imputed("scmamba")
  expect_message(embedded <- embed_tiny(object, verbose = TRUE), "reading \"RNA\"")
  expect_equal(SeuratObject::Embeddings(embedded, "scmamba_embedding"),
    SeuratObject::Embeddings(embed_tiny(right), "scmamba_embedding"))
  expect_message(table <- ScMambaFindMarkers(object, "0", "1", test.use = "wilcox"), "reading \"RNA\"")
  expect_equal(table, ScMambaFindMarkers(right, "0", "1", test.use = "wilcox", verbose = FALSE))
  # Imputed values are tested if they are named, and refused for every test that needs observations.
  expect_false(isTRUE(all.equal(table, ScMambaFindMarkers(object, "0", "1", assay = "scmamba", test.use = "wilcox",
    verbose = FALSE))))
  expect_error(embed_tiny(object, assay = "scmamba", layer = "data"), "assay = \"RNA\"", class = "scmamba_imputed")
  expect_error(ScMambaDoublets(object, assay = "scmamba", layer = "data"), class = "scmamba_imputed")
  expect_error(ScMambaAnnotate(object, assay = "scmamba", layer = "data"), class = "scmamba_imputed")
  # The source is recognized without the record too, as after merge().
  bare <- object
  suppressWarnings(SeuratObject::Misc(bare[["scmamba"]], slot = "scmamba") <- NULL)
  expect_message(embed_tiny(bare, verbose = TRUE), "reading \"RNA\"")
})

test_that("values that NormalizeData() has replaced are not treated as imputed ones", {
  skip_without_python()
  skip_if_not_installed("Seurat")
  lost <- Seurat::NormalizeData(with_imputed("RNA"), assay = "scmamba", verbose = FALSE)
  expect_error(ScMambaFindMarkers(lost, "0", "1", assay = "scmamba"), "NormalizeData", class = "scmamba_imputed")
  expect_error(ScMambaRobustness(lost, "groups"), "NormalizeData", class = "scmamba_imputed")
})
