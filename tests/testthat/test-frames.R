test_that("a data frame is the same after its way to Python and back", {
  skip_without_python()
  invisible(scMamba:::.python())
  frame <- data.frame(
    number = c(1.5, NA, 3), whole = c(1L, 2L, 3L), flag = c(TRUE, FALSE, TRUE), text = c("x", NA, "y"),
    type = factor(c("b", NA, "a"), levels = c("b", "a")), row.names = c("r1", "r2", "r3"), stringsAsFactors = FALSE
  )
  back <- scMamba:::.plain_frame(reticulate::r_to_py(frame))
  expect_identical(back[names(back) != "number"], frame[names(frame) != "number"])
  expect_equal(back$number, frame$number)
  expect_identical(scMamba:::.plain_frame(reticulate::r_to_py(frame["text"])), frame["text"])
  saved <- withr::local_tempfile()
  saveRDS(back, saved)
  expect_identical(readRDS(saved), back) # no pointer into Python
})

test_that("columns that R has no type for arrive, too", {
  skip_without_python()
  invisible(scMamba:::.python())
  made <- reticulate::py_run_string(paste(c(
    "import pandas as pd", "table = pd.DataFrame({", "  'time': pd.to_datetime(['2020-01-01', None]),",
    "  'count': pd.array([7, None], dtype='Int64'), 'unsure': pd.array([True, None], dtype='boolean'),",
    "  'stage': pd.Categorical([2, 1], ordered=True)})"
  ), collapse = "\n"), local = TRUE, convert = FALSE)
  frame <- scMamba:::.plain_frame(reticulate::py_get_item(made, "table"))
  expect_identical(frame$time, as.POSIXct(c("2020-01-01", NA), tz = "UTC"))
  expect_identical(frame$count, c(7, NA))
  expect_identical(frame$unsure, c(TRUE, NA))
  expect_identical(frame$stage, factor(c("2", "1"), ordered = TRUE))
  expect_identical(attr(frame, "row.names"), 1:2)
})
