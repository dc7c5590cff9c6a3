"""Cells of any two objects on the genes both measured."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ..data import CellReader, read_cells
from ..data.values import log1p_cp10k
from ..genes import Vocabulary, annotation

if TYPE_CHECKING:
    from anndata import AnnData


@lru_cache(maxsize=1)
def all_human_genes() -> Vocabulary:
    """Every gene of the annotation, in and out of the models' vocabularies."""
    table = annotation().drop_duplicates("ensembl_id")
    return Vocabulary(tuple(table["ensembl_id"]), tuple(table["symbol"]))


def read_human_cells(
    adata: AnnData, layer: str | None, gene_column: str | None, force: bool
) -> CellReader:
    """Cells on all their human genes, whatever a model reads: a model of the brain lacks genes that separate blood cells.

    Few genes are accepted, and logarithms of any total: :func:`shared_values` normalizes them again.

    Parameters
    ----------
    adata, layer, gene_column
        As in :func:`scmamba.data.read_cells`.
    force
        Read values that are neither counts nor logarithms as corrected counts.
    """
    return read_cells(
        adata,
        all_human_genes(),
        layer=layer,
        gene_column=gene_column,
        force=force,
        any_genes=True,
    )


def shared_values(cells: CellReader, genes: np.ndarray, rows: np.ndarray) -> sparse.csr_matrix:
    """(r, g) log1p(CP10k) over the genes both sides measured: normalized over these, so that depth means the same on both sides."""
    where = np.searchsorted(cells.genes, genes)
    blocks = []
    for start in range(0, len(rows), 2000):
        values, _ = cells.to_model(cells.linear(rows[start : start + 2000]))
        values = sparse.csr_matrix(values[:, where], dtype=np.float64)
        values.data = np.expm1(values.data)
        blocks.append(log1p_cp10k(values, np.asarray(values.sum(axis=1)).ravel()))
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"), dtype=np.float64)
