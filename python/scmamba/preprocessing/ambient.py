"""Ambient RNA: the share of the counts of each cell that is not its own, for each sample, and counts without it.

Nuclei of post-mortem tissue are sequenced in a solution that holds RNA of broken cells, such as oligodendrocyte RNA in neurons.
:mod:`scmamba.preprocessing.ambient_shares` estimates the share; this module finds the types, runs each sample and writes the result.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.provenance import KEY, refuse_existing, write_record
from ..data.row_store import Rows
from ..data.selection import select_matrix
from ..utils.columns import require_column
from ..utils.errors import DataError
from ..utils.progress import progress, say
from ..utils.threads import single_blas_thread, single_thread, within_cores
from .ambient_shares import (
    MAX_SHARE,
    MAX_SHARE_CLUSTERS,
    OWN_PART,
    SampleAmbient,
    sample_ambient,
)
from .brain_typing import brain_types
from .options import AmbientOptions

if TYPE_CHECKING:
    from anndata import AnnData

#: Key of the result in ``uns["scmamba"]``, and the column of ``obs``.
TASK, COLUMN = "ambient_rna", f"{KEY}_ambient"
#: Labels of cells without a type, in lower case.
NO_TYPE = ("", "nan", "na", "none", "unknown", "unassigned", "unidentified")
#: Columns of the tables.
_COLUMNS = {
    "samples": ("sample", "cells", "types", "share", "low", "high", "reason", "top_genes"),
    "types": ("sample", "type", "cells", "share", "low", "high", "own_estimate"),
}
#: Genes that are listed for each sample.
TOP_GENES = 5


@within_cores()
@single_blas_thread()
def ambient_rna(
    adata: AnnData,
    *,
    sample_key: str | None = None,
    label_key: str | None = None,
    corrected_layer: str | None = None,
    layer: str | None = None,
    seed: int = 0,
    copy: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Estimate the share of ambient RNA in each sample, and optionally remove it from a copy of the counts.

    Parameters
    ----------
    adata
        Cells x genes, raw counts, of all cells of each sample (the ambient RNA is taken to be their average); any genes.
    sample_key
        Column of ``obs`` with the library or donor: each has its own ambient RNA. Default: all cells are one sample.
    label_key
        Column of ``obs`` with cell types. Default: the types of the reference ``human-brain`` if at least 100 of its genes were measured
        and the cells are of the brain, otherwise clusters.
    corrected_layer
        Name of a new layer for the corrected counts (fractions). Default: none is written. ``X`` is never changed.
    layer
        Layer with the raw counts; default ``X``.
    seed
        Seed of the split of the cells and of the clusters. Default 0.
    copy
        Return a copy and leave ``adata`` as it is.
    overwrite
        Replace a column or layer with this name that other software wrote.
    verbose
        Print the share of each sample.

    Returns
    -------
    ``adata`` (or its copy) with ``obs["scmamba_ambient"]`` (share of each cell's counts; NaN if it is not known), the layer, and
    ``uns["scmamba"]["ambient_rna"]``; :func:`ambient_table` makes tables of it. A sample with one cell type has the share NaN and a
    reason: there, ambient and own RNA cannot be distinguished.

    Raises
    ------
    DataError
        A column or layer does not exist, values are not counts, or the column or layer exists and was written by other software.

    Examples
    --------
    >>> import scmamba
    >>> from scmamba.datasets import brain_cohort
    >>> cells = brain_cohort(400, n_donors=2, n_genes=2000, seed=1)
    >>> cells = scmamba.ambient_rna(cells, sample_key="donor", corrected_layer="own", verbose=False)
    >>> bool((cells.layers["own"] <= cells.X).toarray().all())
    True
    >>> from scmamba.preprocessing import ambient_table
    >>> ambient_table(cells)["sample"].tolist()
    ['D01', 'D02']

    References
    ----------
    Young and Behjati 2020 (SoupX), Yang et al. 2020 (DecontX), whose ideas are used.
    """
    options = AmbientOptions(
        sample_key=sample_key,
        label_key=label_key,
        corrected_layer=corrected_layer,
        layer=layer,
        seed=seed,
        overwrite=overwrite,
    )
    layers = [] if corrected_layer is None else [corrected_layer]
    refuse_existing(adata, TASK, obs=[COLUMN], layers=layers, overwrite=overwrite)
    if corrected_layer is not None:
        _check_layer(adata, corrected_layer, options)
    counts, values = _counts(adata, layer)
    say(values, verbose)
    found = estimate_ambient(adata, counts, options, verbose)
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    found.write(adata, options, values)
    if corrected_layer is not None:
        adata.layers[corrected_layer] = found.corrected(counts)
    return adata


def ambient_table(adata: AnnData, *, by_type: bool = False) -> pd.DataFrame:
    """Shares of ambient RNA that :func:`ambient_rna` or :func:`prepare` wrote, as a table.

    Parameters
    ----------
    adata
        The object.
    by_type
        One row for each cell type of each sample, instead of one for each sample.

    Returns
    -------
    One row per sample: ``sample``, ``cells``, ``types``, ``share``, ``low`` and ``high`` (95% interval), ``reason`` (why the share is not
    known), ``top_genes`` (genes that are ambient in most cells that hold them). By type: ``sample``, ``type``, ``cells``, ``share``,
    ``low``, ``high``, ``own_estimate`` (False: the type has the share of its sample).

    Raises
    ------
    DataError
        No shares were estimated.
    """
    record = adata.uns.get(KEY, {}).get(TASK)
    if record is None:
        raise DataError(
            "This object holds no shares of ambient RNA. Run scmamba.ambient_rna(adata) first."
        )
    name = "types" if by_type else "samples"
    # Files keep the columns in the order of their names.
    return pd.DataFrame(dict(record["summary"][name]))[list(_COLUMNS[name])]


@dataclass
class AmbientEstimate:
    """Estimates of some samples.

    Attributes
    ----------
    names
        (samples,)
    samples, codes
        (n,) sample and type of each cell; -1: no type.
    types
        Names of the types.
    source
        Where the types come from.
    fits
        The estimate of each sample.
    cells
        (n,) share of each cell.
    genes
        Names of the genes.
    """

    names: list[str]
    samples: np.ndarray
    codes: np.ndarray
    types: np.ndarray
    source: str
    fits: list[SampleAmbient]
    cells: np.ndarray
    genes: np.ndarray

    def corrected(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """(n, genes) float32 counts without ambient RNA."""
        blocks, order = [], []
        for number, fit in enumerate(self.fits):
            rows = np.flatnonzero(self.samples == number)
            blocks.append(fit.corrected(counts[rows], self.codes[rows], self.cells[rows]))
            order.append(rows)
        back = np.argsort(np.concatenate(order), kind="stable")
        return sparse.csr_matrix(sparse.vstack(blocks, format="csr")[back], dtype=np.float32)

    def summary(self) -> dict[str, Any]:
        """Tables of the samples and of their types, for the record."""
        samples, types = [], []
        for number, (name, fit) in enumerate(zip(self.names, self.fits)):
            samples.append(
                {
                    "sample": name,
                    "cells": int((self.samples == number).sum()),
                    "types": len(fit.by_type),
                    "share": fit.share,
                    "low": fit.low,
                    "high": fit.high,
                    "reason": fit.reason,
                    "top_genes": ", ".join(self.genes[top_genes(fit)]),
                }
            )
            for code, each in fit.by_type.items():
                share, half = fit.shares.get(code, np.nan), 1.96 * each.error
                own = code in fit.known
                types.append(
                    {
                        "sample": name,
                        "type": str(self.types[code]),
                        "cells": each.cells,
                        "share": share,
                        "low": max((1 - OWN_PART) * share - half, 0.0) if own else np.nan,
                        "high": min(share + half, 1.0) if own else np.nan,
                        "own_estimate": own,
                    }
                )
        tables = {"samples": pd.DataFrame(samples), "types": pd.DataFrame(types)}
        return {
            "types_from": self.source,
            **{name: {c: t[c].to_numpy() for c in t} for name, t in tables.items()},
        }

    def write(self, adata: AnnData, options: AmbientOptions, values: str) -> None:
        """Write the shares of the cells and the record."""
        adata.obs[COLUMN] = self.cells.astype(np.float32)
        summary = {"values": values, **self.summary()}
        write_record(adata, TASK, params=options.params(), summary=summary)

    def report(self, verbose: bool) -> None:
        """Print one line for each of the first samples."""
        for name, fit in list(zip(self.names, self.fits))[:12]:
            where = f"sample {name}: " if len(self.names) > 1 else ""
            if fit.reason:
                say(f"{where}the share of ambient RNA cannot be known: {fit.reason}", verbose)
                continue
            genes = ", ".join(self.genes[top_genes(fit)])
            say(
                f"{where}{100 * fit.share:.1f}% of the counts are ambient RNA (95% interval {100 * fit.low:.1f} to "
                f"{100 * fit.high:.1f}%), most of all {genes}",
                verbose,
            )
        if len(self.names) > 12:
            say(f"{len(self.names) - 12} more samples are in the table", verbose)


def top_genes(fit: SampleAmbient) -> np.ndarray:
    """Positions of the genes with the most ambient counts in types that do not express them."""
    total = np.zeros(len(fit.average))
    for code, share in fit.shares.items():
        genes = fit.by_type[code].genes
        total[genes] += share * fit.by_type[code].counts * fit.average[genes]
    best = np.argsort(-total, kind="stable")[:TOP_GENES]
    return best[total[best] > 0]


def estimate_ambient(
    adata: AnnData, counts: sparse.csr_matrix, options: AmbientOptions, verbose: bool
) -> AmbientEstimate:
    """Estimate every sample.

    Parameters
    ----------
    adata
        The object with the columns of samples and types.
    counts
        (n, n_vars) counts.
    options
        Options of :func:`ambient_rna`.
    verbose
        Print the results.
    """
    names, samples = _groups(adata, options.sample_key)
    types, codes, source = _types(adata, counts, options, verbose)
    symbols = adata.var.get("symbol", adata.var_names)
    genes = np.array([str(s) or str(n) for s, n in zip(symbols, adata.var_names)], dtype=object)
    largest = MAX_SHARE_CLUSTERS if source == "clusters" else MAX_SHARE
    fits, cells = [], np.full(adata.n_obs, np.nan)
    with progress("Ambient RNA", len(names), verbose) as advance:
        for number in range(len(names)):
            rows = np.flatnonzero(samples == number)
            part = counts[rows]
            fits.append(sample_ambient(part, codes[rows], largest=largest, seed=options.seed))
            cells[rows] = fits[-1].cell_shares(part, codes[rows])
            advance(1)
    found = AmbientEstimate(names, samples, codes, types, source, fits, cells, genes)
    found.report(verbose)
    return found


def _check_layer(adata: AnnData, name: str, options: AmbientOptions) -> None:
    """Refuse a layer that the user wrote; an earlier result under this name may be replaced."""
    if name == (options.layer or "X") or name == "raw":
        raise DataError(
            f"corrected_layer is '{name}', which holds the raw counts. Choose another name, such as 'corrected'."
        )
    record = adata.uns.get(KEY, {}).get(TASK, {})
    ours = dict(record).get("params", {}).get("corrected_layer")
    if name in adata.layers and name != ours and not options.overwrite:
        raise DataError(
            f"layers['{name}'] exists already and was not made by scmamba.ambient_rna(). "
            "Choose another corrected_layer, or pass overwrite=True to replace it."
        )


def _counts(adata: AnnData, layer: str | None) -> tuple[sparse.csr_matrix, str]:
    """(n, genes) counts and a sentence about the values; fractions and logarithms are refused."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    selected = select_matrix(adata, layer)
    if len(selected.var) != adata.n_vars:
        raise DataError(
            f"layer='{layer}' has {len(selected.var)} genes and the object {adata.n_vars}; use adata.raw.to_adata() instead."
        )
    values = selected.classify()
    values.require_usable()
    if values.kind != "counts" or not values.integer:
        raise DataError(
            f"{values.sentence}, but shares of ambient RNA are estimated from raw counts. Give raw counts, in X or in a layer "
            "(layer='counts')."
        )
    return selected.rows(slice(None)), values.sentence


def _groups(adata: AnnData, key: str | None) -> tuple[list[str], np.ndarray]:
    """Names of the samples and (n,) codes; cells without a sample are one more."""
    if key is None:
        return ["all"], np.zeros(adata.n_obs, dtype=np.int64)
    column = require_column(adata.obs, key)
    text = column.astype(str).where(column.notna(), "no sample").astype(object)
    codes, levels = pd.factorize(text, sort=True)
    return [str(level) for level in levels], codes.astype(np.int64)


def _types(
    adata: AnnData, counts: sparse.csr_matrix, options: AmbientOptions, verbose: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Names of the types, (n,) codes, and where they come from."""
    if options.label_key is not None:
        column = require_column(adata.obs, options.label_key)
        text = column.astype(str)
        named = column.notna() & ~text.str.strip().str.lower().isin(NO_TYPE)
        codes, levels = pd.factorize(text.where(named, None).astype(object), sort=True)
        return np.asarray(levels, dtype=object), codes.astype(np.int64), options.label_key
    found = brain_types(adata, counts)
    if found is not None:
        say(
            f"cell types by the reference 'human-brain' ({len(found.genes):,} of its genes): {', '.join(found.names)}",
            verbose,
        )
        return found.names, found.codes, "human-brain"
    codes = clusters(counts, seed=options.seed)
    names = np.array([f"c{code + 1}" for code in range(int(codes.max()) + 1)], dtype=object)
    say(
        f"cell types: {len(names)} clusters of the cells; label_key= names a column with types instead",
        verbose,
    )
    return names, codes, "clusters"


def clusters(counts: sparse.csr_matrix, *, seed: int = 0) -> np.ndarray:
    """(n,) codes of the k-means (2 to 12 clusters) with the largest silhouette, in 15 components of log values.

    Parameters
    ----------
    counts
        (n, genes).
    seed
        Seed of the components and clusters.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    total = np.asarray(counts.sum(axis=1)).ravel()
    values = sparse.diags(np.median(total) / np.maximum(total, 1)) @ counts
    values = sparse.csr_matrix(values)
    values.data = np.log1p(values.data)
    few = min(15, min(values.shape) - 1)
    best, chosen = -np.inf, np.zeros(len(total), dtype=np.int64)
    if few < 1:
        return chosen
    with single_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        points = TruncatedSVD(few, random_state=seed).fit_transform(values)
        for k in range(2, min(12, len(points) - 1) + 1):
            code = KMeans(k, n_init=2, random_state=seed).fit_predict(points)
            if len(np.unique(code)) < 2:
                break
            score = silhouette_score(points, code, sample_size=1000, random_state=seed)
            if score > best:
                best, chosen = score, code
    return np.unique(chosen, return_inverse=True)[1]


def shares_of_types(
    adata: AnnData, counts: Rows, codes: np.ndarray, sample_key: str | None
) -> dict[str, np.ndarray]:
    """Table of the share of each sample, from types that are known already.

    Parameters
    ----------
    adata
        The object with the column of samples.
    counts
        (n, genes) counts, of which one sample at a time is read.
    codes
        (n,) types, -1: none.
    sample_key
        Column of ``obs`` with the samples; all cells are one sample if it is absent.
    """
    names, samples = _groups(adata, sample_key if sample_key in adata.obs else None)
    fits = [
        sample_ambient(
            counts if len(names) == 1 else counts[samples == number], codes[samples == number]
        )
        for number in range(len(names))
    ]
    return {
        "sample": np.array(names, dtype=object),
        "share": np.array([fit.share for fit in fits]),
        "low": np.array([fit.low for fit in fits]),
        "high": np.array([fit.high for fit in fits]),
        "reason": np.array([fit.reason for fit in fits], dtype=object),
    }


def report_ambient(table: dict[str, np.ndarray], verbose: bool) -> None:
    """Print one sentence about the shares of :func:`shares_of_types`.

    Parameters
    ----------
    table
        What that function returned.
    verbose
        Print it.
    """
    share = table["share"][np.isfinite(table["share"])]
    if len(share) == 0:
        return
    of = "" if len(table["share"]) == 1 else f" (median of {len(share)} samples)"
    say(
        f"{100 * np.median(share):.0f}% of the counts are ambient RNA{of}; scmamba.ambient_rna() gives the share of each sample and "
        "corrected counts",
        verbose,
    )
