# The package's own pictures, stroke by stroke, of tables made here: nothing in them depends on a model.

compare_picture <- function(picture, title, file) {
  announce_snapshot_file(name = file) # a Seurat 5 without vdiffr must not remove it
  skip_if_not_installed("vdiffr")
  # Another ggplot2 draws other strokes; this is Debian 12's.
  skip_if_not(packageVersion("ggplot2") >= "3.4.0" && packageVersion("ggplot2") < "3.5.0", "ggplot2 3.4")
  vdiffr::expect_doppelganger(title, picture)
}

test_that("robustness is drawn as boxes by share of cells and layer", {
  runs <- expand.grid(run = 1:8, ratio = c(0.1, 0.5, 0.9), layer = c("counts", "scmamba"),
    cell_type = c("Microglia", "Oligodendrocyte"), stringsAsFactors = FALSE)
  runs$overlap <- runs$ratio - 0.05 * (runs$run %% 4) + 0.04 * (runs$layer == "scmamba")
  runs$overlap[runs$run == 3 & runs$ratio == 0.1] <- NA
  runs <- rbind(runs, transform(runs[1:3, ], ratio = NA)) # combinations of donors have no share
  result <- structure(list(runs = runs), class = "scmamba_robustness")
  compare_picture(ScMambaPlotRobustness(result), "robustness", "robustness.svg")
})

test_that("confidence is drawn as probabilities by type", {
  cells <- data.frame(
    scmamba_type = rep(c("Astrocyte", "Microglia", "Unassigned"), c(12, 9, 6)),
    scmamba_probability = c(
      seq(0.7, 1, length.out = 12), seq(0.5, 0.98, length.out = 9), seq(0.2, 0.45, length.out = 6)
    )
  )
  compare_picture(ScMambaPlotConfidence(cells), "confidence", "confidence.svg")
})
