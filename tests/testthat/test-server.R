# A real server on this machine: its results equal those of this process, bit for bit.

test_that("a local server returns the results of this process", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  object <- ScMambaCohort(n.cells = 120, n.donors = 2, n.genes = 3000, seed = 6)
  # With adaptation, with neighbors, by masking: the computation is the same everywhere.
  for (options in list(list(adapt = FALSE), list(adapt = 3), list(adapt = FALSE, method = "published", passes = 2),
    list(adapt = FALSE, sd = TRUE))) {
    impute <- function(...) do.call(ScMambaImpute, c(list(object, force = TRUE, verbose = FALSE, ...), options))
    here <- impute()
    there <- impute(backend = "server")
    expect_identical(data_of(there), data_of(here))
    if (isTRUE(options$sd)) expect_identical(data_of(there, "scmamba_sd"), data_of(here, "scmamba_sd"))
    expect_identical(there$scmamba_low_depth, here$scmamba_low_depth)
    expect_identical(there$scmamba_added, here$scmamba_added)
  }
  expect_identical(
    SeuratObject::Embeddings(ScMambaEmbed(object, force = TRUE, backend = "server", verbose = FALSE),
      "scmamba_embedding"),
    SeuratObject::Embeddings(ScMambaEmbed(object, force = TRUE, verbose = FALSE), "scmamba_embedding")
  )
  near <- ScMambaDoublets(object, sample = "donor", verbose = FALSE)
  far <- ScMambaDoublets(object, sample = "donor", backend = "server", verbose = FALSE)
  expect_identical(far$scmamba_doublet_score, near$scmamba_doublet_score)
  expect_identical(far$scmamba_doublet, near$scmamba_doublet)
  # A labeled reference is uploaded too.
  by_reference <- function(...) {
    ScMambaAnnotate(object, reference = object, labels = "cell_type", network = FALSE, verbose = FALSE, ...)
  }
  here <- by_reference()
  there <- by_reference(backend = "server")
  expect_identical(as.character(there$scmamba_type), as.character(here$scmamba_type))
  expect_identical(there$scmamba_probability, here$scmamba_probability)
  expect_identical(SeuratObject::Misc(there, "scmamba")$annotate$summary$mode, "reference")
  # A reference of the package is named, not sent.
  by_brain <- function(...) ScMambaAnnotate(object, reference = "human-brain", verbose = FALSE, ...)
  here <- by_brain()
  there <- by_brain(backend = "server")
  expect_identical(there$scmamba_subtype, here$scmamba_subtype)
  expect_identical(there$scmamba_probability, here$scmamba_probability)
  # The server's errors are the verb's own messages.
  mice <- counts_of(object)
  rownames(mice) <- paste0("nothing", seq_len(nrow(mice)))
  expect_error(ScMambaImpute(mice, backend = "server", verbose = FALSE), "gene", class = "scmamba_error")
})

test_that("DEGs, robustness and fine-tuning are the same on the server", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  object <- ScMambaCohort(n.cells = 240, n.donors = 6, n.genes = 500, seed = 8)
  object$half <- factor(rep(c("b", "a"), length.out = ncol(object)), c("b", "a"))
  object$score <- seq_len(ncol(object)) / 7
  object$odd <- seq_len(ncol(object)) %% 3 == 0
  pair <- unique(object$disease)
  latent <- list(latent.vars = c("half", "score", "odd"), only.pos = TRUE)
  for (options in list(list(), latent, list(test.use = "wilcox"))) {
    markers <- function(...) {
      fixed <- list(object, pair[1], pair[2], group.by = "disease", layer = "counts", verbose = FALSE, ...)
      do.call(ScMambaFindMarkers, c(fixed, options))
    }
    here <- markers()
    expect_gt(nrow(here), 10)
    expect_identical(markers(backend = "server"), here)
  }
  every <- function(...) {
    ScMambaFindAllMarkers(object, group.by = "cell_type", layer = "counts", return.thresh = 2, test.use = "wilcox",
      verbose = FALSE, ...)
  }
  expect_gt(nrow(every()), 100)
  expect_identical(every(backend = "server"), every())
  expect_error(ScMambaFindMarkers(object, "nobody", layer = "counts", backend = "server"), "nobody",
    class = "scmamba_error")
  imputed <- ScMambaImpute(object, adapt = FALSE, force = TRUE, verbose = FALSE)
  robust <- function(...) {
    suppressWarnings(ScMambaRobustness(imputed, group.by = "disease", donor = "donor", ratios = c(0.3, 0.6),
      permutations = 3, donors = "2v2", null.permutations = 2, min.degs = 1, verbose = FALSE, ...))
  }
  here <- robust(workers = 1)
  expect_setequal(here$runs$layer, c("counts", "scmamba"))
  expect_identical(robust(backend = "server"), here)
  expect_error(robust(backend = "server", resume = tempdir()), "resume", class = "scmamba_error")
  folder <- file.path(withr::local_tempdir(), c("here", "there"))
  tune <- function(...) ScMambaFineTune(object, steps = 2, name = "mine", force = TRUE, verbose = FALSE, ...)
  tune(folder[1])
  tune(folder[2], backend = "server")
  files <- list.files(folder[1])
  expect_true(all(c("config.json", "model.safetensors", "model_card.md") %in% files))
  expect_identical(list.files(folder[2]), files)
  sums <- lapply(folder, function(one) unname(tools::md5sum(file.path(one, files))))
  expect_identical(sums[[2]], sums[[1]])
})

test_that("an upload continues after a broken connection", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  object <- ScMambaCohort(n.cells = 150, n.donors = 2, n.genes = 2000, seed = 9)
  near <- ScMambaDoublets(object, sample = "donor", verbose = FALSE)
  local <- scMamba:::.local_server()
  # A real connection that is cut three times, after a quarter of the file each time.
  size <- 12 * Matrix::nnzero(counts_of(object))
  log <- withr::local_tempfile()
  pid <- withr::local_tempfile()
  python <- shQuote(scMamba:::.find_python()$python)
  line <- sprintf("echo $$ > %s; exec %s %s %s %.0f 3 > %s", pid, python, shQuote(test_path("breaking_line.py")),
    sub(".*:", "", local$url), size / 4, log)
  system2("sh", c("-c", shQuote(line)), wait = FALSE)
  withr::defer(tools::pskill(as.integer(readLines(pid))))
  for (look in 1:300) if (!file.exists(log) || length(readLines(log, warn = FALSE)) == 0) Sys.sleep(0.1)
  server <- ScMambaServer(paste0("http://127.0.0.1:", readLines(log)[[1]]), token = local$token())
  withr::local_options(scmamba.whole = 1000, scmamba.part = ceiling(size / 2))
  far <- ScMambaDoublets(object, sample = "donor", backend = server, verbose = FALSE)
  expect_identical(readLines(log)[-1], paste("broken", 1:3))
  expect_identical(far$scmamba_doublet_score, near$scmamba_doublet_score)
  # The server keeps nothing of it.
  parts <- file.path(tempdir(), "scmamba-server", "parts")
  expect_length(list.files(parts, recursive = TRUE), 0)
})

test_that("labeled cells are sent once, listed, used for several objects, and deleted", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  object <- ScMambaCohort(n.cells = 100, n.donors = 2, n.genes = 2000, seed = 6)
  before <- ScMambaReferences(backend = "server")$id
  expect_message(kept <- ScMambaKeepReference(object, labels = "cell_type", backend = "server"), "100 labeled cells")
  expect_output(print(kept), "cell_type")
  expect_identical(setdiff(ScMambaReferences(backend = "server")$id, before), kept$id)
  # The handle can be saved.
  file <- withr::local_tempfile()
  saveRDS(kept, file)
  kept <- readRDS(file)
  annotate <- function(x, ...) {
    ScMambaAnnotate(x, backend = "server", verbose = FALSE, ...)[[]][c("scmamba_type", "scmamba_probability")]
  }
  for (cells in list(1:50, 51:100)) {
    some <- object[, cells]
    expect_identical(annotate(some, reference = kept), annotate(some, reference = object, labels = "cell_type"))
  }
  expect_error(ScMambaAnnotate(object, reference = kept, backend = "reticulate", verbose = FALSE), kept$url,
    class = "scmamba_error")
  expect_identical(ScMambaDropReference(kept, backend = "server"), kept$id)
  expect_identical(ScMambaReferences(backend = "server")$id, before)
  expect_error(annotate(object, reference = kept), "reference", class = "scmamba_error")
  expect_error(ScMambaDropReference(kept, backend = "server"), "no such reference", class = "scmamba_server_error")
  expect_error(ScMambaKeepReference(object, "cell_type", backend = NULL), "ScMambaServer", class = "scmamba_error")
})

test_that("an archive of a model is unpacked into its folder and nowhere else", {
  skip_if_not(nzchar(Sys.which("python3")))
  top <- withr::local_tempdir()
  make <- file.path(top, "make.py")
  writeLines(c(
    "import sys, zipfile",
    "with zipfile.ZipFile(sys.argv[1], 'w') as file:",
    "    for name in sys.argv[2:]: file.writestr(name, 'x')"
  ), make)
  archive <- file.path(top, "model.zip")
  pack <- function(...) {
    unlink(archive)
    system2("python3", shQuote(c(make, archive, ...)))
  }
  good <- c("config.json", "genes.tsv", "model.safetensors")
  pack(good, "../../ESCAPED", "../model_card.md", "/tmp/scmamba-escaped", "other")
  folder <- file.path(top, "a", "b", "model")
  dir.create(dirname(folder), recursive = TRUE)
  scMamba:::.unpack_model(archive, folder)
  expect_setequal(list.files(folder), c(good, "model_card.md"))
  expect_setequal(list.files(top, recursive = TRUE),
    c("make.py", "model.zip", file.path("a/b/model", c(good, "model_card.md"))))
  expect_false(file.exists("/tmp/scmamba-escaped"))
  for (bad in list("config.json", c(good, "x/config.json"))) {
    pack(bad)
    expect_error(scMamba:::.unpack_model(archive, file.path(top, "none")), "not a model", class = "scmamba_error")
  }
})

test_that("a token is sent to another machine by TLS only, unless allowed", {
  expect_error(ScMambaServer("http://gpu-box:8642", token = "t"), "insecure = TRUE", class = "scmamba_error")
  expect_error(ScMambaServer("http://127.0.0.1.example.org", token = "t"), "TLS", class = "scmamba_error")
  for (url in c("https://gpu-box", "http://localhost:8642", "http://127.0.0.1:1/", "http://[::1]:1")) {
    expect_s3_class(ScMambaServer(url, token = "t"), "scmamba_server")
  }
  expect_s3_class(ScMambaServer("http://gpu-box", token = "t", insecure = TRUE), "scmamba_server")
  expect_s3_class(ScMambaServer("http://gpu-box", token = NULL), "scmamba_server")
})

test_that("a redirect is an error and the token goes nowhere else", {
  skip_if_not(nzchar(Sys.which("python3")))
  skip_if_not(.Platform$OS.type == "unix")
  said <- withr::local_tempfile()
  pid <- withr::local_tempfile()
  line <- sprintf("echo $$ > %s; exec python3 %s > %s", pid, shQuote(test_path("redirecting.py")), said)
  system2("sh", c("-c", shQuote(line)), wait = FALSE)
  withr::defer(tools::pskill(as.integer(readLines(pid))))
  for (look in 1:300) if (!file.exists(said) || length(readLines(said, warn = FALSE)) == 0) Sys.sleep(0.1)
  server <- ScMambaServer(paste0("http://127.0.0.1:", readLines(said)[[1]]), token = "secret")
  for (method in c("GET", "POST", "DELETE")) {
    expect_error(scMamba:::.server_request(server, method, "/v2/jobs", tries = 1), "redirects",
      class = "scmamba_server_error")
  }
  expect_length(readLines(said), 1)
})

test_that("a missing server, a wrong address and a token are handled", {
  server <- ScMambaServer("http://127.0.0.1:9", token = "secret")
  expect_output(print(server), "with a token")
  expect_false(grepl("secret", paste(utils::capture.output(utils::str(server), print(server)), collapse = "")))
  expect_error(scMamba:::.server_request(server, "GET", "/v2", tries = 1), "cannot be reached",
    class = "scmamba_server_error")
  expect_error(ScMambaServer("gpu-box"), "http", class = "scmamba_error")
  expect_error(ScMambaImpute(pbmc(), backend = "cloud"), "ScMambaServer", class = "scmamba_error")
})

test_that("a server lists its models", {
  skip_without_python()
  offered <- ScMambaModels(backend = "server")
  expect_named(offered, c("name", "default", "about"))
  expect_true("brain-mini" %in% offered$name)
  expect_identical(sum(offered$default), 1L)
  expect_error(ScMambaModels(backend = 1), class = "scmamba_error")
})

test_that("a server that ended, and one that printed its address, are recognized", {
  file <- withr::local_tempfile()
  expect_false(scMamba:::.has_ended(file))
  writeLines(as.character(Sys.getpid()), file)
  expect_false(scMamba:::.has_ended(file))
  system2("sh", c("-c", shQuote(sprintf("echo $$ > %s", file))))
  expect_true(scMamba:::.has_ended(file))

  expect_identical(scMamba:::.address_in(file), character())
  writeLines(c("a warning", "scMamba is served at http://127.0.0.1:40123/#token=abc", "  TLS no"), file)
  expect_identical(scMamba:::.address_in(file), "http://127.0.0.1:40123")
})
