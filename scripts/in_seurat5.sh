#!/usr/bin/env bash
# Run a command inside the Seurat 5 root, with this checkout and its Python at the same paths as outside.
#   scripts/in_seurat5.sh Rscript -e 'packageVersion("Seurat")'
# All mounts are in a separate mount namespace and end with the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
[ -e "$SEURAT5/$SEURAT5_STAMP" ] || die "the Seurat 5 root is missing; run scripts/seurat5.sh first."

# The files that the virtual environment's interpreter needs from outside: its prefix, or Debian's files one by one.
python_paths() {
  "$VENV/bin/python" - <<'PY'
import glob, os, sys
prefix = os.path.realpath(sys.base_prefix)
if prefix != "/usr":
    print(prefix)
else:
    version = "python%d.%d" % sys.version_info[:2]
    print(os.path.realpath(sys.executable))
    print("/usr/lib/" + version)
    for path in glob.glob("/usr/lib/*/lib%s*.so*" % version):
        print(path)
    if os.path.isdir("/usr/share/python-wheels"):  # Debian's ensurepip takes pip from there
        print("/usr/share/python-wheels")
PY
}

export SEURAT5 ROOT VENV
PYTHON_PATHS="$(python_paths)"
export PYTHON_PATHS
exec unshare --mount --propagation private bash -euo pipefail -c '
  bind() {
    if [ -d "$1" ]; then mkdir -p "$SEURAT5$1"; else mkdir -p "$(dirname "$SEURAT5$1")"; [ -e "$SEURAT5$1" ] || : >"$SEURAT5$1"; fi
    mount --bind "$1" "$SEURAT5$1"
  }
  mount -t proc proc "$SEURAT5/proc" 2>/dev/null || mount --rbind /proc "$SEURAT5/proc"
  mount --rbind /dev "$SEURAT5/dev"
  mount -t tmpfs tmpfs "$SEURAT5/tmp"
  bind "$ROOT"
  # The environment may be a link to one elsewhere.
  real="$(readlink -f "$VENV")"
  [ "$real" = "$VENV" ] || bind "$real"
  # Next to the checkout, where the tests look for real data sets.
  if [ -d "$ROOT/../shared" ]; then bind "$(cd "$ROOT/../shared" && pwd)"; fi
  while read -r path; do bind "$path"; done <<<"$PYTHON_PATHS"
  # Machine code that numba compiled outside serves inside: the Python and the processor are the same.
  compiled="${XDG_CACHE_HOME:-$HOME/.cache}/scmamba"
  mkdir -p -m 700 "$compiled" "$SEURAT5/root/.cache/scmamba"
  mount --bind "$compiled" "$SEURAT5/root/.cache/scmamba"
  exec chroot "$SEURAT5" /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    R_LIBS="$ROOT/.cache/rlib-seurat5" RETICULATE_PYTHON="$ROOT/.venv/bin/python" RETICULATE_USE_MANAGED_VENV=false \
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" SCMAMBA_SCAN="${SCMAMBA_SCAN:-}" SCMAMBA_ROOT="$ROOT" \
    SCMAMBA_SKIPS="${SCMAMBA_SKIPS:-}" \
    bash -c "cd \"\$SCMAMBA_ROOT\" && exec \"\$@\"" bash "$@"
' bash "$@"
