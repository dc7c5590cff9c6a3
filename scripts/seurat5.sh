#!/usr/bin/env bash
# Build a small Debian 13 root with R 4.5 and Seurat 5, used by `make test` only. Built once, shared by all
# checkouts of this user. Exit 3: not possible here (the reason is printed), which is not a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

skip() {
  warn "Seurat 5 tests skipped: $*"
  exit 3
}

PACKAGES="ca-certificates,r-base-core,r-cran-seurat,r-cran-reticulate,r-cran-cli,r-cran-withr"
PACKAGES="$PACKAGES,r-bioc-singlecellexperiment,r-bioc-hdf5array,r-cran-testthat"

[ ! -e "$SEURAT5/$SEURAT5_STAMP" ] || exit 0
is_root || skip "building and entering the Debian 13 root needs root."
have mmdebstrap || skip "mmdebstrap is not installed (apt-get install mmdebstrap)."
unshare --mount --propagation private true 2>/dev/null || skip "this machine does not allow mount namespaces (unshare)."
mirror="$(debian_mirror)"
[ -n "$mirror" ] || skip "no Debian mirror was found in the configuration of apt."

mkdir -p "$(dirname "$SEURAT5")"
free_mb="$(df -Pm "$(dirname "$SEURAT5")" | awk 'NR == 2 { print $4 }')"
[ "$free_mb" -gt 2500 ] || skip "2.5 GB of free disk are needed for it, $free_mb MB are left."

say "building a Debian 13 root with Seurat 5 (once; 1.1 GB, about 90 seconds)"
partial="$SEURAT5.partial.$$"
trap 'rm -rf --one-file-system "$partial"' EXIT
keyring="$(debian_keyring)"
quietly mmdebstrap --quiet --variant=minbase --mode=root --include="$PACKAGES" \
  ${keyring:+--keyring="$keyring"} \
  --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Retries "3"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  trixie "$partial" "$mirror" || skip "mmdebstrap failed (its own words are above)."
# The former name as well: other checkouts share the root.
touch "$partial/.scmamba-complete" "$partial/$SEURAT5_STAMP"
rm -rf --one-file-system "$SEURAT5"
mv "$partial" "$SEURAT5"
say "Seurat 5 root ready: $SEURAT5"
