"""Cell embeddings: the mean over genes of the network's output (paper, Methods; Fig. 2)."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch

from .._progress import progress, say
from ..data import read_cells
from ..data.preprocess import MIN_TOTAL
from ..model import Model, load_model
from ._common import KEY, check_free, dense_input, low_depth_warning, note, positions

if TYPE_CHECKING:
    from anndata import AnnData


def embed(
    adata: AnnData,
    *,
    model: str | PathLike[str] | Model | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    backend: str | None = None,
    force: bool = False,
    copy: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Embed cells.

    Parameters are those of :func:`scmamba.impute`.

    Returns
    -------
    The same object (a copy with ``copy=True``) with ``obsm["X_scmamba"]``, (n_obs, D) float32, and ``uns["scmamba"]["embed"]``.

    Raises
    ------
    ScMambaError
        Data, genes or checkpoint that do not fit.
    """
    opened = load_model(model, device=device, backend=backend)
    cells = read_cells(adata, opened.genes, layer=layer, gene_column=gene_column, force=force)
    check_free(adata, "obsm", f"X_{KEY}", "embed")
    say(cells.values.sentence, verbose)
    say(cells.match.summary(), verbose)
    _, genes = positions(opened, cells)
    size = batch_size or max(8, min(128, opened.batch_size(len(cells.genes))))
    result, totals = np.empty((len(cells), opened.config.d_model), dtype=np.float32), np.empty(len(cells))
    with progress("Embedding cells", len(cells), verbose) as advance:
        for rows in cells.blocks(size):
            x, totals[rows] = dense_input(opened, cells, rows)
            result[rows] = opened.cell_embedding(torch.from_numpy(x), genes=genes, batch_size=size).float().numpy()
            advance(rows.stop - rows.start)
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    adata.obsm[f"X_{KEY}"] = result
    adata.obs[f"{KEY}_low_depth"] = totals < MIN_TOTAL
    low_depth_warning(totals, verbose)
    note(adata, "embed", opened, cells)
    return adata
