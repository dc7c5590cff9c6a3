#!/usr/bin/env bash
# Known vulnerabilities of the packages in the server image, and of the code; and the lock file of the image.
#   scripts/audit.sh check   pip-audit on deploy/requirements.lock, bandit on python/scmamba
#   scripts/audit.sh lock    write deploy/requirements.lock again (uv; needs the network)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
WHAT="${1:-check}"
TOOLS="$ROOT/.cache/audit"
LOCK=deploy/requirements.lock

tools() {
  [ -x "$TOOLS/bin/python" ] || python3 -m venv "$TOOLS"
  quietly "$TOOLS/bin/python" -m pip install -q --disable-pip-version-check "$@"
}

case "$WHAT" in
  lock)
    tools 'uv>=0.5'
    part="$(mktemp)"
    echo '# Packages of the server image with hashes (Linux x86_64, Python 3.11); made by: make lock' >"$part"
    "$TOOLS/bin/uv" pip compile -q pyproject.toml --extra serve --extra postgres --generate-hashes --no-header --no-annotate \
      --python-version 3.11 --python-platform x86_64-unknown-linux-gnu >>"$part"
    mv "$part" "$LOCK"
    say "$LOCK names $(grep -c '==' "$LOCK") packages"
    ;;
  check)
    tools 'pip-audit>=2.7' 'bandit>=1.7'
    status=0
    "$TOOLS/bin/pip-audit" --strict --progress-spinner off --disable-pip --require-hashes -r "$LOCK" || status=1
    # Of medium severity and more; accepted lines carry "# nosec" with the number and the reason.
    "$TOOLS/bin/bandit" -q -ll -r python/scmamba || status=1
    exit "$status"
    ;;
  *) die "unknown: $WHAT" ;;
esac
