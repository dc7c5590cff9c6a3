# Write the pages of vignettes/ into inst/doc, so that R CMD INSTALL of this folder installs them: it builds none,
# and a user's machine may lack what builds them (pandoc, BiocStyle). `make docs` runs this.
#   . scripts/lib.sh; r_environment; Rscript scripts/installed_vignettes.R
stopifnot("Python with scmamba was not found, so nothing would be run" = scMamba::scmamba_available())
python <- scMamba::scmamba_config()$python[["path"]]
dir.create("inst/doc", recursive = TRUE, showWarnings = FALSE)
files <- list.files("vignettes", "[.]Rmd$", full.names = TRUE)
known <- tools::file_path_sans_ext(basename(files))
old <- list.files("inst/doc", full.names = TRUE)
unlink(old[!tools::file_path_sans_ext(basename(old)) %in% known])

# Rscript scripts/installed_vignettes.R getting-started: only this one.
wanted <- commandArgs(trailingOnly = TRUE)
if (length(wanted) > 0) files <- file.path("vignettes", paste0(wanted, ".Rmd"))

for (file in files) {
  name <- tools::file_path_sans_ext(basename(file))
  page <- rmarkdown::render(file, rmarkdown::html_vignette(), output_dir = tempdir(),
    intermediates_dir = tempfile(), quiet = TRUE, envir = new.env(parent = globalenv()))
  lines <- readLines(page)
  # The Python of the machine that made the page is of no use to a reader.
  lines <- gsub(python, "~/.virtualenvs/r-scmamba/bin/python", lines, fixed = TRUE)
  lines <- gsub(dirname(dirname(python)), "~/.virtualenvs/r-scmamba", lines, fixed = TRUE)
  # tests/testthat/test-documents.R compares this with the vignette.
  lines <- append(lines, sprintf("<!-- made from vignettes/%s, md5 %s -->", basename(file), tools::md5sum(file)), 1)
  writeLines(lines, file.path("inst/doc", paste0(name, ".html")))
  file.copy(file, "inst/doc", overwrite = TRUE)
  message("inst/doc/", name, ".html")
}
