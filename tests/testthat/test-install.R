# install_scmamba(): its commands, its arguments, and a sentence for every failure. The whole installation, from an
# empty folder to a verb, runs with SCMAMBA_TEST_INSTALL=1 (network, some minutes, 2 GB).

checkout <- function() {
  roots <- c(testthat::test_path("..", ".."), Sys.getenv("SCMAMBA_ROOT"))
  roots[file.exists(file.path(roots, "pyproject.toml"))]
}

# A replacement of python that records its arguments and, for `venv`, makes a folder with itself in it.
noting_python <- function(folder, pip = "true") {
  file <- file.path(folder, "python3")
  lines <- c(
    "#!/bin/sh", sprintf("if [ \"$1\" != -I ]; then exec %s \"$@\"; fi", shQuote(base_python())),
    sprintf("echo \"$*\" >> %s", shQuote(file.path(folder, "asked"))),
    "if [ \"$3\" = venv ]; then mkdir -p \"$5/bin\"; touch \"$5/pyvenv.cfg\"; cp \"$0\" \"$5/bin/python\"; exit 0; fi",
    "if [ \"$3\" = ensurepip ]; then exit 0; fi",
    pip
  )
  writeLines(lines, file)
  Sys.chmod(file, "755")
  file
}

asked <- function(folder) readLines(file.path(folder, "asked"))

quietly_install <- function(folder, ...) {
  install_scmamba("scmamba==0.1.0", envname = file.path(folder, "env"), ..., verbose = FALSE)
}

test_that("pip installs torch first and alone, then the package", {
  skip_on_os("windows")
  skip_without_python()
  folder <- withr::local_tempdir()
  python <- noting_python(folder)
  # The installation is checked afterwards: this python has no scmamba.
  expect_error(quietly_install(folder, python = python), "no package scmamba", class = "scmamba_python_error")
  pip <- "-I -m pip install --disable-pip-version-check --progress-bar off"
  expect_identical(asked(folder), c(
    paste("-I -m venv --without-pip", file.path(folder, "env")),
    "-I -m ensurepip --upgrade --default-pip",
    paste(pip, "torch==2.13.0"),
    paste(pip, "--upgrade --upgrade-strategy only-if-needed scmamba[serve]==0.1.0")
  ))
  # The second call does not make the environment again; options and the user's torch are passed on.
  unlink(file.path(folder, "asked"))
  expect_error(quietly_install(folder, python = python, torch = "torch==2.9", extras = NULL, pip_options = "--pre"))
  expect_identical(asked(folder), paste(pip, "--pre",
    c("torch==2.9", "--upgrade --upgrade-strategy only-if-needed scmamba==0.1.0")))
  unlink(file.path(folder, "asked"))
  expect_error(quietly_install(folder, python = python, force = TRUE))
  expect_match(asked(folder)[[1]], "venv")
})

test_that("if the tested torch has no build, the newest one is installed", {
  skip_on_os("windows")
  skip_without_python()
  folder <- withr::local_tempdir()
  none <- "case \"$*\" in *torch==*) echo 'ERROR: No matching distribution found for torch==2.13.0' >&2; exit 1;; esac"
  expect_error(quietly_install(folder, python = noting_python(folder, none)), "no package scmamba")
  expect_match(asked(folder)[[4]], "off torch$")
  # But not if the user named the version.
  expect_error(quietly_install(folder, python = noting_python(folder, none), torch = "torch==1.0", force = TRUE),
    "no \"torch==1.0\" for Python 3", class = "scmamba_no_build")
})

test_that("errors of pip are explained, with the command that helps", {
  skip_on_os("windows")
  skip_without_python()
  cases <- list(
    list("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
    list("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT"),
    list("WARNING: Retrying ... Temporary failure in name resolution\nERROR: No matching distribution found for torch",
      "cannot reach"),
    list("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/opt'", "not be written"),
    list("error: subprocess-exited-with-error", "could not be installed")
  )
  for (case in cases) {
    folder <- withr::local_tempdir()
    writeLines(case[[1]], file.path(folder, "words"))
    python <- noting_python(folder, sprintf("cat %s >&2; exit 1", shQuote(file.path(folder, "words"))))
    expect_error(quietly_install(folder, python = python), case[[2]], class = "scmamba_install_error")
  }
  expect_output(scMamba:::.pip_said(), "subprocess-exited-with-error")
})

test_that("invalid arguments are refused before anything is made", {
  skip_on_os("windows")
  skip_without_python()
  folder <- withr::local_tempdir()
  expect_error(quietly_install(folder, python = "/no/such/python"), "There is no Python",
    class = "scmamba_python_error")
  expect_error(quietly_install(folder, python = old_python(folder, "3.8")), "3.10 or newer.*install_python",
    class = "scmamba_python_error")
  expect_error(quietly_install(folder, force = NA), "force")
  expect_error(quietly_install(folder, torch = 2), "torch")
  expect_error(install_scmamba("no/such/folder"), "no folder or file")
  dir.create(file.path(folder, "env"))
  expect_error(quietly_install(folder), "not a Python environment")
  expect_length(list.files(file.path(folder, "env")), 0)
})

test_that("optional parts are installed from every source of the package", {
  with_extras <- scMamba:::.with_extras
  expect_identical(with_extras("scmamba", "serve"), "scmamba[serve]")
  expect_identical(with_extras("scmamba==0.1.0", c("serve", "train")), "scmamba[serve,train]==0.1.0")
  expect_identical(with_extras("git+https://example.org/a", "serve"), "scmamba[serve] @ git+https://example.org/a")
  expect_identical(with_extras("scmamba[train]", "serve"), "scmamba[train]")
  expect_identical(with_extras("scmamba", NULL), "scmamba")
  expect_identical(with_extras(tempdir(), "serve"), paste0(tempdir(), "[serve]"))
})

test_that("no network: a real pip, an index that does not answer", {
  skip_on_os("windows")
  skip_without_python()
  folder <- withr::local_tempdir()
  nowhere <- c("--isolated", "--no-cache-dir", "--retries", "1", "--index-url", "http://127.0.0.1:9/simple")
  expect_error(quietly_install(folder, python = base_python(), pip_options = nowhere), "cannot reach the Package Index",
    class = "scmamba_install_error")
  # The folder is a complete environment, so the next call can continue with it.
  expect_true(file.exists(file.path(folder, "env", "bin", "pip")))
})

test_that("if Python lacks venv or pip, the message names the package to install", {
  skip_on_os("windows")
  skip_without_python()
  folder <- withr::local_tempdir()
  # Debian's python3 without the package python3-venv: the module is missing.
  file <- noting_python(folder)
  words <- sprintf("echo '%s: No module named ensurepip' >&2; exit 1; fi", file)
  writeLines(sub("(= ensurepip.*then).*", paste("\\1", words), readLines(file)), file)
  expect_error(quietly_install(folder, python = file), "apt-get install python3-venv", class = "scmamba_install_error")
  expect_false(file.exists(file.path(folder, "env")))
})

# One session with an empty home directory and an empty working directory: its output.
at_home <- function(folder, code, env = character()) {
  dir.create(file.path(folder, "home"), showWarnings = FALSE)
  dir.create(file.path(folder, "work"), showWarnings = FALSE)
  fresh_session(code, c(paste0("PATH=/usr/bin:/bin"), env), file.path(folder, "work"), home = file.path(folder, "home"))
}

own_folder <- function(folder) file.path(folder, "home", ".virtualenvs", "r-scmamba")

install_noting <- function(python) {
  sprintf("cat(tryCatch(install_scmamba('scmamba==0.1.0', python = %s), error = conditionMessage))", quoted(python))
}

test_that("with an empty home directory the environment is made there and nothing elsewhere", {
  skip_on_os("windows")
  skip_without_python()
  folder <- normalizePath(withr::local_tempdir())
  printed <- at_home(folder, install_noting(noting_python(folder)))
  expect_true(file.exists(file.path(own_folder(folder), "pyvenv.cfg")), info = paste(printed, collapse = "\n"))
  expect_identical(list.files(file.path(folder, "work"), all.files = TRUE, no.. = TRUE), character())
  expect_match(asked(folder)[[1]], own_folder(folder), fixed = TRUE)
  # Again, with a file of the user in it: used as it is, and not renamed.
  writeLines("mine", file.path(own_folder(folder), "my-notes.txt"))
  unlink(file.path(folder, "asked"))
  at_home(folder, install_noting(noting_python(folder)))
  expect_false(any(grepl("venv", asked(folder))))
  expect_identical(list.files(dirname(own_folder(folder))), "r-scmamba")
  expect_identical(readLines(file.path(own_folder(folder), "my-notes.txt")), "mine")
})

test_that("an environment that does not run is renamed, never deleted, and restored if no other can be made", {
  skip_on_os("windows")
  skip_without_python()
  folder <- withr::local_tempdir()
  dir.create(file.path(folder, "env", "bin"), recursive = TRUE)
  file.symlink("/no/python3.11", file.path(folder, "env", "bin", "python"))
  file.create(file.path(folder, "env", "pyvenv.cfg"))
  writeLines("mine", file.path(folder, "env", "my-notes.txt"))
  # If no environment can be made, everything is as before.
  refusing <- noting_python(folder)
  lines <- sub("mkdir -p \"$5/bin\";", "echo 'No space left on device' >&2; exit 1;", readLines(refusing), fixed = TRUE)
  broken <- file.path(folder, "refusing")
  writeLines(lines, broken)
  Sys.chmod(broken, "755")
  expect_error(quietly_install(folder, python = broken), "disk is full", class = "scmamba_install_error")
  expect_identical(readLines(file.path(folder, "env", "my-notes.txt")), "mine")
  expect_length(Sys.glob(file.path(folder, "env.before-*")), 0)
  expect_error(quietly_install(folder, python = noting_python(folder)), "no package scmamba")
  expect_match(utils::tail(asked(folder), 4)[[1]], "venv")
  kept <- Sys.glob(file.path(folder, "env.before-*"))
  expect_length(kept, 1)
  expect_identical(readLines(file.path(kept, "my-notes.txt")), "mine")
  # force = TRUE replaces one that runs; that one is kept too.
  writeLines("later", file.path(folder, "env", "my-notes.txt"))
  Sys.sleep(1.1)
  expect_error(quietly_install(folder, python = noting_python(folder), force = TRUE), "no package scmamba")
  expect_setequal(vapply(file.path(Sys.glob(file.path(folder, "env.before-*")), "my-notes.txt"), readLines, ""),
    c("mine", "later"))
})

test_that("the environment is found from a project with another .venv, and the configuration shows it", {
  skip_on_os("windows")
  skip_without_python()
  folder <- normalizePath(withr::local_tempdir())
  dir.create(dirname(own_folder(folder)), recursive = TRUE)
  environment_without(own_folder(folder), character())
  dir.create(file.path(folder, "work"))
  empty_environment(file.path(folder, "work", ".venv"))
  printed <- at_home(folder, c("config <- scmamba_config()",
    "cat(config$python[['path']], config$road, config$problem, sep = '\\n')"))
  printed <- utils::tail(printed, 2)
  expect_match(printed[[1]], own_folder(folder), fixed = TRUE)
  expect_identical(printed[[2]], "install_scmamba(): its environment")
})

# As pyenv makes them: scripts in front of the path, which end with an error if no version is chosen.
pyenv_shims <- function(folder) {
  shims <- file.path(folder, ".pyenv", "shims")
  dir.create(shims, recursive = TRUE)
  for (name in c("python", "python3", "python3.11", "python3.12", "python3.13")) {
    file <- file.path(shims, name)
    words <- sprintf("pyenv: %s: command not found", name)
    writeLines(c("#!/usr/bin/env bash", sprintf("echo '%s' >&2", words), "exit 127"), file)
    Sys.chmod(file, "755")
  }
  shims
}

test_that("pyenv's shims on the path do not hide a Python that runs, nor is reticulate's own error shown", {
  skip_on_os("windows")
  skip_without_python()
  folder <- normalizePath(withr::local_tempdir())
  shims <- pyenv_shims(file.path(folder, "home"))
  path <- function(...) paste0("PATH=", paste(c(shims, ...), collapse = ":"))
  # No Python with scmamba: a sentence with what to type, and not reticulate's own error.
  printed <- paste(at_home(folder, verb_or_message, path("/usr/bin", "/bin")), collapse = " ")
  expect_match(printed, "install_scmamba()", fixed = TRUE)
  expect_false(grepl("oldlibpath", printed))
  # A Python behind the shims is found and used; it may install nothing, so the environment alone is made.
  real <- file.path(folder, "real")
  dir.create(real)
  file.symlink(base_python(), file.path(real, "python3"))
  alone <- "install_scmamba('scmamba==0.1.0', pip_options = c('--isolated', '--no-index'), verbose = FALSE)"
  printed <- at_home(folder, sprintf("cat(tryCatch(%s, error = conditionMessage))", alone),
    path(real, "/usr/bin", "/bin"))
  expect_true(file.exists(file.path(own_folder(folder), "pyvenv.cfg")), info = paste(printed, collapse = "\n"))
  expect_false(any(grepl("pyenv: |oldlibpath", printed)), info = paste(printed, collapse = "\n"))
  expect_identical(list.files(file.path(folder, "work"), all.files = TRUE, no.. = TRUE), character())
})

test_that("a prepared environment works after it was copied to another folder, as on a cluster without a network", {
  skip_on_os("windows")
  skip_without_python()
  folder <- normalizePath(withr::local_tempdir())
  environment_without(file.path(folder, "prepared"), character())
  dir.create(file.path(folder, "shared"))
  from_and_to <- shQuote(file.path(folder, c("prepared", "shared")))
  expect_identical(system2("cp", c("-a", from_and_to)), 0L)
  unlink(file.path(folder, "prepared"), recursive = TRUE)
  copied <- file.path(folder, "shared", "prepared")
  # The folder is named in .Rprofile, as the help page has it.
  printed <- at_home(folder, c(named_by_option(copied), "config <- scmamba_config()",
    "cat(config$python[['path']], config$road, config$problem, sep = '\\n')", verb_or_message))
  expect_match(printed[[1]], copied, fixed = TRUE)
  expect_match(printed[[2]], "scmamba.python", fixed = TRUE)
  expect_identical(utils::tail(printed, 1), "IT RAN")
})

test_that("the copy of the Python package in the R package is the checkout's", {
  skip_if_not(length(checkout()) > 0, "a checkout")
  from <- normalizePath(file.path(checkout()[[1]], "python", "scmamba"))
  to <- file.path(system.file("python", package = "scMamba"), "python", "scmamba")
  files <- function(folder) {
    names <- list.files(folder, recursive = TRUE, all.files = TRUE)
    sort(names[!grepl("__pycache__|/[.]", names)])
  }
  expect_identical(files(to), files(from))
  expect_identical(unname(tools::md5sum(file.path(to, files(to)))), unname(tools::md5sum(file.path(from, files(from)))))
  expect_true(all(file.exists(file.path(dirname(dirname(to)), c("pyproject.toml", "README.md", "LICENSE")))))
})

test_that("the path of a source has another name when its files change", {
  skip_on_os("windows")
  withr::local_envvar(R_USER_CACHE_DIR = withr::local_tempdir())
  folder <- normalizePath(withr::local_tempdir(), winslash = "/")
  expect_identical(scMamba:::.named_by_content(folder), folder) # no source
  dir.create(file.path(folder, "python", "scmamba"), recursive = TRUE)
  file.create(file.path(folder, "pyproject.toml"))
  code <- file.path(folder, "python", "scmamba", "a.py")
  writeLines("1", code)
  first <- scMamba:::.named_by_content(folder)
  expect_identical(normalizePath(first), folder)
  expect_identical(scMamba:::.named_by_content(folder), first)
  writeLines("2", code)
  second <- scMamba:::.named_by_content(folder)
  expect_false(second == first)
  expect_identical(normalizePath(second), folder)
})

test_that("scmamba_require() declares the requirements, and refuses if another Python was chosen", {
  skip_on_os("windows")
  skip_without_python()
  skip_if_not(packageVersion("reticulate") >= "1.41", "reticulate 1.41")
  expect_identical(scMamba:::.requirement("scmamba==0.1.0", "serve"), "scmamba[serve]==0.1.0")
  path <- normalizePath(withr::local_tempdir(pattern = "with space"))
  expect_identical(scMamba:::.requirement(path, NULL), paste0("scmamba @ file://", gsub(" ", "%20", path)))
  scMamba:::.python()
  expect_error(scmamba_require(), "runs already", class = "scmamba_python_error")
  folder <- normalizePath(withr::local_tempdir())
  printed <- at_home(folder, c("options(scmamba.python = '/no')",
    "cat(tryCatch(scmamba_require(), error = conditionMessage), '\\n')", "options(scmamba.python = NULL)",
    "wanted <- scmamba_require(torch = 'cuda')", "cat(wanted, sep = '\\n')",
    "stopifnot(all(wanted %in% reticulate::py_require()$packages))"))
  expect_match(printed[[1]], "options(scmamba.python) names a Python", fixed = TRUE)
  wanted <- utils::tail(printed, 2)
  expect_identical(wanted[[1]], "torch==2.13.0")
  link <- sub("scmamba[serve] @ file://", "", wanted[[2]], fixed = TRUE)
  expect_identical(normalizePath(link), normalizePath(system.file("python", package = "scMamba")))
  expect_error(scMamba:::.check_reticulate(package_version("1.40"), "1.41", "scmamba_require()"),
    "scmamba_require() needs", fixed = TRUE)
})

# Only on request, so it is not a skipped test.
if (nzchar(Sys.getenv("SCMAMBA_TEST_INSTALL"))) test_that("from an empty folder to a verb, on both backends", {
  skip_on_os("windows")
  skip_without_python()
  folder <- normalizePath(withr::local_tempdir())
  verbs <- paste0("print(class(ScMamba", c("Impute(", "Embed("), "SeuratObject::pbmc_small, force = TRUE, backend = ",
    c("'reticulate'", "'server'"), ")))")
  # As in the README, from an empty home directory; again; and without the installation step.
  printed <- at_home(folder, c("install_scmamba()", verbs))
  expect_true(any(grepl("scMamba is installed in", printed)), info = paste(printed, collapse = "\n"))
  seurat <- grepl("[1] \"Seurat\"", printed, fixed = TRUE)
  expect_identical(sum(seurat), 2L, info = paste(utils::tail(printed, 20), collapse = "\n"))
  writeLines("mine", file.path(own_folder(folder), "my-notes.txt"))
  printed <- at_home(folder, c("install_scmamba()", verbs[[1]]))
  expect_true(any(grepl("[1] \"Seurat\"", printed, fixed = TRUE)))
  expect_identical(readLines(file.path(own_folder(folder), "my-notes.txt")), "mine")
  expect_identical(list.files(file.path(folder, "work"), all.files = TRUE, no.. = TRUE), character())
})
