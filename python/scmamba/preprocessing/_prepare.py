"""The paper's data preparation and labelling, from libraries of counts to cells with a type, as one call that can be resumed.

Steps (paper, Methods "Data preparation"): gene names to Ensembl IDs, union over studies, no Y chromosome; cells with 200 counts, donors
with 200 cells, genes in 0.5% of cells; Scrublet per donor; 2,000 genes by analytic Pearson residuals; totals to 50,000, log2(x + 1),
scaling, PCA; Harmony over donors; 40 neighbours in 20 components, UMAP, Leiden at resolution 1.8; clusters named by marker genes. Each step
leaves its result in a folder; a call with the same cells and settings goes on after the last one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from .._version import __version__
from ..data.h5ad_files import open_backed, write_h5ad
from ..data.values import detect_value_scale
from ..genes import Vocabulary, annotation, match_adata
from ..utils.atomic import atomic_path
from ..utils.errors import DataError, ScMambaError
from ..utils.progress import say

if TYPE_CHECKING:
    from anndata import AnnData

#: Names of what is not one of the panel's types.
DOUBLET, UNIDENTIFIED, NEURON_BOTH, NEURON_NEITHER, MYELOID = (
    "Doublet",
    "Unidentified",
    "Neuron, both kinds",
    "Neuron, neither kind",
    "Myeloid, not microglia",
)
LEFT_OVER = (DOUBLET, UNIDENTIFIED, NEURON_BOTH, NEURON_NEITHER, MYELOID)
_NEURON = ("SNAP25", "SYT1", "RBFOX3", "STMN2", "GRIN1", "MEG3", "NEFL")
_MYELOID = ("CD14", "LYZ", "S100A8", "S100A9", "MRC1", "CD163", "F13A1", "FCN1", "VCAN")


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of the steps; the defaults are the paper's.

    Attributes
    ----------
    min_total, min_cells_per_donor, min_share
        Least counts of a cell, cells of a donor, and share of cells in which a gene is seen.
    genes, total, components, neighbours, resolution
        Variable genes; counts a cell is scaled to before log2; principal components and neighbours of the graph; Leiden's resolution.
    doublet_score
        Clusters with a larger mean Scrublet score are doublets.
    least, margin
        A cluster is named by the panel with the highest mean z-score if that is at least ``least``; the two kinds of neurons need
        ``margin`` between them.
    """

    min_total: float = 200
    min_cells_per_donor: int = 200
    min_share: float = 0.005
    genes: int = 2000
    total: float = 50_000
    components: int = 20
    neighbours: int = 40
    resolution: float = 1.8
    doublet_score: float = 0.1
    least: float = 0.2
    margin: float = 0.1
    seed: int = 0


def prepare(
    data: AnnData | str | PathLike[str] | Sequence[AnnData | str | PathLike[str]],
    *,
    folder: str | PathLike[str],
    donor: str = "donor",
    markers: Mapping[str, Sequence[str]] | None = None,
    config: PrepareConfig | None = None,
    overwrite: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Prepare and label cells.

    Parameters
    ----------
    data
        One or several studies: AnnData objects or ``.h5ad`` files of raw counts. The genes are the union over studies.
    folder
        Where every step's result is kept, and the answer as ``prepared.h5ad``. Made if absent.
    donor
        Column of ``obs`` with the donor: doublet scores are per donor, Harmony evens donors out. Donors of different files are different.
    markers
        Panels: type to gene symbols; the paper's eight brain types if not given. With other panels nothing is called a neuron or myeloid
        left-over.
    overwrite
        Begin again, even if the folder holds steps of other cells or settings.

    Returns
    -------
    Cells that passed the filters, ``X`` raw counts over Ensembl IDs, with ``obs`` ``study``, ``donor``, ``scmamba_doublet_scrublet``,
    ``scmamba_cluster``, ``scmamba_type`` and ``scmamba_label`` (the type, NA for left-overs: the label that fine-tuning for annotation
    learns), ``obsm`` ``X_pca``, ``X_pca_harmony``, ``X_umap`` and ``uns["scmamba"]["prepare"]``.

    Raises
    ------
    ScMambaError
        A package is missing; data that cannot be read; nothing left after the filters; a folder of another run.
    """
    _need("scanpy", "harmonypy", "leidenalg", "igraph")
    config = config or PrepareConfig()
    panels = {name: tuple(genes) for name, genes in (markers or brain_panels()).items()}
    studies = _read(data, donor)
    steps = _Steps(Path(folder), _identity(studies, config, donor, panels), overwrite, verbose)
    cells = steps.adata("1_filtered", lambda: _filter(studies, config, verbose))
    kept = dict(
        scrublet=lambda: {"score": _scrublet(cells, config, verbose)},
        pca=lambda: _components(cells, config),
        harmony=lambda: {
            "scores": _harmony(steps.found["3_pca"]["scores"], cells.obs["donor"], config)
        },
        graph=lambda: _graph(steps.found["4_harmony"]["scores"], config),
    )
    for number, (name, make) in enumerate(kept.items(), start=2):
        steps.arrays(f"{number}_{name}", make)
    result = _finish(cells, steps.found, panels, config, own_panels=markers is None)
    write_h5ad(result, Path(folder) / "prepared.h5ad", verbose=verbose)
    say(
        ", ".join(
            f"{name} {number}" for name, number in result.obs["scmamba_type"].value_counts().items()
        ),
        verbose,
    )
    return result


def brain_panels() -> dict[str, tuple[str, ...]]:
    """Marker genes of the eight major brain types."""
    from importlib import resources

    text = (resources.files("scmamba") / "resources" / "brain_markers.tsv").read_text(
        encoding="utf-8"
    )
    rows = [line.split("\t") for line in text.splitlines()[1:] if line and not line.startswith("#")]
    return {row[0]: tuple(row[1].split(",")) for row in rows}


# --- reading and identity -------------------------------------------------------------------------------
def _need(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ScMambaError(
            f"prepare needs {', '.join(missing)}. Install them with: pip install 'scmamba[prepare]'"
        )


def _read(data: Any, donor: str) -> list[AnnData]:
    """Each study with Ensembl IDs as genes (summed where several rows are one gene) and ``obs`` ``study`` and ``donor``."""
    import anndata

    several = list(data) if isinstance(data, (list, tuple)) else [data]
    if not several:
        raise DataError("There is nothing to prepare: no study was given.")
    known = annotation()
    vocabulary = Vocabulary.from_ids(
        list(known.ensembl_id[known.chromosome != "Y"]), list(known.symbol[known.chromosome != "Y"])
    )
    studies = []
    for number, item in enumerate(several, start=1):
        name = f"study{number}" if isinstance(item, anndata.AnnData) else Path(item).stem
        study = item if isinstance(item, anndata.AnnData) else open_backed(Path(item)).to_memory()
        if donor not in study.obs:
            raise DataError(
                f"{name}: obs has no column '{donor}'; its columns are {list(study.obs.columns)}."
            )
        if detect_value_scale(study.X).kind != "counts":
            raise DataError(
                f"{name}: X does not hold raw counts; the preparation begins with them."
            )
        studies.append(_ensembl(study, name, donor, vocabulary, len(several) > 1))
    return studies


def _ensembl(
    study: AnnData, name: str, donor: str, vocabulary: Vocabulary, several: bool
) -> AnnData:
    import anndata

    match = match_adata(study, vocabulary)
    match.check(min_coverage=0)
    rows = match.matched
    genes, place = np.unique(match.positions[rows], return_inverse=True)
    gather = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, place)), shape=(study.n_vars, len(genes))
    )
    counts = sparse.csr_matrix(
        sparse.csr_matrix(study.X, dtype=np.float64) @ gather, dtype=np.float32
    )
    obs = study.obs.copy()
    known = obs[donor].notna().to_numpy()
    obs["study"] = name
    obs["donor"] = np.where(known, (f"{name}:" if several else "") + obs[donor].astype(str), "NA")
    obs.index = [f"{name}:{cell}" for cell in obs.index] if several else obs.index
    var = pd.DataFrame(
        {"symbol": [vocabulary.symbols[g] for g in genes]}, index=[vocabulary[g] for g in genes]
    )
    return anndata.AnnData(counts, obs=obs, var=var)


def _identity(
    studies: list[AnnData], config: PrepareConfig, donor: str, panels: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes two runs the same one."""
    digest = hashlib.sha256()
    for study in studies:
        for part in (study.X.data, study.X.indices, study.X.indptr):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(
            "\n".join(
                [*study.obs_names, *study.obs["donor"].astype(str), *study.var_names]
            ).encode()
        )
    return {
        "cells": digest.hexdigest(),
        "config": asdict(config),
        "donor": donor,
        "markers": {k: list(v) for k, v in panels.items()},
    }


class _Steps:
    """Results in a folder, each made once."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], overwrite: bool, verbose: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.verbose, self.found = folder, verbose, {}  # type: Path, bool, dict[str, dict[str, np.ndarray]]
        note = folder / "settings.json"
        text = json.dumps(identity, indent=1, sort_keys=True)
        if note.exists() and note.read_text(encoding="utf-8") != text and not overwrite:
            old = json.loads(note.read_text(encoding="utf-8"))
            other = ", ".join(key for key in identity if old.get(key) != identity[key])
            raise ScMambaError(
                f"{folder} holds the steps of another run ({other} differ). Choose another folder, or overwrite=True."
            )
        if overwrite or not note.exists():
            for old_step in [*folder.glob("[1-9]_*.npz"), *folder.glob("[1-9]_*.h5ad")]:
                old_step.unlink()
        with atomic_path(note) as path:
            path.write_text(text, encoding="utf-8")

    def adata(self, name: str, make: Callable[[], AnnData]) -> AnnData:
        """The cells of a step."""
        import anndata

        path = self.folder / f"{name}.h5ad"
        if path.exists():
            say(f"{name}: taken from {self.folder.name}", self.verbose)
            return anndata.read_h5ad(path)
        say(name, self.verbose)
        made = make()
        write_h5ad(made, path, verbose=self.verbose)
        return made

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> None:
        """The numbers of a step, into ``found``."""
        path = self.folder / f"{name}.npz"
        if path.exists():
            say(f"{name}: taken from {self.folder.name}", self.verbose)
            with np.load(path, allow_pickle=False) as file:
                self.found[name] = dict(file)
            return
        say(name, self.verbose)
        self.found[name] = make()
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **self.found[name])  # type: ignore[arg-type]


# --- the steps ------------------------------------------------------------------------------------------
def _filter(studies: list[AnnData], config: PrepareConfig, verbose: bool) -> AnnData:
    """Join the studies; drop shallow cells, small donors (and cells without one), rare genes."""
    import anndata

    cells = (
        anndata.concat(studies, join="outer", fill_value=0, merge="first")
        if len(studies) > 1
        else studies[0]
    )
    if not cells.obs_names.is_unique:
        raise DataError(
            "Cell names stand more than once. Make them unique first: adata.obs_names_make_unique()."
        )
    before = cells.shape
    deep = np.asarray(cells.X.sum(axis=1)).ravel() >= config.min_total
    size = cells.obs["donor"][deep].value_counts()
    large = set(size.index[size >= config.min_cells_per_donor]) - {"NA"}
    keep = deep & cells.obs["donor"].isin(large).to_numpy()
    if keep.sum() < 50:
        sizes = ", ".join(f"{name} {number}" for name, number in size.head(5).items())
        raise DataError(
            f"{int(keep.sum())} of {before[0]} cells are left: {int(deep.sum())} have {config.min_total:g} counts, and donors need "
            f"{config.min_cells_per_donor} of those (the largest: {sizes or 'none'}). Lower min_total or min_cells_per_donor."
        )
    cells = cells[keep].copy()
    seen = np.asarray((cells.X > 0).mean(axis=0)).ravel()
    cells = cells[:, (seen >= config.min_share) & (seen > 0)].copy()
    cells.X = sparse.csr_matrix(cells.X, dtype=np.float32)
    cells.obs["donor"] = cells.obs["donor"].astype(str).astype("category")
    say(
        f"{cells.n_obs} of {before[0]} cells, {cells.n_vars} of {before[1]} genes, {cells.obs['donor'].nunique()} donors kept",
        verbose,
    )
    return cells


def _scrublet(cells: AnnData, config: PrepareConfig, verbose: bool) -> np.ndarray:
    """(n,) Scrublet scores, donor by donor; 0 where a donor has fewer than 30 cells."""
    import scanpy as sc

    score = np.zeros(cells.n_obs)
    for name, rows in cells.obs.groupby("donor", observed=True).indices.items():
        if len(rows) < 30:
            say(
                f"donor {name} has {len(rows)} cells, too few for Scrublet; their doublet score is 0",
                verbose,
            )
            continue
        part = cells[rows].copy()
        # The threshold is not used: it is given so that none is looked for in a histogram that may have no valley.
        sc.pp.scrublet(
            part,
            n_prin_comps=min(30, len(rows) - 2),
            random_state=config.seed,
            threshold=0.25,
            verbose=False,
        )
        score[rows] = part.obs["doublet_score"].to_numpy()
    return score


def _components(cells: AnnData, config: PrepareConfig) -> dict[str, np.ndarray]:
    """Variable genes and principal components of scaled log2 values."""
    import scanpy as sc

    work = cells.copy()
    if config.genes < work.n_vars:
        sc.experimental.pp.highly_variable_genes(
            work, n_top_genes=config.genes, flavor="pearson_residuals"
        )
        chosen = work.var["highly_variable"].to_numpy()
    else:
        chosen = np.ones(work.n_vars, dtype=bool)
    sc.pp.normalize_total(work, target_sum=config.total)
    sc.pp.log1p(work, base=2)
    work = work[:, chosen].copy()
    sc.pp.scale(work)
    number = min(50, min(work.shape) - 1)
    sc.pp.pca(work, n_comps=max(number, 1), random_state=config.seed)
    return {"scores": work.obsm["X_pca"], "genes": np.flatnonzero(chosen)}


def _harmony(scores: np.ndarray, donors: pd.Series, config: PrepareConfig) -> np.ndarray:
    """(n, d) components with donors evened out; as they are where there is one donor."""
    if donors.nunique() < 2:
        return scores
    import harmonypy

    corrected = harmonypy.run_harmony(
        scores.astype(np.float64),
        pd.DataFrame({"donor": donors.astype(str)}),
        ["donor"],
        random_state=config.seed,
        verbose=False,
    ).Z_corr
    corrected = np.asarray(corrected)
    return corrected if corrected.shape == scores.shape else corrected.T


def _graph(scores: np.ndarray, config: PrepareConfig) -> dict[str, np.ndarray]:
    """UMAP and Leiden clusters on the neighbour graph of the leading components."""
    import anndata
    import scanpy as sc

    work = anndata.AnnData(
        np.zeros((len(scores), 1), dtype=np.float32), obsm={"X": scores[:, : config.components]}
    )
    sc.pp.neighbors(
        work,
        n_neighbors=min(config.neighbours, len(scores) - 1),
        use_rep="X",
        random_state=config.seed,
    )
    sc.tl.umap(work, random_state=config.seed)
    sc.tl.leiden(
        work,
        resolution=config.resolution,
        random_state=config.seed,
        flavor="igraph",
        n_iterations=2,
        directed=False,
    )
    return {"umap": work.obsm["X_umap"], "cluster": work.obs["leiden"].astype(int).to_numpy()}


def panel_scores(
    cells: AnnData, cluster: np.ndarray, panels: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Clusters x panels: mean over a panel's measured genes of the cluster's mean log value, as a z-score over all cells.

    Panels without a measured gene are NaN.
    """
    from ..data.values import log1p_cp10k

    counts = sparse.csr_matrix(cells.X, dtype=np.float64)
    values = log1p_cp10k(counts, np.asarray(counts.sum(axis=1)).ravel()).astype(np.float64)
    place = {symbol: i for i, symbol in enumerate(cells.var["symbol"])}
    names = np.unique(cluster)
    table = pd.DataFrame(np.nan, index=names, columns=list(panels))
    for panel, genes in panels.items():
        columns = [place[g] for g in genes if g in place]
        if columns:
            dense = values[:, columns].toarray()
            z = (dense - dense.mean(axis=0)) / np.maximum(dense.std(axis=0), 1e-9)
            table[panel] = [z[cluster == name].mean() for name in names]
    return table


def name_clusters(
    scores: pd.DataFrame, doublet: pd.Series, config: PrepareConfig, *, brain: bool
) -> pd.Series:
    """A name for each cluster from its panel scores and mean doublet score.

    ``brain``: ``scores`` has the eight brain types and the columns ``_neuron`` and ``_myeloid``, and left-over neurons and myeloid cells
    get names of their own.
    """
    types = [c for c in scores.columns if not c.startswith("_")]
    names = pd.Series(UNIDENTIFIED, index=scores.index)
    for cluster, row in scores.iterrows():
        if doublet[cluster] > config.doublet_score:
            names[cluster] = DOUBLET
            continue
        ranked = row[types].dropna().sort_values(ascending=False)
        if len(ranked) and ranked.iloc[0] >= config.least:
            names[cluster] = ranked.index[0]
        if brain:
            names[cluster] = _left_over(row, ranked, str(names[cluster]), config)
    return names


def _left_over(row: pd.Series, ranked: pd.Series, name: str, config: PrepareConfig) -> str:
    neurons = [c for c in ranked.index if "neuron" in c.lower()]
    if (
        len(neurons) == 2
        and name in neurons
        and ranked[neurons].min() >= config.least
        and np.ptp(ranked[neurons]) < config.margin
    ):
        return NEURON_BOTH
    if name == UNIDENTIFIED and row["_neuron"] >= config.least:
        return NEURON_NEITHER
    if (
        name in (UNIDENTIFIED, "Microglia")
        and row["_myeloid"] >= config.least
        and row["_myeloid"] > row["Microglia"]
    ):
        return MYELOID
    return name


def _finish(
    cells: AnnData,
    found: dict[str, dict[str, np.ndarray]],
    panels: Mapping[str, Any],
    config: PrepareConfig,
    own_panels: bool,
) -> AnnData:
    """Put everything on the cells, and name the clusters."""
    cluster, score = found["5_graph"]["cluster"], found["2_scrublet"]["score"]
    looked = {**panels, "_neuron": _NEURON, "_myeloid": _MYELOID} if own_panels else panels
    scores = panel_scores(cells, cluster, looked)
    doublet = pd.Series(score).groupby(cluster).mean()
    names = name_clusters(scores, doublet, config, brain=own_panels)
    result = cells.copy()
    result.obs["scmamba_doublet_scrublet"] = score.astype(np.float32)
    result.obs["scmamba_cluster"] = pd.Categorical(cluster.astype(str))
    result.obs["scmamba_type"] = pd.Categorical(names[cluster].to_numpy())
    result.obs["scmamba_label"] = pd.Categorical(
        [None if n in LEFT_OVER else n for n in names[cluster]]
    )
    result.obsm["X_pca"], result.obsm["X_pca_harmony"] = (
        found["3_pca"]["scores"],
        found["4_harmony"]["scores"],
    )
    result.obsm["X_umap"] = found["5_graph"]["umap"]
    result.var["highly_variable"] = np.isin(np.arange(result.n_vars), found["3_pca"]["genes"])
    clusters = {
        "cluster": scores.index.astype(str).to_numpy(),
        "name": names.to_numpy(dtype=str),
        "doublet_score": doublet.to_numpy(),
        **{panel: scores[panel].to_numpy() for panel in scores},
    }
    result.uns["scmamba"] = {
        "prepare": {"version": __version__, **asdict(config), "clusters": clusters}
    }
    return result
