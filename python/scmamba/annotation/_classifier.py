"""Cell types from a checkpoint that classifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

from ..data import read_cells
from ..model import Model
from ..model.inference import dense_input, input_positions
from ..training.calibration import threshold_for
from ..utils.errors import ScMambaError
from ..utils.progress import say
from .expression import shared_values
from .options import AnnotateOptions
from .result import Annotation, own_components

if TYPE_CHECKING:
    from anndata import AnnData

#: Probability threshold of a classifier that was not calibrated.
UNCALIBRATED_THRESHOLD = 0.5


def annotate_by_model(
    adata: AnnData, model: Model, options: AnnotateOptions, verbose: bool
) -> Annotation:
    """Name the cells by the classes of ``model``.

    Raises
    ------
    ScMambaError
        The model does not classify.
    """
    if not model.config.n_classes or not model.labels:
        raise ScMambaError(
            f"The model '{model.config.name}' does not classify. Give a labeled reference (reference=, label_key=), markers=, "
            "or fine-tune a classifier with 'scmamba finetune --task annotate'."
        )
    cells = read_cells(
        adata,
        model.genes,
        layer=options.layer,
        gene_column=options.gene_column,
        force=options.force,
    )
    say(cells.match.summary(), verbose)
    _, genes = input_positions(model, cells)
    logits = np.empty((len(cells), model.config.n_classes))
    for rows in cells.blocks(256):
        x, _ = dense_input(model, cells, cells.linear(rows))
        logits[rows] = model.classify(x, genes=genes).double().numpy()
    known = model.calibration or {}
    curve = np.array(known["curve"]) if known.get("curve") else np.empty((0, 3))
    threshold = threshold_for(curve, options.error_rate) if len(curve) else UNCALIBRATED_THRESHOLD
    note = (
        f"calibrated on {known['cells']} cells of held-out donors"
        if known
        else "probabilities of the network, not calibrated"
    )
    values = shared_values(cells, cells.genes, np.arange(len(cells)))
    return Annotation(
        adata.obs_names,
        {"type": list(model.labels)},
        {"type": softmax(logits / known.get("temperature", 1.0), axis=1)},
        threshold,
        curve,
        np.diff(values.indptr) == 0,
        {
            "mode": "model",
            "values": cells.values.sentence,
            "model": model.config.name,
            "threshold": threshold,
            "note": note,
        },
        own_components(values, 0),
    )
