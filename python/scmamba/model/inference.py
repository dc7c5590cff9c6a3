"""Inputs of a network for blocks of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from ..data.preprocess import CellReader
from . import Model

if TYPE_CHECKING:
    pass


def input_positions(model: Model, cells: CellReader) -> tuple[np.ndarray, torch.Tensor | None]:
    """Which columns the network is given.

    Returns
    -------
    (k,) indices into the network's input columns where the measured genes of ``cells`` go, and the input_positions of the whole
    input in the vocabulary: ``None`` for every gene in order (absent ones are zero), or the measured ones only.
    """
    if model.config.reads == "expressed" and len(cells.genes) < len(model.genes):
        return np.arange(len(cells.genes)), torch.as_tensor(cells.genes)
    return cells.genes, None


def dense_input(
    model: Model, cells: CellReader, linear: sparse.csr_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """(r, l) float32 input of the network for a block of :meth:`CellReader.linear`, and (r,) their totals over the model's genes."""
    where, genes = input_positions(model, cells)
    sparse_input, totals = cells.to_model(linear)
    x = np.zeros(
        (sparse_input.shape[0], len(model.genes) if genes is None else len(genes)), dtype=np.float32
    )
    x[:, where] = sparse_input.toarray()
    return x, totals
