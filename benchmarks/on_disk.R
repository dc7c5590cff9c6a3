# An Assay5 whose counts are in an HDF5 file, from R: time and memory of each verb.
#   Rscript benchmarks/on_disk.R nuclei.h5ad [result.txt]
# The file holds counts (cells x genes), such as those of `python -m benchmarks.file_to_file`. R's own memory is the most that
# gc() counted; the process holds Python and its model as well.
suppressPackageStartupMessages({
  library(Seurat)
  library(scMamba)
})
given <- commandArgs(trailingOnly = TRUE)
counts <- HDF5Array::H5SparseMatrix(given[[1]], "/X")
names_of <- function(table) {
  index <- rhdf5::h5readAttributes(given[[1]], table)$`_index`
  as.character(rhdf5::h5read(given[[1]], paste0(table, "/", index)))
}
dimnames(counts) <- list(names_of("var"), names_of("obs"))
cat(sprintf("%s nuclei x %s genes; Seurat %s, R %s\n", format(ncol(counts), big.mark = ","),
  format(nrow(counts), big.mark = ","), packageVersion("Seurat"), getRversion()), file = stdout())
assay <- SeuratObject::CreateAssay5Object(counts = counts)
object <- SeuratObject::CreateSeuratObject(assay)
types <- rhdf5::h5read(given[[1]], "obs/cell_type")
Idents(object) <- factor(types$categories[types$codes + 1])
lines <- c("| verb | seconds | R's own memory, MiB | process, MiB |", "|---|---|---|---|")
peak <- function() as.numeric(sub("[^0-9]*([0-9]+).*", "\\1", grep("VmHWM", readLines("/proc/self/status"), value = TRUE)))
measure <- function(verb, work) {
  invisible(gc(reset = TRUE))
  seconds <- system.time(value <- work())[["elapsed"]]
  memory <- sum(gc()[, 6])
  lines <<- c(lines, sprintf("| %s | %.0f | %.0f | %.0f |", verb, seconds, memory, peak() / 1024))
  cat(utils::tail(lines, 1), "\n")
  value
}
embedded <- measure("ScMambaEmbed", function() ScMambaEmbed(object, verbose = FALSE))
typed <- measure("ScMambaAnnotate", function() ScMambaAnnotate(object, verbose = FALSE))
groups <- levels(Idents(object))
markers <- measure("ScMambaFindMarkers", function() {
  ScMambaFindMarkers(object, groups[[1]], groups[[2]], layer = "counts", verbose = FALSE)
})
imputed <- measure("ScMambaImpute", function() {
  ScMambaImpute(object, file = file.path(tempdir(), "imputed.h5ad"), verbose = FALSE)
})
values <- SeuratObject::LayerData(imputed, assay = "scmamba", layer = "data")
stopifnot(inherits(values, "DelayedMatrix"), identical(dim(values), dim(counts)))
if (length(given) > 1) {
  machine <- sprintf("%s nuclei x %s genes in HDF5, Seurat %s, %d cores, CPU only.", format(ncol(counts), big.mark = ","),
    format(nrow(counts), big.mark = ","), packageVersion("Seurat"), parallel::detectCores())
  writeLines(c("# Layers on disk, from R", "", "Written by `Rscript benchmarks/on_disk.R`.", machine, "", lines), given[[2]])
}
