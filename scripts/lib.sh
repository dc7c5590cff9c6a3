# Shared by the set-up scripts; sourced, never run.
# Callers have already done `set -euo pipefail` and cd'd into the checkout.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
RLIB="$ROOT/.cache/rlib"
STAMPS="$ROOT/.cache/stamps"
SEURAT5="${SCMAMBA_SEURAT5:-${XDG_CACHE_HOME:-$HOME/.cache}/scmamba/seurat5}"
# Another name whenever the list of its packages changes.
SEURAT5_STAMP=".scmamba-complete-hdf5array"
TORCH="torch==2.13.0"
RETICULATE_MIN="1.39"

mkdir -p "$STAMPS" "$RLIB"

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }
warn() { printf '[%4ds] %s\n' "$SECONDS" "$*" >&2; }
die() {
  printf '\nscMamba set-up stopped: %s\n' "$*" >&2
  exit 1
}

is_root() { [ "$(id -u)" = 0 ]; }
have() { command -v "$1" >/dev/null 2>&1; }

# Run quietly; show the output only when the command fails.
quietly() {
  local log
  log="$(mktemp)"
  if "$@" >"$log" 2>&1; then
    rm -f "$log"
  else
    local code=$?
    tail -n 40 "$log" >&2
    rm -f "$log"
    return "$code"
  fi
}

# fingerprint FILE...: changes when any of the files does.
fingerprint() { cat "$@" | cksum | cut -d' ' -f1; }

stamped() { [ -e "$STAMPS/$1" ]; }
# stamp NAME PREFIX: write the stamp NAME, remove older stamps that start with PREFIX.
stamp() {
  [ -z "${2:-}" ] || rm -f "$STAMPS/$2"*
  : >"$STAMPS/$1"
}

installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# need_apt PACKAGE...: install what is missing, or print the command that does.
need_apt() {
  local missing=()
  have dpkg-query || return 0 # not Debian: the caller checks for the programs themselves
  for package in "$@"; do installed "$package" || missing+=("$package"); done
  [ "${#missing[@]}" -gt 0 ] || return 0
  is_root || die "these Debian packages are missing and only root may install them; please run:
  sudo apt-get update && sudo apt-get install --no-install-recommends -y ${missing[*]}
and then the same make command again."
  local much=""
  [ "${#missing[@]}" -lt 5 ] || much=" (R and Seurat; one to four minutes)"
  say "installing ${#missing[@]} Debian packages$much"
  quietly apt-get -q -o DPkg::Lock::Timeout=600 update || warn "apt-get update failed; trying with the lists there are"
  DEBIAN_FRONTEND=noninteractive quietly apt-get -q -y -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 \
    -o Acquire::Retries=3 install --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install: ${missing[*]} (its own words are above)."
}

# The Debian mirror this machine already uses (never one written here).
debian_mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    grep -E '^[a-z+]+:.*debian/?$' | grep -v -- '-security' | head -n 1
}

debian_keyring() {
  local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ ! -e "$keyring" ] || printf '%s' "$keyring"
}

# R reads these: our private library first, our Python, no search for another one.
r_environment() {
  export R_LIBS="$RLIB${R_LIBS:+:$R_LIBS}"
  export RETICULATE_PYTHON="$VENV/bin/python"
  export RETICULATE_USE_MANAGED_VENV=false
}
