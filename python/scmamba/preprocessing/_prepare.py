"""The paper's data preparation and labeling, from libraries of counts to cells with a type, as one call that can be resumed.

Steps (paper, Methods "Data preparation"): gene names to Ensembl IDs, union over studies, no Y chromosome; cells with 200 counts, donors
with 200 cells, genes in 0.5% of cells; Scrublet per donor; 2,000 genes by analytic Pearson residuals; totals to 50,000, log2(x + 1),
scaling, PCA; Harmony over donors; 40 neighbors in 20 components, UMAP, Leiden at resolution 1.8; clusters named by marker genes. Not
in the paper: the share of ambient RNA of each donor (:func:`scmamba.ambient_rna`) by the named clusters, which changes no counts. Each step
leaves its result in a folder; a call with the same cells and settings continues after the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.h5ad_files import write_h5ad
from ..data.provenance import KEY, write_record
from ..datasets.marker_panels import read_marker_panel
from ..genes import Vocabulary, annotation, match_genes
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError, ScMambaError
from ..utils.progress import say
from .ambient import estimate_ambient
from .analysis import (
    filter_cells,
    harmony,
    neighbor_graph,
    principal_components,
    scrublet_scores,
)
from .cluster_labels import (
    LEFT_OVER,
    MYELOID_MARKERS,
    NEURON_MARKERS,
    brain_panels,
    name_clusters,
    panel_scores,
)
from .options import AmbientOptions, PrepareOptions
from .steps import StepFolder, refuse_step_folder, run_identity
from .studies import read_studies

if TYPE_CHECKING:
    from typing import TypeAlias

    from anndata import AnnData

    Markers: TypeAlias = Mapping[str, Sequence[str]] | pd.DataFrame | str | PathLike[str]


@renamed_parameters(donor="donor_key")
def prepare(
    data: AnnData | str | PathLike[str] | Sequence[AnnData | str | PathLike[str]],
    *,
    folder: str | PathLike[str],
    donor_key: str = "donor",
    markers: Markers | None = None,
    min_total: float = 200,
    min_cells_per_donor: int = 200,
    min_cell_fraction: float = 0.005,
    n_top_genes: int = 2000,
    target_sum: float = 50_000,
    n_components: int = 20,
    n_neighbors: int = 40,
    resolution: float = 1.8,
    max_doublet_score: float = 0.1,
    min_score: float = 0.2,
    min_margin: float = 0.1,
    seed: int = 0,
    config: PrepareOptions | None = None,
    overwrite: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Prepare and label cells.

    Parameters
    ----------
    data
        One or several studies: AnnData objects or files of raw counts (``.h5ad``, 10x ``.h5``, mtx folder). The genes are the union over
        studies.
    folder
        Where the result of every step is kept, and the final one as ``prepared.h5ad``. Made if absent.
    donor_key
        Column of ``obs`` with the donor. Doublet scores are computed per donor, and Harmony corrects for the donor. Donors of different
        studies are different.
    markers
        Panels: type to gene symbols, or a table or file of them as in :func:`scmamba.annotate`; default the paper's eight brain types.
        With other panels no cluster is called a neuron or myeloid left-over.
    min_total
        Minimum counts of a cell. Default 200.
    min_cells_per_donor
        Minimum cells of a donor. Default 200.
    min_cell_fraction
        Minimum fraction of cells in which a gene is detected. Default 0.005.
    n_top_genes
        Highly variable genes, by analytic Pearson residuals. Default 2000.
    target_sum
        Total counts that a cell is scaled to before log2(x + 1). Default 50,000.
    n_components
        Principal components of the neighbor graph. Default 20.
    n_neighbors
        Neighbors of each cell in the graph. Default 40.
    resolution
        Resolution of the Leiden clusters. Default 1.8.
    max_doublet_score
        Clusters with a larger mean Scrublet score are doublets. Default 0.1.
    min_score
        A cluster is named after the panel with the highest mean z-score if that is at least this. Default 0.2.
    min_margin
        Minimum difference between the scores of the two neuron types; clusters with a smaller one are "Neuron, both kinds". Default 0.1.
    seed
        The same seed gives the same result. Default 0.
    config
        All settings as one object, instead of the parameters above.
    overwrite
        Start again, even if the folder holds steps of other cells or settings. Default False.
    verbose
        Print what each step does. Default True.

    Returns
    -------
    AnnData
        Cells that passed the filters, ``X`` raw counts over Ensembl IDs, with ``obs`` ``study``, ``donor``, ``scmamba_doublet_scrublet``,
        ``scmamba_cluster``, ``scmamba_cluster_type``, ``scmamba_label`` (the type, NA for left-overs: the label for fine-tuning of
        annotation) and ``scmamba_ambient`` (share of ambient RNA, see :func:`scmamba.ambient_rna`), ``obsm`` ``X_pca``,
        ``X_pca_harmony``, ``X_umap`` and ``uns["scmamba"]["prepare"]``.

    Raises
    ------
    ScMambaError
        A package is missing; data that cannot be read; no cell passes the filters; a folder of another run.
    OptionError
        An option is outside of its range.

    Examples
    --------
    >>> import tempfile, warnings
    >>> import scmamba
    >>> cells = scmamba.datasets.brain_cohort(240, n_donors=2, n_genes=600, seed=4)
    >>> with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
    ...     warnings.simplefilter("ignore")
    ...     found = scmamba.prepare(cells, folder=folder, min_cells_per_donor=50, n_top_genes=300, verbose=False)
    >>> "scmamba_cluster_type" in found.obs
    True
    """
    options = config or PrepareOptions(
        donor_key=donor_key,
        min_total=min_total,
        min_cells_per_donor=min_cells_per_donor,
        min_cell_fraction=min_cell_fraction,
        n_top_genes=n_top_genes,
        target_sum=target_sum,
        n_components=n_components,
        n_neighbors=n_neighbors,
        resolution=resolution,
        max_doublet_score=max_doublet_score,
        min_score=min_score,
        min_margin=min_margin,
        seed=seed,
    )
    return _run(data, Path(folder), options, markers, overwrite, verbose)


def _run(
    data: Any,
    folder: Path,
    options: PrepareOptions,
    markers: Markers | None,
    overwrite: bool,
    verbose: bool,
) -> AnnData:
    """All steps, those in the folder as they are."""
    _need("scanpy", "harmonypy", "leidenalg", "igraph")
    panels = _panels(markers)
    refuse_step_folder(folder)
    studies = read_studies(data, options.donor_key)
    values = {str(study.obs["study"].iloc[0]): study.uns.pop("values") for study in studies}
    found_values = "; ".join(f"{name}: {sentence}" for name, sentence in values.items())
    say(found_values, verbose)
    steps = StepFolder(folder, run_identity(studies, options, panels), overwrite, verbose)
    cells = steps.adata("1_filtered", lambda: filter_cells(studies, options, verbose))
    kept = {
        "scrublet": lambda: {"score": scrublet_scores(cells, options, verbose)},
        "pca": lambda: principal_components(cells, options),
        "harmony": lambda: {
            "scores": harmony(steps.found["3_pca"]["scores"], cells.obs["donor"], options)
        },
        "graph": lambda: neighbor_graph(steps.found["4_harmony"]["scores"], options),
    }
    for number, (name, make) in enumerate(kept.items(), start=2):
        steps.arrays(f"{number}_{name}", make)
    result = finish(cells, steps.found, panels, options, own_panels=markers is None)
    result.uns[KEY]["prepare"]["summary"]["values"] = found_values
    ambient = AmbientOptions(sample_key="donor", label_key="scmamba_label", seed=options.seed)
    raw = sparse.csr_matrix(result.X, dtype=np.float64)
    estimate_ambient(result, raw, ambient, verbose).write(result, ambient, found_values)
    write_h5ad(result, folder / "prepared.h5ad", verbose=verbose)
    counts = result.obs["scmamba_cluster_type"].value_counts()
    say(", ".join(f"{name} {number}" for name, number in counts.items()), verbose)
    return result


def _panels(markers: Any) -> dict[str, tuple[str, ...]]:
    """Genes by type; a panel of which the annotation has no gene is refused."""
    if markers is None:
        return {name: tuple(genes) for name, genes in brain_panels().items()}
    panels = {name: tuple(genes) for name, genes in read_marker_panel(markers).items()}
    named = [gene for genes in panels.values() for gene in genes]
    known = annotation().drop_duplicates("ensembl_id")
    human = Vocabulary(tuple(known["ensembl_id"]), tuple(known["symbol"]))
    if not (match_genes(named, human).positions >= 0).any():
        raise DataError(
            f"None of the {len(named)} genes of markers ({', '.join(named[:4])}) is a human gene. Check the names, and that the "
            "cell type comes first and its genes second."
        )
    return panels


def _need(*packages: str) -> None:
    from importlib.util import find_spec

    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ScMambaError(
            f"prepare needs {', '.join(missing)}. Install them with: pip install 'scmamba[prepare]'"
        )


def finish(
    cells: AnnData,
    found: dict[str, dict[str, np.ndarray]],
    panels: Mapping[str, Any],
    options: PrepareOptions,
    own_panels: bool,
) -> AnnData:
    """Put everything on the cells, and name the clusters."""
    cluster, score = found["5_graph"]["cluster"], found["2_scrublet"]["score"]
    looked = (
        {**panels, "_neuron": NEURON_MARKERS, "_myeloid": MYELOID_MARKERS} if own_panels else panels
    )
    scores = panel_scores(cells, cluster, looked)
    doublet = pd.Series(score).groupby(cluster).mean()
    names = name_clusters(scores, doublet, options, brain=own_panels)
    result = cells.copy()
    result.obs["scmamba_doublet_scrublet"] = score.astype(np.float32)
    result.obs["scmamba_cluster"] = pd.Categorical(cluster.astype(str))
    result.obs["scmamba_cluster_type"] = pd.Categorical(names[cluster].to_numpy())
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
    write_record(result, "prepare", params=options.params(), summary={"clusters": clusters})
    return result
