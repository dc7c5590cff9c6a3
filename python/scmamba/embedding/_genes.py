"""Gene embeddings of a model: values, nearest neighbors, and marker genes on a plane (paper, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..genes import match_genes
from ..model import Model, load_model
from ..utils.compiled_code import import_umap
from ..utils.deprecation import renamed_function
from ..utils.errors import GeneError, OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gene_embedding(*, model: str | PathLike[str] | Model | None = None) -> pd.DataFrame:
    """Learned embedding of every gene.

    Parameters
    ----------
    model
        Name of an available model, checkpoint folder, published ``.ckpt`` or open model. Default ``brain-mini``.

    Returns
    -------
    DataFrame
        One row per gene of the vocabulary, by Ensembl ID: a column ``symbol``, then ``0 ... D-1``.

    Raises
    ------
    CheckpointError
        The model cannot be opened.

    Examples
    --------
    >>> import scmamba
    >>> scmamba.gene_embedding().shape[0]
    19306
    """
    opened = load_model(model, device="cpu")
    values = opened.gene_embedding().float().numpy()
    table = pd.DataFrame(values, index=pd.Index(opened.genes.ensembl_ids, name="ensembl_id"))
    table.insert(0, "symbol", list(opened.genes.symbols))
    return table


def gene_neighbors(
    genes: str | Sequence[str], *, model: str | PathLike[str] | Model | None = None, n: int = 10
) -> pd.DataFrame:
    """Genes with the most similar embeddings.

    Parameters
    ----------
    genes
        Symbol or Ensembl ID of a gene, or several of them.
    model
        Name of an available model, checkpoint folder, published ``.ckpt`` or open model. Default ``brain-mini``.
    n
        Number of neighbors of each gene. Default 10.

    Returns
    -------
    DataFrame
        ``gene neighbor ensembl_id cosine``, nearest first; cosine of the embeddings after their mean is subtracted.

    Raises
    ------
    OptionError
        ``n`` is below 1.
    GeneError
        None of the genes is in the model's vocabulary.

    Examples
    --------
    >>> import scmamba
    >>> table = scmamba.gene_neighbors("GAD1", n=3)
    >>> list(table.columns), len(table)
    (['gene', 'neighbor', 'ensembl_id', 'cosine'], 3)
    """
    if n < 1:
        raise OptionError(f"n is {n}; expected a number of at least 1.")
    wanted = [genes] if isinstance(genes, str) else list(genes)
    opened = load_model(model, device="cpu")
    found = match_genes(wanted, opened.genes).positions
    if not (found >= 0).any():
        some = ", ".join(map(str, wanted[:5]))
        raise GeneError(
            f"The model '{opened.config.name}' has none of the genes {some}; pass human symbols or Ensembl IDs."
        )
    unit = _directions(opened)
    rows = []
    for name, position in zip(wanted, found):
        if position < 0:
            continue
        cosine = unit @ unit[position]
        cosine[position] = -np.inf
        for i in np.argsort(-cosine, kind="stable")[:n]:
            rows.append(
                (name, opened.genes.symbols[i], opened.genes.ensembl_ids[i], float(cosine[i]))
            )
    return pd.DataFrame(rows, columns=["gene", "neighbor", "ensembl_id", "cosine"])


def marker_map(
    markers: Mapping[str, Sequence[str]] | None = None,
    *,
    model: str | PathLike[str] | Model | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Marker genes of cell types on a plane.

    Parameters
    ----------
    markers
        Marker genes (symbols or Ensembl IDs) of each cell type. Default: the built-in brain markers.
    model
        Name of an available model, checkpoint folder, published ``.ckpt`` or open model. Default ``brain-mini``.
    seed
        Seed of UMAP. Default 0.

    Returns
    -------
    DataFrame
        ``gene type x y own_type``: coordinates by UMAP of the embeddings (cosine; by principal components where
        umap-learn is not installed, see ``attrs["axes"]``), and whether the gene's nearest other marker is of the same
        type. ``attrs["expected"]`` is the share of ``own_type`` expected by chance.

    Raises
    ------
    GeneError
        Fewer than four of the markers are in the model's vocabulary.

    References
    ----------
    Oh, Choi, Jin, Jung, Ye (2025), arXiv 2502.19429, Fig. 2.

    Examples
    --------
    >>> from scmamba.embedding import marker_map
    >>> table = marker_map({"inhibitory": ["GAD1", "GAD2"], "oligodendrocyte": ["MBP", "PLP1"]})
    >>> list(table.columns)
    ['gene', 'type', 'x', 'y', 'own_type']
    """
    from ..datasets.marker_panels import brain_markers

    panel = brain_markers() if markers is None else {k: list(v) for k, v in markers.items()}
    opened = load_model(model, device="cpu")
    pairs = [(gene, name) for name, genes in panel.items() for gene in genes]
    found = match_genes([gene for gene, _ in pairs], opened.genes).positions
    known = np.flatnonzero(found >= 0)
    if len(known) < 4:
        raise GeneError(
            f"The model '{opened.config.name}' has {len(known)} of the {len(pairs)} markers; a map needs at least four."
        )
    unit = _directions(opened)[found[known]]
    types = np.array([pairs[i][1] for i in known])
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    plane, axes = _plane(unit, seed)
    own = types[cosine.argmax(axis=1)] == types
    table = pd.DataFrame(
        {
            "gene": [pairs[i][0] for i in known],
            "type": types,
            "x": plane[:, 0],
            "y": plane[:, 1],
            "own_type": own,
        }
    )
    sizes = table["type"].map(table["type"].value_counts())
    table.attrs |= {"axes": axes, "expected": float(((sizes - 1) / (len(table) - 1)).mean())}
    return table


def plot_marker_map(table: pd.DataFrame) -> Figure:
    """Draw :func:`marker_map`: one color for each cell type, every gene by name.

    Parameters
    ----------
    table
        The result of :func:`marker_map`.

    Returns
    -------
    Figure
        A matplotlib figure.

    Examples
    --------
    >>> from scmamba.embedding import marker_map, plot_marker_map
    >>> table = marker_map({"inhibitory": ["GAD1", "GAD2"], "oligodendrocyte": ["MBP", "PLP1"]})
    >>> len(plot_marker_map(table).axes)
    1
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6))
    axis = figure.subplots()
    for name, own in table.groupby("type", sort=True):
        axis.scatter(own["x"], own["y"], s=18, label=str(name))
        for gene, x, y in zip(own["gene"], own["x"], own["y"]):
            axis.annotate(gene, (x, y), fontsize=6, xytext=(2, 2), textcoords="offset points")
    axis.set(xlabel=f"{table.attrs.get('axes', '')} 1", ylabel=f"{table.attrs.get('axes', '')} 2")
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _directions(model: Model) -> np.ndarray:
    """(L, D) embeddings of length one after their mean, which is common to all genes, is subtracted."""
    values = model.gene_embedding().double().numpy()
    values = values - values.mean(axis=0)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _plane(unit: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    try:
        umap = import_umap()
    except ImportError:
        left, size, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
        return left[:, :2] * size[:2], "principal component"
    neighbors = min(10, len(unit) - 1)
    return umap.UMAP(
        n_neighbors=neighbors, metric="cosine", init="random", random_state=seed, n_jobs=1
    ).fit_transform(unit), "UMAP"


gene_neighbours = renamed_function("gene_neighbours", gene_neighbors)

__all__ = [
    "gene_embedding",
    "gene_neighbors",
    "gene_neighbours",
    "marker_map",
    "plot_marker_map",
]
