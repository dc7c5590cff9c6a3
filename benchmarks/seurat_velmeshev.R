# The real Velmeshev nuclei as a Seurat .rds, through ScMambaImpute and
# ScMambaEmbed: nothing of the object changed, how long, how much memory.
#   Rscript benchmarks/seurat_velmeshev.R DATA.h5ad CELLS
# CELLS = 0 takes all. Run it under Seurat 4 and, inside scripts/in_seurat5.sh,
# under Seurat 5.
suppressPackageStartupMessages({
  library(scMamba)
  library(SeuratObject)
})
arguments <- commandArgs(trailingOnly = TRUE)
cells <- as.integer(arguments[2])

peak <- function() {
  status <- readLines("/proc/self/status")
  kb <- as.numeric(gsub("[^0-9]", "", grep("^VmHWM", status, value = TRUE)))
  round(kb / 1024^2, 2)
}

# The file as a user's Seurat .rds, made in a separate process so that its memory is not counted.
make_rds <- function(h5ad, cells, rds) {
  anndata <- reticulate::import("anndata", convert = FALSE)
  slots <- reticulate::import("scmamba.wire.slots", convert = FALSE)
  adata <- anndata$read_h5ad(h5ad)
  parts <- reticulate::py_to_r(slots$layer_slots(adata))
  name <- function(index) as.character(reticulate::py_to_r(index$tolist()))
  counts <- methods::new("dgCMatrix", x = as.double(parts$x), i = as.integer(parts$i),
    p = as.integer(parts$p), Dim = as.integer(unlist(parts$dim)),
    Dimnames = list(make.unique(name(adata$var_names)), name(adata$obs_names)))
  meta <- reticulate::py_to_r(adata$obs)
  if (cells > 0) {
    set.seed(1)
    keep <- sort(sample(ncol(counts), cells))
    counts <- counts[, keep]
    meta <- meta[keep, , drop = FALSE]
  }
  saveRDS(CreateSeuratObject(counts, meta.data = meta), rds)
}

if (identical(arguments[3], "make")) {
  make_rds(arguments[1], cells, arguments[4])
  quit()
}
rds <- tempfile(fileext = ".rds")
script <- sub("^--file=", "", grep("^--file=", commandArgs(), value = TRUE))
stopifnot(system2(file.path(R.home("bin"), "Rscript"),
  c("--vanilla", script, arguments[1], cells, "make", rds)) == 0)

before <- readRDS(rds)
loaded <- peak()
checksum <- function(object) {
  assay <- object[["RNA"]]
  counts <- if (packageVersion("SeuratObject") >= "5.0.0") {
    LayerData(assay, layer = "counts")
  } else {
    GetAssayData(assay, slot = "counts")
  }
  list(counts@x, counts@i, counts@p, dimnames(counts))
}
counts_before <- checksum(before)
time <- function(expr) round(system.time(expr)[["elapsed"]], 1)
seconds_impute <- time(after <- ScMambaImpute(before, verbose = FALSE))
peak_impute <- peak()
seconds_embed <- time(after <- ScMambaEmbed(after, verbose = FALSE))
same_counts <- identical(counts_before, checksum(after)) && identical(before[["RNA"]], after[["RNA"]])
same_meta <- identical(before[[]], after[[]][, names(before[[]])])
cat(sprintf("R %s, SeuratObject %s, assay class %s\n", getRversion(), packageVersion("SeuratObject"),
  class(before[["RNA"]])))
cat(sprintf("%d genes x %d nuclei, %d metadata columns\n", nrow(before), ncol(before), ncol(before[[]])))
cat(sprintf("ScMambaImpute with its defaults, adaptation included: %s s\n", seconds_impute))
record <- Misc(after, "scmamba")$impute
cat(sprintf("squared error of hidden counts: gene average %.4f, network %.4f, neighbours %.4f, combined %.4f\n",
  record$gene_average, record$network, record$neighbours, record$combined))
cat(sprintf("share of entries with a value in the result: %.2f\n", record$density))
cat(sprintf("ScMambaEmbed: %s s\n", seconds_embed))
cat(sprintf("observed counts identical before and after: %s\n", same_counts))
cat(sprintf("all metadata identical: %s\n", same_meta))
cat(sprintf("peak memory, GiB: %s with the object loaded, %s after imputing, %s at the end\n", loaded,
  peak_impute, peak()))
quit(status = !(same_counts && same_meta))
