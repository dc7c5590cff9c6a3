#!/usr/bin/env bash
# Run the suites named on the command line and print the result of each, and the skipped tests with reasons, at the end. All
# of them run, even if an early one fails; the exit status is 0 only if none failed.
#   scripts/test.sh pytest testthat testthat5 interop5 vignettes5 check lint
# Two run at a time, the longest first; every suite writes to a file, and the files are printed whole at the end.
#   PYTEST_WORKERS=1   processes of pytest (as many as there are processors)
#   PYTEST_ARGS="..."  more arguments for pytest
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
# With PYTHONDONTWRITEBYTECODE, as containers often have it, each of some two hundred processes would compile the package again,
# and pytest all that it rewrites.
unset LD_LIBRARY_PATH PYTHONDONTWRITEBYTECODE
# The tests' networks are tiny: more threads only wait for each other, indefinitely on a busy machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-2}"
LOGS="$ROOT/.cache/check"
SKIPS="$LOGS/skips"
# Tests that need no second Seurat run once, if both runs were asked for.
SECOND=""
case " $* " in *" testthat "*) SECOND=second ;; esac
mkdir -p "$LOGS" "$SKIPS"

suite_pytest() {
  local report="$LOGS/pytest.xml" workers="${PYTEST_WORKERS:-$(getconf _NPROCESSORS_ONLN)}"
  rm -f "$report"
  # Tests of one file run in one process, because they share fixtures. Where a process dies, pytest-xdist starts it again and
  # waits forever for tests that no process has: the run ends instead, with the name of the test.
  # shellcheck disable=SC2086
  PYTHONPATH=python "$VENV/bin/python" -m pytest -p no:cacheprovider --junitxml="$report" \
    -n "$workers" --dist loadfile --max-worker-restart=0 --durations=20 ${PYTEST_ARGS:-}
  local code=$?
  "$VENV/bin/python" scripts/skips.py count pytest "$report" || code=1
  return "$code"
}

suite_testthat() {
  (
    r_environment
    SCMAMBA_SKIPS="$SKIPS/testthat.tsv" Rscript --vanilla scripts/testthat.R
  )
}

# Two suites need it, possibly at once: one installs, the other waits.
install5() {
  local rlib="$ROOT/.cache/rlib-seurat5" code=0
  exec 8>"$LOGS/install5.lock"
  flock 8
  if [ ! -e "$LOGS/installed5" ]; then
    scripts/seurat5.sh || code=$?
    mkdir -p "$rlib"
    [ "$code" != 0 ] || quietly scripts/in_seurat5.sh R CMD INSTALL --no-docs --no-test-load -l "$rlib" . || {
      echo "R CMD INSTALL failed inside the Seurat 5 root"
      code=1
    }
    [ "$code" != 0 ] || : >"$LOGS/installed5"
  fi
  exec 8>&-
  return "$code"
}

suite_testthat5() {
  install5 || return $?
  # shellcheck disable=SC2086
  SCMAMBA_SKIPS="$SKIPS/testthat5.tsv" scripts/in_seurat5.sh Rscript --vanilla scripts/testthat.R $SECOND
}

# The conversion tests of pytest, with the R of the other Seurat. rpy2 was compiled for this R: ABI mode loads any.
suite_interop5() {
  install5 || return $?
  local report="$LOGS/interop5.xml" code=0
  rm -f "$report"
  scripts/in_seurat5.sh env RPY2_CFFI_MODE=ABI PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH=python "$VENV/bin/python" -m pytest -p no:cacheprovider \
    --junitxml="$report" tests/python/interop/interop_cases.py || code=1
  "$VENV/bin/python" scripts/skips.py count interop5 "$report" || code=1
  return "$code"
}

# On this Seurat R CMD build runs the vignettes.
suite_vignettes5() {
  install5 || return $?
  scripts/in_seurat5.sh Rscript --vanilla scripts/vignettes.R
}

suite_check() {
  local work
  work="$(mktemp -d)"
  (
    r_environment
    # R CMD build first copies the whole folder, with the environments of Python: gigabytes.
    mkdir "$work/source"
    tar -C "$ROOT" --exclude=./.venv --exclude=./.cache --exclude=./.git -cf - . | tar -C "$work/source" -xf -
    cd "$work"
    # The package contains the Python package with its weights: 21 MB, more than the 5 MB of R's note.
    export _R_CHECK_PKG_SIZES_THRESHOLD_=40
    export _R_CHECK_FORCE_SUGGESTS_=false _R_CHECK_SYSTEM_CLOCK_=0 _R_CHECK_FUTURE_FILE_TIMESTAMPS_=false
    # Building runs the vignettes; the check would run them twice more.
    R CMD build source && R CMD check --no-manual --no-tests --no-vignettes scMamba_*.tar.gz &&
      grep '^Status' scMamba.Rcheck/00check.log | grep -qx 'Status: OK'
  )
  local code=$?
  if [ -e "$work/scMamba.Rcheck/00check.log" ]; then
    grep '^Status' "$work/scMamba.Rcheck/00check.log"
  else
    echo "R CMD build failed"
  fi
  rm -rf "$work"
  closing check "$code"
}

suite_lint() {
  local failed=0
  "$VENV/bin/python" -m ruff check --no-cache python tests benchmarks scripts || failed=$((failed + 1))
  "$VENV/bin/python" -m ruff format --no-cache --check python tests benchmarks scripts || failed=$((failed + 1))
  PYTHONPATH=python "$VENV/bin/lint-imports" --no-cache || failed=$((failed + 1))
  "$VENV/bin/python" -m mypy --cache-dir "$ROOT/.cache/mypy" || failed=$((failed + 1))
  "$VENV/bin/codespell" python R docs benchmarks scripts tests vignettes ./*.md || failed=$((failed + 1))
  (
    r_environment
    Rscript --vanilla -e 'found <- lintr::lint_package(); print(found); quit(status = length(found) > 0)'
  ) || failed=$((failed + 1))
  echo "lint (ruff, format, import-linter, mypy, codespell, lintr): $((6 - failed)) passed, $failed failed, 0 skipped"
  [ "$failed" = 0 ]
}

# closing NAME CODE: the last line of a suite that is one check, and its exit status.
closing() {
  if [ "$2" = 0 ]; then echo "$1: 1 passed, 0 failed, 0 skipped"; else echo "$1: 0 passed, 1 failed, 0 skipped"; fi
  return "$2"
}

# run NAME: the suite's output into its file, its exit status into another.
run() {
  local name="$1" code started=$SECONDS
  rm -f "$LOGS/$name.code" "$SKIPS/$name.tsv"
  "suite_$name" >"$LOGS/$name.log" 2>&1 </dev/null
  code=$?
  echo "$code" >"$LOGS/$name.code"
  # 3: not possible here, the last line gives the reason.
  [ "$code" != 3 ] || printf '%s\t%s\n' "all of $name" "$(tail -n 1 "$LOGS/$name.log" | sed 's/^\[[^]]*\] *//')" >"$SKIPS/$name.tsv"
  say "$name: finished after $((SECONDS - started)) s [exit $code]"
}

# lane NAME...: run suites that no other lane has started, until none remains.
lane() {
  trap 'exit 130' INT
  for name in "$@"; do
    if mkdir "$TAKEN/$name" 2>/dev/null; then run "$name"; fi
  done
}

# Ctrl-C ends all processes started here: first by SIGINT, so that tests can stop their servers.
LANES=()
stop_all() {
  trap '' INT TERM
  warn "stopping"
  local name signal group left
  for name in "${ORDER[@]}"; do
    if [ -e "$TAKEN/$name" ] && [ ! -e "$LOGS/$name.code" ]; then
      printf '\n===== %s: not finished, its last lines =====\n' "$name"
      tail -n 60 "$LOGS/$name.log"
    fi
  done
  for signal in INT TERM KILL; do
    for group in "${LANES[@]}"; do kill "-$signal" -- "-$group" 2>/dev/null; done
    for _ in {1..10}; do
      left=0
      for group in "${LANES[@]}"; do ! kill -0 -- "-$group" 2>/dev/null || left=1; done
      [ "$left" = 1 ] || exit 130
      sleep 0.5
    done
  done
  exit 130
}
trap stop_all INT TERM

rm -f "$SKIPS"/*.tsv "$LOGS/installed5"
for name in "$@"; do : >"$LOGS/$name.log"; done
TAKEN="$LOGS/taken"
rm -rf "$TAKEN"
mkdir "$TAKEN"
ORDER=()
for name in pytest testthat5 testthat check interop5 vignettes5 lint; do
  for wanted in "$@"; do [ "$name" != "$wanted" ] || ORDER+=("$name"); done
done
say "running $* (their output is kept in .cache/check)"
set -m # every lane is a separate process group, so that it can be ended completely
for _ in 1 2; do
  [ "${#LANES[@]}" -lt "$#" ] || break
  lane "${ORDER[@]}" &
  LANES+=("$!")
done
# The output of a single suite is shown while it runs.
if [ "$#" = 1 ]; then
  tail -n +1 --pid="${LANES[0]}" -F "$LOGS/$1.log" 2>/dev/null &
  LANES+=("$!")
fi
wait
set +m
trap - INT TERM

FAILED=0
SUMMARY=()
for name in "$@"; do
  if [ "$#" -gt 1 ]; then
    printf '\n===== %s =====\n' "$name"
    cat "$LOGS/$name.log"
  fi
  code="$(cat "$LOGS/$name.code" 2>/dev/null || echo 1)"
  if [ "$code" = 3 ]; then
    SUMMARY+=("$name: 0 passed, 0 failed, 1 skipped")
  else
    [ "$code" = 0 ] || FAILED=1
    SUMMARY+=("$(grep -v '^[[:space:]]*$' "$LOGS/$name.log" | tail -n 1)")
  fi
done
printf '\n'
"$VENV/bin/python" scripts/skips.py list || FAILED=1
printf '\n'
printf '%s\n' "${SUMMARY[@]}"
exit "$FAILED"
