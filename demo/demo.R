# What a Seurat user does with scMamba, on two data sets. Run by `make demo`:
#   Rscript demo/demo.R OUTPUT_FOLDER
suppressPackageStartupMessages({
  library(scMamba)
  library(Seurat)
  library(patchwork)
  library(ggplot2)
})
folder <- commandArgs(trailingOnly = TRUE)[1]
started <- Sys.time()
options(Seurat.warn.umap.uwot = FALSE)

title <- function(text) cli::cli_h2(text)
say <- function(text) cli::cli_text(text, .envir = parent.frame())

# The usual Seurat steps, on any assay; the UMAP goes to a reduction of its own.
usual_umap <- function(object, assay, name, dims, neighbours) {
  DefaultAssay(object) <- assay
  if (assay == "RNA") {
    object <- NormalizeData(object, verbose = FALSE)
    object <- FindVariableFeatures(object, verbose = FALSE)
  } else {
    # The same genes as before, so that the pictures differ by the imputation alone.
    VariableFeatures(object) <- VariableFeatures(object, assay = "RNA")
  }
  object <- ScaleData(object, verbose = FALSE)
  object <- RunPCA(object, npcs = max(dims), reduction.name = paste0("pca_", name),
    reduction.key = paste0("PC", name, "_"), verbose = FALSE)
  object <- RunUMAP(object, dims = dims, reduction = paste0("pca_", name),
    reduction.name = paste0("umap_", name), reduction.key = paste0("U", name, "_"),
    n.neighbors = neighbours, verbose = FALSE)
  DefaultAssay(object) <- "RNA"
  object
}

# Before, after, and from the embedding, coloured by what is known of the cells.
three_umaps <- function(object, colour, dims, neighbours) {
  object <- usual_umap(object, "RNA", "before", dims, neighbours)
  object <- usual_umap(object, "scmamba", "after", dims, neighbours)
  object <- RunUMAP(object, reduction = "scmamba_embedding", dims = 1:30,
    reduction.name = "umap_embedding", reduction.key = "Uembedding_",
    n.neighbors = neighbours, verbose = FALSE)
  panel <- function(name, text) {
    DimPlot(object, reduction = paste0("umap_", name), group.by = colour, pt.size = 0.6) +
      ggtitle(text) + theme(plot.title = element_text(size = 11)) +
      labs(x = "UMAP 1", y = "UMAP 2")
  }
  picture <- panel("before", "before: observed counts") + panel("after", "after: imputed") +
    panel("embedding", "scMamba embedding") + plot_layout(guides = "collect")
  list(object = object, picture = picture)
}

# Nothing of the user's own may have changed.
check_untouched <- function(before, after) {
  stopifnot(
    identical(before[["RNA"]], after[["RNA"]]),
    identical(before[[]], after[[]][, names(before[[]])]),
    identical(DefaultAssay(before), DefaultAssay(after))
  )
  say("Your counts, metadata and default assay are the same as before.")
}

title("What runs")
print(scmamba_config())

title("1. pbmc_small: 80 real blood cells that come with Seurat")
say("It holds 230 genes where the model reads thousands, and blood where the model learnt brain. scMamba
  refuses such data unless {.code force = TRUE} is given: this shows the steps, not a good imputation.")
data("pbmc_small", package = "SeuratObject")
small <- ScMambaImpute(pbmc_small, force = TRUE)
small <- ScMambaEmbed(small, force = TRUE)
check_untouched(pbmc_small, small)
print(small)
small <- three_umaps(small, "RNA_snn_res.1", dims = 1:10, neighbours = 15)

title("2. A simulated brain cohort: 8 cell types, 4 donors, half with a disease effect")
cohort <- ScMambaCohort(n.cells = 300, n.donors = 4, n.genes = 2000, seed = 1)
print(cohort)
say("Adaptation to the data is cut to 30 steps of training, to keep the demo short; leave {.arg adapt} out
  for your own data.")
imputed <- ScMambaImpute(cohort, adapt = 30)
imputed <- ScMambaEmbed(imputed)
check_untouched(cohort, imputed)
say("Cell types without labels, at two of three levels, by the expected counts of brain cell types that come with
  the package.")
imputed <- ScMambaAnnotate(imputed)
print(table(imputed$cell_type, imputed$scmamba_class))
print(table(imputed$cell_type, imputed$scmamba_type))
print(Command(imputed))
imputed <- three_umaps(imputed, "cell_type", dims = 1:20, neighbours = 30)

title("Results")
write_png <- function(file, picture) {
  path <- file.path(folder, file)
  ggsave(path, picture, width = 13, height = 4.2, dpi = 110, bg = "white")
  say("picture: {.file {path}}")
}
write_png("pbmc_small.png", small$picture)
write_png("brain_cohort.png", imputed$picture)
for (name in c("pbmc_small", "brain_cohort")) {
  path <- file.path(folder, paste0(name, ".rds"))
  saveRDS(if (name == "pbmc_small") small$object else imputed$object, path)
  say("object:  {.file {path}}")
}
seconds <- round(as.numeric(difftime(Sys.time(), started, units = "secs")))
say("The demo took {seconds} seconds.")
