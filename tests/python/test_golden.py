"""The results of the shipped models and statistics equal those recorded in ``tests/data/golden`` (``scripts/record_golden.py``).

How near, and why:

* The bare network, in float32 on every backend, against its own answers in float64 step by step. Measured with the vector widths of
  AVX2 and plain x86, one thread and two, torch's and oneDNN's products: at most 2.4e-6, so 1e-5. With products of bfloat16 pairs, as the
  matrix unit makes them (AMX), at most 6.7e-5, so 1e-4 where there is such a unit.
* Imputed values and embeddings: float32 arithmetic only, the same bounds. Values near the smallest one kept may fall on either side of it,
  so what is compared is the larger of value and threshold.
* Annotation by markers or by a reference, doublets, tables of genes: sums and iterations in float64 that end within 1e-10 of each other;
  at most 4e-7 relative was seen (another OpenBLAS kernel, another number of threads). 1e-5 relative, 1e-6 for tables of genes; what is a
  choice must be the same choice.
* Nothing here is trained: rounding grows over the steps, and the tests of training judge it by what it learns.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from golden_cases import CASES, FOLDER, MODELS, forward
from reference_numbers import read_pack

MIN_IMPUTED = 0.2  # smallest value that the default imputation keeps
MATRIX_UNIT = Path("/proc/cpuinfo").exists() and "amx_bf16" in Path("/proc/cpuinfo").read_text()
NETWORK = 1e-4 if MATRIX_UNIT else 1e-5
#: First word of the case -> absolute and relative tolerance.
TOLERANCE = {
    "impute": (NETWORK, NETWORK),
    "embed": (NETWORK, NETWORK),
    "annotate": (1e-12, 1e-5),
    "doublets": (1e-6, 1e-5),
    "markers": (1e-12, 1e-6),
    "pseudobulk": (1e-10, 1e-6),
    "robustness": (1e-9, 1e-6),
}


@cache
def golden() -> dict[str, np.ndarray]:
    return read_pack(FOLDER / "answers.npz.xz")


def recorded(case: str) -> dict[str, np.ndarray]:
    return {
        name.rsplit("/", 1)[1]: values
        for name, values in golden().items()
        if name.rsplit("/", 1)[0] == case
    }


def compare(got: dict[str, np.ndarray], case: str, absolute: float, relative: float) -> None:
    truth = recorded(case)
    assert truth and got.keys() == truth.keys()
    for name, values in truth.items():
        if values.dtype.kind != "f":
            np.testing.assert_array_equal(got[name], values, err_msg=f"{case}: {name}")
            continue
        pair = [got[name], values]
        if case.startswith("impute/"):
            pair = [np.maximum(x, MIN_IMPUTED) for x in pair]
        np.testing.assert_allclose(
            *pair, atol=absolute, rtol=relative, equal_nan=True, err_msg=f"{case}: {name}"
        )


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
@pytest.mark.parametrize("model", MODELS)
def test_the_network_on_every_backend(model, backend):
    compare(forward(model, backend), f"network/{model}", NETWORK, 0)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_network_in_tritons_interpreter():
    """A separate process, because Triton reads at import whether to interpret."""
    here = Path(__file__).parent
    code = (
        "import sys, numpy; from golden_cases import MODELS, SMALL, forward;"
        "numpy.savez(sys.stdout.buffer, **forward(MODELS[0], 'triton', **SMALL))"
    )
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(here), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    compare(dict(np.load(io.BytesIO(done.stdout))), f"small network/{MODELS[0]}", NETWORK, 0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_verbs(case):
    kind = case.split("/")[0]
    compare(CASES[case](), case, *TOLERANCE[kind.replace(",", "").split()[0]])


def test_every_recorded_result_is_compared():
    named = {name.rsplit("/", 1)[0] for name in golden()}
    assert named == {
        *CASES,
        *(f"network/{model}" for model in MODELS),
        f"small network/{MODELS[0]}",
    }


def test_the_recorded_results_are_informative():
    """Results of only zeros, ones and missing values would agree with anything."""
    markers, runs = recorded("markers"), recorded("robustness")
    assert (
        100 < (markers["adjusted p"] < 0.05).sum() < 1500
        and 0.05 < np.median(recorded("pseudobulk")["p"]) < 0.95
    )
    assert (runs["runs: n_called"] > 10).mean() > 0.3 and (runs["runs: overlap"] > 0).mean() > 0.3
    assert 5 <= recorded("doublets")["doublet"].sum() <= 40
    assert len(set(recorded("annotate by markers")["labels"])) >= 3
    for model in MODELS:
        imputed = recorded(f"impute/{model}")["imputed"]
        assert imputed.std() > 0.3 and 0.2 < (imputed > 0).mean() < 0.95
