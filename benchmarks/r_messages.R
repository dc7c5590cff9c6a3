# Write the messages of R side by side: computed in this process, and through a server on this machine. The tour is the
# one of tests/testthat/test-tour.R. Run it with the R package installed, on each Seurat:
#   . scripts/lib.sh; r_environment; Rscript benchmarks/r_messages.R
#   scripts/in_seurat5.sh Rscript benchmarks/r_messages.R
suppressPackageStartupMessages(library(scMamba))
source("tests/testthat/helper.R")
source("tests/testthat/helper-tour.R")
options(cli.width = 200, cli.num_colors = 1)

made <- tour_objects()
both <- function(walk) lapply(c(here = "reticulate", there = "server"), walk)
shown <- both(function(backend) tour(made$object, made$reference, backend))
refused <- both(function(backend) refused_tour(made$object, backend))

# The temporary folder has another name in each session.
cell <- function(lines) {
  text <- gsub(tempdir(), "/tmp", paste(lines, collapse = "\n"), fixed = TRUE)
  text <- gsub("|", "\\|", text, fixed = TRUE)
  text <- gsub("<", "&lt;", text, fixed = TRUE)
  gsub("[ ]*\n", "<br>", text)
}
table_of <- function(pair) {
  same <- mapply(identical, pair$here, pair$there)
  c("| stop | in this process | through a server | identical |", "|---|---|---|---|",
    paste0("| ", names(pair$here), " | ", vapply(pair$here, cell, ""), " | ", vapply(pair$there, cell, ""), " | ",
      ifelse(same, "yes", "**no**"), " |"))
}
version <- as.character(packageVersion("Seurat"))
identical_stops <- sum(mapply(identical, shown$here, shown$there), mapply(identical, refused$here, refused$there))
stops <- length(shown$here) + length(refused$here)
lines <- c(
  paste0("# Messages of R on both backends, Seurat ", version), "",
  paste0("`Rscript benchmarks/r_messages.R`: R ", getRversion(), ", Seurat ", version, ", SeuratObject ",
    packageVersion("SeuratObject"), ", reticulate ", packageVersion("reticulate"), ". ", identical_stops, " of ", stops,
    " stops have identical messages."), "",
  "## Verbs", "", table_of(shown), "", "## Refusals", "", table_of(refused)
)
file <- sprintf("benchmarks/results/r_messages_v%s.md", substr(version, 1, 1))
writeLines(lines, file)
cat(file, ":", identical_stops, "of", stops, "stops identical\n")
quit(status = identical_stops < stops)
