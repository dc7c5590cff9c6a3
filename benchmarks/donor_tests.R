# The peers of benchmarks/donor_tests.py: edgeR, limma and DESeq2 on its sums, each as its manual recommends.
#   Rscript benchmarks/donor_tests.R FOLDER    (reads FOLDER/*.counts.tsv and *.design.tsv, writes *.peers.tsv)
suppressMessages({library(edgeR); library(limma); library(DESeq2)})
folder <- commandArgs(trailingOnly = TRUE)[1]
files <- list.files(folder, "counts.tsv$", full.names = TRUE)
files <- files[!file.exists(sub("counts.tsv", "peers.tsv", files)) & file.exists(sub("counts.tsv", "design.tsv", files))]
for (file in files[order(file.info(files)$mtime, files)]) {
  counts <- as.matrix(read.delim(file, row.names = 1, check.names = FALSE))
  frame <- read.delim(sub("counts.tsv", "design.tsv", file), row.names = 1)
  frame$group <- factor(frame$group, levels = c("b", "a"))
  design <- model.matrix(~group, frame)
  result <- data.frame(gene = rownames(counts))
  time <- c()
  run <- function(name, code) {
    start <- proc.time()[["elapsed"]]
    p <- tryCatch(code(), error = function(e) { message(basename(file), " ", name, ": ", conditionMessage(e)); NULL })
    time[name] <<- proc.time()[["elapsed"]] - start
    result[[paste0(name, ".p")]] <<- if (is.null(p)) NA else p$p[result$gene]
    result[[paste0(name, ".fdr")]] <<- if (is.null(p)) NA else p$fdr[result$gene]
    result[[paste0(name, ".change")]] <<- if (is.null(p)) NA else p$change[result$gene]
  }
  named <- function(x, names) { names(x) <- names; x }
  kept <- function() {
    list <- DGEList(counts, group = frame$group)
    calcNormFactors(list[filterByExpr(list, design), , keep.lib.sizes = FALSE])
  }
  run("edgeR", function() {
    list <- estimateDisp(kept(), design)
    found <- glmQLFTest(glmQLFit(list, design), coef = 2)$table
    p <- found$PValue
    list(p = named(p, rownames(list)), fdr = named(p.adjust(p, "BH"), rownames(list)),
      change = named(found$logFC, rownames(list)))
  })
  run("limma_voom", function() {
    list <- kept()
    found <- eBayes(lmFit(voom(list, design), design))
    p <- found$p.value[, 2]
    list(p = named(p, rownames(list)), fdr = named(p.adjust(p, "BH"), rownames(list)),
      change = named(found$coefficients[, 2], rownames(list)))
  })
  run("DESeq2", function() {
    set <- DESeqDataSetFromMatrix(counts, frame, ~group)
    set <- suppressMessages(DESeq(set, quiet = TRUE, sfType = if (any(rowSums(counts == 0) == 0)) "ratio" else "poscounts"))
    found <- results(set, alpha = 0.05)
    list(p = named(found$pvalue, rownames(found)), fdr = named(found$padj, rownames(found)),
      change = named(found$log2FoldChange, rownames(found)))
  })
  write.table(result, sub("counts.tsv", "peers.tsv", file), sep = "\t", quote = FALSE, row.names = FALSE)
  write.table(t(time), sub("counts.tsv", "time.tsv", file), sep = "\t", quote = FALSE, row.names = FALSE)
}
