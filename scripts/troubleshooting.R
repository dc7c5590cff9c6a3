# Write docs/troubleshooting.md: each broken Python is really made, and its message stands there as R printed it.
#   make setup; then: . scripts/lib.sh; r_environment; Rscript scripts/troubleshooting.R
suppressPackageStartupMessages(library(scMamba))
source("tests/testthat/helper-broken.R")

why <- c(
  none = "scMamba computes in Python, and R found none.",
  not_there = "A typing error in the path, or a folder that was moved.",
  python2 = "Some systems still call Python 2 `python`.",
  python38 = "`RETICULATE_PYTHON` is often set by an institute or by another package's instructions.",
  does_not_run = "A Python that was half removed, or made for another machine.",
  bare = "The environment is one of another project.",
  dangling = "An environment links to the Python it was made from; Homebrew, conda and system upgrades remove that.",
  reticulate = "reticulate before 1.39 supports neither NumPy 2 nor current scipy: its errors come late and say something else.",
  elsewhere = "An R session can run one Python only, and the first package that starts Python chooses it.",
  openmp = paste("R packages built with LLVM's or Intel's OpenMP (common on macOS) and PyTorch bring one copy each. The second to",
    "start would end R with `OMP: Error #15`; scMamba looks before it loads PyTorch. GNU's OpenMP, usual on Linux, does not mind."),
  torch_missing = "Somebody removed it, or pip stopped half-way.",
  torch_broken = "A full disk or an interrupted installation leaves such files behind."
)
stopifnot(setequal(names(why), names(broken_pythons)))

# The machine's own folders are nobody's business.
plain <- function(lines) {
  lines <- gsub("/[^ '`]*/broken-[0-9a-f]+/", "/home/you/", lines)
  lines <- gsub(path.expand("~"), "/home/you", lines, fixed = TRUE)
  lines <- gsub("/[^ '`]*/bin/(python[0-9.]*)", "/home/you/python/bin/\\1", lines)
  sub("^\\[[a-z_]+\\] ", "", lines)
}

section <- function(name) {
  case <- broken_pythons[[name]]
  message(case$title)
  c(paste("##", case$title), "", why[[name]], "", "```", plain(meet_broken(case)), "```", "")
}

head <- c(
  "# When something does not work", "",
  "First type `scmamba_config()`: it says which R, which Python and which versions are used, and what is wrong with them.",
  "Nothing below changes your object: a verb gives it back whole or not at all.", "",
  "Every message on this page is a real one: `Rscript scripts/troubleshooting.R` breaks a Python in each of these ways and",
  "writes down what R says; `tests/testthat/test-broken-python.R` does the same in every test run.", ""
)
tail <- c(
  readLines("scripts/troubleshooting_inputs.md"), "",
  "## The installation stops", "",
  "`install_scmamba()` says what pip's words mean and what to type; all that pip said is in `scMamba:::.pip_said()`.", "",
  "| What happened | What it says | What to do |", "|---|---|---|",
  "| no network, proxy, firewall | pip cannot reach the Package Index | check the line; `Sys.setenv(HTTPS_PROXY = ...)`; `pip_options = c(\"--index-url\", ...)` |",
  "| a company's certificate | pip does not trust the certificate | `Sys.setenv(PIP_CERT = \"certificates.pem\")` |",
  "| the disk is full | The disk is full | make room, or `install_scmamba(envname = \"/big/disk/r-scmamba\")`; run it again, it goes on from there |",
  "| Debian's python3 without venv | cannot make Python environments | `sudo apt-get install python3-venv` |",
  "| Python too new or too old | There is no \"torch\" for Python 3.x | `install_scmamba(python = reticulate::install_python(\"3.12\"), force = TRUE)` |",
  "| a folder of another user | The environment may not be written | `install_scmamba(envname = \"~/r-scmamba\")` |", "",
  "## It is slow, or the numbers differ between machines", "",
  "Results are the same on one machine whichever backend computes (`\"reticulate\"` or `\"server\"`), bit for bit. Another processor,",
  "another number of threads or a graphics card may differ in the last digits of single precision.", "",
  "## Stopping", "",
  "Ctrl-C (Esc in RStudio) returns to the prompt; the object is as it was, and a server forgets the job.", ""
)
writeLines(c(head, unlist(lapply(names(broken_pythons), section)), tail), "docs/troubleshooting.md")
