#!/usr/bin/env bash
# Build the R documentation's web site into dist/site, without the network: help pages with their examples run, and the
# vignettes. `make test` only checks that the index is complete.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
unset LD_LIBRARY_PATH
need_apt r-cran-pkgdown
r_environment
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
Rscript --vanilla - <<'R'
options(pkgdown.internet = FALSE, cli.progress_show_after = 1e6)
pkgdown::check_pkgdown()
# The package in .cache/rlib: installed by `make setup` from these very files.
pkgdown::build_site(preview = FALSE, install = FALSE, devel = FALSE, new_process = FALSE)
R
say "the site is in dist/site/index.html"
