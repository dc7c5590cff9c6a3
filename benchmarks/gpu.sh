#!/usr/bin/env bash
# scMamba on an NVIDIA GPU, in minutes: correctness, then speed.
#
#   benchmarks/gpu.sh              # in an environment with torch for CUDA and scmamba[test] installed
#   benchmarks/gpu.sh --build      # first try to build mamba-ssm and causal-conv1d (needs nvcc, many minutes)
#   benchmarks/gpu.sh --dry-run    # without a GPU: every line once, tiny, on the processor; writes nothing
#
# What follows goes to gpu.py (--batch, --steps). Leaves benchmarks/results/gpu.json and gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python="${PYTHON:-python}"
unset TRITON_INTERPRET SCMAMBA_SCAN

case "${1:-}" in
  --build)
    shift
    MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE \
      "$python" -m pip install --no-build-isolation causal-conv1d mamba-ssm || echo "mamba-ssm could not be built here" >&2
    ;;
  --dry-run)
    shift
    export SCMAMBA_DRY_RUN=1 SCMAMBA_SCAN=chunked  # the model by plain torch; the scans name their backends
    # in the interpreter, where there is one, so that the Triton lines run too
    if "$python" -c "import triton" 2> /dev/null; then export TRITON_INTERPRET=1; fi
    exec "$python" -m benchmarks.gpu --batch 2 --steps 3 "$@"
    ;;
esac

"$python" - <<'PY'
import sys
import torch
from scmamba.ops import available_backends

if not torch.cuda.is_available():
    sys.exit("torch finds no NVIDIA GPU here: " + torch.__version__)
print(torch.cuda.get_device_name(), "torch", torch.__version__)
for name, state in available_backends().items():
    print(f"  {name}: {state}")
PY

"$python" -m pytest -q tests/python/ops/test_scan_triton.py
"$python" -m benchmarks.gpu "$@"
