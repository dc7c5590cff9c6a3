#!/usr/bin/env bash
# Build the documentation site into dist/site: guides, tutorials (run here) and the Python reference (mkdocs), and under r/ the R
# pages (pkgdown: help pages with their examples run, vignettes). A broken link or a failed cell stops it. Works offline once its
# packages are installed.
#   SCMAMBA_SITE_TUTORIALS=kept   show the notebooks of an earlier run in .cache/tutorials
#   SCMAMBA_SITE_RECORD=yes       write benchmarks/results/site.md: seconds of each part, pages, links, blocks of code
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
unset LD_LIBRARY_PATH
need_apt r-cran-pkgdown
r_environment
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-1}"
TIMES="$ROOT/.cache/site-seconds.tsv"
: >"$TIMES"
began=$SECONDS
# ended PART: seconds since the last one.
ended() {
  printf '%s\t%s\n' "$1" "$((SECONDS - began))" >>"$TIMES"
  began=$SECONDS
}
if [ "${SCMAMBA_SITE_TUTORIALS:-}" != kept ]; then
  say "running the tutorials"
  rm -rf .cache/tutorials
  PYTHONPATH=python "$VENV/bin/python" scripts/tutorials.py .cache/tutorials
  ended "tutorials (notebooks)"
fi
[ -x .cache/site/bin/mkdocs ] && [ -e .cache/site/nbconvert ] || {
  "$VENV/bin/python" -m venv .cache/site
  quietly .cache/site/bin/pip install "mkdocs-material>=9.5" "mkdocstrings-python>=1.10" "nbconvert>=7.16" ruff
  touch .cache/site/nbconvert
  ended "packages of mkdocs"
}
say "building the pages"
NO_MKDOCS_2_WARNING=1 .cache/site/bin/mkdocs build --strict --clean
ended "pages and Python reference (mkdocs)"
Rscript --vanilla - <<'R'
options(pkgdown.internet = FALSE, cli.progress_show_after = 1e6)
pkgdown::check_pkgdown()
# The package in .cache/rlib: installed by `make setup` from these files.
pkgdown::build_site(preview = FALSE, install = FALSE, devel = FALSE, new_process = FALSE)
R
ended "help pages with examples, vignettes (pkgdown)"
"$VENV/bin/python" scripts/check_links.py dist/site
ended "links"
if [ -n "${SCMAMBA_SITE_RECORD:-}" ]; then
  PYTHONPATH="$ROOT:python:tests/python" "$VENV/bin/python" scripts/record_site.py "$TIMES" dist/site
fi
say "the site is in dist/site/index.html"
