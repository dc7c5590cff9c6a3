"""Cell embeddings: the mean over genes of the network's output (paper, Methods; Fig. 2)."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data import CellReader, read_cells
from ..data.h5ad_files import check_writable, open_backed
from ..data.h5ad_stream import write_with_annotations
from ..data.provenance import KEY, flag_low_depth, read_summary, refuse_existing, write_record
from ..model import Model, load_model
from ..model.inference import dense_input, input_positions
from ..utils.atomic import check_target
from ..utils.columns import require_adata
from ..utils.errors import DataError
from ..utils.expected_time import report_expected
from ..utils.progress import progress, say
from ..utils.threads import within_cores
from .options import EmbedOptions

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 1024  # cells read at once, so that batches of similar length can be formed


@within_cores()
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
    overwrite: bool = False,
    copy: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Embed cells with the pre-trained network.

    Parameters
    ----------
    adata
        Cells x genes, raw counts (preferred) or log-normalized values; in memory or backed.
    model
        Name of an available model, checkpoint folder, published ``.ckpt`` or open model. Default ``brain-mini``.
    layer
        Layer to read. Default ``X``.
    gene_column
        Column of ``var`` with gene names (symbols or Ensembl IDs). Default: the names or the column that match best.
    batch_size
        Cells computed at once. Default: chosen by memory.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... Default: the GPU if there is one.
    backend
        Backend of the selective scan (see :func:`scmamba.info`). Default: the fastest for the device.
    force
        Continue although few of the model's genes were measured. Default False.
    overwrite
        Replace ``obsm["X_scmamba"]`` even if it was not made by this function. Default False.
    copy
        Return a copy and leave ``adata`` as it is. Default False.
    verbose
        Print messages and progress. Default True.

    Returns
    -------
    AnnData
        The same object (a copy with ``copy=True``) with ``obsm["X_scmamba"]`` (n_obs x D float32),
        ``obs["scmamba_low_depth"]`` (fewer than 200 counts) and ``uns["scmamba"]["embed"]``.

    Raises
    ------
    OptionError
        An option outside of its range.
    DataError
        Values that cannot be read, or an embedding that exists already.
    GeneError
        Few genes of the model were measured.
    CheckpointError
        The model cannot be opened.

    References
    ----------
    Oh, Choi, Jin, Jung, Ye (2025), arXiv 2502.19429, Methods and Fig. 2.

    Examples
    --------
    >>> import scmamba
    >>> nuclei = scmamba.datasets.brain_cohort(20, seed=0)[:, ::4].copy()
    >>> nuclei = scmamba.embed(nuclei, force=True, verbose=False)
    >>> nuclei.obsm["X_scmamba"].shape[0]
    20
    """
    options = EmbedOptions(
        layer=layer,
        gene_column=gene_column,
        batch_size=batch_size,
        device=device,
        backend=backend,
        force=force,
        overwrite=overwrite,
        verbose=verbose,
    )
    opened, cells = _open(adata, model, options)
    result, totals = embed_cells(opened, cells, batch_size, verbose)
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    _write(adata, opened, cells, options, result, totals)
    return adata


@within_cores()
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

    Parameters
    ----------
    source
        Path of an ``.h5ad`` file, cells x genes.
    target
        Path of the file to write: a copy of ``source`` with ``obsm["X_scmamba"]``. It appears only when it is complete.
    overwrite
        Replace ``target`` if it exists, and an embedding ``X_scmamba`` that was not made by this function. Default False.
    model, layer, gene_column, batch_size, device, backend, force, verbose
        As for :func:`embed`.

    Raises
    ------
    DataError
        The target exists and ``overwrite`` is not set, the input is not an ``.h5ad`` file, and what :func:`embed`
        refuses.

    Examples
    --------
    >>> import scmamba, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> scmamba.datasets.brain_cohort(20, seed=0)[:, ::8].copy().write_h5ad(folder / "in.h5ad")
    >>> scmamba.embed_file(folder / "in.h5ad", folder / "out.h5ad", force=True, verbose=False)
    >>> sorted(path.name for path in folder.iterdir())
    ['in.h5ad', 'out.h5ad']
    """
    options = EmbedOptions(
        layer=layer,
        gene_column=gene_column,
        batch_size=batch_size,
        device=device,
        backend=backend,
        force=force,
        overwrite=overwrite,
        verbose=verbose,
    )
    source, target = Path(source), Path(target)
    if target.exists() and not overwrite:
        raise DataError(
            f"{target} exists already. Choose another name, or pass overwrite=True (command line: --overwrite)."
        )
    if target.is_dir():
        raise DataError(f"{target} is a folder; a file is written here. Choose another name.")
    check_target(target)
    adata = open_backed(source)
    check_writable(adata)
    opened, cells = _open(adata, model, options)
    result, totals = embed_cells(opened, cells, batch_size, verbose)

    def annotate(copy: AnnData) -> None:
        _write(copy, opened, cells, options, result, totals)

    write_with_annotations(source, target, adata, annotate, verbose=verbose)


def embed_cells(
    model: Model, cells: CellReader, batch_size: int | None = None, verbose: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Embed cells block by block.

    Parameters
    ----------
    model
        The network and its genes.
    cells
        The cells as the network reads them (:func:`scmamba.data.read_cells`).
    batch_size
        Cells computed at once; chosen by memory if not given.
    verbose
        Show progress.

    Returns
    -------
    (n, D) float32 embeddings and (n,) totals of the cells.
    """
    _, genes = input_positions(model, cells)
    result = np.empty((len(cells), model.config.d_model), dtype=np.float32)
    totals = np.empty(len(cells))
    with progress("Embedding cells", len(cells), verbose) as advance:
        for rows in cells.blocks(max(batch_size or 0, _BLOCK)):
            linear = cells.linear(rows)
            x, _ = dense_input(model, cells, linear)
            totals[rows] = np.asarray(linear.sum(axis=1)).ravel()
            embedding = model.cell_embedding(
                torch.from_numpy(x), genes=genes, batch_size=batch_size
            )
            result[rows] = embedding.float().numpy()
            advance(rows.stop - rows.start)
    return result, totals


def _open(
    adata: AnnData, model: str | PathLike[str] | Model | None, options: EmbedOptions
) -> tuple[Model, CellReader]:
    """Check everything that can be checked before long work."""
    require_adata(adata, "scmamba.embed()")
    # obs["scmamba_low_depth"] is the same whichever verb wrote it.
    columns = () if KEY in adata.uns else (f"{KEY}_low_depth",)
    refuse_existing(adata, "embed", obsm=(f"X_{KEY}",), obs=columns, overwrite=options.overwrite)
    opened = load_model(model, device=options.device, backend=options.backend)
    cells = read_cells(
        adata,
        opened.genes,
        layer=options.layer,
        gene_column=options.gene_column,
        force=options.force,
    )
    say(cells.values.sentence, options.verbose)
    say(cells.match.summary(), options.verbose)
    if opened.device.type == "cpu":
        is_small = opened.config.d_model <= 64
        shorter = "a GPU is faster" if is_small else "a GPU or model='brain-mini' is faster"
        what = "embed" if is_small else "embed brain-base"
        report_expected(what, len(cells), shorter, verbose=options.verbose)
    return opened, cells


def _write(
    adata: AnnData,
    model: Model,
    cells: CellReader,
    options: EmbedOptions,
    result: np.ndarray,
    totals: np.ndarray,
) -> None:
    adata.obsm[f"X_{KEY}"] = result
    flag_low_depth(adata, cells, totals, options.verbose)
    write_record(
        adata,
        "embed",
        params=options.params(),
        model=model.config.name,
        summary=read_summary(cells),
    )
