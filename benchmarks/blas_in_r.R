# The effect of R's own BLAS on torch inside R's process, and scMamba's remedy.
#   Rscript benchmarks/blas_in_r.R
# Two processes, one after the other: torch imported directly, and imported by scMamba.
time_product <- "
import time, torch
torch.set_num_threads(1)
a = torch.randn(1500, 1500)
a @ a
start = time.perf_counter()
for _ in range(3): a @ a
seconds = (time.perf_counter() - start) / 3
"
run <- function(first) {
  script <- c("library(scMamba)", "config <- scMamba:::.find_python()",
    "reticulate::use_python(config$python, required = TRUE)",
    sprintf("reticulate::py_run_string('import %s')", first), sprintf("reticulate::py_run_string(%s)", deparse(time_product)),
    "cat(reticulate::py$seconds)")
  file <- tempfile(fileext = ".R")
  writeLines(script, file)
  as.numeric(system2(file.path(R.home("bin"), "Rscript"), c("--vanilla", file), stdout = TRUE, stderr = FALSE))
}
plain <- run("torch")
apart <- run("scmamba")
lines <- c(
  sprintf("R %s, BLAS %s; 2 cores of an Intel Xeon with AVX-512/AMX, 24 GiB, busy with other work; 1 thread", getRversion(),
    basename(extSoftVersion()[["BLAS"]])),
  sprintf("1500 x 1500 float32 product in R's process: torch as it comes %.3f s, loaded by scMamba %.3f s, ratio %.1f",
    plain,
    apart, plain / apart)
)
writeLines(lines)
script <- sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE))
writeLines(lines, file.path(dirname(script), "results", "blas_in_r.txt"))
