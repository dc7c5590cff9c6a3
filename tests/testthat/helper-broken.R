# Broken Python installations, made for real and used by a verb in a separate R session. The tests check that its one
# message gives the command that helps; scripts/troubleshooting.R writes the messages into docs/troubleshooting.md.

# Run R code in a session that can find only the Pythons named in `env` and the code; returns its output by line.
# With `home`, that folder is the home directory, and WORKON_HOME, which would override a part of it, is unset.
fresh_session <- function(code, env = character(), folder = tempdir(), home = NULL) {
  script <- tempfile(fileext = ".R")
  on.exit(unlink(script))
  # Even an empty value would count as a choice.
  first <- c(
    "chosen <- c('RETICULATE_PYTHON', 'RETICULATE_PYTHON_ENV')",
    "Sys.unsetenv(chosen[!nzchar(Sys.getenv(chosen))])",
    "options(width = 100, cli.width = 100)",
    "suppressPackageStartupMessages(library(scMamba))"
  )
  # The Python of the tests is on the path.
  path <- setdiff(strsplit(Sys.getenv("PATH"), ":", fixed = TRUE)[[1]], dirname(reticulate::import("sys")$executable))
  environments <- if (is.null(home)) {
    paste0("WORKON_HOME=", shQuote(file.path(folder, "no-environments")))
  } else {
    first <- c("stopifnot(is.na(Sys.getenv('WORKON_HOME', NA)))", first)
    paste0("HOME=", shQuote(home))
  }
  # scikit-learn sets KMP_DUPLICATE_LIB_OK in the process of the tests.
  plain <- c("RETICULATE_PYTHON=", "RETICULATE_PYTHON_ENV=", "VIRTUAL_ENV=", "PYTHONPATH=", "OMP_NUM_THREADS=1",
    "RETICULATE_USE_MANAGED_VENV=false", "KMP_DUPLICATE_LIB_OK=", environments,
    paste0("PATH=", shQuote(paste(path, collapse = ":"))),
    paste0("R_LIBS=", shQuote(paste(.libPaths(), collapse = ":"))))
  writeLines(c(first, code), script)
  old <- setwd(folder) # a .venv in the working directory would be found
  on.exit(setwd(old), add = TRUE)
  # The last value of a repeated variable is used.
  suppressWarnings(system2(file.path(R.home("bin"), "Rscript"), c("--vanilla", shQuote(script)),
    stdout = TRUE, stderr = TRUE, env = c(plain, env)))
}

# A verb, and the single message that it gives.
verb_or_message <- paste(
  "counts <- matrix(1:4, 2, dimnames = list(c('GFAP', 'AQP4'), c('a', 'b')))",
  "cat(tryCatch({ScMambaEmbed(counts, force = TRUE, verbose = FALSE); 'IT RAN'},",
  "  error = function(e) paste0('[', class(e)[[1]], '] ', conditionMessage(e))), sep = '\\n')",
  sep = "\n"
)

# The interpreter from which the environment of the tests was made; it has a shared library and no scmamba.
base_python <- function() reticulate::import("sys")[["_base_executable"]]

empty_environment <- function(folder) {
  status <- system2(base_python(), c("-I", "-m", "venv", "--without-pip", "--symlinks", shQuote(folder)),
    env = "LD_LIBRARY_PATH=")
  if (status != 0) testthat::skip("a Python that makes environments")
  file.path(folder, "bin", "python")
}

# An environment with all packages that scmamba needs except the named ones.
environment_without <- function(folder, omitted) {
  python <- empty_environment(folder)
  # Not from sysconfig, which gives the system's folder when Debian's Python is embedded.
  from <- dirname(dirname(reticulate::import("numpy")[["__file__"]]))
  to <- list.files(file.path(folder, "lib"), "^python", full.names = TRUE)[[1]]
  to <- file.path(to, "site-packages")
  names <- setdiff(list.files(from), omitted)
  file.symlink(file.path(from, names), file.path(to, names))
  ours <- dirname(dirname(reticulate::import("scmamba")[["__file__"]]))
  writeLines(ours, file.path(to, "scmamba-of-the-tests.pth"))
  list(python = python, site = to, from = from)
}

quoted <- function(path) encodeString(path, quote = "'")
named_by_option <- function(python) sprintf("options(scmamba.python = %s)", quoted(python))

# A Python of an old version: a real one if installed, or the current one with another version number.
old_python <- function(folder, version) {
  real <- Sys.glob(sprintf("~/.pyenv/versions/%s.*/bin/python", version))
  if (length(real) > 0) {
    return(real[[1]])
  }
  file <- file.path(folder, "python")
  part <- strsplit(version, ".", fixed = TRUE)[[1]]
  writeLines(c(sprintf("import sys; sys.version_info = (%s, %s, 18, 'final', 0)", part[[1]], part[[2]])),
    file.path(folder, "sitecustomize.py"))
  writeLines(c("#!/bin/sh", sprintf("PYTHONPATH=%s exec %s \"$@\"", shQuote(folder), shQuote(base_python()))), file)
  Sys.chmod(file, "755")
  file
}

# A library with a reticulate that is too old: Debian 12's if installed, or a copy with an old version number.
old_reticulate <- function(folder) {
  for (library in c(.Library.site, .Library)) {
    if (file.exists(file.path(library, "reticulate")) && packageVersion("reticulate", library) < "1.39") {
      return(library)
    }
  }
  dir.create(file.path(folder, "reticulate"))
  description <- c("Package: reticulate", "Version: 1.28", "Title: Old", "Built: R 4.2.2; ; 2023-01-01; unix")
  writeLines(description, file.path(folder, "reticulate", "DESCRIPTION"))
  folder
}

# name -> title, words of the message, and a function that makes the case in an empty folder and returns what to run:
# code before the verb, environment variables.
broken_pythons <- list(
  none = list(
    title = "No Python", expect = c("No Python was found", "install_scmamba()"),
    make = function(folder) {
      programs <- list.files(c("/usr/bin", "/bin"), full.names = TRUE)
      programs <- programs[!grepl("^(i?py|conda|mamba|uv$)", basename(programs)) & !duplicated(basename(programs))]
      dir.create(file.path(folder, "bin"))
      file.symlink(programs, file.path(folder, "bin", basename(programs)))
      list(env = paste0("PATH=", file.path(folder, "bin")))
    }
  ),
  not_there = list(
    title = "A Python that is not there", expect = c("no Python at", "/no/such/python", "install_scmamba()"),
    make = function(folder) list(code = named_by_option("/no/such/python"))
  ),
  python2 = list(
    title = "Python 2", expect = c("3.10 or newer", "is 2.7", "install_scmamba()"),
    make = function(folder) list(code = named_by_option(old_python(folder, "2.7")))
  ),
  python38 = list(
    title = "A Python that is too old, named by RETICULATE_PYTHON",
    expect = c("3.10 or newer", "is 3.8", "Sys.unsetenv(\"RETICULATE_PYTHON\")"),
    make = function(folder) list(env = paste0("RETICULATE_PYTHON=", old_python(folder, "3.8")))
  ),
  does_not_run = list(
    title = "A Python that does not run",
    expect = c("does not run", "libpython3.11.so.1.0: cannot open", "install_scmamba()"),
    make = function(folder) {
      file <- file.path(folder, "python")
      words <- paste("python: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared",
        "object file: No such file or directory")
      writeLines(c("#!/bin/sh", sprintf("echo '%s' >&2", words), "exit 127"), file)
      Sys.chmod(file, "755")
      list(code = named_by_option(file))
    }
  ),
  bare = list(
    title = "A Python without scmamba", expect = c("no package scmamba", "install_scmamba()"),
    make = function(folder) list(code = named_by_option(dirname(dirname(empty_environment(file.path(folder, "bare"))))))
  ),
  dangling = list(
    title = "An environment whose Python was removed or upgraded",
    expect = c("link to '/no/python3.11', which is gone", "install_scmamba(force = TRUE)"),
    make = function(folder) {
      own <- file.path(folder, "environments", "r-scmamba")
      dir.create(file.path(own, "bin"), recursive = TRUE)
      file.symlink("/no/python3.11", file.path(own, "bin", "python"))
      writeLines("home = /no", file.path(own, "pyvenv.cfg"))
      # R finds no other Python either.
      list(env = paste0("WORKON_HOME=", file.path(folder, "environments")))
    }
  ),
  reticulate = list(
    title = "A reticulate that is too old (NumPy 2 needs a newer one)",
    expect = c("reticulate 1.39 or newer", "found 1.28", "install.packages(\"reticulate\")"),
    make = function(folder) {
      ours <- file.path(folder, "library")
      dir.create(ours)
      file.symlink(find.package("scMamba"), file.path(ours, "scMamba"))
      list(env = paste0("R_LIBS=", shQuote(paste(c(ours, old_reticulate(folder)), collapse = ":"))))
    }
  ),
  elsewhere = list(
    title = "Another Python runs already",
    expect = c("runs a Python without scmamba already", "Restart R", "scmamba_config()"),
    make = function(folder) {
      start <- "reticulate::use_python(%s, required = TRUE); invisible(reticulate::py_config())"
      list(code = sprintf(start, quoted(base_python())))
    }
  ),
  openmp = list(
    title = "Two OpenMP runtimes",
    expect = c("OpenMP", "libiomp5.so", "OMP: Error #15", "Restart R", "KMP_DUPLICATE_LIB_OK"),
    make = function(folder) {
      made <- environment_without(file.path(folder, "intel"), "torch")
      dir.create(file.path(made$site, "torch", "lib"), recursive = TRUE)
      file.create(file.path(made$site, "torch", c("__init__.py", "lib/libiomp5.so")))
      # The variable that LLVM's and Intel's libraries set when they start; a second library that finds it stops R.
      note <- c("note <- paste0('__KMP_REGISTERED_LIB_', Sys.getpid())",
        "do.call(Sys.setenv, setNames(list('0x1-0xcafe-libiomp5.so'), note))")
      list(code = c(named_by_option(made$python), note))
    }
  ),
  torch_missing = list(
    title = "PyTorch is missing", expect = c("torch", "-m pip install torch", "install_scmamba(force = TRUE)"),
    make = function(folder) {
      list(code = named_by_option(environment_without(file.path(folder, "lacking"), "torch")$python))
    }
  ),
  torch_broken = list(
    title = "PyTorch cannot be loaded",
    expect = c("torch", "cannot be loaded", "file too short", "install_scmamba(force = TRUE)"),
    make = function(folder) {
      made <- environment_without(file.path(folder, "half"), "torch")
      names <- setdiff(list.files(file.path(made$from, "torch")), "lib")
      dir.create(file.path(made$site, "torch", "lib"), recursive = TRUE)
      file.symlink(file.path(made$from, "torch", names), file.path(made$site, "torch", names))
      # As after a full disk.
      file.create(file.path(made$site, "torch", "lib", "libtorch_global_deps.so"))
      list(code = named_by_option(made$python))
    }
  )
)

# The output of R in this case.
meet_broken <- function(case) {
  folder <- tempfile("broken-")
  dir.create(folder)
  folder <- normalizePath(folder)
  on.exit(unlink(folder, recursive = TRUE))
  made <- case$make(folder)
  fresh_session(c(made$code, verb_or_message), made$env %||% character(), folder)
}

`%||%` <- function(x, y) if (is.null(x)) y else x
