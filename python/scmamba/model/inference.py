"""Inputs of a network for blocks of cells."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from ..data.preprocess import CellReader
from . import Model


def input_positions(model: Model, cells: CellReader) -> tuple[np.ndarray, torch.Tensor | None]:
    """Columns of the network's input.

    Parameters
    ----------
    model
        The model.
    cells
        Cells and the genes that were measured.

    Returns
    -------
    (k,) columns of the input that hold the measured genes of ``cells``, and the position in the vocabulary of every column:
    ``None`` for every gene in order (absent ones are zero), or those of the measured genes only.
    """
    if model.config.reads == "expressed" and len(cells.genes) < len(model.genes):
        return np.arange(len(cells.genes)), torch.as_tensor(cells.genes)
    return cells.genes, None


def dense_input(
    model: Model, cells: CellReader, linear: sparse.csr_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """Dense input of the network for a block of cells.

    Parameters
    ----------
    model
        The model.
    cells
        Cells and the genes that were measured.
    linear
        (r, m) counts or rates of a block of ``cells``.

    Returns
    -------
    (r, l) float32 log1p(CP10k), and (r,) the cells' totals over the model's genes.
    """
    where, genes = input_positions(model, cells)
    sparse_input, totals = cells.to_model(linear)
    x = np.zeros(
        (sparse_input.shape[0], len(model.genes) if genes is None else len(genes)), dtype=np.float32
    )
    x[:, where] = sparse_input.toarray()
    return x, totals
