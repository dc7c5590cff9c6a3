"""Evaluation of the columns and layers of an object; the command ``scmamba evaluate`` and R's ``ScMambaEvaluate`` call it."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..utils.columns import require_column, warn_similar
from ..utils.errors import ScMambaError
from ..utils.layers import layer_names
from .annotation_report import AnnotationReport, annotation_report
from .reports import Report, cluster_report, doublet_report, imputation_report

if TYPE_CHECKING:
    from anndata import AnnData


def annotation_of(
    table: pd.DataFrame,
    truth: str,
    called: Sequence[str] | None = None,
    confidence: str | None = None,
) -> AnnotationReport:
    """Score columns of calls against a column of known types; cells without a known type are omitted.

    Parameters
    ----------
    table
        Metadata of the cells.
    truth
        Column of known types.
    called
        Columns of calls. Default ``scmamba_type``.
    confidence
        Column of probabilities of the first calls. Default ``scmamba_probability``, for ``scmamba_type``.

    Raises
    ------
    ScMambaError
        A column is missing, or holds no type or probability.
    """
    columns = list(called or ["scmamba_type"])
    ours = columns[0] == "scmamba_type" and "scmamba_probability" in table
    sure = confidence or ("scmamba_probability" if ours else None)
    for column in [truth, *columns] + ([sure] if sure else []):
        require_column(table, column)
    kept = table[table[truth].notna().to_numpy()]
    if not len(kept):
        raise ScMambaError(f"The column '{truth}' holds no type.")
    for column in columns:
        warn_similar({*kept[truth].astype(str), *kept[column].dropna().astype(str)}, column)
    calls = {
        column: kept[column].astype(object).fillna("Unassigned").astype(str).to_numpy()
        for column in columns
    }
    return annotation_report(
        kept[truth].astype(str).to_numpy(),
        calls,
        None if sure is None else _probabilities(kept[sure]),
    )


def doublets_of(
    table: pd.DataFrame,
    truth: str,
    score: Sequence[str] | None = None,
    called: str | None = None,
) -> Report:
    """Score columns of doublet scores against a column of known doublets; droplets without a truth are omitted.

    Parameters
    ----------
    table
        Metadata of the cells.
    truth
        Column that is true (or ``doublet``) for droplets with two cells.
    score
        Columns of scores. Default ``scmamba_doublet_score``.
    called
        Column of calls of the first score; by default as many are called as are true.

    Raises
    ------
    ScMambaError
        A column is missing, or holds something else.
    """
    columns = list(score or ["scmamba_doublet_score"])
    for column in [truth, *columns, *([called] if called else [])]:
        require_column(table, column)
    kept = table[table[truth].notna().to_numpy()]
    scores = {
        name: pd.to_numeric(kept[name], errors="coerce").to_numpy(dtype=float) for name in columns
    }
    if empty := [name for name, values in scores.items() if not np.isfinite(values).any()]:
        raise ScMambaError(f"The column '{empty[0]}' holds no numbers.")
    calls = {columns[0]: _is_doublet(kept[called])} if called else None
    return doublet_report(_is_doublet(kept[truth]), scores, calls)


def imputation_of(
    adata: AnnData,
    model: Sequence[str | PathLike[str]] | None = None,
    predictor: Sequence[str] | None = None,
    *,
    layer: str | None = None,
    min_total: float = 2000,
    cells: int | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> Report:
    """Mask every counted value once, predict it, and compare the predictions with simple predictors.

    Parameters
    ----------
    adata
        Raw counts, of donors that were not used for training the models.
    model
        Names or folders of models. Default ``brain-mini``.
    predictor
        Simple predictors beside them; default: all installed.
    layer
        Layer to read; ``X`` if not given.
    min_total
        Minimum total counts of a cell.
    cells
        Number of cells, drawn at random; all if not given.
    seed
        Seed; the same seed gives the same result.
    verbose
        Print messages and progress.

    Raises
    ------
    ScMambaError
        Not raw counts, too few cells, or an unknown model or predictor.
    """
    from .imputation import nonzero_imputation

    rows = np.arange(adata.n_obs)
    if cells is not None and cells < adata.n_obs:
        rows = np.sort(np.random.default_rng(seed).choice(adata.n_obs, cells, replace=False))
    models = {Path(name).name: name for name in model or ["brain-mini"]}
    table = nonzero_imputation(
        adata[rows].to_memory(),
        models,
        predictors=list(predictor) if predictor else None,
        layer=layer,
        min_total=min_total,
        seed=seed,
        verbose=verbose,
    )
    return imputation_report(table)


def clusters_of(
    adata: AnnData,
    truth: str,
    layer: Sequence[str] | None = None,
    donor: str | None = None,
    *,
    seed: int = 0,
) -> Report:
    """Cluster the counts and imputed layers in the same way, and compare the clusters with types and donors.

    Parameters
    ----------
    adata
        Raw counts, and layers of log values; an h5ad file may be open and unread.
    truth
        Column of known types.
    layer
        Layers of log values. Default ``scmamba``.
    donor
        Column of donors.
    seed
        Seed; the same seed gives the same result.

    Raises
    ------
    ScMambaError
        A layer or column is missing.
    """
    from ..deg.values import layer_source

    layers = list(layer or ["scmamba"])
    if missing := [name for name in layers if name not in adata.layers]:
        have = ", ".join(layer_names(adata.layers)) or "none"
        raise ScMambaError(
            f"The data have no layer '{missing[0]}'; they have {have}. 'scmamba impute' makes one."
        )
    for column in [truth, *([donor] if donor else [])]:
        require_column(adata.obs, column)
    kept = adata[adata.obs[truth].notna().to_numpy()].to_memory()
    values = {"counts": layer_source(kept).logs(), **{name: kept.layers[name] for name in layers}}
    donors = None if donor is None else kept.obs[donor].astype(str).to_numpy()
    return cluster_report(values, kept.obs[truth].astype(str).to_numpy(), donors, seed=seed)


def frames(report: Report | AnnotationReport) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """A report's tables in long form, the summary first, and its notes.

    Parameters
    ----------
    report
        What one of the functions above returned.
    """
    whole = {"summary": report.summary.reset_index()}
    if isinstance(report, Report):
        return {**whole, **report.tables}, list(report.notes)
    whole["per_type"] = pd.concat(
        [
            table.rename_axis("type").reset_index().assign(calls=name)
            for name, table in report.per_class.items()
        ]
    ).reset_index(drop=True)
    whole["confusion"] = pd.concat(
        [
            table.rename_axis(index="truth", columns="called")
            .stack()
            .rename("cells")
            .reset_index()
            .assign(calls=name)
            for name, table in report.confusions.items()
        ]
    ).reset_index(drop=True)
    notes = []
    if report.curve is not None:
        whole["coverage"] = report.curve
        notes.append(f"Expected calibration error: {report.calibration_error:.4f}.")
    return whole, notes


def _probabilities(column: pd.Series) -> np.ndarray:
    """(n,) probabilities; anything else is refused."""
    values = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=float)
    rounding = 1e-6  # sums of single-precision numbers
    if bad := int((~((values >= -rounding) & (values <= 1 + rounding))).sum()):
        raise ScMambaError(
            f"The column '{column.name}' holds no probability (a number from 0 to 1) for {bad:,} of {len(values):,} cells. "
            "Name the column with the probabilities of the calls (confidence)."
        )
    return np.clip(values, 0, 1)


def _is_doublet(column: pd.Series) -> np.ndarray:
    """(n,) bool of truths, numbers or words."""
    from ..data.doublet_simulation import DOUBLET_WORDS, SINGLET_WORDS

    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float) > 0
    words = column.astype(str).str.strip().str.lower()
    known = dict.fromkeys(DOUBLET_WORDS, True) | dict.fromkeys(SINGLET_WORDS, False)
    if is_novel := sorted(set(words) - set(known)):
        raise ScMambaError(
            f"The column '{column.name}' holds '{is_novel[0]}'; it must be true or false, or 'doublet' or 'singlet'."
        )
    return words.map(known).to_numpy(dtype=bool)


__all__ = ["annotation_of", "clusters_of", "doublets_of", "frames", "imputation_of"]
