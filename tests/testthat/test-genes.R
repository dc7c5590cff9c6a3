# The verbs that read names of genes have the same arguments for it, and use them.

reading_genes <- c("ScMambaImpute", "ScMambaEmbed", "ScMambaAnnotate", "ScMambaDoublets", "ScMambaFineTune",
  "ScMambaMouseToHuman")

test_that("every verb that reads names of genes has the arguments that choose them", {
  arguments_of <- function(verb, class) names(formals(getS3method(verb, class, envir = asNamespace("scMamba"))))
  for (verb in reading_genes) {
    experiment <- if (verb == "ScMambaMouseToHuman") "SummarizedExperiment" else "SingleCellExperiment"
    layers <- if (verb != "ScMambaMouseToHuman") c("layer", "slot")
    expect_identical(setdiff(c("assay", "gene.column", layers, "verbose"), arguments_of(verb, "Seurat")), character(),
      info = verb)
    expect_true("gene.column" %in% arguments_of(verb, experiment), info = verb)
  }
  # None was forgotten: all that match genes with the model take them.
  methods <- ls(asNamespace("scMamba"), pattern = "^ScMamba[A-Za-z]+[.]Seurat$")
  takes <- vapply(methods, function(name) "gene.column" %in% names(formals(get(name, asNamespace("scMamba")))), NA)
  expect_setequal(sub("[.]Seurat$", "", methods[takes]), c(reading_genes, "ScMambaEvaluate", "ScMambaAmbient"))
})

test_that("genes named in a column give the result of genes named by rows, in every verb", {
  skip_without_python()
  cohort <- ScMambaCohort(n.cells = 60, n.donors = 2, n.genes = 1500, seed = 3)
  cohort$donor <- NULL
  counts <- counts_of(cohort)
  rownames(counts) <- paste0("row", seq_len(nrow(counts)))
  object <- SeuratObject::CreateSeuratObject(counts, meta.data = cohort[["cell_type"]])
  object[["RNA"]] <- SeuratObject::AddMetaData(object[["RNA"]],
    data.frame(symbol = rownames(cohort), row.names = rownames(object)))
  expect_identical(rownames(object), rownames(counts))
  folder <- withr::local_tempdir()
  values <- list(
    ScMambaImpute = function(x, ...) unname(as.matrix(data_of(ScMambaImpute(x, adapt = FALSE, force = TRUE, ...)))),
    ScMambaEmbed = function(x, ...) {
      unname(SeuratObject::Embeddings(ScMambaEmbed(x, force = TRUE, ...), "scmamba_embedding"))
    },
    ScMambaAnnotate = function(x, ...) unname(ScMambaAnnotate(x, ...)$scmamba_probability),
    ScMambaDoublets = function(x, ...) unname(ScMambaDoublets(x, ...)$scmamba_doublet_score),
    ScMambaFineTune = function(x, ...) {
      to <- file.path(folder, length(list.files(folder)))
      ScMambaFineTune(x, to, steps = 1, name = "same", force = TRUE, ...)
      unname(tools::md5sum(file.path(to, "model.safetensors")))
    }
  )
  for (verb in names(values)) {
    expect_identical(values[[verb]](object, gene.column = "symbol", verbose = FALSE),
      values[[verb]](cohort, verbose = FALSE), info = verb)
  }
  expect_error(ScMambaDoublets(object, gene.column = "nothing"), "nothing", class = "scmamba_error")
  # Of a reference too.
  annotate <- function(reference, ...) {
    found <- ScMambaAnnotate(cohort, reference = reference, labels = "cell_type", cache = FALSE, verbose = FALSE, ...)
    found$scmamba_probability
  }
  expect_identical(annotate(object, reference.gene.column = "symbol"), annotate(cohort))
  expect_error(annotate(object), "gene", class = "scmamba_error")
})

test_that("mouse genes may be in a column", {
  counts <- as(matrix(1:120 + 0, 3, dimnames = list(paste0("g", 1:3), paste0("c", 1:40))), "dgCMatrix")
  object <- SeuratObject::CreateSeuratObject(counts)
  mice <- c("Snap25", "Gm42418", "ENSMUSG00000000001.4")
  object[["RNA"]] <- SeuratObject::AddMetaData(object[["RNA"]], data.frame(mouse = mice, row.names = rownames(object)))
  human <- ScMambaMouseToHuman(object, gene.column = "mouse", verbose = FALSE)
  expect_identical(rownames(human[["human"]]), c("SNAP25", "GNAI3"))
  expect_equal(unname(as.matrix(counts_of(human, "human"))), unname(as.matrix(counts[-2, ])))
  expect_error(ScMambaMouseToHuman(object), "mouse symbols", class = "scmamba_error")
  skip_if_not_installed("SingleCellExperiment")
  sce <- SingleCellExperiment::SingleCellExperiment(list(counts = counts), rowData = S4Vectors::DataFrame(mouse = mice))
  sce <- ScMambaMouseToHuman(sce, gene.column = "mouse", verbose = FALSE)
  expect_identical(rownames(sce), c("SNAP25", "GNAI3"))
  expect_identical(SummarizedExperiment::rowData(sce)$mouse_gene, mice[-2])
})
