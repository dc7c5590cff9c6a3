"""The outputs of the published checkpoint by the Triton kernels in their interpreter: one whole cell, no GPU, half an hour.

TRITON_INTERPRET=1 python -m benchmarks.official_triton --reference FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from scmamba.model import load_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, required=True)
    folder = parser.parse_args().reference
    expected = {
        name: value[:1]
        for name, value in np.load(folder / "expected.npz").items()
        if value.ndim > 1
    }
    x = expected["log1p_cp10k"]
    model = load_model(folder / "pretrain.ckpt", vocabulary=folder / "vocab.txt", backend="triton")
    classifier = load_model(
        folder / "celltype.ckpt",
        folder / "vocab.txt",
        labels=folder / "celltype.json",
        backend="triton",
    )
    for name, call in (
        ("cell_embedding", lambda: model.cell_embedding(x)),
        ("logits", lambda: classifier.classify(x)),
        ("reconstruction", lambda: model.reconstruct(x, expected["mask"])),
    ):
        began = time.perf_counter()
        found = call()
        difference = np.abs(np.asarray(found) - expected[name]).max()
        print(
            f"{name}: largest difference {difference:.1e}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
