#!/usr/bin/env bash
# scMamba from R on two data sets. Everything is installed already (scripts/setup.sh).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
r_environment
unset LD_LIBRARY_PATH
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc 2>/dev/null || echo 2)}"
mkdir -p demo-output
Rscript --vanilla demo/demo.R demo-output
