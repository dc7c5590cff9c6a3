"""What every task does first and last: open the model, read the cells, say what was found, note what was done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..utils.errors import DataError
from ..utils.progress import say
from .preprocess import MIN_TOTAL, CellReader

if TYPE_CHECKING:
    from anndata import AnnData

#: Everything scMamba adds to an object is called so.
KEY = "scmamba"


def flag_low_depth(adata: AnnData, cells: CellReader, totals: np.ndarray, verbose: bool) -> None:
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


def write_provenance(
    adata: AnnData, task: str, model_name: str, cells: CellReader, **settings: Any
) -> None:
    """Write provenance to ``uns["scmamba"][task]`` in types every file format keeps."""
    entry = {
        "version": __version__,
        "model": model_name,
        "genes": cells.match.summary(),
        "values": cells.values.sentence,
        **{key: value for key, value in settings.items() if value is not None},
    }
    notes = dict(adata.uns.get(KEY, {}))
    notes[task] = entry
    adata.uns[KEY] = notes


def refuse_foreign(adata: AnnData, holder: str, key: str, task: str) -> None:
    """Refuse to replace something of the user's that happens to have our name; our own earlier result may be replaced.

    Raises
    ------
    DataError
        ``adata.<holder>[key]`` exists and was not written by this task.
    """
    if key in getattr(adata, holder) and task not in adata.uns.get(KEY, {}):
        raise DataError(
            f"{holder}['{key}'] exists already and was not made by scMamba; rename or remove it first, nothing is overwritten."
        )
