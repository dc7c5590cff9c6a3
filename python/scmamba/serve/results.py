"""What a task gave, as the files a user fetches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..utils.h5_output import write_anndata
from ..wire.tables import Tables, plain_frame, plain_value, write_tables

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import Model


def write_result(result: AnnData | Tables | tuple[Model, str], task: str, folder: Path) -> None:
    """``result.h5ad`` and what was added alone in the plain form, ``result.scmb``; tables in both; a model as ``result.zip``."""
    if isinstance(result, Tables):
        write_tables(result, task, folder)
    elif isinstance(result, tuple):
        _write_model(result[0], result[1], folder)
    else:
        _write_cells(result, task, folder)


def _write_cells(adata: AnnData, task: str, folder: Path) -> None:
    from ..wire.scmb import write
    from ..wire.slots import layer_slots

    arrays: dict[str, np.ndarray] = {}
    if task == "impute":
        slots = layer_slots(adata, "scmamba")
        arrays |= {
            "x": np.asarray(slots["x"]),
            "i": np.asarray(slots["i"]),
            "p": np.asarray(slots["p"]),
        }
        if (
            adata.uns["scmamba"]["impute"].get("params", {}).get("sd")
        ):  # of the same entries as the values
            arrays["sd"] = np.asarray(layer_slots(adata, "scmamba_sd")["x"])
    if task == "embed":
        arrays["embedding"] = np.asarray(adata.obsm["X_scmamba"], dtype=np.float64)
    columns = {
        str(c): plain_frame(adata.obs[c])
        for c in adata.obs.columns
        if str(c).startswith("scmamba_")
    }
    header = {
        "task": task,
        "genes": int(adata.n_vars),
        "cells": list(map(str, adata.obs_names)),
        "obs": columns,
        "provenance": json.loads(json.dumps(dict(adata.uns["scmamba"][task]), default=plain_value)),
    }
    write(folder / "result.scmb", header, arrays)
    write_anndata(adata, folder / "result.h5ad")


def _write_model(model: Model, card: str, folder: Path) -> None:
    import shutil

    from ..model import pack_model, save_checkpoint

    save_checkpoint(model, folder / "model", card=card)
    pack_model(folder / "model", folder / "result.zip")
    shutil.rmtree(folder / "model")
