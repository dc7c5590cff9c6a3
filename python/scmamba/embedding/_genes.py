"""What a model knows about genes: their embeddings, nearest genes, and marker genes on a plane (paper, Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..genes import match_genes
from ..model import Model, load_model
from ..utils.errors import GeneError, ScMambaError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gene_embedding(*, model: str | PathLike[str] | Model | None = None) -> pd.DataFrame:
    """(L, D) the learned embedding of every gene; rows by Ensembl ID, a first column ``symbol``, then ``0 ... D-1``."""
    opened = load_model(model, device="cpu")
    values = opened.gene_embedding().float().numpy()
    table = pd.DataFrame(values, index=pd.Index(opened.genes.ensembl_ids, name="ensembl_id"))
    table.insert(0, "symbol", list(opened.genes.symbols))
    return table


def gene_neighbours(
    genes: str | Sequence[str], *, model: str | PathLike[str] | Model | None = None, n: int = 10
) -> pd.DataFrame:
    """The genes a model holds to be most alike.

    Parameters
    ----------
    genes
        Symbols or Ensembl IDs.
    n
        Neighbours of each.

    Returns
    -------
    ``gene neighbour ensembl_id cosine``, nearest first; cosine of the embeddings after their mean is taken off.

    Raises
    ------
    GeneError
        None of the genes is in the model's vocabulary.
    """
    if n < 1:
        raise ScMambaError(f"n is {n}; ask for at least one neighbour.")
    asked = [genes] if isinstance(genes, str) else list(genes)
    opened = load_model(model, device="cpu")
    found = match_genes(asked, opened.genes).positions
    if not (found >= 0).any():
        some = ", ".join(map(str, asked[:5]))
        raise GeneError(
            f"The model '{opened.config.name}' knows none of the genes {some}; give human symbols or Ensembl IDs."
        )
    unit = _directions(opened)
    rows = []
    for name, position in zip(asked, found):
        if position < 0:
            continue
        cosine = unit @ unit[position]
        cosine[position] = -np.inf
        for i in np.argsort(-cosine, kind="stable")[:n]:
            rows.append(
                (name, opened.genes.symbols[i], opened.genes.ensembl_ids[i], float(cosine[i]))
            )
    return pd.DataFrame(rows, columns=["gene", "neighbour", "ensembl_id", "cosine"])


def marker_map(
    markers: Mapping[str, Sequence[str]] | None = None,
    *,
    model: str | PathLike[str] | Model | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Marker genes by type, on a plane.

    Returns
    -------
    ``gene type x y own_type``: coordinates by UMAP of the embeddings (cosine; by principal components where umap-learn is not installed,
    see ``attrs["axes"]``), and whether the gene's nearest other marker is of the same type. ``attrs["expected"]`` is the share of
    ``own_type`` that chance gives.

    Raises
    ------
    GeneError
        Fewer than four of the markers are in the model's vocabulary.
    """
    from ..datasets.marker_panels import brain_markers

    panel = brain_markers() if markers is None else {k: list(v) for k, v in markers.items()}
    opened = load_model(model, device="cpu")
    pairs = [(gene, name) for name, genes in panel.items() for gene in genes]
    found = match_genes([gene for gene, _ in pairs], opened.genes).positions
    known = np.flatnonzero(found >= 0)
    if len(known) < 4:
        raise GeneError(
            f"The model '{opened.config.name}' knows {len(known)} of the {len(pairs)} markers; a map needs at least four."
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
    """The picture of :func:`marker_map`: one colour a type, every gene by name."""
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
    """(L, D) embeddings about their mean, length one: the mean is common to all genes and says nothing of any."""
    values = model.gene_embedding().double().numpy()
    values = values - values.mean(axis=0)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _plane(unit: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    try:
        from umap import UMAP
    except ImportError:
        left, size, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
        return left[:, :2] * size[:2], "principal component"
    neighbours = min(10, len(unit) - 1)
    return UMAP(
        n_neighbors=neighbours, metric="cosine", init="random", random_state=seed, n_jobs=1
    ).fit_transform(unit), "UMAP"


__all__ = ["gene_embedding", "gene_neighbours", "marker_map", "plot_marker_map"]
