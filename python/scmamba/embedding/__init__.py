"""Embeddings of cells and genes."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EmbedOptions": "options",
        "embed": "_cells",
        "embed_file": "_cells",
        "gene_embedding": "_genes",
        "gene_neighbors": "_genes",
        "gene_neighbours": "_genes",
        "marker_map": "_genes",
        "plot_marker_map": "_genes",
    },
)
