# The scripted tour of messages: every verb, and refusals, on one backend. test-tour.R compares both backends;
# benchmarks/r_messages.R writes them side by side.

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

tour_objects <- function() {
  object <- ScMambaCohort(n.cells = 150, n.donors = 3, n.genes = 3000, seed = 6)
  object$sample <- ifelse(seq_len(ncol(object)) < 10, NA, object$donor)
  reference <- object
  reference$cell_type[1:3] <- NA
  reference$donor <- NULL
  list(object = object, reference = reference)
}

# Each stop of the tour: the messages, by the name of the stop.
tour <- function(object, reference, backend) {
  stop_of <- function(verb, ...) messages_of(verb(object, ..., backend = backend))
  folder <- file.path(tempdir(), "tour-model")
  on.exit(unlink(folder, recursive = TRUE))
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
    degs = stop_of(ScMambaFindMarkers, ident.1 = object$disease[[1]], group.by = "disease", layer = "counts"),
    robustness = messages_of(utils::capture.output(print(suppressWarnings(
      ScMambaRobustness(object, group.by = "disease", donor = "donor", imputed.assay = NULL, ratios = 0.5,
        permutations = 2, donors = "9v9", null.permutations = 0, backend = backend))))),
    finetune = stop_of(ScMambaFineTune, folder = folder, labels = "cell_type", steps = 2, force = TRUE)
  )
}

# What is refused, and how: the message of the error.
refused_tour <- function(object, backend) {
  refusal <- function(verb, x = object, ...) {
    tryCatch({
      suppressMessages(verb(x, ..., backend = backend))
      "(not refused)"
    }, error = function(e) cli::ansi_strip(conditionMessage(e)))
  }
  counts <- counts_of(object)
  with_names <- function(names) {
    rownames(counts) <- names
    counts
  }
  mouse <- paste0(substr(rownames(counts), 1, 1), tolower(substring(rownames(counts), 2)))
  changed <- function(value) {
    counts@x[[5]] <- value
    counts
  }
  twice <- counts
  colnames(twice)[[2]] <- colnames(twice)[[1]]
  list(
    "few genes" = refusal(ScMambaImpute, counts[1:200, ]),
    "mouse genes" = refusal(ScMambaEmbed, with_names(mouse)),
    "unknown genes" = refusal(ScMambaEmbed, with_names(paste0("gene", seq_len(nrow(counts))))),
    "negative values" = refusal(ScMambaImpute, changed(-1), force = TRUE),
    "missing values" = refusal(ScMambaDoublets, changed(NaN)),
    "duplicated cells" = refusal(ScMambaEmbed, twice, force = TRUE),
    "unknown column" = refusal(ScMambaDoublets, sample = "library"),
    "unknown group" = refusal(ScMambaFindMarkers, ident.1 = "nobody", group.by = "disease", layer = "counts"),
    "markers that were not measured" = refusal(ScMambaAnnotate, markers = list(A = c("NONE1", "NONE2"), B = "NONE3")),
    "share beyond its range" = refusal(ScMambaImpute, min.probability = 2, adapt = FALSE, force = TRUE),
    "rate beyond its range" = refusal(ScMambaDoublets, expected.rate = 1.5),
    "ratio beyond its range" = refusal(ScMambaRobustness, group.by = "disease", imputed.assay = NULL, ratios = 2),
    "unknown device" = refusal(ScMambaEmbed, device = "tpu", force = TRUE),
    "one cell type" = refusal(ScMambaAnnotate, reference = object[, object$cell_type == object$cell_type[[1]]],
      labels = "cell_type"),
    "two conditions in one donor" = refusal(ScMambaRobustness, group.by = "donor", imputed.assay = NULL)
  )
}
