"""Cells of any two objects on the genes both measured."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from ..data import CellReader
from ..data.values import log1p_cp10k
from ..genes import Vocabulary, annotation


def all_human_genes() -> Vocabulary:
    """Every gene of the annotation, in and out of the models' vocabularies."""
    table = annotation().drop_duplicates("ensembl_id")
    return Vocabulary(tuple(table["ensembl_id"]), tuple(table["symbol"]))


def shared_values(cells: CellReader, genes: np.ndarray, rows: np.ndarray) -> sparse.csr_matrix:
    """(r, g) log1p(CP10k) over the genes both sides measured: normalised over these, so that depth means the same on both sides."""
    where = np.searchsorted(cells.genes, genes)
    blocks = []
    for start in range(0, len(rows), 2000):
        values, _ = cells.to_model(cells.linear(rows[start : start + 2000]))
        values = sparse.csr_matrix(values[:, where], dtype=np.float64)
        values.data = np.expm1(values.data)
        blocks.append(log1p_cp10k(values, np.asarray(values.sum(axis=1)).ravel()))
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"), dtype=np.float64)
