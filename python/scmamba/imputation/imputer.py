"""Choose and open what imputes some cells."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from ..data import CellReader, read_cells
from ..data.provenance import KEY, SD_KEY, refuse_existing
from ..model import Model, load_model
from ..utils.columns import require_adata, require_column
from ..utils.errors import DataError, OptionError
from ..utils.expected_time import report_expected
from ..utils.progress import say
from .base import ADDED, Imputer
from .ensemble_imputer import RateEnsembleImputer
from .masked import MaskedImputer
from .options import ImputeOptions

if TYPE_CHECKING:
    from anndata import AnnData

#: A column with more values than this hardly holds donors or libraries, but barcodes.
MAX_BATCHES = 500


def open_imputer(
    adata: AnnData,
    model: str | PathLike[str] | Model | None,
    options: ImputeOptions,
) -> tuple[Imputer, CellReader]:
    """Check everything that can be checked before long work.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed.
    model
        Name, checkpoint or open model; default ``brain-mini``.
    options
        Options of :func:`scmamba.impute`.

    Returns
    -------
    The imputer, not yet fitted, and the cells as it reads them.

    Raises
    ------
    ScMambaError
        Data, genes, options or checkpoint that do not fit.
    """
    require_adata(adata, "scmamba.impute()")
    # obs["scmamba_low_depth"] is the same whichever verb wrote it.
    columns = () if KEY in adata.uns else (f"{KEY}_low_depth", ADDED)
    layers = (KEY, SD_KEY) if options.sd else (KEY,)
    refuse_existing(adata, "impute", layers=layers, obs=columns, overwrite=options.overwrite)
    refuse_foreign_sd(adata, options)
    opened = load_model(model, device=options.device, backend=options.backend)
    method = choose_method(options.method, opened)
    if options.method is None and method == "masked":
        say(_no_rates(opened), options.verbose)
    batch = batch_codes(adata, options.batch_key, method)
    cells = read_cells(
        adata,
        opened.genes,
        layer=options.layer,
        gene_column=options.gene_column,
        force=options.force,
        same_genes=True,
    )
    if options.to_counts and cells.values.kind == "log1p":
        raise DataError(
            "to_counts=True needs raw counts: log-normalized data no longer contain the cells' total counts. "
            "Pass raw counts, or omit to_counts."
        )
    say(cells.values.sentence, options.verbose)
    say(cells.match.summary(), options.verbose)
    if method == "masked" and options.values == "posterior":
        raise OptionError(
            "values='posterior' needs method='ensemble'; method='masked' predicts log values of zeros only. "
            "Omit one of them."
        )
    if method == "masked" and options.sd:
        raise OptionError(
            "sd=True needs method='ensemble': method='masked' predicts values without a distribution. "
            "Omit one of them."
        )
    _report_time(opened, method, len(cells), options)
    if method == "masked":
        return MaskedImputer(opened, options), cells
    return RateEnsembleImputer(opened, options, batch=batch), cells


def has_earlier_sd(adata: AnnData) -> bool:
    """Whether ``layers["scmamba_sd"]`` is from an earlier :func:`scmamba.impute`."""
    record = adata.uns.get(KEY, {})
    earlier = record.get("impute", {}) if isinstance(record, Mapping) else {}
    params = earlier.get("params", {}) if isinstance(earlier, Mapping) else {}
    return SD_KEY in adata.layers and bool(params.get("sd", False))


def refuse_foreign_sd(adata: AnnData, options: ImputeOptions) -> None:
    """Refuse to replace a layer of standard deviations that an earlier run without ``sd`` cannot have written.

    Raises
    ------
    DataError
        There is one, and ``overwrite`` is not set.
    """
    if (
        options.sd
        and not options.overwrite
        and SD_KEY in adata.layers
        and not has_earlier_sd(adata)
    ):
        raise DataError(
            f"layers['{SD_KEY}'] exists already and was not made by scmamba.impute(). "
            "Rename it, or pass overwrite=True to replace it."
        )


def stale_layers(adata: AnnData, options: ImputeOptions) -> list[str]:
    """Layers of an earlier result that do not belong to the new one."""
    return [SD_KEY] if not options.sd and has_earlier_sd(adata) else []


def _report_time(model: Model, method: str, cells: int, options: ImputeOptions) -> None:
    """Report time and memory before long work; the masked rule was measured with 10 passes on a CPU."""
    if method == "ensemble":
        shorter = "adapt_steps=0 omits the adaptation of the network" if options.adapt_steps else ""
        report_expected("impute ensemble", cells, shorter, verbose=options.verbose)
    elif model.device.type == "cpu":
        shorter = "it is proportional to passes" + (
            ", and method='ensemble' is much faster" if model.has_trained_rates else ""
        )
        report_expected(
            "impute masked", cells, shorter, factor=options.passes / 10, verbose=options.verbose
        )


def choose_method(method: str | None, model: Model) -> str:
    """The method that was chosen, or the best one that the heads of the network allow.

    Raises
    ------
    OptionError
        The network lacks the head that the method needs.
    """
    chosen = method or ("ensemble" if model.has_trained_rates else "masked")
    if chosen == "ensemble" and not model.has_trained_rates:
        what = "no rate head" if not model.config.rates else "a rate head that was not trained"
        raise OptionError(
            f"The model '{model.config.name}' has {what}; use method='masked', or another model."
        )
    if chosen == "masked" and not model.config.reconstructs:
        raise OptionError(
            f"The model '{model.config.name}' classifies cells; imputation needs one with a reconstruction head."
        )
    return chosen


def _no_rates(model: Model) -> str:
    """What the choice of the masked method means, and how a model gets a rate head."""
    name = model.config.name
    if model.config.rates:
        return (
            f"The rate head of the model '{name}' was not trained, so its masked predictions are used (the published rule). "
            "scmamba finetune --task impute trains it."
        )
    return (
        f"The model '{name}' has no rate head, so its masked predictions are used (the published rule). brain-mini has one, and so "
        "have models of scmamba pretrain --rates."
    )


def batch_codes(adata: AnnData, batch_key: str | None, method: str) -> np.ndarray | None:
    """(n,) code of each cell's batch; ``None`` if no column is given, or all cells are of one batch.

    Raises
    ------
    OptionError
        The masked method, which reads one cell at a time.
    DataError
        No such column, cells without a batch, or too many batches.
    """
    if batch_key is None:
        return None
    if method != "ensemble":
        raise OptionError(
            "batch_key= balances the nearest neighbors of method='ensemble'; method='masked' reads each cell alone. "
            "Omit one of them."
        )
    column = require_column(adata.obs, batch_key)
    if column.isna().any():
        raise DataError(
            f"{int(column.isna().sum())} cells have no value in obs['{batch_key}']; fill in the values, or remove those cells."
        )
    names, codes = np.unique(column.astype(str).to_numpy(), return_inverse=True)
    if len(names) > MAX_BATCHES:
        raise DataError(
            f"obs['{batch_key}'] has {len(names)} different values; at most {MAX_BATCHES} batches can be balanced. "
            "Pass the column of the donor, the library or the study."
        )
    return codes if len(names) > 1 else None
