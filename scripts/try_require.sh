#!/usr/bin/env bash
# The road of scmamba_require() from an empty home folder, twice: uv prepares Python when the first verb is called.
# uv takes Python from GitHub. Here it takes the same kind of archive from a file, made of the Python of .venv, so that the rest can
# be tried where GitHub cannot be reached: reticulate, uv, and all packages from the Package Index (some gigabytes without
# PyTorch's own index).
#   scripts/try_require.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# reticulate 1.41 knows uv as it was in spring 2025: later ones remove the environment that they made.
"$VENV/bin/python" -m venv "$work/uv"
quietly "$work/uv/bin/pip" install -q "uv==0.7.2"

say "packing this Python"
"$VENV/bin/python" - "$work" <<'PY'
import json, os, platform, sys, tarfile
work, prefix = sys.argv[1], os.path.realpath(sys.base_prefix)
if prefix == "/usr":
    sys.exit("the system's Python cannot be packed: make .venv with another one (PYTHON=... make setup)")
skip = ("/test", "/__pycache__")
with tarfile.open(f"{work}/python.tar.gz", "w:gz", compresslevel=1) as archive:
    archive.add(prefix, "python", filter=lambda f: None if f.name.endswith(skip) else f)
major, minor, patch = sys.version_info[:3]
about = dict(
    name="cpython", arch=dict(family=platform.machine(), variant=None), os="linux", libc="gnu", major=major, minor=minor,
    patch=patch, prerelease="", url=f"file://{work}/python.tar.gz", sha256=None, variant=None, build="20250101",
)
key = f"cpython-{major}.{minor}.{patch}-linux-{platform.machine()}-gnu"
with open(f"{work}/downloads.json", "w") as file:
    json.dump({key: about}, file)
PY
cat >"$work/try.R" <<'R'
suppressPackageStartupMessages(library(scMamba))
scmamba_require()
object <- ScMambaImpute(SeuratObject::pbmc_small, force = TRUE)
stopifnot("scmamba" %in% SeuratObject::Assays(object), Matrix::nnzero(SeuratObject::GetAssayData(object, assay = "scmamba")) > 5000)
scmamba_config()
R
mkdir "$work/home" "$work/here"
for round in first second; do
  say "$round time"
  (
    cd "$work/here"
    env -i HOME="$work/home" PATH="$work/uv/bin:/usr/local/bin:/usr/bin:/bin" LANG=C.UTF-8 R_LIBS="$RLIB" \
      ${SSL_CERT_FILE:+SSL_CERT_FILE="$SSL_CERT_FILE"} UV_PYTHON_DOWNLOADS_JSON_URL="$work/downloads.json" \
      Rscript --vanilla "$work/try.R" 2>&1 | grep -v -E '^ *(Downloading|Downloaded) '
  )
done
[ -z "$(ls -A "$work/here")" ] || die "files were written into the working folder: $(ls -A "$work/here")"
say "both times a result; nothing was written into the working folder"
