"""The public functions of imputation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from ..data.h5ad_files import check_writable, open_backed
from ..data.h5ad_stream import write_with_layers
from ..data.provenance import KEY
from ..model import Model
from ..utils.atomic import check_target
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError
from ..utils.progress import say
from ..utils.threads import within_cores
from .base import ImputedBlock, Imputer, joined_added
from .imputer import open_imputer, stale_layers
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
    sd: bool = False,
    min_probability: float = 0.95,
    max_filled: float = 0.25,
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
        every gene, observed ones included, as log1p of values that sum to 10,000 in every cell; a gene in which nothing was
        counted is 0 if it is expressed with a probability below 50%. For pictures of genes. Clusters follow cell types less
        well than those of ``"zeros"`` (docs/evaluation.md). ``"ensemble"`` only.
    sd
        Also write ``layers["scmamba_sd"]``: the standard deviation of every stored value, given the cell and its neighbors,
        on the scale of the values (log1p(CP10k), or counts with ``to_counts``). Where something was observed it is that of
        the expected rate, too. Default False. ``"ensemble"`` only.
    min_probability
        A zero is imputed only if the gene is expressed in the cell (at half of its average rate or more) with this
        probability, given the zero. Default 0.95, at which genes of other cell types stay near their observed share. 0
        imputes every zero whose expected value is at least ``min_value``, up to ``max_filled``; with ``values="posterior"`` only 0 makes a
        difference: no gene is set to 0. ``"ensemble"`` with at least 30 cells only.
    max_filled
        Largest share of a cell's entries (its genes) that is imputed with ``values="zeros"``. Of more, those that are most
        probably expressed given the zero are imputed. Default 0.25; 1: no limit. ``"ensemble"`` only.
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
        values as log1p of CP10k over all genes of the data, imputed ones on the same scale), with ``sd``
        ``layers["scmamba_sd"]`` of the same form,
        ``obs["scmamba_low_depth"]`` (fewer than 200 counts), with ``values="zeros"`` ``obs["scmamba_added"]`` (what the
        imputed zeros add to the sum of the cell's values, before the logarithm, as a share of its observed sum: 0.1 means
        11,000 instead of 10,000) and ``uns["scmamba"]["impute"]`` (version, params, model,
        summary). Nothing is written before all cells are done.

    Notes
    -----
    Imputed values are predictions: they may be tested for differential expression only with the donor as the unit, never
    over cells (between two halves of the control donors of a real study 65% of the genes then had p < 0.05, 21% on counts).
    Counts are the first choice for every test.

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
        sd=sd,
        min_probability=min_probability,
        max_filled=max_filled,
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
    predicted = imputer.predict_blocks()
    first = next(predicted)
    imputer.check_memory(first)
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    return _add_layers(adata, imputer, chain([first], predicted), options)


def _add_layers(
    adata: AnnData, imputer: Imputer, predicted: Iterable[ImputedBlock], options: ImputeOptions
) -> AnnData:
    """Join the blocks to layers of ``adata``; nothing is written before the last one is there."""
    blocks = list(predicted)
    layers = [
        sparse.vstack(parts, format="csr")
        for parts in zip(*(b.layers for b in blocks), strict=True)
    ]
    totals = np.concatenate([b.totals for b in blocks])
    added = joined_added(b.added for b in blocks)
    for name in stale_layers(adata, options):
        del adata.layers[name]
    for name, layer_values in zip(imputer.layer_names, layers, strict=True):
        adata.layers[name] = layer_values
    density = imputer.write_annotations(adata, totals, layers[0].nnz, added)
    say(
        f"layers['{KEY}'] holds values for {100 * density:.0f}% of all entries (before: {100 * imputer.density_before:.0f}%)",
        options.verbose,
    )
    return adata


@within_cores()
def impute_or_write(
    adata: AnnData,
    target: str | PathLike[str] | None,
    *,
    max_values: int | None = None,
    overwrite: bool = False,
    model: str | PathLike[str] | Model | None = None,
    **options: Any,
) -> AnnData:
    """Impute in memory; a result that will not fit is written to a file instead. For the R package.

    Whether it fits is known after the first block of cells.

    Parameters
    ----------
    adata
        As for :func:`impute`, in memory or backed.
    target
        The ``.h5ad`` file for a result that does not fit; ``None``: such a result is refused.
    max_values
        Values that a result in memory may hold; 0: it is written to ``target`` in any case.
    overwrite
        Replace ``target`` if it exists, and a layer ``scmamba`` that was not made by this function. Default False.
    model
        As for :func:`impute`.
    **options
        The other options of :func:`impute`, but ``copy``.

    Returns
    -------
    ``adata`` with the layer in memory, or the written file, opened backed.

    Raises
    ------
    DataError
        The target exists and ``overwrite`` is not set, a result that does not fit without a target, and what
        :func:`impute` refuses.

    Examples
    --------
    >>> import scmamba, tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "imputed.h5ad"
    >>> nuclei = scmamba.datasets.brain_cohort(20, seed=0)[:, ::8].copy()
    >>> quick = dict(adapt_steps=0, force=True, verbose=False)
    >>> impute_or_write(nuclei, target, max_values=0, **quick).isbacked
    True
    >>> impute_or_write(nuclei, target, overwrite=True, **quick).isbacked
    False
    """
    checked = _checked(options, overwrite)
    if target is not None:
        _check_target(Path(target), overwrite)
        check_writable(adata)
    imputer, cells = open_imputer(adata, model, checked)
    imputer.fit(cells)
    predicted = imputer.predict_blocks()
    first = next(predicted)
    try:
        imputer.check_memory(first, max_values)
    except DataError:
        if target is None:
            raise
    else:
        return _add_layers(adata, imputer, chain([first], predicted), checked)
    source = Path(adata.filename) if adata.isbacked else Path(target)
    say(f"the imputed values are written to {target}", checked.verbose)
    _write_layers(source, Path(target), adata, imputer, chain([first], predicted), checked)
    return open_backed(target)


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
    _write_layers(source, target, adata, imputer, imputer.predict_blocks(), checked)


def _write_layers(
    source: Path,
    target: Path,
    adata: AnnData,
    imputer: Imputer,
    predicted: Iterable[ImputedBlock],
    options: ImputeOptions,
) -> None:
    """Write a copy of ``source`` (of ``adata``, if that is in memory) with the layers, block by block."""
    totals: list[np.ndarray] = []
    added: list[np.ndarray | None] = []

    def blocks() -> Iterator[list[sparse.csr_matrix]]:
        for block in predicted:
            totals.append(block.totals)
            added.append(block.added)
            yield block.layers

    def annotate(result: AnnData, stored: int) -> None:
        imputer.write_annotations(result, np.concatenate(totals), stored, joined_added(added))

    names, drop = imputer.layer_names, stale_layers(adata, options)
    write_with_layers(
        source, target, adata, names, blocks(), annotate, drop=drop, verbose=options.verbose
    )


def open_file(
    source: Path, target: Path, overwrite: bool, options: dict[str, Any]
) -> tuple[AnnData, ImputeOptions]:
    """The file, backed, and the checked options of imputing it.

    Raises
    ------
    DataError
        The target exists and ``overwrite`` is not set, or the input is not an ``.h5ad`` file.
    """
    checked = _checked(options, overwrite)
    _check_target(target, overwrite)
    adata = open_backed(source)
    check_writable(adata)
    return adata, checked


def _checked(options: dict[str, Any], overwrite: bool) -> ImputeOptions:
    given = dict(options)
    if "adapt_steps" in given:
        given["adapt_steps"] = _steps(given["adapt_steps"])
    return ImputeOptions.from_mapping({**given, "overwrite": overwrite})


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise DataError(
            f"{target} exists already. Choose another name, or pass overwrite=True (command line: --overwrite)."
        )
    if target.is_dir():
        raise DataError(f"{target} is a folder; a file is written here. Choose another name.")
    check_target(target)


def _steps(adapt_steps: int) -> int:
    """Steps of what was once ``adapt=True`` or ``adapt=False``."""
    if isinstance(adapt_steps, bool):
        return ADAPT_STEPS if adapt_steps else 0
    return adapt_steps
