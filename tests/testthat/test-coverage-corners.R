# Rarely used branches; each has a result that a user would see.

test_that("the configuration prints missing parts, and the problem if there is one", {
  config <- structure(list(
    r = c(R = "4.4.0", scMamba = "0.1.0", reticulate = "1.41.0", Seurat = NA),
    python = c(path = "/a/{b}/python", version = "3.11"), packages = c(torch = "2.9", numba = NA),
    device = "cpu (2 threads)", backends = c(cpu = "available"), problem = NULL
  ), class = "scmamba_config")
  shown <- paste(testthat::capture_messages(print(config)), collapse = "")
  expect_match(shown, "Seurat: not installed", fixed = TRUE)
  expect_match(shown, "numba: not installed", fixed = TRUE)
  expect_match(shown, "/a/{b}/python", fixed = TRUE)
  expect_match(shown, "cpu: available", fixed = TRUE)
  config$problem <- "No Python was found.\nType this."
  shown <- paste(testthat::capture_messages(print(config)), collapse = "")
  expect_match(shown, "Type this.", fixed = TRUE)
  expect_false(grepl("torch", shown))
})

test_that("sparse, dense and odd matrices become a dgCMatrix with the same values, or are refused by class", {
  values <- matrix(c(0, 1, 2, 0, 0, 3), 2, dimnames = list(c("A", "B"), NULL))
  symmetric <- Matrix::Matrix(c(2, 1, 1, 2), 2, sparse = TRUE)
  for (given in list(values, Matrix::Matrix(values), as(Matrix::Matrix(values, sparse = TRUE), "TsparseMatrix"),
    symmetric, Matrix::Matrix(values > 0), as(1:2, "pMatrix"))) {
    made <- scMamba:::.as_dgc(given, what = "matrix")
    expect_s4_class(made, "dgCMatrix")
    expect_equal(unname(as.matrix(made)), unname(as.matrix(given)) + 0)
  }
  expect_error(scMamba:::.as_dgc(letters, what = "matrix"), "character", class = "scmamba_error")
  expect_error(ScMambaAnnotate(matrix("a", 1, 1)), "matrix", class = "scmamba_error")
})

test_that("a missing or empty layer is an error that lists the available ones", {
  empty <- pbmc()
  if (seurat5) {
    expect_error(ScMambaImpute(empty, layer = "nothing"), "data", class = "scmamba_error")
  } else {
    expect_error(ScMambaImpute(empty, layer = "nothing"), "scale.data", class = "scmamba_error")
    empty[["more"]] <- SeuratObject::CreateAssayObject(data = data_of(empty, "RNA"))
    expect_error(ScMambaImpute(empty, assay = "more"), "is empty", class = "scmamba_error")
  }
  expect_error(ScMambaImpute(empty, assay.name = "RNA"), class = "scmamba_exists")
  expect_error(ScMambaEmbed(empty, reduction.name = "RNA"), "in use", class = "scmamba_exists")
})

test_that("a log-normalized layer gives the result of the counts, by either argument", {
  skip_without_python()
  object <- Seurat::NormalizeData(pbmc(), verbose = FALSE)
  from_counts <- data_of(impute_tiny(object))
  expect_equal(data_of(impute_tiny(object, layer = "data")), from_counts, tolerance = 1e-5)
  expect_identical(data_of(impute_tiny(object, slot = "data")), data_of(impute_tiny(object, layer = "data")))
})

test_that("a matrix and its columns are unchanged by the server's plain form", {
  file <- withr::local_tempfile()
  matrix <- counts_of(pbmc())
  cells <- data.frame(donor = rep(c("\u00e4 \"b\"", NA), 40), group = factor(rep(c("x", "y"), 40)))
  scMamba:::.write_plain(file, matrix, cells)
  back <- scMamba:::.read_plain(file, NULL)
  expect_identical(scMamba:::.from_arrays(list(arrays = back$arrays), matrix, "x"), matrix)
  skip_without_python()
  # The server's own reader gives the same cells and genes.
  path <- reticulate::import("pathlib", convert = FALSE)$Path(file)
  adata <- reticulate::import("scmamba.wire.scmb", convert = FALSE)$to_adata(path)
  slots <- reticulate::import("scmamba.wire.slots", convert = FALSE)$layer_slots(adata)
  expect_identical(scMamba:::.from_slots(slots, dim(matrix), dimnames(matrix)), matrix)
  expect_identical(as.character(reticulate::py_to_r(adata$obs_names$tolist())), colnames(matrix))
  seen <- scMamba:::.plain_frame(adata$obs)
  expect_identical(as.character(seen$group), as.character(cells$group))
  expect_identical(as.character(seen$donor[c(1, 3)]), cells$donor[c(1, 3)])
})

test_that("only options that the server has are sent, and its errors are passed on", {
  skip_without_python()
  skip_if_not(.Platform$OS.type == "unix")
  server <- scMamba:::.local_server()
  expect_error(scMamba:::.server_json(server, "GET", "/v2/jobs/no-such-job"), "answered 404",
    class = "scmamba_server_error")
  expect_error(ScMambaImpute(pbmc(), model = tiny_model(), backend = "server", verbose = FALSE), "its own models",
    class = "scmamba_error")
  expect_error(ScMambaImpute(pbmc(), model = "unheard-of", backend = "server", verbose = FALSE), "unheard-of",
    class = "scmamba_error")
  expect_message(
    here <- ScMambaImpute(pbmc(), adapt = FALSE, force = TRUE, backend = server, verbose = TRUE), "Imputed"
  )
  log <- SeuratObject::Command(here, "ScMambaImpute.RNA")
  expect_identical(log$backend, server$url)
})

test_that("the names of commands and models in the log hold no pointers", {
  skip_without_python()
  model <- reticulate::import("scmamba", convert = FALSE)$load_model(tiny_model())
  object <- ScMambaEmbed(pbmc(), model = model, verbose = FALSE)
  file <- withr::local_tempfile()
  saveRDS(object, file)
  again <- readRDS(file)
  expect_identical(SeuratObject::Embeddings(again, "scmamba_embedding"),
    SeuratObject::Embeddings(embed_tiny(pbmc()), "scmamba_embedding"))
  names <- grep("ScMambaEmbed", SeuratObject::Command(again), value = TRUE)
  expect_type(SeuratObject::Command(again, names)$model, "character")
})
