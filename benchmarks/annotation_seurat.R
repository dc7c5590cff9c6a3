# Seurat's label transfer: FOLDER/{reference,query}.mtx (genes x cells, counts), FOLDER/labels.txt -> FOLDER/calls.tsv
suppressPackageStartupMessages({
  library(Seurat)
  library(Matrix)
})
arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[[1]]
set.seed(as.integer(arguments[[2]]))

read_counts <- function(name) {
  counts <- as(readMM(file.path(folder, paste0(name, ".mtx"))), "CsparseMatrix")
  dimnames(counts) <- list(paste0("gene", seq_len(nrow(counts))), paste0(name, seq_len(ncol(counts))))
  FindVariableFeatures(NormalizeData(CreateSeuratObject(counts), verbose = FALSE), nfeatures = 2000, verbose = FALSE)
}

reference <- read_counts("reference")
query <- read_counts("query")
reference <- RunPCA(ScaleData(reference, verbose = FALSE), npcs = 30, verbose = FALSE)
anchors <- FindTransferAnchors(reference, query, dims = 1:30, verbose = FALSE)
labels <- readLines(file.path(folder, "labels.txt"))
found <- TransferData(anchors, refdata = labels, dims = 1:30, verbose = FALSE)
calls <- data.frame(call = as.character(found$predicted.id), sure = found$prediction.score.max)
write.table(calls, file.path(folder, "calls.tsv"), sep = "\t", quote = FALSE, row.names = FALSE)
