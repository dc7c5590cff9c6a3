"""Record the current results of the shipped models and of the statistics in ``tests/data/golden``.

    python scripts/record_golden.py            # answers; run it only for an intended change, and give the reason in the commit
    python scripts/record_golden.py --cells    # draw the cells anew first (every recorded number then changes)
    python scripts/record_golden.py --only "annotate by reference"    # these cases; all other answers stay as recorded

``tests/python/test_golden.py`` compares with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "python"), str(ROOT / "python")]

from golden_cases import CASES, FOLDER, MODELS, SMALL, forward
from reference_numbers import read_pack, write_pack


def draw_cells() -> None:
    """Simulated nuclei, stored, so that a change of the simulator changes no recorded result."""
    from scmamba.datasets import brain_cohort

    data = brain_cohort(160, n_donors=6, n_genes=2000, seed=11)
    x = data.X.tocsr()
    x.sort_indices()
    stored = {
        "count": x.data.astype(np.min_scalar_type(int(x.data.max()))),
        "gene": x.indices.astype(np.uint16),
        "ends": x.indptr.astype(np.int32),
        "shape": np.array(x.shape),
        "genes": data.var_names.to_numpy().astype("U"),
    }
    for column in ("cell_type", "donor", "disease", "sex"):
        stored[f"obs/{column}"] = data.obs[column].astype(str).to_numpy().astype("U")
    write_pack(FOLDER / "input.npz.xz", stored)


def record_only(cases: list[str]) -> None:
    """Replace the recorded results of some cases."""
    answers = read_pack(FOLDER / "answers.npz.xz")
    for case in cases:
        answers |= {f"{case}/{name}": values for name, values in CASES[case]().items()}
    write_pack(FOLDER / "answers.npz.xz", answers)


def main() -> None:
    """Compute every case and write it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    if "--cells" in sys.argv:
        draw_cells()
    if "--only" in sys.argv:
        record_only(sys.argv[sys.argv.index("--only") + 1 :])
        return
    answers = {
        f"network/{m}/{k}": v.astype(np.float32)
        for m in MODELS
        for k, v in forward(m, exact=True).items()
    }
    small = forward(MODELS[0], exact=True, **SMALL)
    answers |= {f"small network/{MODELS[0]}/{k}": v.astype(np.float32) for k, v in small.items()}
    for case, compute in CASES.items():
        answers |= {f"{case}/{name}": values for name, values in compute().items()}
        print(case, flush=True)
    write_pack(FOLDER / "answers.npz.xz", answers)
    for file in sorted(FOLDER.iterdir()):
        print(f"{file.stat().st_size:>9,}  {file.name}")


if __name__ == "__main__":
    main()
