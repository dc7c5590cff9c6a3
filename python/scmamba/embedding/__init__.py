"""Embeddings of cells and genes."""

from ._cells import embed, embed_file
from ._genes import gene_embedding, gene_neighbors, gene_neighbours, marker_map, plot_marker_map
from .options import EmbedOptions

__all__ = [
    "EmbedOptions",
    "embed",
    "embed_file",
    "gene_embedding",
    "gene_neighbors",
    "gene_neighbours",
    "marker_map",
    "plot_marker_map",
]
