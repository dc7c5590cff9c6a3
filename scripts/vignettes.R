# Build every R vignette with the installed package and stop at the first chunk that fails. `R CMD build` does this as
# well; here it is done on another R and Seurat, where BiocStyle or pandoc may be missing: then the style is plainer,
# with a message.
#   Rscript scripts/vignettes.R [folder to keep the pages in]
kept <- commandArgs(trailingOnly = TRUE)
folder <- if (length(kept) > 0) kept[[1]] else tempfile("vignettes")
dir.create(folder, recursive = TRUE, showWarnings = FALSE)
folder <- normalizePath(folder)
stopifnot("Python with scmamba was not found, so nothing would be run" = scMamba::scmamba_available())

style <- if (!rmarkdown::pandoc_available()) {
  "markdown only, as there is no pandoc"
} else if (!requireNamespace("BiocStyle", quietly = TRUE)) {
  "rmarkdown's own style, as BiocStyle is not installed"
} else {
  "BiocStyle"
}

build <- function(file) {
  # In a separate folder, so that nothing is written next to the source.
  copy <- file.path(tempfile("vignette"), basename(file))
  dir.create(dirname(copy))
  file.copy(file, copy)
  if (startsWith(style, "markdown")) {
    owd <- setwd(folder)
    on.exit(setwd(owd))
    # Failing chunks stop knitr under rmarkdown, and are shown on the page without it.
    knitr::opts_chunk$set(error = FALSE)
    return(knitr::knit(copy, quiet = TRUE, envir = new.env(parent = globalenv())))
  }
  format <- if (style == "BiocStyle") NULL else rmarkdown::html_document()
  rmarkdown::render(copy, format, output_dir = folder, quiet = TRUE, envir = new.env(parent = globalenv()))
}

files <- list.files("vignettes", "[.]Rmd$", full.names = TRUE)
for (file in files) {
  took <- system.time(build(file))
  cat(sprintf("%s: %.0f s (%.0f s of processor)\n", basename(file), took[["elapsed"]], took[["user.self"]]))
}
cat(sprintf(
  "%d vignettes built on Seurat %s (%s)\n", length(files), packageVersion("Seurat"), style
))
cat(sprintf("vignettes: %d passed, 0 failed, 0 skipped\n", length(files)))
