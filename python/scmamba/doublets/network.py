"""The paper's detector: the pre-trained network with three [CLS] tokens, fine-tuned to classify doublets and single cells."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from ..data import read_cells
from ..data.preprocess import CellReader
from ..model import Model, load_model
from ..model.inference import input_positions

if TYPE_CHECKING:
    from anndata import AnnData

    from ..data.doublet_simulation import Simulated

#: Passes over the droplets in training, and bounds of the resulting number of steps of 16 droplets.
PASSES, STEPS = 2.0, (150, 2500)


def network_odds(
    adata: AnnData,
    counts: sparse.csr_matrix,
    made: Simulated,
    doubtful: np.ndarray,
    *,
    model: str | PathLike[str] | Model | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    verbose: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Fine-tune on real cells against simulated doublets, and score both.

    Parameters
    ----------
    adata
        The object whose ``var`` names the columns of ``counts``.
    counts
        (n, n_vars) counts of the real droplets.
    doubtful
        (n,) bool: real droplets that resemble doublets and are not used as single cells.

    Returns
    -------
    (n,) and (m,) log odds of a doublet, for equal numbers of both.

    Raises
    ------
    ScMambaError
        Genes or checkpoint that do not fit.
    """
    from anndata import AnnData as Object

    from ..training.batches import CellSource
    from ..training.dataloaders import InMemorySource
    from ..training.finetune_classifier import (
        NO_MASKING,
        LabelledCells,
        classification,
        linear_probe_init,
    )
    from ..training.trainer import TrainerConfig, fit

    opened = load_model(model)
    # The network is fine-tuned on the measured genes, so few of them make it less accurate but not wrong.
    cells = read_cells(Object(counts, var=adata.var), opened.genes, min_coverage=0.0)
    real, real_totals = cells.to_model(counts)
    double, double_totals = cells.to_model(made.counts)
    keep = ~doubtful
    values = sparse.csr_matrix(sparse.vstack([real[keep], double], format="csr"))
    codes = np.r_[np.zeros(int(keep.sum()), dtype=np.int64), np.ones(len(made), dtype=np.int64)]
    totals = np.r_[real_totals[keep], double_totals]
    source = CellSource("doublets", values, cells.genes, np.full(len(codes), ""), totals)
    feed = InMemorySource([source])
    labelled = LabelledCells(
        feed, lambda part: codes[part.rows], ["singlet", "doublet"], np.bincount(codes), feed.sample
    )
    tuned = linear_probe_init(
        opened, labelled, name="doublets", seed=seed, balance=1.0, verbose=verbose
    )
    loop = TrainerConfig(
        steps=int(np.clip(PASSES * len(codes) / 16, *STEPS)),
        batch_size=16,
        lr=lr,
        warmup=0.05,
        seed=seed,
    )
    # Class-balanced.
    fit(
        tuned.network,
        classification(labelled, NO_MASKING, loop, balance=1.0),
        loop,
        description="Fine-tuning",
        verbose=verbose,
    )
    return _odds(tuned, cells, real), _odds(tuned, cells, double)


def _odds(
    model: Model, cells: CellReader, values: sparse.csr_matrix, block: int = 128
) -> np.ndarray:
    """(r,) logit of class 1 minus logit of class 0 for (r, measured genes) log values."""
    where, genes = input_positions(model, cells)
    width = len(model.genes) if genes is None else len(genes)
    out = np.empty(values.shape[0])
    for start in range(0, len(out), block):
        part = values[start : start + block].toarray()
        x = np.zeros((len(part), width), dtype=np.float32)
        x[:, where] = part
        logits = model.classify(torch.from_numpy(x), genes=genes).float().cpu().numpy()
        out[start : start + block] = logits[:, 1] - logits[:, 0]
    return out
