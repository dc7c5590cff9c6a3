#!/usr/bin/env bash
# Write NAMESPACE and man/ from the comments in R/, always with the same roxygen2, and the pages of the vignettes.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
r_environment
Rscript -e 'stopifnot("make docs needs roxygen2 7.2.3, so that the files do not change with the version" =
  packageVersion("roxygen2") == "7.2.3"); roxygen2::roxygenise(load_code = "source")'
Rscript --vanilla scripts/installed_vignettes.R
