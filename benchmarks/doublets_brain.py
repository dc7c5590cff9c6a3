"""Doublets of brain nuclei with and without the types of the reference, at the depth of two nuclei and of one.

    python -m benchmarks.doublets_brain --data FOLDER [--set velmeshev_types velmeshev_matched]

The nuclei are those of four donors that the reference does not hold (Velmeshev 2019), a tenth of the droplets simulated from two nuclei
of two types (``types``: sums; ``matched``: thinned to the depth of one of the two). Nuclei that are called single may be doublets in
truth, which limits every detector. Compositions of simulated doublets were chosen with these sets in view.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from benchmarks.doublets import load

HERE = Path(__file__).resolve().parent
#: Name of a row -> uses the reference, options of find_doublets.
ROWS: dict[str, tuple[bool, dict[str, Any]]] = {
    "with the brain reference (default)": (True, {}),
    "with the brain reference, depth-matched simulation only": (
        True,
        {"doublet_simulation": "matched"},
    ),
    "without the reference": (False, {}),
}


def score(cells: Any, reference: bool, options: dict[str, Any]) -> np.ndarray:
    """Scores of the droplets."""
    import scmamba
    from scmamba.doublets import _find

    found = _find.BrainClusters.find if reference else (lambda *_: None)
    with mock.patch.object(_find.BrainClusters, "find", found):
        done = scmamba.find_doublets(
            cells, sample_key="sample", copy=True, verbose=False, **options
        )
    return done.obs["scmamba_doublet_score"].to_numpy()


def main() -> None:
    """Score the sets and write the table."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    from scmamba.evaluation.annotation_report import markdown

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument(
        "--set", dest="sets", nargs="*", default=["velmeshev_types", "velmeshev_matched"]
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "doublets_brain.md")
    options = parser.parse_args()
    rows = []
    for name in options.sets:
        cells = load(name, options.data)
        truth = cells.obs["truth"].to_numpy()
        depth = np.asarray(cells.X.sum(axis=1)).ravel()
        scores = {row: score(cells, *how) for row, how in ROWS.items()}
        for row, values in {**scores, "number of counts": depth}.items():
            rows.append(
                {
                    "set": name,
                    "detector": row,
                    "prevalence": truth.mean(),
                    "AUPRC": average_precision_score(truth, values),
                    "AUROC": roc_auc_score(truth, values),
                }
            )
            print(rows[-1], flush=True)
    about = " ".join(__doc__.split("\n\n")[2].split())
    text = [
        "# Doublets of brain nuclei",
        "",
        "Made by `python -m benchmarks.doublets_brain`. " + about,
    ]
    text += ["", markdown(pd.DataFrame(rows).round(3).set_index("set")), ""]
    options.output.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
