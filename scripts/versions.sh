#!/usr/bin/env bash
# A reduced Python suite with other versions of all dependencies, each in a separate virtual environment.
#   scripts/versions.sh lowest   the lowest versions pyproject.toml declares, on Python 3.10
#   scripts/versions.sh newest   the newest of everything, on Python 3.13
# The environments (some gigabytes each if only the torch with CUDA is available) stay in .cache until
# `make distclean`; the versions in them are printed. PYTHON=/path/to/python3 chooses another Python.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
unset LD_LIBRARY_PATH
WHAT="$1"
case "$WHAT" in
  lowest) WANTED=3.10 RESOLUTION=lowest-direct ;;
  newest) WANTED=3.13 RESOLUTION=highest ;;
  *) die "lowest or newest, not '$WHAT'" ;;
esac
ENVIRONMENT="$ROOT/.cache/$WHAT"
# What the two suites need in addition to the package's own extras; the rest of [test] is for other suites.
EXTRAS="[train,serve,prepare]"
BESIDE=("zarr>=2.18" "pytest>=8.2" "pytest-xdist>=3.5" "pytest-timeout>=2.3" "statsmodels>=0.14" "psutil>=5.9")

version_of() { "$1" -c 'import sys, ensurepip, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

# The wanted Python, wherever it was installed; else the nearest version.
find_version() {
  local candidate best=""
  for candidate in ${PYTHON:-} "python$WANTED" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$WANTED".*/bin/python \
    "$("$UV" python find --no-python-downloads "$WANTED" 2>/dev/null || true)"; do
    [ -n "$candidate" ] && [ -n "$(version_of "$candidate")" ] || continue
    if [ -n "${PYTHON:-}" ] || [ "$(version_of "$candidate")" = "$WANTED" ]; then
      echo "$candidate"
      return 0
    fi
  done
  for candidate in python3.10 python3.11 python3.12 python3.13 python3.14 "$VENV/bin/python"; do
    [ -n "$(version_of "$candidate")" ] || continue
    best="$candidate"
    [ "$WHAT" = newest ] || break
  done
  [ -n "$best" ] || die "no Python with venv was found; name one: make test-$WHAT PYTHON=/path/to/python3"
  warn "Python $WANTED was not found; Python $(version_of "$best") is used instead"
  echo "$best"
}

# uv can install the lowest declared versions; it is a wheel like any other.
TOOLS="$ROOT/.cache/uv-tools"
UV="$TOOLS/bin/uv"
if [ ! -x "$UV" ]; then
  python3 -m venv "$TOOLS" || die "python3 -m venv failed (its own words are above)."
  quietly "$TOOLS/bin/python" -m pip install -q --disable-pip-version-check uv || die "pip could not install uv."
fi
export UV_CACHE_DIR="$ROOT/.cache/uv" UV_LINK_MODE=hardlink

STAMP="$WHAT-$(echo "$WANTED $RESOLUTION $EXTRAS ${BESIDE[*]}" | fingerprint pyproject.toml -)"
if ! stamped "$STAMP" || [ ! -x "$ENVIRONMENT/bin/python" ]; then
  python="$(find_version)"
  say "creating .cache/$WHAT with $("$python" --version)"
  rm -rf "$ENVIRONMENT"
  quietly "$UV" venv --python "$python" "$ENVIRONMENT" || die "uv could not make the environment."
  say "installing the $WHAT versions of everything (two to ten minutes)"
  install=("$UV" pip install -q --python "$ENVIRONMENT/bin/python" --resolution "$RESOLUTION" -e ".$EXTRAS" "${BESIDE[@]}")
  # The small build for processors comes from PyTorch's own index; PyPI's brings gigabytes of CUDA.
  UV_HTTP_TIMEOUT=20 "${install[@]}" --torch-backend cpu >/dev/null 2>&1 || {
    warn "PyTorch's own index does not answer: taking the build with CUDA from PyPI"
    quietly "${install[@]}" || die "uv could not install the $WHAT versions (its own words are above)."
  }
  stamp "$STAMP" "$WHAT-"
fi
[ "${2:-}" != install ] || exit 0

# Numbers and rules of every part, and verbs from file to file; the omitted tests are those of servers, R and long runs.
NAMES=(genes gene_map genes_rules genes_objects datasets datasets_parts files_progress preprocess preprocess_rules model
  model_published model_forward scan scan_rules cli cli_options cli_train collection collection_rules stores_rules impute
  impute_rule annotate_markers annotate_result neighbours_rules clusters deg_edges deg_mast deg_twogroup deg_values
  deg_pseudobulk doublets_calls doublets_features training_loop training_feeds training_classes gated_ensemble
  training_rates training_settings evaluation_numbers prepare_steps serve_rules serve_api h5_output slots
  tables deg_inputs deg_plan deg_compare deg_report)
FILES=()
for name in "${NAMES[@]}"; do
  file="$(find tests/python -name "test_$name.py")"
  [ -f "$file" ] || die "there is no test_$name.py (any more); the list in scripts/versions.sh names it"
  FILES+=("$file")
done
# What umap-learn, pynndescent and numba compile: nowhere else are there other versions of them.
export SCMAMBA_TEST_VERSIONS=1
FILES+=(tests/python/utils/test_compiled_code.py::test_umap_is_compiled_by_the_first_process_only
  tests/python/preprocessing/test_prepare.py::test_samples_with_approximate_neighbors)

"$ENVIRONMENT/bin/python" - <<'PY'
import sys
from importlib.metadata import distributions

names = "torch numpy scipy pandas anndata h5py zarr numba scikit-learn scanpy typer fastapi".split()
versions = {found.name.lower().replace("_", "-"): found.version for found in distributions()}
print(f"Python {sys.version.split()[0]}", *(f"{name} {versions.get(name, 'missing')}" for name in names), sep=", ")
PY
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" NUMBA_NUM_THREADS="${NUMBA_NUM_THREADS:-2}"
REPORT="$ROOT/.cache/check/$WHAT.xml"
mkdir -p "$ROOT/.cache/check/skips"
rm -f "$REPORT"
code=0
# shellcheck disable=SC2086
PYTHONPATH=python "$ENVIRONMENT/bin/python" -m pytest -p no:cacheprovider --junitxml="$REPORT" \
  -n "${PYTEST_WORKERS:-$(getconf _NPROCESSORS_ONLN)}" --dist loadfile --max-worker-restart=0 "${FILES[@]}" ${PYTEST_ARGS:-} || code=$?
"$ENVIRONMENT/bin/python" scripts/skips.py count "test-$WHAT" "$REPORT" || code=1
# R with this Python: reticulate converts by the names of classes, which change with the versions of pandas and numpy.
if [ "$WHAT" = newest ] && [ -d "$RLIB/reticulate" ]; then
  (
    quietly R CMD INSTALL --no-docs --no-test-load -l "$RLIB" .
    r_environment
    export RETICULATE_PYTHON="$ENVIRONMENT/bin/python"
    SCMAMBA_SKIPS="$ROOT/.cache/check/skips/newest-r.tsv" Rscript --vanilla scripts/testthat.R python
  ) || code=1
fi
exit "$code"
