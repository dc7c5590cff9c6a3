"""Embeddings of cells and genes."""

from ._cells import embed, embed_file
from ._genes import gene_embedding, gene_neighbours, marker_map, plot_marker_map

__all__ = [
    "embed",
    "embed_file",
    "gene_embedding",
    "gene_neighbours",
    "marker_map",
    "plot_marker_map",
]
