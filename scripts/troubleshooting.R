# Write docs/troubleshooting.md: each broken Python is made for real, and its message is copied as R printed it.
#   make setup; then: . scripts/lib.sh; r_environment; Rscript scripts/troubleshooting.R
suppressPackageStartupMessages(library(scMamba))
source("tests/testthat/helper-broken.R")

why <- c(
  none = "scMamba runs in Python, and R found none.",
  not_there = "The path is misspelt, or the folder was moved.",
  python2 = "Some systems still call Python 2 `python`.",
  python38 = "`RETICULATE_PYTHON` is often set by an institute or by another package's instructions.",
  does_not_run = "The Python was partly removed, or built for another machine.",
  bare = "The environment belongs to another project.",
  dangling = "An environment links to the Python it was made from; Homebrew, conda and system upgrades remove that.",
  reticulate = "reticulate before 1.39 supports neither NumPy 2 nor current scipy; its own errors come late and are misleading.",
  elsewhere = "An R session can run one Python only, and the first package that starts Python chooses it.",
  openmp = paste("R packages built with LLVM's or Intel's OpenMP (common on macOS) and PyTorch bring one copy each. The second to",
    "start would end R with `OMP: Error #15`; scMamba checks this before it loads PyTorch. GNU's OpenMP, common on Linux, has no such conflict."),
  torch_missing = "It was removed, or pip was interrupted.",
  torch_broken = "A full disk or an interrupted installation leaves such files behind."
)
stopifnot(setequal(names(why), names(broken_pythons)))

# Without the names of the machine's own folders.
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
  "First type `scmamba_config()`: it prints which R, which Python and which versions are used, and the problem if there is one.",
  "None of these errors changes your object: a verb returns a complete result or none.", "",
  "Every message on this page is real: `Rscript scripts/troubleshooting.R` breaks a Python in each of these ways and",
  "records the message; `tests/testthat/test-broken-python.R` does the same in every test run.", ""
)
tail <- c(
  readLines("scripts/troubleshooting_inputs.md"), "",
  "## The installation stops", "",
  "`install_scmamba()` explains pip's error and the command that helps; `scMamba:::.pip_said()` has pip's whole output.", "",
  "| What happened | Message | What to do |", "|---|---|---|",
  "| no network, proxy, firewall | pip cannot reach the Package Index | check the connection; `Sys.setenv(HTTPS_PROXY = ...)`; `pip_options = c(\"--index-url\", ...)` |",
  "| a company's certificate | pip does not trust the certificate | `Sys.setenv(PIP_CERT = \"certificates.pem\")` |",
  "| the disk is full | The disk is full | free some space, or `install_scmamba(envname = \"/big/disk/r-scmamba\")`; run it again to continue |",
  "| Debian's python3 without venv | cannot make Python environments | `sudo apt-get install python3-venv` |",
  "| Python too new or too old | There is no \"torch\" for Python 3.x | `install_scmamba(python = reticulate::install_python(\"3.12\"), force = TRUE)` |",
  "| a folder of another user | The environment may not be written | `install_scmamba(envname = \"~/r-scmamba\")` |", "",
  "## It is slow, or the numbers differ between machines", "",
  "Results are the same on one machine whichever backend computes (`\"reticulate\"` or `\"server\"`), bit for bit. Another processor,",
  "another number of threads or a graphics card may differ in the last digits of single precision.", "",
  "## Stopping", "",
  "Ctrl-C (Esc in RStudio) returns to the prompt; the object is unchanged, and a server cancels the job.", ""
)
writeLines(c(head, unlist(lapply(names(broken_pythons), section)), tail), "docs/troubleshooting.md")
