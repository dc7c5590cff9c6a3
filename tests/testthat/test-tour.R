# What a user reads: the same on both backends.

# Messages that are shown while `code` runs, without the console's colors.
messages_of <- function(code) {
  shown <- character()
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
    # Nothing that is announced is run: three steps a cell and two passes.
    masked = stop_of(ScMambaImpute, method = "masked", adapt = FALSE, passes = 2, force = TRUE),
    embed = stop_of(ScMambaEmbed, force = TRUE),
    markers = stop_of(ScMambaAnnotate),
    brain = stop_of(ScMambaAnnotate, reference = "human-brain", region = "cortex", clusters = "cell_type"),
    reference = stop_of(ScMambaAnnotate, reference = reference, labels = "cell_type", cache = FALSE),
    doublets = stop_of(ScMambaDoublets),
    samples = stop_of(ScMambaDoublets, sample = "sample"),
    degs = stop_of(ScMambaFindMarkers, ident.1 = "control", group.by = "disease", layer = "counts")
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

test_that("time and memory are shown before long work, with the argument that shortens it", {
  skip_without_python()
  object <- ScMambaCohort(n.cells = 40, n.donors = 2, n.genes = 2000, seed = 6)
  reference <- ScMambaCohort(n.cells = 90, n.donors = 3, n.genes = 2000, seed = 7)
  # The sentence comes before the work, which is stopped there.
  first <- function(...) {
    shown <- character()
    stop_at <- function(m) {
      shown <<- c(shown, cli::ansi_strip(conditionMessage(m)))
      if (grepl("GB of memory", conditionMessage(m))) stop("that is enough")
      invokeRestart("muffleMessage")
    }
    expect_error(withCallingHandlers(..., message = stop_at), "that is enough")
    utils::tail(shown, 1)
  }
  masked <- first(ScMambaImpute(object, method = "masked", passes = 200, adapt = FALSE, force = TRUE, device = "cpu"))
  expect_match(masked, "About 3 minutes and 1.5 GB of memory on two cores .*passes.*method = \"ensemble\"")
  network <- first(ScMambaAnnotate(object, reference = reference, labels = "cell_type", network = 400, cache = FALSE,
    device = "cpu"))
  expect_match(network, "About 2 minutes .*; network = FALSE omits the network")
  expect_length(messages_of(ScMambaEmbed(object, force = TRUE, verbose = FALSE)), 0)
})
