"""Evaluation of imputation: tables of masked counts, simple predictors, metrics."""

from .benchmark import nonzero_imputation
from .metrics import score, truncated_deviance
from .predictors import PREDICTORS, Hidden

__all__ = ["PREDICTORS", "Hidden", "nonzero_imputation", "score", "truncated_deviance"]
