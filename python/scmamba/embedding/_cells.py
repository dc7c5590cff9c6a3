"""Cell embeddings: the mean over genes of the network's output (paper, Methods; Fig. 2)."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import CellReader, read_cells
from ..data.h5ad_files import open_backed
from ..data.h5ad_stream import write_with_annotations
from ..data.provenance import KEY, flag_low_depth, refuse_foreign, write_provenance
from ..model import Model, load_model
from ..model.inference import dense_input, input_positions
from ..utils.errors import ScMambaError
from ..utils.progress import progress, say

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
    opened, cells = _prepare(adata, model, layer, gene_column, device, backend, force, verbose)
    result, totals = _run(opened, cells, batch_size, verbose)
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    _write(adata, opened, cells, result, totals, verbose)
    return adata


def embed_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    overwrite: bool = False,
    model: str | PathLike[str] | Model | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    backend: str | None = None,
    force: bool = False,
    verbose: bool = True,
) -> None:
    """Embed the cells of an ``.h5ad`` file into a copy of it; the input is read row block by row block.

    Raises
    ------
    ScMambaError
        As :func:`embed`; the input is not an h5ad file; the target exists and ``overwrite`` is not set.
    """
    source, target = Path(source), Path(target)
    if target.exists() and not overwrite:
        raise ScMambaError(
            f"{target} exists already. Choose another name, or pass overwrite=True (command line: --overwrite)."
        )
    adata = open_backed(source)
    opened, cells = _prepare(adata, model, layer, gene_column, device, backend, force, verbose)
    result, totals = _run(opened, cells, batch_size, verbose)
    write_with_annotations(
        source, target, adata, lambda copy: _write(copy, opened, cells, result, totals, verbose)
    )


def _prepare(
    adata: AnnData,
    model: Any,
    layer: str | None,
    gene_column: str | None,
    device: str | None,
    backend: str | None,
    force: bool,
    verbose: bool,
) -> tuple[Model, CellReader]:
    opened = load_model(model, device=device, backend=backend)
    cells = read_cells(adata, opened.genes, layer=layer, gene_column=gene_column, force=force)
    refuse_foreign(adata, "obsm", f"X_{KEY}", "embed")
    say(cells.values.sentence, verbose)
    say(cells.match.summary(), verbose)
    return opened, cells


def _run(
    model: Model, cells: CellReader, batch_size: int | None, verbose: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) embeddings and (n,) totals, block by block."""
    _, genes = input_positions(model, cells)
    size = batch_size or 128
    result, totals = (
        np.empty((len(cells), model.config.d_model), dtype=np.float32),
        np.empty(len(cells)),
    )
    with progress("Embedding cells", len(cells), verbose) as advance:
        for rows in cells.blocks(size):
            linear = cells.linear(rows)
            x, _ = dense_input(model, cells, linear)
            totals[rows] = np.asarray(linear.sum(axis=1)).ravel()
            result[rows] = (
                model.cell_embedding(torch.from_numpy(x), genes=genes, batch_size=batch_size)
                .float()
                .numpy()
            )
            advance(rows.stop - rows.start)
    return result, totals


def _write(
    adata: AnnData,
    model: Model,
    cells: CellReader,
    result: np.ndarray,
    totals: np.ndarray,
    verbose: bool,
) -> None:
    adata.obsm[f"X_{KEY}"] = result
    flag_low_depth(adata, cells, totals, verbose)
    write_provenance(adata, "embed", model.config.name, cells)
