"""First and last steps of every verb: open the model, read the cells, report their scale, record the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._version import __version__
from ..utils.columns import require_adata
from ..utils.errors import DataError
from ..utils.progress import say
from .preprocess import MIN_TOTAL, CellReader

if TYPE_CHECKING:
    from anndata import AnnData

#: Everything scMamba adds to an object is called so.
KEY = "scmamba"
#: The layer with the standard deviations of imputed values.
SD_KEY = f"{KEY}_sd"


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


def write_record(
    adata: AnnData,
    verb: str,
    *,
    params: Mapping[str, Any],
    model: str | None = None,
    summary: Mapping[str, Any] | None = None,
) -> None:
    """Write how a result was made to ``uns["scmamba"][verb]``, in types that every file format keeps.

    Parameters
    ----------
    adata
        The object that holds the result.
    verb
        Name of the function, such as ``"impute"``.
    params
        The options it was called with; ``None`` values are omitted.
    model
        Name of the pre-trained model, if one was used.
    summary
        What was found and done: values read, genes matched, shares, times.
    """
    record: dict[str, Any] = {"version": __version__, "params": _without_none(params)}
    if model is not None:
        record["model"] = model
    record["summary"] = _without_none(summary or {})
    records = dict(adata.uns.get(KEY, {}))
    records[verb] = record
    adata.uns[KEY] = records


def read_summary(cells: CellReader) -> dict[str, Any]:
    """What was read, for the summary of :func:`write_record`: the match of the genes and the scale of the values."""
    return {"genes": cells.match.summary(), "values": cells.values.sentence}


def refuse_existing(
    adata: AnnData,
    verb: str,
    *,
    layers: Sequence[str] = (),
    obsm: Sequence[str] = (),
    obs: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Refuse to replace what the user stored under a name of ours; an earlier result of the same verb may be replaced.

    Call it before any long work.

    Parameters
    ----------
    adata
        The object that the result is written into.
    verb
        Name of the function, such as ``"impute"``.
    layers, obsm, obs
        Keys and columns that the verb is about to write.
    overwrite
        Replace existing results of other software, too.

    Raises
    ------
    DataError
        One of them exists and was not written by this verb, or ``uns["scmamba"]`` is not ours.
    """
    function = "find_doublets" if verb == "doublets" else verb
    require_adata(adata, f"scmamba.{function}()")
    if overwrite:
        if not isinstance(adata.uns.get(KEY, {}), Mapping):
            del adata.uns[KEY]
        return
    if not isinstance(adata.uns.get(KEY, {}), Mapping):
        raise DataError(
            f"uns['{KEY}'] exists already and was not made by scMamba. Rename it, or pass overwrite=True to replace it."
        )
    if verb in adata.uns.get(KEY, {}):
        return
    for slot, names in (("layers", layers), ("obsm", obsm), ("obs", obs)):
        if taken := [name for name in names if name in getattr(adata, slot)]:
            raise DataError(
                f"{slot}['{taken[0]}'] exists already and was not made by scmamba.{function}(). "
                "Rename it, or pass overwrite=True to replace it."
            )


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
