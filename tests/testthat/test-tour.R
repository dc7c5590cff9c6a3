# What a user reads: the same on both backends (helper-tour.R has the tour; benchmarks/r_messages.R writes it down).

test_that("every verb shows the same messages in this process and through a server", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  made <- tour_objects()
  here <- tour(made$object, made$reference, "reticulate")
  there <- tour(made$object, made$reference, "server")
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
  expect_match(here$robustness, "9v9", all = FALSE)
  expect_match(here$finetune, "held out", all = FALSE)
  expect_false(any(grepl("\\bobs\\b|var_names|layers\\[|_key|=True|=False", unlist(here))))
})

test_that("every refusal is one sentence in R's words, the same through a server", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  object <- tour_objects()$object
  here <- refused_tour(object, "reticulate")
  expect_identical(refused_tour(object, "server"), here)
  expect_false("(not refused)" %in% unlist(here))
  python <- "\\bobs\\b|var_names|layers\\[|_key|[a-z]=[ .,;)]|=True|=False|group[12]|python[.]builtin|Traceback"
  expect_false(any(grepl(python, unlist(here))))
  expect_match(here[["share beyond its range"]], "`min.probability` is 2", fixed = TRUE)
  # The only one that differs: a server has models of its own, and takes no paths.
  for (backend in c("reticulate", "server")) {
    expect_error(ScMambaEmbed(object, model = "no-such-model", force = TRUE, backend = backend, verbose = FALSE),
      "no model 'no-such-model'.*brain-mini", class = "scmamba_error")
  }
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
