"""Evaluation of imputation: masked counts, split counts, foreign genes, simple methods beside them."""

from ...data.count_splitting import poisson_deviance, split_counts
from .benchmark import nonzero_imputation
from .dispersion import dispersion_within
from .metrics import score, truncated_deviance
from .peers import RATE_METHODS
from .predictors import PREDICTORS, Hidden
from .zeros import count_splitting, depth_scores, foreign_gene_scores, foreign_genes

__all__ = [
    "PREDICTORS",
    "RATE_METHODS",
    "Hidden",
    "count_splitting",
    "depth_scores",
    "dispersion_within",
    "foreign_gene_scores",
    "foreign_genes",
    "nonzero_imputation",
    "poisson_deviance",
    "score",
    "split_counts",
    "truncated_deviance",
]
