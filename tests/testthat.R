library(testthat)
library(scMamba)

test_check("scMamba")
