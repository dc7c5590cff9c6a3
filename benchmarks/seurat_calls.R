# Write the table of Seurat's calls on an object with imputed values: the results of tests/testthat/test-seurat-calls.R
# on this Seurat; with results of both in place, one page.
#   . scripts/lib.sh; r_environment; Rscript benchmarks/seurat_calls.R
#   scripts/in_seurat5.sh Rscript benchmarks/seurat_calls.R
suppressPackageStartupMessages(library(scMamba))
reporter <- testthat::ListReporter$new()
testthat::test_file("tests/testthat/test-seurat-calls.R", package = "scMamba", load_package = "installed",
  reporter = reporter, stop_on_failure = FALSE)
results <- as.data.frame(reporter$get_results())
pattern <- "^([A-Za-z]+)\\(\\) works with imputed values in the object, default assay (.*)$"
results <- results[grepl(pattern, results$test), ]
outcome <- ifelse(results$skipped, "not run", ifelse(results$failed > 0 | results$error, "fails", "passes"))
version <- as.character(packageVersion("Seurat"))
table <- data.frame(call = sub(pattern, "\\1", results$test), default = sub(pattern, "\\2", results$test),
  seurat = version, outcome = outcome, stringsAsFactors = FALSE)
file <- "benchmarks/results/seurat_calls.tsv"
before <- if (file.exists(file)) utils::read.delim(file, colClasses = "character")
before <- before[substr(before$seurat, 1, 1) != substr(version, 1, 1), ]
table <- rbind(before, table)
table <- table[order(table$seurat, method = "radix"), ]
utils::write.table(table, file, sep = "\t", row.names = FALSE, quote = FALSE)

columns <- unique(table[c("seurat", "default")])
calls <- unique(table$call)
shown <- function(call) {
  found <- mapply(function(seurat, default) {
    c(table$outcome[table$call == call & table$seurat == seurat & table$default == default], "-")[[1]]
  }, columns$seurat, columns$default)
  paste0("| ", call, " | ", paste(found, collapse = " | "), " |")
}
writeLines(c(
  "# Seurat's calls on an object with imputed values", "",
  "`Rscript benchmarks/seurat_calls.R`: each call with the assay `scmamba` in the object. A call passes if it runs,",
  "gives what `tests/testthat/test-seurat-calls.R` expects, and warns of nothing that it does not warn of without",
  "imputed values.",
  "`-`: this Seurat has no such call. `IntegrateLayers()` is called with RNA as the default assay in both columns: with",
  "another one than the assay that is split, whoever made it, Seurat's `CCAIntegration()` fails by itself.", "",
  paste0("| call | ", paste0("Seurat ", columns$seurat, ", default assay ", columns$default, collapse = " | "), " |"),
  paste0("|", strrep("---|", nrow(columns) + 1)), vapply(calls, shown, "")
), "benchmarks/results/seurat_calls.md")
cat(sum(outcome == "passes"), "of", nrow(results), "pass on Seurat", version, "\n")
quit(status = any(outcome == "fails"))
