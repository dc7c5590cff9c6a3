# Orthologs are those of the Python package's own function.

test_that("mouse genes get the names of their human orthologs, in every class of object", {
  skip_without_python()
  genes <- reticulate::import("scmamba.genes")
  table <- scMamba:::.plain_frame(reticulate::import("scmamba.genes", convert = FALSE)$orthologs())
  expect_identical(ScMambaMouseToHuman(c("Snap25", "ENSMUSG00000000001.4", "Gm42418")), c("SNAP25", "GNAI3", NA))
  human <- ScMambaMouseToHuman(table$mouse_symbol)
  # Symbols stand for the IDs of the table.
  first <- !duplicated(human)
  match_of <- function(names) as.integer(genes$match_genes(as.list(names))$positions)
  expect_identical(match_of(human[first]), match_of(table$human_ensembl_id[first]))
  expect_false(any(match_of(human[first]) < 0))

  mice <- c("Gm42418", table$mouse_symbol[1:2999])
  counts <- matrix(stats::rpois(3000 * 50, 0.4), 3000, dimnames = list(mice, paste0("c", 1:50)))
  counts <- as(counts, "dgCMatrix")
  expect_message(renamed <- ScMambaMouseToHuman(counts), "2999 of 3000 mouse genes")
  expect_identical(renamed@x, counts[-1, ]@x)
  expect_identical(rownames(renamed), human[1:2999])

  object <- SeuratObject::CreateSeuratObject(counts)
  expect_error(ScMambaEmbed(object, verbose = FALSE), "ScMambaMouseToHuman(object)", fixed = TRUE)
  object <- ScMambaMouseToHuman(object, verbose = FALSE)
  expect_identical(SeuratObject::DefaultAssay(object), "RNA")
  expect_equal(counts_of(object, "human"), renamed)
  expect_error(ScMambaMouseToHuman(object), "already has an assay", class = "scmamba_exists")
  object <- ScMambaMouseToHuman(object, overwrite = TRUE, verbose = FALSE)
  found <- ScMambaEmbed(object, assay = "human", force = TRUE, verbose = FALSE)
  expect_identical(dim(found[["scmamba_embedding"]]), c(50L, 64L))

  skip_if_not_installed("SingleCellExperiment")
  cells <- ScMambaMouseToHuman(SingleCellExperiment::SingleCellExperiment(list(counts = counts)), verbose = FALSE)
  expect_equal(SummarizedExperiment::assay(cells, "counts"), renamed)
  expect_identical(SummarizedExperiment::rowData(cells)$mouse_gene, mice[-1])
  expect_error(ScMambaMouseToHuman(counts_of(pbmc())), "mouse symbols or ENSMUSG", class = "scmamba_error")
})
