# Records the model matrices of R for formulas, for tests/python/deg/test_deg_formula.py:
#   Rscript scripts/record_formulas.R tests/data/reference
# formulas.csv is the table; formulas.txt holds, for each formula, the formula, the column names and the rows.
folder <- commandArgs(trailingOnly = TRUE)[1]
set.seed(3)
n <- 12
data <- data.frame(
  group = rep(c("ctl", "AD", "b"), 4), sex = rep(c("M", "F"), each = 6), age = round(rnorm(n, 70, 8), 2),
  percent.mt = round(runif(n, 1, 9), 3), C = rep(c("x", "y"), 6), check.names = FALSE
)
data[["my col"]] <- round(rnorm(n), 3)
data$Q <- round(runif(n), 3)
data$flag <- rep(c(TRUE, FALSE, FALSE), 4)
data$lot <- rep(c(10, 9, 2.5), 4)
data$orig.ident <- rep(c("s2", "s10"), 6)
formulas <- c(
  "~ group + percent.mt", "~ group*sex", "~ group:sex", "~ age:group", "~ age + age:group",
  "~ scale(age) + C + Q", "~ poly(age, 2) + sex", "~ I(age^2) + group", "~ factor(lot) + log(age)",
  "~ `my col` + flag", "~ sex/group", "~ (group+sex+age)^2 - group:age", "~ log(age+1, 2) + sqrt(Q)",
  "~ poly(age,1)", "~ scale(age, scale=FALSE)", "~ scale(age, center=FALSE)", "~ relevel(factor(lot), ref='9')",
  "~ poly(age,3,raw=TRUE)", "~ I(age*2-Q/3)", "~ orig.ident + sex:age + group:sex:age",
  "~ I(-age^2) + as.numeric(flag)+exp(Q)", "~ factor(group, levels=c('ctl','b','AD'))", "~ group + (sex*age)",
  "~ log(age) * sex", "~ log10(age) + log2(age) + log1p(Q) + abs(Q - 0.5)", "~ b + a" , "~ 1", "~ `percent.mt`"
)
data$a <- data$sex
data$b <- data$Q
write.csv(data, file.path(folder, "formulas.csv"), row.names = FALSE)
sink(file.path(folder, "formulas.txt"))
for (formula in formulas) {
  matrix <- model.matrix(as.formula(formula), data)
  cat(formula, "\n", paste(colnames(matrix), collapse = "\t"), "\n", sep = "")
  for (i in seq_len(nrow(matrix))) cat(paste(formatC(matrix[i, ], digits = 15, format = "g"), collapse = "\t"), "\n", sep = "")
  cat("\n")
}
sink()
