"""Cell types from expected counts, from a labeled reference, from a model that classifies, or from marker genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..data.h5ad_files import open_backed
from ..datasets.marker_panels import brain_markers, read_marker_panel
from ..model import Model, load_model
from ..utils.columns import require_adata
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError, OptionError
from ..utils.progress import say
from ..utils.threads import single_blas_thread, within_cores
from ._classifier import annotate_by_model
from ._label_free import MIN_DEFAULT_GENES, annotate_by_brain, measured_genes
from ._markers import annotate_by_markers
from ._reference import ReferenceAnnotator, check_reference
from .brain_reference import FILES, is_shipped
from .expression import read_human_cells
from .options import FINETUNE_STEPS, AnnotateOptions
from .result import Annotation, refuse_foreign_columns, report_counts

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas as pd
    from anndata import AnnData

    Markers: TypeAlias = Mapping[str, Sequence[str]] | pd.DataFrame | str | PathLike[str]


@renamed_parameters(labels="label_key", donor="donor_key", network="finetune_steps")
@within_cores()
@single_blas_thread()
def annotate(
    adata: AnnData,
    *,
    reference: str | PathLike[str] | AnnData | None = None,
    label_key: str | Sequence[str] | None = None,
    model: str | PathLike[str] | Model | None = None,
    markers: Markers | None = None,
    region: Literal["cortex", "hippocampus", "midbrain"] | None = None,
    donor_key: str | None = "donor",
    layer: str | None = None,
    reference_layer: str | None = None,
    gene_column: str | None = None,
    finetune_steps: int = 0,
    error_rate: float = 0.05,
    across_studies: bool = False,
    device: str | None = None,
    cache: bool | str | PathLike[str] = True,
    seed: int = 0,
    copy: bool = False,
    overwrite: bool = False,
    return_result: bool = False,
    force: bool = False,
    verbose: bool = True,
) -> AnnData | Annotation:
    """Assign a cell type to each cell.

    Without further arguments, nuclei or cells of the human brain get their types from the expected counts of brain cell
    types that come with the package (``reference="human-brain"``), to three levels. Where fewer than 100 genes of this
    reference were measured, marker genes of the eight major types are used instead (``markers="panel"``); a message names
    the source. Other sources: ``reference=`` with ``label_key=`` (labeled cells of the same tissue), ``model=`` (a checkpoint
    that classifies), and ``markers=`` (marker genes of your own).

    Parameters
    ----------
    adata
        Cells x genes; raw counts or log1p values of them, human gene names or Ensembl IDs.
    reference
        Labeled cells, an AnnData or an .h5ad file; or ``"human-brain"``, expected counts of human brain cell types that come with
        the package (:func:`scmamba.references`): no labels and no marker genes are needed. The default if neither ``model`` nor
        ``markers`` is given.
    label_key
        Column of the reference's ``obs`` with the cell types, or several columns from coarse to fine. Missing
        labels, ``""``, ``"nan"``, ``"Unknown"`` and ``"Unassigned"`` are cells without a label.
    model
        With a reference: the pre-trained network to fine-tune (default ``brain-mini``). Alone: a checkpoint with
        cell types.
    markers
        Genes by cell type: a mapping, a DataFrame (type, gene), a text file
        (:func:`scmamba.datasets.marker_panels.read_marker_panel`), or ``"panel"`` for the panel of the human brain.
    region
        With the reference ``"human-brain"``: omit the cell types of other regions. Default: all.
    donor_key
        Column of the reference's ``obs`` with the donors. Probabilities are calibrated on held-out donors, on
        held-out cells if there are fewer than three donors or no such column.
    layer
        Layer of ``adata`` with the values; default ``X``.
    reference_layer
        Layer of the reference with the values; default the name given as ``layer``.
    gene_column
        Column of ``var`` with the gene names; by default the best one is chosen.
    finetune_steps
        With a reference: steps, of 16 cells each, for which the network is fine-tuned as well, such as 400 (minutes). It
        gets the weight that helps on held-out donors. Default 0: without the network, which was as good wherever it was
        measured.
    error_rate
        Target error rate. The probability threshold is chosen so that at most this share of the calls on held-out
        donors is wrong; cells below it are ``Unassigned``. In cells of another study than the reference's it also limits how
        uncertain a cell and its neighborhood may be. Default 0.05.
    across_studies
        With ``reference=`` of labeled cells: if they differ from ``adata`` as cells of different studies do, cells also
        stay ``Unassigned`` whose cluster does not fit its type, and cells of uncertain type. More than half of the calls
        may be lost (docs/annotation.md). Default False: a message gives the numbers, and calls stay.
    device
        Device of the network, such as ``"cpu"`` or ``"cuda:1"``; default the GPU if there is one.
    cache
        Keep what was fitted to a reference, by its content, so that the next query takes seconds; a folder, or
        ``False``.
    seed
        Seed of folds, components and fine-tuning. Default 0.
    copy
        Return a copy and leave ``adata`` as it is.
    overwrite
        Replace columns of ``obs`` with our names that other software wrote.
    return_result
        Return the :class:`Annotation` instead, which holds all probabilities, scores calls against known types and
        draws figures. Nothing is written into ``adata``.
    force
        Continue although reference and query share as few as 50 genes, and read values that are neither counts nor logarithms
        as corrected counts.
    verbose
        Print what is done.

    Returns
    -------
    ``adata`` (or its copy) with ``obs["scmamba_type"]``, ``obs["scmamba_probability"]`` and
    ``obs["scmamba_alternatives"]`` (the three most probable types), one set for each column of ``label_key``
    (``scmamba_type_<column>``) if there are several, of the human brain also ``scmamba_class`` and ``scmamba_subtype``, and ``uns["scmamba"]["annotate"]``; or an :class:`Annotation`.

    Raises
    ------
    OptionError
        An option outside of its range, or a reference without ``label_key``.
    DataError
        A column, layer or file does not exist, labels do not nest, too few genes are shared, or columns of ``obs``
        with our names were written by other software.
    ScMambaError
        The model does not classify.

    Examples
    --------
    >>> import scmamba
    >>> from scmamba.datasets import brain_cohort
    >>> cells = brain_cohort(200, n_donors=2, n_genes=2000, seed=1)
    >>> cells = scmamba.annotate(cells, verbose=False)
    >>> sorted(cells.obs.loc[cells.obs["cell_type"] == "Microglia", "scmamba_type"].unique())
    ['Microglia']

    From labeled cells:

    >>> known, query = cells[:150].copy(), cells[150:].copy()
    >>> query = scmamba.annotate(
    ...     query, reference=known, label_key="cell_type", cache=False, verbose=False
    ... )
    >>> query.uns["scmamba"]["annotate"]["summary"]["mode"]
    'reference'

    References
    ----------
    scMamba (2024), section "Cell type annotation".
    """
    if isinstance(finetune_steps, bool):  # network=True/False of 0.1
        finetune_steps = FINETUNE_STEPS if finetune_steps else 0
    options = AnnotateOptions(
        label_key=label_key,
        donor_key=donor_key,
        region=region,
        layer=layer,
        reference_layer=reference_layer,
        gene_column=gene_column,
        finetune_steps=finetune_steps,
        error_rate=error_rate,
        across_studies=across_studies,
        device=device,
        cache=cache,
        seed=seed,
        overwrite=overwrite,
        force=force,
    )
    by_default = reference is None and model is None and markers is None
    if not return_result:
        refuse_foreign_columns(adata, options, in_tree=by_default or is_shipped(reference))
    if by_default:
        result = _by_default(adata, options, verbose)
    else:
        result = _result(adata, reference, model, markers, options, verbose)
    say(result.provenance["values"], verbose)
    report_counts(result, verbose)
    result.params = options.params()
    if return_result:
        return result
    if copy:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    return result.to_adata(adata)


def _labeled_cells(reference: str | PathLike[str] | AnnData) -> AnnData:
    """The object, or the file opened; a name that is neither a file nor a shipped reference is refused."""
    if not isinstance(reference, (str, PathLike)):
        require_adata(reference, "reference=")
        return reference
    path = Path(reference)
    if not path.suffix and not path.expanduser().exists():
        raise DataError(
            f"There is no file {path}, and no reference of that name comes with the package; there is {', '.join(FILES)}."
        )
    return open_backed(path)


def _by_default(adata: AnnData, options: AnnotateOptions, verbose: bool) -> Annotation:
    """By the reference of the brain, or by its marker genes where too few genes of the reference were measured."""
    cells = read_human_cells(adata, options.layer, options.gene_column, options.force)
    found = measured_genes(cells)
    if found >= MIN_DEFAULT_GENES:
        return annotate_by_brain(adata, next(iter(FILES)), options, verbose, default_cells=cells)
    ignored = "" if options.region is None else "; the region is not considered"
    say(
        f"only {found} genes of the reference 'human-brain' were measured; with fewer than {MIN_DEFAULT_GENES} of them, "
        f"marker genes are used (markers='panel'){ignored}",
        verbose,
    )
    return annotate_by_markers(adata, brain_markers(), brain_markers(more=True), options, verbose)


def _result(
    adata: AnnData,
    reference: str | PathLike[str] | AnnData | None,
    model: str | PathLike[str] | Model | None,
    markers: Markers | None,
    options: AnnotateOptions,
    verbose: bool,
) -> Annotation:
    """By the source that was given."""
    if is_shipped(reference):
        return annotate_by_brain(adata, str(reference), options, verbose)
    if reference is not None:
        if isinstance(reference, (str, PathLike)) and options.label_key is None:
            _labeled_cells(reference)
        if options.label_key is None or len(options.label_key) == 0:
            raise OptionError(
                "reference= needs label_key=: the column of its obs with the cell types."
            )
        known = _labeled_cells(reference)
        check_reference(known, options)
        opened = load_model(model, device=options.device)
        return ReferenceAnnotator(options, opened, verbose).fit(known).predict(adata)
    if model is not None and markers is None:
        return annotate_by_model(adata, load_model(model, device=options.device), options, verbose)
    assert markers is not None
    is_shipped_panel = isinstance(markers, str) and markers == "panel"
    panel = read_marker_panel(markers)
    more = brain_markers(more=True) if is_shipped_panel else None
    return annotate_by_markers(adata, panel, more, options, verbose)
