#!/usr/bin/env bash
# Build the documentation site into dist/site: guides, tutorials (run here) and the Python reference (mkdocs), and under r/ the R
# pages (pkgdown: help pages with their examples run, vignettes). A broken link or a failed cell stops it. Works offline once its
# packages are installed.
#   SCMAMBA_SITE_TUTORIALS=kept   show the notebooks of an earlier run in .cache/tutorials
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
unset LD_LIBRARY_PATH
need_apt r-cran-pkgdown
r_environment
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-1}"
if [ "${SCMAMBA_SITE_TUTORIALS:-}" != kept ]; then
  say "running the tutorials"
  rm -rf .cache/tutorials
  PYTHONPATH=python "$VENV/bin/python" scripts/tutorials.py .cache/tutorials
fi
[ -x .cache/site/bin/mkdocs ] && [ -e .cache/site/nbconvert ] || {
  "$VENV/bin/python" -m venv .cache/site
  quietly .cache/site/bin/pip install "mkdocs-material>=9.5" "mkdocstrings-python>=1.10" "nbconvert>=7.16" ruff
  touch .cache/site/nbconvert
}
say "building the pages"
NO_MKDOCS_2_WARNING=1 .cache/site/bin/mkdocs build --strict --clean
Rscript --vanilla - <<'R'
options(pkgdown.internet = FALSE, cli.progress_show_after = 1e6)
pkgdown::check_pkgdown()
# The package in .cache/rlib: installed by `make setup` from these files.
pkgdown::build_site(preview = FALSE, install = FALSE, devel = FALSE, new_process = FALSE)
R
"$VENV/bin/python" scripts/check_links.py dist/site
say "the site is in dist/site/index.html"
