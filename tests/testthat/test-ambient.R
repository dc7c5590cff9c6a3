# Ambient RNA: the right cells get the right shares and counts, and nothing of the user's is changed.

cohort_with_ambient <- function() {
  cohort <- ScMambaCohort(n.cells = 240, n.donors = 2, n.genes = 2000, seed = 3)
  counts <- as.matrix(counts_of(cohort))
  average <- rowSums(counts) / sum(counts)
  set.seed(1)
  own <- matrix(stats::rbinom(length(counts), counts, 0.8), nrow(counts), dimnames = dimnames(counts))
  added <- vapply(colSums(counts), function(n) as.numeric(stats::rmultinom(1, round(0.2 * n), average)),
    numeric(nrow(counts)))
  made <- SeuratObject::CreateSeuratObject(methods::as(own + added, "dgCMatrix"), meta.data = cohort[[]])
  list(object = made, before = cohort)
}

test_that("shares and corrected counts are those of Python, beside the counts", {
  skip_without_python()
  sets <- cohort_with_ambient()
  object <- sets$object
  done <- ScMambaAmbient(object, sample = "donor", labels = "cell_type", corrected.assay = "corrected", verbose = FALSE)
  expect_identical(counts_of(done), counts_of(object))
  expect_true(all(names(object[[]]) %in% names(done[[]])))
  expect_identical(SeuratObject::DefaultAssay(done), SeuratObject::DefaultAssay(object))
  samples <- SeuratObject::Misc(done, "scmamba")$ambient_rna$samples
  expect_s3_class(samples, "data.frame")
  expect_identical(sort(as.character(samples$sample)), sort(unique(as.character(object$donor))))
  before <- ScMambaAmbient(sets$before, sample = "donor", labels = "cell_type", verbose = FALSE)
  start <- SeuratObject::Misc(before, "scmamba")$ambient_rna$samples$share
  # A fifth was added; 120 nuclei of eight types show it roughly.
  expect_true(all(samples$share > start + 0.1 & samples$share < start + 0.4))
  corrected <- counts_of(done, "corrected")
  counts <- counts_of(object)
  expect_identical(dimnames(corrected), dimnames(counts))
  expect_true(min(corrected@x) >= 0 && max(corrected - counts) <= 1e-5 && sum(corrected) < sum(counts))
  expect_true(all(corrected[counts == 0] == 0))
  # A corrected assay can be read by other verbs; it is not an imputed one.
  expect_null(scMamba:::.imputed_record(done, "corrected"))
  types <- SeuratObject::Misc(done, "scmamba")$ambient_rna$types
  expect_true(all(c("sample", "type", "share", "own_estimate") %in% names(types)))
  expect_true(any(grepl("ScMambaAmbient", SeuratObject::Command(done))))
  again <- ScMambaAmbient(done, sample = as.character(done$donor), labels = done$cell_type, verbose = FALSE)
  expect_equal(again$scmamba_ambient, done$scmamba_ambient)
  by_matrix <- ScMambaAmbient(counts, sample = object$donor, labels = object$cell_type, verbose = FALSE)
  expect_equal(by_matrix$scmamba_ambient, unname(done$scmamba_ambient))
  expect_true(is.list(attr(by_matrix, "scmamba")))
})

test_that("what cannot be known is NA with a reason, and names of the user's are guarded", {
  skip_without_python()
  object <- cohort_with_ambient()$object
  one <- object[, object$cell_type == object$cell_type[[1]]]
  expect_message(done <- ScMambaAmbient(one, labels = "cell_type"), "cannot be known")
  expect_true(all(is.na(done$scmamba_ambient)))
  expect_error(ScMambaAmbient(object, corrected.assay = "RNA"), "RNA", class = "scmamba_exists")
  expect_error(ScMambaAmbient(object, sample = "nothing"), "nothing", class = "scmamba_error")
  object$scmamba_ambient <- 1
  expect_error(ScMambaAmbient(object), "scmamba_ambient", class = "scmamba_exists")
})

test_that("a SingleCellExperiment gets an assay", {
  skip_without_python()
  skip_if_not_installed("SingleCellExperiment")
  object <- cohort_with_ambient()$object
  sce <- SingleCellExperiment::SingleCellExperiment(list(counts = counts_of(object)), colData = object[[]])
  done <- ScMambaAmbient(sce, sample = "donor", labels = "cell_type", corrected.assay = "own", verbose = FALSE)
  expect_true("own" %in% SummarizedExperiment::assayNames(done))
  expect_identical(dimnames(done), dimnames(sce))
  near <- ScMambaAmbient(object, sample = "donor", labels = "cell_type", corrected.assay = "own", verbose = FALSE)
  expect_equal(done$scmamba_ambient, unname(near$scmamba_ambient))
  expect_equal(SummarizedExperiment::assay(done, "own")@x, counts_of(near, "own")@x)
  expect_error(ScMambaAmbient(sce, corrected.assay = "counts"), class = "scmamba_exists")
})
