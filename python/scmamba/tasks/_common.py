"""What every task does first and last: open the model, read the cells, say what was found, note what was done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from .. import __version__
from .._errors import DataError
from .._progress import say
from ..data.preprocess import MIN_TOTAL, Cells
from ..model import Model

if TYPE_CHECKING:
    from anndata import AnnData

#: Everything scMamba adds to an object is called so.
KEY = "scmamba"


def positions(model: Model, cells: Cells) -> tuple[np.ndarray, torch.Tensor | None]:
    """Which columns the network is given.

    Returns
    -------
    (k,) indices into the network's input columns where the measured genes of ``cells`` go, and the positions of the whole
    input in the vocabulary: ``None`` for every gene in order (absent ones are zero), or the measured ones only.
    """
    if model.config.reads == "expressed" and len(cells.genes) < len(model.genes):
        return np.arange(len(cells.genes)), torch.as_tensor(cells.genes)
    return cells.genes, None


def dense_input(model: Model, cells: Cells, linear: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """(r, l) float32 input of the network for a block of :meth:`Cells.linear`, and (r,) their totals over the model's genes."""
    where, genes = positions(model, cells)
    sparse_input, totals = cells.to_model(linear)
    x = np.zeros((sparse_input.shape[0], len(model.genes) if genes is None else len(genes)), dtype=np.float32)
    x[:, where] = sparse_input.toarray()
    return x, totals


def flag_low_depth(adata: AnnData, cells: Cells, totals: np.ndarray, verbose: bool) -> None:
    """Write ``obs["scmamba_low_depth"]``: cells with fewer counts than any training cell had; needs counts."""
    if cells.values.kind == "log1p":
        return
    low = totals < MIN_TOTAL
    adata.obs[f"{KEY}_low_depth"] = low
    if low.any():
        say(
            f"{int(low.sum())} cells have fewer than {MIN_TOTAL} counts; no model was trained on such cells (obs['{KEY}_low_depth'])",
            verbose,
        )


def note(adata: AnnData, task: str, model: Model, cells: Cells, **settings: Any) -> None:
    """Write provenance to ``uns["scmamba"][task]`` in types every file format keeps."""
    entry = {
        "version": __version__,
        "model": model.config.name,
        "genes": cells.match.summary(),
        "values": cells.values.sentence,
        **{key: value for key, value in settings.items() if value is not None},
    }
    notes = dict(adata.uns.get(KEY, {}))
    notes[task] = entry
    adata.uns[KEY] = notes


def check_free(adata: AnnData, holder: str, key: str, task: str) -> None:
    """Refuse to replace something of the user's that happens to have our name; our own earlier result may be replaced.

    Raises
    ------
    DataError
        ``adata.<holder>[key]`` exists and was not written by this task.
    """
    if key in getattr(adata, holder) and task not in adata.uns.get(KEY, {}):
        raise DataError(f"{holder}['{key}'] exists already and was not made by scMamba; rename or remove it first, nothing is overwritten.")


def available_memory() -> float:
    """Bytes of memory free for new data (Linux and macOS; infinite where unknown)."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
