"""Metrics of the paper, metrics that depth does not dominate beside them, and simple methods to compare with."""

from ..neighbors.rates import knn_rates
from .imputation import (
    PREDICTORS,
    RATE_METHODS,
    Hidden,
    count_splitting,
    depth_scores,
    dispersion_within,
    foreign_gene_scores,
    foreign_genes,
    nonzero_imputation,
    poisson_deviance,
    score,
    split_counts,
)

__all__ = [
    "PREDICTORS",
    "RATE_METHODS",
    "Hidden",
    "count_splitting",
    "depth_scores",
    "dispersion_within",
    "foreign_gene_scores",
    "foreign_genes",
    "knn_rates",
    "nonzero_imputation",
    "poisson_deviance",
    "score",
    "split_counts",
]
