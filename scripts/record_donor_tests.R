# Records what edgeR, limma and DESeq2 return for a small matrix, for tests/python/deg/test_deg_donors.py (outputs only):
#   Rscript scripts/record_donor_tests.R tests/data/reference
# Needs Debian's r-bioc-edger, r-bioc-limma and r-bioc-deseq2 (edgeR 3.40.2, limma 3.54.1, DESeq2 1.38.3).
suppressMessages({library(limma); library(edgeR)})
folder <- commandArgs(trailingOnly = TRUE)[1]
set.seed(11)
genes <- 200
samples <- 8
group <- rep(c(0, 1), each = 4)
age <- c(61, 75, 70, 82, 66, 79, 73, 68)
library <- exp(rnorm(samples, 0, 0.5))
base <- exp(rnorm(genes, 2.5, 1.5))
effect <- c(rep(1, 20), rep(0, genes - 20))
mean <- outer(base, library) * exp(outer(effect, group))
counts <- matrix(rnbinom(genes * samples, mu = mean, size = 6), genes)
counts[5, 5:8] <- 0
design <- cbind(1, group, age)
offset <- log(colSums(counts) * calcNormFactors(counts, method = "TMM"))
out <- function(x, name) write.table(format(x, digits = 15), file.path(folder, paste0("donor_tests_", name, ".tsv")),
  sep = "\t", quote = FALSE, row.names = FALSE, col.names = TRUE)
colnames(counts) <- paste0("s", 1:samples)
out(as.data.frame(counts), "counts")
list <- DGEList(counts)
list <- calcNormFactors(list, method = "TMM")
fit <- glmFit(counts, design, dispersion = 0.15, offset = offset, prior.count = 0)
rest <- glmFit(counts, design[, -2], dispersion = 0.15, offset = offset, prior.count = 0)
v <- voom(list, design)
linear <- eBayes(lmFit(v, design))
treat <- treat(lmFit(v, design), lfc = 0.5)
profile <- sapply(c(0.02, 0.1, 0.5), function(d) adjustedProfileLik(d, counts, design, offset))
out(data.frame(
  deviance = fit$deviance, null_deviance = rest$deviance, coef = fit$coefficients[, 2],
  apl1 = profile[, 1], apl2 = profile[, 2], apl3 = profile[, 3],
  voom_weight1 = v$weights[, 1], voom_weight6 = v$weights[, 6], voom_change = linear$coefficients[, 2],
  voom_t = linear$t[, 2], voom_p = linear$p.value[, 2], treat_p = treat$p.value[, 2]
), "genes")
out(data.frame(tmm = list$samples$norm.factors, age = age, group = group), "samples")
suppressMessages(library(DESeq2))
frame <- data.frame(age = age - mean(age), group = group)
set <- DESeqDataSetFromMatrix(counts, frame, ~ age + group)
set <- DESeq(set, quiet = TRUE)
found <- results(set, name = "group", cooksCutoff = FALSE, independentFiltering = FALSE)
out(data.frame(change = found$log2FoldChange, se = found$lfcSE, p = found$pvalue, dispersion = dispersions(set)), "deseq2")
out(data.frame(tmm = list$samples$norm.factors, age = age, group = group, size_factor = sizeFactors(set)), "samples")
