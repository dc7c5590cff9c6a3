# The picture in the README: cell types of the simulated cohort before and after imputing, by the usual Seurat steps.
#   Rscript scripts/readme_picture.R        (in the checkout, after make setup; a minute on two cores)
suppressPackageStartupMessages({
  library(scMamba)
  library(Seurat)
  library(ggplot2)
  library(patchwork)
})
options(Seurat.warn.umap.uwot = FALSE)

usual_umap <- function(object, assay) {
  DefaultAssay(object) <- assay
  if (assay == "RNA") {
    object <- FindVariableFeatures(NormalizeData(object, verbose = FALSE), verbose = FALSE)
  } else {
    # The same genes, so that the pictures differ by the imputation alone.
    VariableFeatures(object) <- VariableFeatures(object, assay = "RNA")
  }
  object <- RunPCA(ScaleData(object, verbose = FALSE), npcs = 20, verbose = FALSE)
  RunUMAP(object, dims = 1:20, verbose = FALSE)
}

plain <- theme(plot.title = element_text(size = 11), axis.text = element_blank(), axis.ticks = element_blank(),
  axis.title = element_text(size = 9))

types <- function(object, text) {
  DimPlot(object, group.by = "cell_type", pt.size = 0.4) + labs(title = text, x = "UMAP 1", y = "UMAP 2") + plain
}

# One gene on one map, and one scale for both.
gene <- function(object, feature, text, highest) {
  drawn <- FeaturePlot(object, feature, pt.size = 0.4, order = TRUE)
  # Said each time: that it replaces FeaturePlot's own colours.
  drawn <- suppressMessages(drawn + scale_colour_gradient(low = "grey85", high = "darkred", limits = c(0, highest)))
  drawn + labs(title = text, x = "UMAP 1", y = "UMAP 2") + plain
}

seu <- ScMambaCohort(n.cells = 800, n.donors = 4, n.genes = 3000, seed = 1)
before <- usual_umap(seu, "RNA")
imputed <- ScMambaImpute(before, adapt = FALSE, verbose = FALSE)
after <- usual_umap(imputed, "scmamba")
highest <- max(FetchData(imputed, c("rna_GAD1", "imputed_GAD1")))
picture <- types(before, "observed counts") + types(after, "after ScMambaImpute()") +
  gene(imputed, "rna_GAD1", "GAD1, observed", highest) + gene(imputed, "imputed_GAD1", "GAD1, imputed", highest) +
  plot_layout(guides = "collect")
dir.create("man/figures", recursive = TRUE, showWarnings = FALSE)
ggsave("man/figures/README-dimplot.png", picture, width = 8.4, height = 6.4, dpi = 80, bg = "white")
