"""The paper's metrics, honest ones beside them, and the simple predictors any model has to beat."""

from ..data.neighbours import neighbour_rate_prediction
from .imputation import PREDICTORS, Hidden, nonzero_imputation, score

__all__ = ["PREDICTORS", "Hidden", "neighbour_rate_prediction", "nonzero_imputation", "score"]
