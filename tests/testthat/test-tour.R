# What a user reads: the same on both backends.

# Messages that are shown while `code` runs, without the console's colors.
messages_of <- function(code) {
  shown <- character()
  # Bars are shown by time, not by what happens.
  old <- options(cli.progress_show_after = 1e6)
  on.exit(options(old))
  withCallingHandlers(code, message = function(m) {
    shown <<- c(shown, trimws(cli::ansi_strip(conditionMessage(m))))
    invokeRestart("muffleMessage")
  })
  shown
}

# Each stop of the tour, for a backend.
tour <- function(object, reference, backend) {
  stop_of <- function(verb, ...) messages_of(verb(object, ..., backend = backend))
  list(
    impute = stop_of(ScMambaImpute, adapt = FALSE, force = TRUE),
    few = messages_of(ScMambaImpute(object[, 1:20], force = TRUE, backend = backend)),
    masked = stop_of(ScMambaImpute, method = "masked", adapt = FALSE, passes = 2, force = TRUE),
    embed = stop_of(ScMambaEmbed, force = TRUE),
    default = stop_of(ScMambaAnnotate, region = "cortex"),
    markers = stop_of(ScMambaAnnotate, markers = "panel"),
    brain = stop_of(ScMambaAnnotate, reference = "human-brain", region = "cortex", clusters = "cell_type"),
    reference = stop_of(ScMambaAnnotate, reference = reference, labels = "cell_type", cache = FALSE),
    doublets = stop_of(ScMambaDoublets),
    samples = stop_of(ScMambaDoublets, sample = "sample"),
    degs = stop_of(ScMambaFindMarkers, ident.1 = object$disease[[1]], group.by = "disease", layer = "counts")
  )
}

test_that("every verb shows the same messages in this process and through a server", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  object <- ScMambaCohort(n.cells = 150, n.donors = 3, n.genes = 3000, seed = 6)
  object$sample <- ifelse(seq_len(ncol(object)) < 10, NA, object$donor)
  reference <- object
  reference$cell_type[1:3] <- NA
  reference$donor <- NULL
  here <- tour(object, reference, "reticulate")
  there <- tour(object, reference, "server")
  expect_identical(there, here)
  # What was read, matched and found is shown, in R's words.
  expect_match(here$impute, "raw counts", all = FALSE)
  expect_match(here$impute, "genes matched", all = FALSE)
  expect_match(here$impute, "^\\S+ Imputed 3000 genes x 150 cells", all = FALSE)
  expect_match(here$few, "Only 20 cells", all = FALSE)
  expect_match(here$brain, "genes of the reference 'human-brain' were measured", all = FALSE)
  expect_match(here$default, "which is used by default \\(markers = \"panel\" uses marker genes", all = FALSE)
  expect_match(here$markers, "clearly express the markers of one type", all = FALSE)
  expect_match(here$reference, "3 reference cells have no label", all = FALSE)
  expect_match(here$samples, "9 cells have no sample", all = FALSE)
  expect_false(any(grepl("\\bobs\\b|var_names|layers\\[|_key|=True|=False", unlist(here))))
})

test_that("held-out donors are named only if there were donors", {
  skip_without_python()
  object <- ScMambaCohort(n.cells = 150, n.donors = 3, n.genes = 2000, seed = 6)
  annotate <- function(reference) {
    messages_of(ScMambaAnnotate(object, reference = reference, labels = "cell_type", cache = FALSE))
  }
  expect_match(annotate(object), "% of the cells of held-out donors are correct", all = FALSE)
  object$donor <- NULL
  without <- annotate(object)
  expect_match(without, "% of the held-out cells are correct", all = FALSE)
  expect_false(any(grepl("held-out donors", without)))
})

test_that("time and memory of long work are shown in R's words", {
  skip_without_python()
  expected <- reticulate::import("scmamba.utils.expected_time")$expected
  words <- function(...) scMamba:::.r_words(expected(...))
  expect_identical(words("annotate network", 0L, "finetune_steps=0 omits the network"),
    "About 2 minutes and 1.8 GB of memory on two cores of an Intel Xeon; network = FALSE omits the network")
  expect_match(words("impute ensemble", 50000L, "adapt_steps=0 omits it"), "3 minutes .*; adapt = FALSE omits it")
  expect_match(words("doublets network", 1000L, "method='fast' is much faster"), "; method = \"fast\" is")
  expect_identical(words("embed", 1000L), "")
  object <- ScMambaCohort(n.cells = 40, n.donors = 2, n.genes = 2000, seed = 6)
  expect_length(messages_of(ScMambaEmbed(object, force = TRUE, verbose = FALSE)), 0)
})
