# A random model over the genes of pbmc_small: small enough for fast tests, and
# used by the R functions like a trained one.

seurat5 <- packageVersion("SeuratObject") >= "5.0.0"

skip_without_python <- function() {
  testthat::skip_if_not(scmamba_available(), "Python with scmamba")
}

# Quiet, and without starting Python, which a test may want to mock.
pbmc <- function() {
  utils::data("pbmc_small", package = "SeuratObject", envir = environment())
  pbmc_small
}

counts_of <- function(object, assay = "RNA") {
  if (seurat5) {
    SeuratObject::LayerData(object[[assay]], layer = "counts")
  } else {
    SeuratObject::GetAssayData(object, slot = "counts", assay = assay)
  }
}

data_of <- function(object, assay = "scmamba", layer = "data") {
  if (seurat5) {
    SeuratObject::LayerData(object[[assay]], layer = layer)
  } else {
    SeuratObject::GetAssayData(object, slot = layer, assay = assay)
  }
}

tiny_model <- function() {
  path <- file.path(tempdir(), "scmamba-tiny-model")
  if (!dir.exists(path)) {
    reticulate::py_run_string(paste(
      "def _scmamba_tiny(path, names):",
      "    import scmamba, torch",
      "    from scmamba.genes import Vocabulary, match_genes",
      "    from scmamba.model import Model, ModelConfig, ScMamba, save_checkpoint",
      "    found = match_genes(list(names)).positions",
      "    vocabulary = Vocabulary.published().subset(sorted(set(int(p) for p in found if p >= 0)))",
      "    torch.manual_seed(1)",
      "    config = ModelConfig(n_genes=len(vocabulary), d_model=16, n_layer=1, n_classes=0, name='tiny')",
      "    save_checkpoint(Model(ScMamba(config), vocabulary), path)",
      sep = "\n"
    ))
    reticulate::py_get_attr(reticulate::import_main(convert = FALSE), "_scmamba_tiny")(
      path, rownames(pbmc())
    )
  }
  path
}

impute_tiny <- function(object, ..., adapt = FALSE, passes = 2, verbose = FALSE) {
  ScMambaImpute(object, model = tiny_model(), adapt = adapt, passes = passes,
    verbose = verbose, ...)
}

embed_tiny <- function(object, ..., verbose = FALSE) {
  ScMambaEmbed(object, model = tiny_model(), verbose = verbose, ...)
}

# The same computation by the Python package alone, from a file written by R:
# the input does not pass through scMamba's R code.
python_alone <- function(counts, verb, ..., model = tiny_model()) {
  folder <- tempfile()
  dir.create(folder)
  on.exit(unlink(folder, recursive = TRUE))
  Matrix::writeMM(counts, file.path(folder, "counts.mtx"))
  writeLines(rownames(counts), file.path(folder, "genes.txt"))
  writeLines(colnames(counts), file.path(folder, "cells.txt"))
  io <- reticulate::import("scipy.io", convert = FALSE)
  sparse <- reticulate::import("scipy.sparse", convert = FALSE)
  anndata <- reticulate::import("anndata", convert = FALSE)
  pandas <- reticulate::import("pandas", convert = FALSE)
  frame <- function(file) {
    pandas$DataFrame(index = as.list(readLines(file.path(folder, file))))
  }
  adata <- anndata$AnnData(
    X = sparse$csr_matrix(io$mmread(file.path(folder, "counts.mtx"))$T),
    obs = frame("cells.txt"), var = frame("genes.txt")
  )
  reticulate::import("scmamba", convert = FALSE)[[verb]](
    adata, model = model, verbose = FALSE, ...
  )
}
