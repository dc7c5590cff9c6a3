"""The paper's metrics, honest ones beside them, and the simple predictors any model has to beat."""

from ..neighbors.rates import knn_rates
from .imputation import PREDICTORS, Hidden, nonzero_imputation, score

__all__ = ["PREDICTORS", "Hidden", "knn_rates", "nonzero_imputation", "score"]
