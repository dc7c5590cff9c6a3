"""The steps of the preparation: filters, doublet scores, components, integration, clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.compiled_code import import_umap
from ..utils.errors import DataError
from ..utils.progress import say
from .options import PrepareOptions
from .studies import NO_DONOR

if TYPE_CHECKING:
    from anndata import AnnData


def filter_cells(studies: list[AnnData], options: PrepareOptions, verbose: bool) -> AnnData:
    """Join the studies; drop shallow cells, small donors (and cells without one), rare genes."""
    import anndata

    cells = (
        anndata.concat(studies, join="outer", fill_value=0, merge="first")
        if len(studies) > 1
        else studies[0]
    )
    if not cells.obs_names.is_unique:
        raise DataError(
            "Cell names are duplicated. Make them unique first: adata.obs_names_make_unique()."
        )
    before = cells.shape
    deep = np.asarray(cells.X.sum(axis=1)).ravel() >= options.min_total
    size = cells.obs["donor"][deep].value_counts()
    if lost := int((cells.obs["donor"] == NO_DONOR).sum()):
        say(f"{lost} cells have no donor and are not kept", verbose)
    large = set(size.index[size >= options.min_cells_per_donor]) - {NO_DONOR}
    keep = deep & cells.obs["donor"].isin(large).to_numpy()
    if keep.sum() < 50:
        named = size[size.index != NO_DONOR].head(5)
        sizes = ", ".join(f"{name} {number}" for name, number in named.items())
        raise DataError(
            f"{int(keep.sum())} of {before[0]} cells are left, and at least 50 are needed: {int(deep.sum())} have {options.min_total:g} counts, and donors need "
            f"{options.min_cells_per_donor} of those (the largest: {sizes or 'none'}). Lower min_total or min_cells_per_donor."
        )
    cells = cells[keep].copy()
    seen = np.asarray((cells.X > 0).mean(axis=0)).ravel()
    cells = cells[:, (seen >= options.min_cell_fraction) & (seen > 0)].copy()
    cells.X = sparse.csr_matrix(cells.X, dtype=np.float32)
    cells.obs["donor"] = cells.obs["donor"].astype(str).astype("category")
    say(
        f"{cells.n_obs} of {before[0]} cells, {cells.n_vars} of {before[1]} genes, {cells.obs['donor'].nunique()} donors kept",
        verbose,
    )
    return cells


def scrublet_scores(cells: AnnData, options: PrepareOptions, verbose: bool) -> np.ndarray:
    """(n,) Scrublet scores, donor by donor; 0 where a donor has fewer than 30 cells."""
    import scanpy as sc

    import_umap()  # before scanpy does
    score = np.zeros(cells.n_obs)
    for name, rows in cells.obs.groupby("donor", observed=True).indices.items():
        if len(rows) < 30:
            say(
                f"donor {name} has {len(rows)} cells, too few for Scrublet; their doublet score is 0",
                verbose,
            )
            continue
        part = cells[rows].copy()
        # The threshold is not used: it is given so that scanpy does not search a histogram that may have no valley for one.
        sc.pp.scrublet(
            part,
            n_prin_comps=min(30, len(rows) - 2),
            random_state=options.seed,
            threshold=0.25,
            verbose=False,
        )
        score[rows] = part.obs["doublet_score"].to_numpy()
    return score


def principal_components(cells: AnnData, options: PrepareOptions) -> dict[str, np.ndarray]:
    """Variable genes and principal components of scaled log2 values."""
    import scanpy as sc

    work = cells.copy()
    if options.n_top_genes < work.n_vars:
        sc.experimental.pp.highly_variable_genes(
            work, n_top_genes=options.n_top_genes, flavor="pearson_residuals"
        )
        chosen = work.var["highly_variable"].to_numpy()
    else:
        chosen = np.ones(work.n_vars, dtype=bool)
    sc.pp.normalize_total(work, target_sum=options.target_sum)
    sc.pp.log1p(work, base=2)
    work = work[:, chosen].copy()
    sc.pp.scale(work)
    number = min(50, min(work.shape) - 1)
    sc.pp.pca(work, n_comps=max(number, 1), random_state=options.seed)
    return {"scores": work.obsm["X_pca"], "genes": np.flatnonzero(chosen)}


def harmony(scores: np.ndarray, donors: pd.Series, options: PrepareOptions) -> np.ndarray:
    """(n, d) components corrected for the donor; unchanged if there is one donor."""
    if donors.nunique() < 2:
        return scores
    import harmonypy

    corrected = harmonypy.run_harmony(
        scores.astype(np.float64),
        pd.DataFrame({"donor": donors.astype(str)}),
        ["donor"],
        random_state=options.seed,
        verbose=False,
    ).Z_corr
    corrected = np.asarray(corrected)
    return corrected if corrected.shape == scores.shape else corrected.T


def neighbor_graph(scores: np.ndarray, options: PrepareOptions) -> dict[str, np.ndarray]:
    """UMAP and Leiden clusters on the neighbor graph of the leading components."""
    import anndata
    import scanpy as sc

    import_umap()  # before scanpy does
    work = anndata.AnnData(
        np.zeros((len(scores), 1), dtype=np.float32), obsm={"X": scores[:, : options.n_components]}
    )
    sc.pp.neighbors(
        work,
        n_neighbors=min(options.n_neighbors, len(scores) - 1),
        use_rep="X",
        random_state=options.seed,
    )
    sc.tl.umap(work, random_state=options.seed)
    sc.tl.leiden(
        work,
        resolution=options.resolution,
        random_state=options.seed,
        flavor="igraph",
        n_iterations=2,
        directed=False,
    )
    return {"umap": work.obsm["X_umap"], "cluster": work.obs["leiden"].astype(int).to_numpy()}
