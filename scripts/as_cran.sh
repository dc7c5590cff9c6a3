#!/usr/bin/env bash
# R CMD check --as-cran of the package built from this folder; what it reports goes to benchmarks/results/as_cran.txt.
#   scripts/as_cran.sh
# No step uses the internet: the search of CRAN for the name, the check of web addresses and the comparison of the clock with a
# time server are switched off. The tests are not run here (`make testthat` does), and the vignettes once, by R CMD build.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
unset LD_LIBRARY_PATH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-2}"
r_environment
WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
# Without LaTeX's fonts the manual cannot be typeset, whatever the help pages contain.
MANUAL=()
export R_RD4PDF="times,hyper"
kpsewhich ptmr8t.tfm >/dev/null 2>&1 || MANUAL=(--no-manual)
OFF="_R_CHECK_CRAN_INCOMING_REMOTE_=false _R_CHECK_SYSTEM_CLOCK_=0 _R_CHECK_FORCE_SUGGESTS_=false"

# R CMD build first copies the whole folder, with the environments of Python: gigabytes.
mkdir "$WORK/source"
tar -C "$ROOT" --exclude=./.venv --exclude=./.cache --exclude=./.git -cf - . | tar -C "$WORK/source" -xf -
cd "$WORK"
quietly R CMD build source || die "R CMD build failed."
env ${OFF} R CMD check --as-cran --no-tests --ignore-vignettes ${MANUAL[@]+"${MANUAL[@]}"} scMamba_*.tar.gz >check.out 2>&1
LOG=scMamba.Rcheck/00check.log
[ -e "$LOG" ] || { cat check.out >&2 && die "R CMD check wrote no log."; }

# block: every check that ended otherwise than OK, with its text.
blocks() {
  awk '/^\* /{ if (keep) printf "%s", text; text = ""; keep = 0 }
    { text = text $0 "\n" } /^\* .*\.\.\.( \[.*\])? (NOTE|WARNING|ERROR)$|^ *(NOTE|WARNING|ERROR)$/ { keep = 1 }
    END { if (keep) printf "%s", text }' "$LOG" | sed "s#$WORK#.#g"
}
TABLE=scMamba.Rcheck/scMamba-Ex.timings
{
  echo "R CMD check --as-cran --no-tests --ignore-vignettes ($(R --version | head -n 1 | cut -d' ' -f3), written by scripts/as_cran.sh)"
  echo "switched off: $OFF"
  [ "${#MANUAL[@]}" = 0 ] || echo "not checked: the manual as PDF (--no-manual; LaTeX's fonts are not installed)"
  echo "tarball: $(($(stat -c %s scMamba_*.tar.gz) / 1000000)) MB"
  grep '^Status' "$LOG"
  printf '\n'
  blocks
  printf '\nCPU seconds of the slowest examples (limit of the check: 5)\n'
  [ ! -e "$TABLE" ] || awk -F'\t' 'NR > 1 { printf "%-28s %5.1f\n", $1, $2 + $3 }' "$TABLE" | sort -k2,2nr | head -n 8
} >"$ROOT/benchmarks/results/as_cran.txt"
cat "$ROOT/benchmarks/results/as_cran.txt"
