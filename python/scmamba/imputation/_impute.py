"""The public functions of imputation."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from ..data.h5ad_files import check_writable, open_backed
from ..data.h5ad_stream import write_with_layer
from ..data.provenance import KEY
from ..model import Model
from ..utils.atomic import check_target
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError
from ..utils.progress import say
from ..utils.threads import within_cores
from .imputer import open_imputer
from .options import ADAPT_STEPS, ImputeOptions

if TYPE_CHECKING:
    from anndata import AnnData

_renamed = renamed_parameters(
    values={"method": {"rates": "ensemble", "published": "masked"}},
    batch="batch_key",
    adapt="adapt_steps",
)


@_renamed
@within_cores()
def impute(
    adata: AnnData,
    *,
    model: str | PathLike[str] | Model | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    method: Literal["ensemble", "masked"] | None = None,
    batch_key: str | None = None,
    values: Literal["zeros", "posterior"] = "zeros",
    min_probability: float = 0.95,
    adapt_steps: int = ADAPT_STEPS,
    passes: int = 10,
    min_value: float | None = None,
    to_counts: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
    backend: str | None = None,
    seed: int = 0,
    force: bool = False,
    overwrite: bool = False,
    copy: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Impute the zeros of single-nucleus counts.

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
    method
        ``"ensemble"`` (default where the model has a rate head, as ``brain-mini`` has): gamma-Poisson rates of all genes
        of the data, given the cell's own counts and its nearest neighbors; the network is used as well where it lowers
        the deviance of split counts of these cells by at least 1%. ``"masked"``: the paper's masked prediction of log
        values, for the genes of the model only.
    batch_key
        Column of ``obs`` with the donor or library, for ``"ensemble"``. Nearest neighbors are then balanced across
        batches (as in BBKNN), using only batches that contain the same cell type. This removes donor effects, which
        helps clustering and plotting, but also removes real differences between donors or conditions: do not set it if
        you compare conditions. Default: no balancing.
    values
        ``"zeros"`` (default): observed values are kept, zeros are imputed where the gene is probably expressed; a cell
        then sums to more than 10,000, and shallow cells gain more than deep ones. ``"posterior"``: the expected rate of
        every gene, observed ones included, as log1p of values that sum to 10,000 in every cell: for pictures of
        genes. Clusters follow cell types less well than those of ``"zeros"`` (docs/evaluation.md). ``"ensemble"`` only.
    min_probability
        A zero is imputed only if the gene is expressed in the cell (at half of its average rate or more) with this
        probability, given the zero. Default 0.95, at which genes of other cell types stay near their observed share. 0
        imputes every zero whose expected value is at least ``min_value``. ``"ensemble"`` with at least 30 cells only.
    adapt_steps
        Steps, of 16 cells each, for which a copy of the network is trained on these cells without labels (about a
        minute on a CPU with the default of 300), with ``"ensemble"`` only where the network comes near to being used. The
        copy is used only if it predicts masked counts of held-out cells better. 0 turns it off; with fewer than 100
        cells it is skipped.
    passes
        For ``"masked"``: number of groups the zeros are divided into. Default 10, as in the paper. Time is proportional
        to it.
    min_value
        Smaller predictions (log1p(CP10k)) stay 0. Default 0.2 with ``"ensemble"``, two counts in 100,000; 0.01 with
        ``values="posterior"``; 0 with ``"masked"`` or ``to_counts``.
    to_counts
        Write expected counts (rate x the total counts of the cell) instead of log1p(CP10k). Default False.
    batch_size
        Cells computed at once. Default: chosen by memory.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... Default: the GPU if there is one.
    backend
        Backend of the selective scan (see :func:`scmamba.info`). Default: the fastest for the device.
    seed
        Seed of the adaptation and of what is masked and drawn. Default 0; the same seed gives the same result.
    force
        Continue although few of the model's genes were measured. Default False.
    overwrite
        Replace ``layers["scmamba"]`` even if it was not made by this function. Default False.
    copy
        Return a copy and leave ``adata`` as it is. Default False.
    verbose
        Print messages and progress. Default True.

    Returns
    -------
    AnnData
        The same object (a copy with ``copy=True``) with ``layers["scmamba"]`` (n_obs x n_vars CSR float32: observed
        values as log1p of CP10k over all genes of the data, imputed ones on the same scale),
        ``obs["scmamba_low_depth"]`` (fewer than 200 counts) and ``uns["scmamba"]["impute"]`` (version, params, model,
        summary). Nothing is written before all cells are done.

    Raises
    ------
    OptionError
        An option outside of its range, or options that contradict each other.
    DataError
        Values that cannot be read, a layer that exists already, or a result larger than the memory (use
        :func:`impute_file`).
    GeneError
        Few genes of the model were measured.
    CheckpointError
        The model cannot be opened.

    References
    ----------
    Oh, Choi, Jin, Jung, Ye (2025), arXiv 2502.19429, "Imputation" (``method="masked"``).

    Examples
    --------
    >>> import scmamba
    >>> nuclei = scmamba.datasets.brain_cohort(60, seed=0)[:, ::4].copy()
    >>> nuclei = scmamba.impute(nuclei, adapt_steps=0, force=True, verbose=False)
    >>> nuclei.layers["scmamba"].shape == nuclei.shape
    True
    >>> nuclei.uns["scmamba"]["impute"]["params"]["method"]
    'ensemble'
    """
    options = ImputeOptions(
        layer=layer,
        gene_column=gene_column,
        method=method,
        batch_key=batch_key,
        values=values,
        min_probability=min_probability,
        adapt_steps=_steps(adapt_steps),
        passes=passes,
        min_value=min_value,
        to_counts=to_counts,
        batch_size=batch_size,
        device=device,
        backend=backend,
        seed=seed,
        force=force,
        overwrite=overwrite,
        verbose=verbose,
    )
    imputer, cells = open_imputer(adata, model, options)
    imputer.fit(cells)
    blocks: list[Any] = []
    totals: list[Any] = []
    for block, block_totals in imputer.predict_blocks():
        if not blocks:
            imputer.check_memory(block)
        blocks.append(block)
        totals.append(block_totals)
    result = sparse.vstack(blocks, format="csr")
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    adata.layers[KEY] = result
    density = imputer.write_annotations(adata, np.concatenate(totals), result.nnz)
    say(
        f"layers['{KEY}'] holds values for {100 * density:.0f}% of all entries (before: {100 * imputer.density_before:.0f}%)",
        verbose,
    )
    return adata


@_renamed
@within_cores()
def impute_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    overwrite: bool = False,
    model: str | PathLike[str] | Model | None = None,
    **options: Any,
) -> None:
    """Impute an ``.h5ad`` file into a new one, row block by row block.

    The input is opened backed and the result streamed to disk, so neither is ever held whole. ``target`` appears only
    when it is complete.

    Parameters
    ----------
    source
        Path of an ``.h5ad`` file, cells x genes.
    target
        Path of the file to write: a copy of ``source`` with ``layers["scmamba"]``, ``obs["scmamba_low_depth"]`` and
        ``uns["scmamba"]["impute"]``.
    overwrite
        Replace ``target`` if it exists, and a layer ``scmamba`` that was not made by this function. Default False.
    model
        As for :func:`impute`.
    **options
        The other options of :func:`impute`, but ``copy``.

    Raises
    ------
    DataError
        The target exists and ``overwrite`` is not set, the input is not an ``.h5ad`` file, and what :func:`impute`
        refuses.
    ScMambaError
        The disk is full.

    Examples
    --------
    >>> import scmamba, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> scmamba.datasets.brain_cohort(20, seed=0)[:, ::8].copy().write_h5ad(folder / "in.h5ad")
    >>> scmamba.impute_file(folder / "in.h5ad", folder / "out.h5ad", adapt_steps=0, force=True, verbose=False)
    >>> sorted(path.name for path in folder.iterdir())
    ['in.h5ad', 'out.h5ad']
    """
    source, target = Path(source), Path(target)
    adata, checked = open_file(source, target, overwrite, options)
    imputer, cells = open_imputer(adata, model, checked)
    imputer.fit(cells)
    totals: list[np.ndarray] = []

    def blocks() -> Iterator[sparse.csr_matrix]:
        for block, block_totals in imputer.predict_blocks():
            totals.append(block_totals)
            yield block

    def annotate(result: AnnData, stored: int) -> None:
        imputer.write_annotations(result, np.concatenate(totals), stored)

    write_with_layer(source, target, adata, KEY, blocks(), annotate, verbose=checked.verbose)


def open_file(
    source: Path, target: Path, overwrite: bool, options: dict[str, Any]
) -> tuple[AnnData, ImputeOptions]:
    """The file, backed, and the checked options of imputing it.

    Raises
    ------
    DataError
        The target exists and ``overwrite`` is not set, or the input is not an ``.h5ad`` file.
    """
    given = dict(options)
    if "adapt_steps" in given:
        given["adapt_steps"] = _steps(given["adapt_steps"])
    checked = ImputeOptions.from_mapping({**given, "overwrite": overwrite})
    if target.exists() and not overwrite:
        raise DataError(
            f"{target} exists already. Choose another name, or pass overwrite=True (command line: --overwrite)."
        )
    if target.is_dir():
        raise DataError(f"{target} is a folder; a file is written here. Choose another name.")
    check_target(target)
    adata = open_backed(source)
    check_writable(adata)
    return adata, checked


def _steps(adapt_steps: int) -> int:
    """Steps of what was once ``adapt=True`` or ``adapt=False``."""
    if isinstance(adapt_steps, bool):
        return ADAPT_STEPS if adapt_steps else 0
    return adapt_steps
