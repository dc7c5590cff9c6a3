"""Cells of any two objects on the genes both measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from ..data import CellReader, read_cells
from ..data.row_store import BLOCK, Rows, collect, is_in_memory
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
    blocks = shared_blocks(cells, genes, rows)
    return sparse.csr_matrix(sparse.vstack(list(blocks), format="csr"), dtype=np.float64)


def shared_rows(cells: CellReader, genes: np.ndarray) -> Rows:
    """:func:`shared_values` of all cells; of a file in a temporary one, so that memory does not grow with the cells."""
    blocks = shared_blocks(cells, genes, np.arange(len(cells)))
    return collect(blocks, len(genes), on_disk=not is_in_memory(cells.selected.matrix))


def shared_blocks(
    cells: CellReader, genes: np.ndarray, rows: np.ndarray
) -> Iterator[sparse.csr_matrix]:
    """Blocks of :func:`shared_values`."""
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        # Consecutive rows of a file are read at once.
        is_run = len(some) and some[-1] - some[0] == len(some) - 1
        part: Any = slice(some[0], some[-1] + 1) if is_run else some
        yield normalized_block(cells, cells.linear(part), genes)


def normalized_block(
    cells: CellReader, linear: sparse.csr_matrix, genes: np.ndarray
) -> sparse.csr_matrix:
    """(r, g) log1p(CP10k) over ``genes`` of a block of :meth:`CellReader.linear`."""
    values, _ = cells.to_model(linear)
    where = np.searchsorted(cells.genes, genes)
    values = sparse.csr_matrix(values[:, where], dtype=np.float64)
    values.data = np.expm1(values.data)
    return log1p_cp10k(values, np.asarray(values.sum(axis=1)).ravel())
