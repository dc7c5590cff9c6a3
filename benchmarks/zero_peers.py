"""Imputed values of packages that need a Python of their own: ``python zero_peers.py METHOD cells.h5ad out.npy --seed 0``.

``cells.h5ad`` holds counts in ``X``; ``out.npy`` receives (cells, genes) log1p(CP10k). :mod:`benchmarks.foreign_genes` runs it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
from scipy import sparse

EPOCHS = 100  # of scVI; its default for so few cells is 400, which takes four times as long


def scvi_values(cells: ad.AnnData, seed: int) -> np.ndarray:
    """Expected expression by scVI, counts per 10,000."""
    import scvi
    import torch

    torch.set_num_threads(1)
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells)
    options = dict(enable_progress_bar=False, logger=False, enable_checkpointing=False)
    model.train(max_epochs=EPOCHS, accelerator="cpu", **options)
    return np.log1p(1e4 * np.asarray(model.get_normalized_expression(return_numpy=True)))


def magic_values(cells: ad.AnnData, seed: int) -> np.ndarray:
    """MAGIC with its defaults, of log1p(CP10k)."""
    import magic

    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    logs = np.log1p(cells.X.toarray() * (1e4 / np.maximum(totals, 1))[:, None])
    return np.asarray(magic.MAGIC(verbose=0, random_state=seed, n_jobs=1).fit_transform(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=["scVI", "MAGIC"])
    parser.add_argument("cells", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cells = ad.read_h5ad(arguments.cells)
    cells.X = sparse.csr_matrix(cells.X, dtype=np.float32)
    run = {"scVI": scvi_values, "MAGIC": magic_values}[arguments.method]
    np.save(arguments.out, np.asarray(run(cells, arguments.seed), dtype=np.float32))


if __name__ == "__main__":
    main()
