"""Cell types: from a labelled reference, from a checkpoint with labels, or from marker genes alone (paper, "Cell type annotation")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

from ..data import read_cells
from ..data.h5ad_files import open_backed
from ..datasets.marker_panels import brain_markers
from ..model import Model, load_model
from ..model.inference import dense_input, input_positions
from ..training.calibration import threshold_for
from ..utils.errors import ScMambaError
from ..utils.progress import say
from ..utils.threads import single_blas_thread
from ._markers import from_markers
from ._reference import from_reference
from .expression import shared_values
from .result import UNASSIGNED, Annotation, own_components, report_counts

if TYPE_CHECKING:
    from anndata import AnnData


@single_blas_thread()
def annotate(
    adata: AnnData,
    *,
    reference: str | PathLike[str] | AnnData | None = None,
    labels: str | Sequence[str] | None = None,
    model: str | PathLike[str] | Model | None = None,
    markers: Mapping[str, Sequence[str]] | str | None = None,
    donor: str | None = "donor",
    layer: str | None = None,
    gene_column: str | None = None,
    network: bool | int = True,
    error_rate: float = 0.05,
    device: str | None = None,
    cache: bool | str | PathLike[str] = True,
    seed: int = 0,
    force: bool = False,
    verbose: bool = True,
) -> Annotation:
    """Say what type each cell is.

    Three ways: ``reference=`` another object with ``labels=`` (a column of its ``obs``, or several from coarse to fine);
    ``model=`` a checkpoint that classifies; or neither, then ``markers=`` (a mapping of types to genes; default the panel of
    :func:`brain_markers`).

    Parameters
    ----------
    donor
        Column of the reference with donors; probabilities are calibrated on donors left out (on cells left out where there are none).
    network
        With a reference: fine-tune the network (``model``, default ``brain-mini``) as well and give it the share that helps on
        donors left out; an integer sets the steps, ``False`` leaves it out and is much quicker.
    error_rate
        ``Unassigned`` are the cells below the probability above which at most this share was wrong on donors left out.
    cache
        Keep what was learnt from a reference, by its content, so that the next query is quick; a folder, or ``False``.

    Returns
    -------
    :class:`Annotation`; ``annotate(...).to_adata(adata)`` writes it into the object.

    Raises
    ------
    ScMambaError
        Columns that do not exist, labels that contradict each other, no genes in common, a model that does not classify.
    """
    if not 0 < error_rate < 1:
        raise ScMambaError(
            f"error_rate is {error_rate}; it must lie between 0 and 1, such as 0.05."
        )
    if reference is not None:
        known = (
            open_backed(Path(reference)) if isinstance(reference, (str, PathLike)) else reference
        )
        if labels is None:
            raise ScMambaError(
                "Which column of the reference holds the types? Name it with labels=..."
            )
        levels = [labels] if isinstance(labels, str) else list(labels)
        return from_reference(
            adata,
            known,
            levels,
            model,
            donor,
            layer,
            gene_column,
            network,
            error_rate,
            device,
            cache,
            seed,
            force,
            verbose,
        )
    if model is not None and markers is None:
        return _from_model(
            adata, load_model(model, device=device), layer, gene_column, error_rate, force, verbose
        )
    panel = (
        brain_markers()
        if markers is None or isinstance(markers, str)
        else {k: list(v) for k, v in markers.items()}
    )
    return from_markers(
        adata,
        panel,
        None if markers else brain_markers(more=True),
        layer,
        gene_column,
        seed,
        verbose,
    )


# ---------------------------------------------------------------- from a reference


# ---------------------------------------------------------------- from a model


def _from_model(
    adata: AnnData,
    model: Model,
    layer: str | None,
    gene_column: str | None,
    error_rate: float,
    force: bool,
    verbose: bool,
) -> Annotation:
    if not model.config.n_classes or not model.labels:
        raise ScMambaError(
            f"The model '{model.config.name}' does not classify. Give a labelled reference (reference=, labels=), markers=, or fine-tune "
            "a classifier with 'scmamba finetune --task annotate'."
        )
    cells = read_cells(adata, model.genes, layer=layer, gene_column=gene_column, force=force)
    say(cells.match.summary(), verbose)
    _, genes = input_positions(model, cells)
    logits = np.empty((len(cells), model.config.n_classes))
    for rows in cells.blocks(256):
        x, _ = dense_input(model, cells, cells.linear(rows))
        logits[rows] = model.classify(x, genes=genes).double().numpy()
    known = model.calibration or {}
    p = softmax(logits / known.get("temperature", 1.0), axis=1)
    curve = np.array(known["curve"]) if known.get("curve") else np.empty((0, 3))
    threshold = threshold_for(curve, error_rate) if len(curve) else 0.5
    note = (
        f"calibrated on {known['cells']} cells of donors left out"
        if known
        else "probabilities are the network's, not calibrated"
    )
    provenance = {"way": "model", "model": model.config.name, "threshold": threshold, "note": note}
    values = shared_values(cells, cells.genes, np.arange(len(cells)))
    answer = Annotation(
        adata.obs_names,
        {"type": list(model.labels)},
        {"type": p},
        threshold,
        curve,
        np.diff(values.indptr) == 0,
        provenance,
        own_components(values, 0),
    )
    report_counts(answer, verbose)
    return answer


__all__ = ["UNASSIGNED", "Annotation", "annotate", "brain_markers"]
