#!/usr/bin/env bash
# Install everything scMamba needs into this checkout. Safe to run again; quick if nothing changed.
#   scripts/setup.sh demo   R, Seurat, Python and both packages
#   scripts/setup.sh test   the same, and what the test suites, R CMD check and the linters need
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
WHAT="${1:-demo}"

APT_R=(r-base-core r-base-dev r-cran-seurat r-cran-seuratobject r-cran-reticulate r-cran-cli r-cran-ggplot2
  r-cran-patchwork r-cran-withr)
APT_TEST=(r-cran-testthat r-cran-roxygen2 r-cran-knitr r-cran-rmarkdown r-bioc-biocstyle
  r-bioc-singlecellexperiment r-bioc-hdf5array r-bioc-biocparallel r-cran-lintr r-cran-vdiffr r-cran-pkgdown pandoc qpdf
  mmdebstrap)

# --- R -----------------------------------------------------------------------------------------------
system_packages() {
  local packages=("${APT_R[@]}")
  [ "$WHAT" != test ] || packages+=("${APT_TEST[@]}")
  # Installed here as well, to avoid a second call of apt if only Debian's bare python3 is present.
  [ -x "$VENV/bin/python" ] || find_python >/dev/null || packages+=(python3-venv)
  need_apt "${packages[@]}"
  # The server's page is tested in a real browser; those tests are skipped without one.
  if [ "$WHAT" = test ] && ! have chromium && ! have google-chrome && have dpkg-query && is_root; then
    (need_apt chromium) || warn "Chromium was not installed; the tests of the server's page will be skipped"
  fi
  # The server is tested behind a real TLS proxy.
  if [ "$WHAT" = test ] && ! have nginx && [ ! -x /usr/sbin/nginx ] && have dpkg-query && is_root; then
    (need_apt nginx-light openssl) || warn "nginx was not installed; the tests of the server behind a proxy will be skipped"
  fi
  # deploy/*.slurm are tested in a real cluster of two nodes on this machine.
  if [ "$WHAT" = test ] && ! have slurmctld && have dpkg-query && is_root; then
    (need_apt munge slurm-wlm) || warn "Slurm was not installed; the tests of its scripts will be skipped"
  fi
  have Rscript || die "R (4.1 or newer) with Seurat was not found; install R from CRAN, then in R:
  install.packages(c('Seurat', 'reticulate', 'cli', 'patchwork', 'withr', 'testthat', 'rmarkdown', 'lintr'))"
}

# --- Python ------------------------------------------------------------------------------------------
# R embeds Python, so it needs a Python with a shared library; venv and ensurepip make the environment.
usable_python() {
  "$1" - >/dev/null 2>&1 <<'PY'
import sys, sysconfig
import ensurepip, venv
assert sys.version_info >= (3, 10)
assert sysconfig.get_config_var("Py_ENABLE_SHARED") or sys.platform in ("darwin", "win32")
PY
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3.10 python3 /usr/bin/python3; do
    if have "$candidate" && usable_python "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return 0
    fi
  done
  return 1
}

python_environment() {
  local python
  if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
    return 0
  fi
  if ! python="$(find_python)"; then
    need_apt python3-venv
    python="$(find_python)" || die "Python 3.10 or newer, with venv and a shared library, was not found; install it or
name it: make ${MAKECMDGOALS:-demo} PYTHON=/path/to/python3"
  fi
  # Debian packages the shared library that R needs separately from the interpreter.
  case "$("$python" -c 'import sys; print(sys.base_prefix)')" in
    /usr) need_apt "libpython$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" ;;
  esac
  say "creating the Python environment .venv with $("$python" --version)"
  rm -rf "$VENV"
  quietly "$python" -m venv "$VENV" || die "python -m venv failed (its own words are above)."
}

pip_install() { quietly "$VENV/bin/python" -m pip install -q --disable-pip-version-check "$@"; }

python_packages() {
  local extras="" name wanted=()
  if [ "$WHAT" = test ]; then
    extras="[test,bench,train,serve,r]"
    # Newer ones call functions that R gained later, and cannot be loaded.
    Rscript --vanilla -e "q(status = getRversion() < '4.5')" || wanted+=("rpy2-rinterface<3.6.6")
  fi
  name="pip-$WHAT-$(fingerprint pyproject.toml scripts/setup.sh)"
  stamped "$name" && [ -e "$STAMPS/venv-$(stat -c %Y "$VENV/pyvenv.cfg")" ] && return 0
  # By name and alone: resolved together with other packages, pip may choose the build with gigabytes of CUDA.
  if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null; then
    say "installing $TORCH (CPU build; 1 to 2 minutes)"
    pip_install "$TORCH" || pip_install torch || die "pip could not install torch (its own words are above)."
  fi
  say "installing the Python package scmamba$extras"
  pip_install -e ".$extras" "${wanted[@]}" || die "pip could not install scmamba (its own words are above)."
  stamp "$name" "pip-$WHAT-"
  stamp "venv-$(stat -c %Y "$VENV/pyvenv.cfg")" "venv-"
}

# --- the R side --------------------------------------------------------------------------------------
reticulate_ok() {
  R_LIBS="$RLIB" Rscript --vanilla -e "q(status = !(requireNamespace('reticulate', quietly = TRUE) &&
    packageVersion('reticulate') >= '$RETICULATE_MIN'))" >/dev/null 2>&1
}

# Debian 12 has reticulate 1.28, which supports neither NumPy 2 nor current scipy; the next Debian's source
# package builds on it. A private apt directory: the machine's own sources are not changed.
reticulate_from_debian() {
  local mirror work keyring
  have apt-get || return 1
  mirror="$(debian_mirror)"
  [ -n "$mirror" ] || return 1
  keyring="$(debian_keyring)"
  work="$(mktemp -d)"
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  echo "deb-src ${keyring:+[signed-by=$keyring] }$mirror trixie main" >"$work/sources.list"
  local apt=(apt-get -q -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=
    -o Acquire::Retries=3)
  (
    cd "$work"
    quietly "${apt[@]}" update &&
      quietly "${apt[@]}" source --download-only --tar-only r-cran-reticulate &&
      tar xf r-cran-reticulate_*.orig.tar.* &&
      quietly R CMD INSTALL --no-docs --no-test-load -l "$RLIB" reticulate
  )
  local code=$?
  rm -rf "$work"
  return "$code"
}

reticulate_from_cran() {
  quietly Rscript --vanilla -e "repos <- getOption('repos'); if (identical(unname(repos['CRAN']), '@CRAN@')) q(status = 1)
    install.packages('reticulate', lib = '$RLIB')"
}

r_reticulate() {
  stamped "reticulate-$(Rscript --version 2>&1 | tr -dc '0-9.')" && [ -d "$RLIB/reticulate" ] && return 0
  if ! reticulate_ok; then
    say "building reticulate for the private R library (20 seconds)"
    reticulate_from_debian || reticulate_from_cran || true
    reticulate_ok || die "R needs the package reticulate $RETICULATE_MIN or newer; in R, type
  install.packages('reticulate')
and run the same make command again."
  fi
  stamp "reticulate-$(Rscript --version 2>&1 | tr -dc '0-9.')" "reticulate-"
}

r_package() {
  local name
  name="rpkg-$(fingerprint DESCRIPTION NAMESPACE $(find -L R man inst -type f -not -path '*/__pycache__/*' 2>/dev/null | sort))"
  stamped "$name" && [ -d "$RLIB/scMamba" ] && return 0
  say "installing the R package scMamba into .cache/rlib"
  R_LIBS="$RLIB" quietly R CMD INSTALL --no-test-load --no-docs -l "$RLIB" . ||
    die "R CMD INSTALL failed (its own words are above)."
  stamp "$name" "rpkg-"
}

system_packages
python_environment
python_packages
r_reticulate
r_package
say "everything is installed"
