"""The paper's imputation: the network predicts masked log values (spec "Fine-tuning", "Imputation").

The zeros of a cell are divided into interleaved groups; each pass masks one group and keeps the network's predictions
for it. Observed values are never changed, negative predictions become 0.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from scipy import sparse

from ..data import interleaved_groups
from ..data.preprocess import CellReader
from ..data.values import SCALE
from ..model import Model
from ..model.inference import dense_input, input_positions
from .adaptation import adapt_masked
from .base import Imputer


class MaskedImputer(Imputer):
    """Masked prediction of log values, for the genes of the network's vocabulary."""

    method: ClassVar[str] = "masked"

    @property
    def min_value(self) -> float:
        """Smaller predictions stay zero; 0 by default."""
        return float(self.options.min_value or 0.0)

    def learn(self, cells: CellReader) -> tuple[Model, dict[str, Any]]:
        """The network, adapted to the cells if that helps, and the report of the adaptation."""
        if self.options.adapt_steps == 0:
            return self.model, {}
        model, report = adapt_masked(
            self.model,
            cells,
            steps=self.options.adapt_steps,
            seed=self.options.seed,
            verbose=self.options.verbose,
        )
        return model, {"adapt": report}

    def restore(self, cells: CellReader, learned: tuple[Model, dict[str, Any]]) -> MaskedImputer:
        """Predict with the network that :meth:`learn` returned."""
        self.cells = cells
        self.model, self.summary = learned
        self._where, self._genes = input_positions(self.model, cells)
        return self

    def expected(self, rows: slice, linear: sparse.csr_matrix) -> sparse.csr_matrix:
        """The masked predictions, moved from the scale of the network's genes to that of all genes of the data.

        A gene with several rows is predicted in the first one.
        """
        x, totals = dense_input(self.model, self.cells, linear)
        predicted = predict_zeros(
            self.model, x, self._genes, self.options.passes, self.options.batch_size
        )[:, self._where]
        # The user's normalization divides by the total over all genes of the data, the network's by that of its own.
        filled = sparse.csr_matrix(
            np.expm1(predicted.astype(np.float64)) * (totals / SCALE)[:, None]
        )
        return sparse.csr_matrix(
            (filled.data, self.cells.columns[filled.indices], filled.indptr), shape=linear.shape
        )


def predict_zeros(
    model: Model,
    x: np.ndarray,
    genes: torch.Tensor | None,
    passes: int,
    batch_size: int | None = None,
) -> np.ndarray:
    """Mask one interleaved group of zeros per pass, keep its predictions; negative ones become 0.

    Parameters
    ----------
    model
        The network and its genes.
    x
        (r, l) log1p(CP10k).
    genes
        (l,) positions of the columns in the vocabulary; ``None`` if they are the whole vocabulary in order.
    passes
        Number of groups.
    batch_size
        Cells computed at once; chosen by memory if not given.

    Returns
    -------
    (r, l) predictions where ``x`` is zero, 0 where it is not.
    """
    group = interleaved_groups(x == 0, passes)
    predicted = np.zeros_like(x)
    values = torch.from_numpy(x)
    for k in range(passes):
        mask = group == k
        if mask.any():
            answer = model.reconstruct(
                values, torch.from_numpy(mask), genes=genes, batch_size=batch_size
            )
            predicted[mask] = answer.float().numpy()[mask]
    # A cell without a single count has no profile to impute from.
    predicted[~(x != 0).any(axis=1)] = 0
    return np.maximum(predicted, 0, out=predicted)
