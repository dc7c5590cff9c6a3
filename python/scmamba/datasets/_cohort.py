"""The simulated brain cohort: negative-binomial counts from fitted profiles, donors, batches and a disease.

The parameters are a small table beside this file, written by ``benchmarks/fit_cohort.py`` from public data.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..utils.errors import DataError
from ._disease import disease_parameters, given_changes, published_changes
from .options import CohortOptions

CELL_TYPES = (
    "Astrocyte",
    "Microglia",
    "Oligodendrocyte",
    "OPC",
    "Excitatory",
    "Inhibitory",
    "Endothelial",
    "Pericyte",
)
_BLOCK = 256  # cells simulated at a time: bounds memory at 256 x genes doubles
_EXPRESSED = 0.5  # counts per 10,000 from which a gene can be differentially expressed
_COMMON = 0.3  # share of a type's DE genes that change in every type


@lru_cache(maxsize=1)
def cohort_parameters() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read the fitted table (one row per gene) and the parameters of its ``#!`` header line."""
    source = resources.files(__package__).joinpath("brain_cohort.tsv.gz")
    with source.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as text:
        header: dict[str, Any] = {}
        for line in text:
            if line.startswith("#!"):
                header = json.loads(line[2:])
            elif not line.startswith("#"):
                columns = line.rstrip("\n").split("\t")
                break
        table = pd.read_csv(text, sep="\t", names=columns, keep_default_na=False)
    return table, header


@dataclass
class _Design:
    """Who is who: per donor its disease, sex, batch, age; per cell its donor and type (indices)."""

    donors: pd.DataFrame
    donor: np.ndarray
    cell_type: np.ndarray


def brain_cohort(
    n_cells: int = 2000,
    *,
    n_donors: int = 8,
    n_genes: int | None = None,
    disease: str | None = None,
    effects: pd.DataFrame | None = None,
    disease_fraction: float = 0.5,
    cell_types: Sequence[str] | None = None,
    de_fraction: float = 0.05,
    effect: float | None = None,
    donor_effect: float = 1.0,
    dropout: float | None = None,
    ambient: float = 0.0,
    ambient_ratio: float = 1.0,
    depth_ratio: float = 1.0,
    keep_rates: bool = False,
    seed: int = 0,
) -> ad.AnnData:
    """Simulate a human brain snRNA cohort of patients and control donors whose true effects are known.

    SIMULATED. The profiles of the types are those of the reference ``"human-brain"`` (:func:`scmamba.references` lists the
    studies; human nuclei, pericytes by mouse), times a factor of each gene that brings them to the scale of one study
    (Velmeshev 2019). Dispersions, donor effects and library sizes were fitted on human nuclei (Velmeshev 2019, Agarwal 2020)
    by ``benchmarks/fit_cohort.py``. Proportions of types and which genes change in disease are assumptions, so these data have
    no biological meaning. That ``annotate`` with this reference names these cells right is no evidence of its accuracy.

    SEMI-SYNTHETIC with ``disease``: the changes are those that were published. ``"AD"``: the genes of each type whose fold
    change between 24 patients and 24 controls (Mathys et al., Nature 570:332, 2019) stands out from those of genes of like
    expression. ``"PD"``: as many genes of each type, up and down, and as large changes as Smajic et al. (Brain 145:964, 2022)
    published for the midbrain, but of genes drawn at random, because that table may not be shipped; pass it as ``effects`` for
    its genes. Both studies tested cells, so sizes and numbers are those of published lists, not of nature: a gene that is
    found here shows that a test works, and nothing about the disease. Donors differ as controls do (Velmeshev 2019, Kang 2018;
    ``benchmarks/fit_disease.py``).

    Counts are negative-binomial. The rate of gene g in a cell of type t, donor d is
    ``library x profile[t, g] x 2**log2fc[t, g] (patients) x donor effect[d, t, g]``; donor effects are
    log-normal, partly shared by the cell types of a donor and by the donors of a batch, so cells of one
    donor are not independent (pseudo-replication is real here).

    Parameters
    ----------
    n_cells : number of cells; at least ``n_donors``.
    n_donors : number of donors; at least 2.
    n_genes : keep the most expressed genes only (200 to all 10,000, the default).
    disease : ``"AD"`` or ``"PD"``, the value of patients in ``obs["disease"]``: published changes, see above. None: which genes
        change is random, and patients are called AD.
    effects : log2 fold changes of one's own, genes (symbols or Ensembl IDs) x cell types, in place of those that come with
        ``disease``; missing values are no change.
    disease_fraction : share of donors with the disease, 0 to 1.
    cell_types : some of :data:`CELL_TYPES`; all eight by default.
    de_fraction : share of the genes a type expresses (>= 0.5 per 10,000) that change; without ``disease`` only.
    effect : factor on the log2 fold changes; 0 gives a null cohort. Without ``disease`` the deciles of their sizes are those of
        the DEGs Velmeshev 2019 published between samples, and the default is 2 because eight donors find hardly anything at 1;
        with ``disease`` it is 1.
    donor_effect : factor on the fitted standard deviation of donor effects; 0 for none.
    dropout : share of non-zero counts lost on top of sampling; default 0 (the fit found 0.007).
    ambient : mean share of a cell's counts that is ambient RNA, the average over all cells of its donor; it varies between
        donors (log-normal, sd 0.3) and is in ``obs["ambient"]``.
    ambient_ratio : factor on the ambient share of patients. Other than 1, RNA of other types differs between the groups in
        every type: genes that do not change look changed.
    depth_ratio : factor on the counts per cell of patients; other than 1, depth differs between the groups.
    keep_rates : also keep the true rates, dense float32, in ``layers["rate"]`` (cells x genes, expected
        counts of the cell's own RNA): the truth for imputation.
    seed : the same seed gives the same cohort.

    Returns
    -------
    AnnData (n_cells x genes): ``X`` int32 CSR raw counts; ``obs`` cell_type, donor, disease, sex, age, batch,
    n_umi, n_genes, percent_mt; ``var`` indexed by symbol with ensembl_id, dispersion, donor_sd;
    ``varm["true_log2fc"]`` and ``varm["profile"]`` (genes x types; counts per 10,000); ``uns["cohort"]``.

    Raises
    ------
    DataError
        If a size or a name is not possible; the message lists what is.
    OptionError
        A disease that is not known, or a share or ratio outside of its range.
    """
    CohortOptions(
        disease=disease, ambient=ambient, ambient_ratio=ambient_ratio, depth_ratio=depth_ratio
    )
    table, header = cohort_parameters()
    types = _validated(
        n_cells, n_donors, n_genes, disease_fraction, cell_types, de_fraction, len(table)
    )
    factor = (2.0 if disease is None else 1.0) if effect is None else effect
    lost = 0.0 if dropout is None else dropout
    _check_factors(factor, donor_effect, lost, effects, disease)
    table = _subset(table, n_genes)
    if disease is not None:
        sd = disease_parameters()[0]["donor_sd"]
        table = table.assign(donor_sd=sd.loc[table["symbol"]].to_numpy())
    # One stream per part: the donors stay the same when only the number of genes changes, and so on.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    proportions, label = header["proportions"], disease or "AD"
    design = _design(streams[0], n_cells, n_donors, disease_fraction, types, proportions, label)
    profile = table[types].to_numpy().T / 1e4
    if disease is None:
        quantiles = factor * np.asarray(header["effect_quantiles"])
        log2fc = _fold_changes(streams[1], profile, de_fraction, quantiles)
    elif effects is None:
        expressed = profile >= _EXPRESSED / 1e4
        log2fc = factor * published_changes(streams[1], disease, table, types, expressed)
    else:
        log2fc = factor * given_changes(effects, table, types, CELL_TYPES)
    multiplier = _donor_multipliers(streams[2], design.donors, table, types, donor_effect, header)
    own = _group_rates(profile, log2fc, multiplier, design.donors, table)
    sick = (design.donors["disease"] != "Control").to_numpy()
    library = _libraries(streams[3], design.cell_type, types, header["library"])
    library *= np.where(sick[design.donor], depth_ratio, 1.0)
    share = _ambient_shares(streams[4], sick, ambient, ambient_ratio)
    rate = _with_ambient(own, share, design, library)
    dispersion = table["dispersion"].to_numpy()
    counts = _counts(streams[3], rate, design, library, dispersion, lost)
    adata = _assemble(counts, design, types, table, profile, log2fc, label)
    if ambient > 0:
        adata.obs["ambient"] = share[design.donor]
    adata.uns["cohort"] = {
        "simulated": True,
        "seed": int(seed),
        "n_donors": int(n_donors),
        "disease": label if disease else "random changes",
        "effect": float(factor),
        "donor_effect": float(donor_effect),
        "dropout": float(lost),
        "ambient": float(ambient),
        "note": "SIMULATED data; see scmamba.datasets.brain_cohort for what each cell type was fitted to.",
    }
    if keep_rates:
        expected = own[design.donor, design.cell_type] * library[:, None]
        expected *= (1 - share[design.donor])[:, None]
        adata.layers["rate"] = (expected * (1 - lost)).astype(np.float32)
    return adata


def _check_factors(
    effect: float,
    donor_effect: float,
    lost: float,
    effects: pd.DataFrame | None,
    disease: str | None,
) -> None:
    """Refuse impossible factors, and effects of no disease."""
    for name, value in (("effect", effect), ("donor_effect", donor_effect)):
        if not 0 <= value < 100:
            raise DataError(f"{name} = {value} must lie between 0 and 100.")
    if not 0 <= lost < 1:
        raise DataError(f"dropout = {lost} must lie between 0 and 1 (1 excluded).")
    if effects is not None and disease is None:
        raise DataError(
            "effects are the changes of a disease: name it with disease='AD' or disease='PD'."
        )


def _ambient_shares(
    rng: np.random.Generator, sick: np.ndarray, mean: float, ratio: float
) -> np.ndarray:
    """(donors,) share of ambient RNA, log-normal around ``mean``, ``ratio`` times as much in patients."""
    varied = np.exp(0.3 * rng.standard_normal(sick.size) - 0.045)
    result: np.ndarray = np.clip(mean * varied * np.where(sick, ratio, 1.0), 0.0, 0.95)
    return result


def _with_ambient(
    rate: np.ndarray, share: np.ndarray, design: _Design, library: np.ndarray
) -> np.ndarray:
    """Rates (donors x types x genes) of cells that hold a share of their donor's average RNA."""
    if not share.any():
        return rate
    total = np.zeros(rate.shape[:2])
    np.add.at(total, (design.donor, design.cell_type), library)
    average = np.einsum("dt,dtg->dg", total / total.sum(axis=1, keepdims=True), rate)
    result: np.ndarray = (1 - share)[:, None, None] * rate + (share[:, None] * average)[:, None]
    return result


def _validated(
    n_cells: int,
    n_donors: int,
    n_genes: int | None,
    disease_fraction: float,
    cell_types: Sequence[str] | None,
    de_fraction: float,
    available: int,
) -> list[str]:
    """Check sizes before any work; return the types in the order of :data:`CELL_TYPES`."""
    for name, value in (("n_cells", n_cells), ("n_donors", n_donors), ("n_genes", n_genes)):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and not whole:
            raise DataError(f"{name} = {value!r} must be a whole number.")
    if n_donors < 2:
        raise DataError(f"n_donors = {n_donors}: a cohort needs at least 2 donors.")
    if n_cells < n_donors:
        raise DataError(
            f"n_cells = {n_cells} is less than n_donors = {n_donors}; every donor needs a cell."
        )
    if n_cells > 5_000_000:
        raise DataError(
            f"n_cells = {n_cells:,} is more than 5,000,000; simulate parts with different seeds."
        )
    if n_genes is not None and not 200 <= n_genes <= available:
        raise DataError(f"n_genes = {n_genes} must lie between 200 and {available:,}.")
    if not 0 <= disease_fraction <= 1:
        raise DataError(f"disease_fraction = {disease_fraction} must lie between 0 and 1.")
    if not 0 <= de_fraction <= 0.5:
        raise DataError(f"de_fraction = {de_fraction} must lie between 0 and 0.5.")
    if cell_types is None:
        return list(CELL_TYPES)
    if isinstance(cell_types, str):
        cell_types = [cell_types]
    unknown = sorted(set(cell_types) - set(CELL_TYPES))
    if unknown or not cell_types:
        raise DataError(f"Unknown cell types {unknown}; choose among {', '.join(CELL_TYPES)}.")
    return [name for name in CELL_TYPES if name in set(cell_types)]


def _subset(table: pd.DataFrame, n_genes: int | None) -> pd.DataFrame:
    """The genes with the highest level in any type, in the table's order."""
    if n_genes is None:
        return table
    highest = table[list(CELL_TYPES)].max(axis=1).to_numpy()
    keep = np.sort(np.argsort(-highest, kind="stable")[:n_genes])
    return table.iloc[keep].reset_index(drop=True)


def _design(
    rng: np.random.Generator,
    n_cells: int,
    n_donors: int,
    disease_fraction: float,
    types: list[str],
    proportions: dict[str, float],
    label: str,
) -> _Design:
    """Donors with disease, sex, batch and age in balance; cells with Dirichlet composition per donor."""
    sick = round(n_donors * disease_fraction)
    sick_donor = np.r_[np.zeros(n_donors - sick, bool), np.ones(sick, bool)]
    # Sexes and batches alternate within each disease group, so neither is confounded with disease.
    within = np.r_[np.arange(n_donors - sick), np.arange(sick)]
    donors = pd.DataFrame(
        {
            "disease": np.where(sick_donor, label, "Control"),
            "sex": np.where(within % 2 == 0, "F", "M"),
            "batch": np.array(["batch1", "batch2"])[(within // 2) % 2],
            "age": rng.integers(65, 96, n_donors),
        }
    )
    share = np.array([proportions[name] for name in types])
    share /= share.sum()
    weights = rng.dirichlet(np.full(n_donors, 10.0))
    per_donor = 1 + rng.multinomial(n_cells - n_donors, weights)
    donor = np.repeat(np.arange(n_donors), per_donor)
    composition = rng.dirichlet(30 * share, n_donors) if len(types) > 1 else np.ones((n_donors, 1))
    cell_type = np.concatenate(
        [rng.choice(len(types), n, p=p) for n, p in zip(per_donor, composition)]
    )
    return _Design(donors, donor, cell_type)


def _fold_changes(
    rng: np.random.Generator, profile: np.ndarray, de_fraction: float, quantiles: np.ndarray
) -> np.ndarray:
    """True log2 fold changes (types x genes), up and down with equal probability, some shared by all types."""
    n_types, n_genes = profile.shape
    magnitude = np.interp(
        rng.random((n_types + 1, n_genes)), np.linspace(0.05, 0.95, len(quantiles)), quantiles
    )
    signed = magnitude * rng.choice([-1.0, 1.0], (n_types + 1, n_genes))
    draw = rng.random((n_types + 1, n_genes))
    common = draw[-1] < de_fraction * _COMMON
    own = draw[:-1] < de_fraction * (1 - _COMMON)
    out = np.where(common, signed[-1], np.where(own, signed[:-1], 0.0))
    return np.where(profile >= _EXPRESSED / 1e4, out, 0.0)


def _donor_multipliers(
    rng: np.random.Generator,
    donors: pd.DataFrame,
    table: pd.DataFrame,
    types: list[str],
    factor: float,
    header: dict[str, Any],
) -> np.ndarray:
    """Log-normal effects of mean one (donors x types x genes): batch + donor + donor within type."""
    sd = factor * table["donor_sd"].to_numpy()
    shared, batch_share = header["donor_shared_by_types"], header["donor_shared_by_batch"]
    batch_share = min(batch_share, shared)
    shape = (len(donors), len(types), len(table))
    batches = pd.Categorical(donors["batch"]).codes
    batch = rng.standard_normal((batches.max() + 1, len(table)))[batches]
    whole = rng.standard_normal((len(donors), len(table)))
    common = np.sqrt(batch_share) * batch + np.sqrt(shared - batch_share) * whole
    effect = common[:, None, :] + np.sqrt(1 - shared) * rng.standard_normal(shape)
    return np.exp(sd * effect - sd**2 / 2)


def _group_rates(
    profile: np.ndarray,
    log2fc: np.ndarray,
    multiplier: np.ndarray,
    donors: pd.DataFrame,
    table: pd.DataFrame,
) -> np.ndarray:
    """Expected share of a cell's library per donor, type and gene (donors x types x genes)."""
    sick = (donors["disease"] != "Control").to_numpy()
    rate = profile[None] * multiplier * np.where(sick[:, None, None], 2.0 ** log2fc[None], 1.0)
    female = (donors["sex"] == "F").to_numpy()
    xist = np.flatnonzero(table["symbol"] == "XIST")
    # The table holds the mean over both sexes.
    rate[np.ix_(female, np.arange(len(profile)), xist)] *= 2.0
    rate[np.ix_(~female, np.arange(len(profile)), xist)] = 0.0
    return rate


def _libraries(
    rng: np.random.Generator,
    cell_type: np.ndarray,
    types: list[str],
    library: dict[str, list[float]],
) -> np.ndarray:
    """Log-normal library sizes per cell."""
    parameters = np.array([library[name] for name in types])[cell_type]
    return np.exp(parameters[:, 0] + parameters[:, 1] * rng.standard_normal(len(cell_type)))


def _counts(
    rng: np.random.Generator,
    rate: np.ndarray,
    design: _Design,
    library: np.ndarray,
    dispersion: np.ndarray,
    lost: float,
) -> sp.csr_matrix:
    """Exact negative-binomial counts without a dense draw.

    A negative binomial of mean m and dispersion a is a Poisson number, of mean log(1 + a m) / a, of clusters
    of logarithmic size with parameter a m / (1 + a m): so only the (few) non-zero entries are ever drawn.
    """
    blocks = []
    n_genes = rate.shape[2]
    for start in range(0, len(library), _BLOCK):
        cells = slice(start, min(start + _BLOCK, len(library)))
        scaled = rate[design.donor[cells], design.cell_type[cells]]
        scaled *= library[cells, None] * dispersion
        cumulative = np.cumsum(np.log1p(scaled) / dispersion, axis=1)
        clusters = rng.poisson(cumulative[:, -1])
        row = np.repeat(np.arange(len(clusters)), clusters)
        point = rng.random(len(row)) * np.repeat(cumulative[:, -1], clusters)
        ends = np.cumsum(clusters)
        column = np.concatenate(
            [
                np.searchsorted(cumulative[i], point[e - n : e], side="right")
                for i, (e, n) in enumerate(zip(ends, clusters))
            ]
        )
        column = np.minimum(column, n_genes - 1)
        odds = scaled[row, column]
        size = rng.logseries(odds / (1 + odds)).astype(np.int32)
        block = sp.coo_matrix(
            (size, (row, column)), shape=(len(clusters), n_genes), dtype=np.int32
        ).tocsr()
        if lost > 0:
            block.data[rng.random(block.nnz) < lost] = 0
            block.eliminate_zeros()
        blocks.append(block)
    out = sp.csr_matrix(sp.vstack(blocks, format="csr"), dtype=np.int32)
    out.sort_indices()
    return out


def _assemble(
    counts: sp.csr_matrix,
    design: _Design,
    types: list[str],
    table: pd.DataFrame,
    profile: np.ndarray,
    log2fc: np.ndarray,
    label: str,
) -> ad.AnnData:
    """Put counts, labels and truth together."""
    n_donors = len(design.donors)
    width = max(2, len(str(n_donors)))
    names = np.array([f"D{i + 1:0{width}d}" for i in range(n_donors)])
    per_cell = design.donors.iloc[design.donor].reset_index(drop=True)
    total = np.asarray(counts.sum(axis=1)).ravel()
    mitochondrial = table["symbol"].str.startswith("MT-").to_numpy()
    mt = np.asarray(counts[:, mitochondrial].sum(axis=1)).ravel()
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(types)[design.cell_type], categories=types),
            "donor": pd.Categorical(names[design.donor], categories=names),
            "disease": pd.Categorical(per_cell["disease"], categories=["Control", label]),
            "sex": pd.Categorical(per_cell["sex"], categories=["F", "M"]),
            "age": per_cell["age"].to_numpy(),
            "batch": pd.Categorical(per_cell["batch"]),
            "n_umi": total.astype(np.int32),
            "n_genes": np.diff(counts.indptr).astype(np.int32),
            "percent_mt": 100 * mt / np.maximum(total, 1),
        }
    )
    obs.index = [f"{names[d]}_{i:06d}" for i, d in enumerate(design.donor)]
    var = table.set_index("symbol")[["ensembl_id", "dispersion", "donor_sd"]]
    var.index.name = None
    adata = ad.AnnData(counts, obs=obs, var=var)
    adata.varm["true_log2fc"] = pd.DataFrame(log2fc.T, index=var.index, columns=types)
    adata.varm["profile"] = pd.DataFrame(profile.T * 1e4, index=var.index, columns=types)
    return adata
