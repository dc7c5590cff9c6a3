"""Nearest neighbors, principal components and what neighbors express."""

from .batch_balanced import BatchBalancedKNN
from .gamma import log1p_gamma_sd
from .hierarchical import HierarchicalRates, RatePosterior, gene_dispersion
from .knn import nearest_neighbors
from .rates import NeighborRates, knn_rates, truncated_mean
from .svd import principal_components

__all__ = [
    "BatchBalancedKNN",
    "HierarchicalRates",
    "NeighborRates",
    "RatePosterior",
    "gene_dispersion",
    "knn_rates",
    "log1p_gamma_sd",
    "nearest_neighbors",
    "principal_components",
    "truncated_mean",
]
