#!/usr/bin/env bash
# Run the suites named on the command line and say at the end how each went. All of them run, even when an
# early one fails; the exit status is 0 only when none failed.
#   scripts/test.sh pytest testthat testthat5 vignettes5 check lint
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
unset LD_LIBRARY_PATH
# The tests' networks are tiny: more threads only wait for each other, for ever on a busy machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-2}"
LOGS="$ROOT/.cache/check"
mkdir -p "$LOGS"
SUMMARY=()
FAILED=0

# run NAME COMMAND...: the command's last line is its summary.
run() {
  local name="$1" log="$LOGS/$1.log" code
  shift
  say "$name"
  "$@" 2>&1 | tee "$log"
  code="${PIPESTATUS[0]}"
  if [ "$code" = 3 ]; then
    SUMMARY+=("$name: skipped ($(tail -n 1 "$log" | sed 's/^\[[^]]*\] *//'))")
  else
    [ "$code" = 0 ] || FAILED=1
    SUMMARY+=("$name: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1) [exit $code]")
  fi
}

suite_pytest() {
  (export PYTHONPATH=python && "$VENV/bin/python" -m pytest -p no:cacheprovider)
}

suite_testthat() {
  (
    r_environment
    Rscript --vanilla scripts/testthat.R
  )
}

install5() {
  scripts/seurat5.sh || return $?
  local rlib="$ROOT/.cache/rlib-seurat5"
  mkdir -p "$rlib"
  quietly scripts/in_seurat5.sh R CMD INSTALL --no-docs --no-test-load -l "$rlib" . || {
    echo "R CMD INSTALL failed inside the Seurat 5 root"
    return 1
  }
}

suite_testthat5() {
  install5 || return $?
  scripts/in_seurat5.sh Rscript --vanilla scripts/testthat.R
}

# On this Seurat R CMD build does it.
suite_vignettes5() {
  install5 || return $?
  scripts/in_seurat5.sh Rscript --vanilla scripts/vignettes.R
}

suite_check() {
  local work
  work="$(mktemp -d)"
  (
    r_environment
    cd "$work"
    export _R_CHECK_FORCE_SUGGESTS_=false _R_CHECK_SYSTEM_CLOCK_=0 _R_CHECK_FUTURE_FILE_TIMESTAMPS_=false
    # Building runs the vignettes; the check would run them twice more.
    R CMD build "$ROOT" && R CMD check --no-manual --no-tests --no-vignettes scMamba_*.tar.gz &&
      grep '^Status' scMamba.Rcheck/00check.log | grep -qx 'Status: OK'
  )
  local code=$?
  if [ -e "$work/scMamba.Rcheck/00check.log" ]; then
    grep '^Status' "$work/scMamba.Rcheck/00check.log"
  else
    echo "R CMD build failed"
  fi
  rm -rf "$work"
  return "$code"
}

suite_lint() {
  local code=0
  "$VENV/bin/python" -m ruff check --no-cache python tests benchmarks scripts || code=1
  "$VENV/bin/python" -m mypy --cache-dir "$ROOT/.cache/mypy" || code=1
  (
    r_environment
    Rscript --vanilla -e 'found <- lintr::lint_package(); print(found); quit(status = length(found) > 0)'
  ) || code=1
  [ "$code" = 0 ] && echo "ruff, mypy and lintr are satisfied" || echo "the linters found something"
  return "$code"
}

for name in "$@"; do run "$name" "suite_$name"; done
printf '\n'
printf '%s\n' "${SUMMARY[@]}"
exit "$FAILED"
