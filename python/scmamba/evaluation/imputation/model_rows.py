"""Rows of scMamba models in the table of masked counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse

from ...data.preprocess import read_cells
from ...imputation.base_predictors import GeneMap
from ...imputation.options import ADAPT_STEPS
from ...model import load_model
from ...model.inference import input_positions
from .gated_ensemble import GatedEnsemble, fit_gated_ensemble
from .gating import value_if_counted
from .predictors import Hidden

if TYPE_CHECKING:
    from anndata import AnnData


def model_rows(
    model: Any, kept: AnnData, layer: str | None, batch_size: int | None
) -> dict[str, ModelRow]:
    """Rows of the table by name: the model, and for a model with a rate head also the network alone and masked prediction."""
    if model is None:
        return {}
    several = dict(model) if isinstance(model, Mapping) else {"scmamba": model}
    rows: dict[str, ModelRow] = {}
    for name, value in several.items():
        row = ModelRow(value, kept, layer, batch_size)
        if row.model.config.rates:
            rows[name] = ensemble = EnsembleRow(row)
            rows[f"{name} (network alone)"] = NetworkRow(ensemble)
            name = f"{name} (masked, not adapted)"
        rows[name] = row
    return rows


class ModelRow:
    """A scMamba model's masked predictions: its own genes, order and totals, moved back to the table's scale."""

    def __init__(
        self, model: Any, kept: AnnData, layer: str | None, batch_size: int | None
    ) -> None:
        self.model = load_model(model)
        self.cells = read_cells(kept, self.model.genes, layer=layer, force=True, min_coverage=0.0)
        self.where, self.genes = input_positions(self.model, self.cells)
        self.batch_size = batch_size
        # column of the data -> column of the network's input; only a gene's first row is predicted
        self.slot = np.full(kept.n_vars, -1)
        self.slot[self.cells.columns] = self.where

    def covered(self, counts: sparse.csr_matrix) -> float:
        """Share of the values that lie in genes of the model."""
        return float((self.slot[counts.indices] >= 0).mean())

    def predict(
        self, hidden: Hidden, counts: sparse.csr_matrix, masked: np.ndarray, fallback: np.ndarray
    ) -> np.ndarray:
        """(n,) log1p(CP10k) at the masked places, in the order of ``hidden.rows``."""
        out = fallback.copy()
        width = len(self.model.genes) if self.genes is None else len(self.genes)
        size = self.batch_size or self.model.batch_size(width)
        flags = sparse.csr_matrix(
            (masked.astype(np.int8), counts.indices, counts.indptr), shape=counts.shape
        )
        for start in range(0, counts.shape[0], size):
            stop = min(start + size, counts.shape[0])
            known, totals = self.cells.to_model(counts[start:stop])
            x = np.zeros((stop - start, width), dtype=np.float32)
            x[:, self.where] = known.toarray()
            mask = np.zeros(x.shape, dtype=bool)
            entry = flags[start:stop].tocoo()
            hit = (entry.data > 0) & (self.slot[entry.col] >= 0)
            mask[entry.row[hit], self.slot[entry.col[hit]]] = True
            answer = self.model.reconstruct(
                x, torch.from_numpy(mask), genes=self.genes, batch_size=size
            ).numpy()
            lo, hi = np.searchsorted(hidden.rows, [start, stop])
            cell, slot = hidden.rows[lo:hi] - start, self.slot[hidden.columns[lo:hi]]
            expected = np.expm1(answer[cell, slot].astype(np.float64)) * totals[cell] / 1e4
            moved = np.log1p(1e4 / hidden.totals[cell + start] * np.maximum(expected, 0))
            out[lo:hi] = np.where(slot >= 0, moved, out[lo:hi])
        return out


class EnsembleRow(ModelRow):
    """What :func:`scmamba.impute` does by default: the rate ensemble of adapted network and neighbors."""

    def __init__(self, row: ModelRow) -> None:
        self.model, self.cells, self.slot, self.batch_size = (
            row.model,
            row.cells,
            row.slot,
            row.batch_size,
        )
        self.map = GeneMap.of(row.cells)
        self._fitted: tuple[Hidden, GatedEnsemble] | None = None

    def covered(self, counts: sparse.csr_matrix) -> float:
        """Neighbors predict the genes outside the network's gene list."""
        return 1.0

    def fit(self, hidden: Hidden) -> GatedEnsemble:
        """The ensemble fitted to the visible counts, kept for the row of the network alone."""
        if self._fitted is None or self._fitted[0] is not hidden:
            counts, totals = hidden.visible, hidden.totals
            if hidden.reference is not None and hidden.reference_totals is not None:
                counts = sparse.vstack([counts, hidden.reference], format="csr")
                totals = np.concatenate([totals, hidden.reference_totals])
            self._fitted = (
                hidden,
                fit_gated_ensemble(
                    self.model,
                    counts,
                    totals,
                    self.map,
                    adapt_steps=ADAPT_STEPS,
                    seed=hidden.seed,
                    verbose=False,
                ),
            )
        return self._fitted[1]

    def predict(
        self, hidden: Hidden, counts: sparse.csr_matrix, masked: np.ndarray, fallback: np.ndarray
    ) -> np.ndarray:
        """(n,) log1p(CP10k) at the masked places: the value expected of a count that is known not to be zero."""
        fitted = self.fit(hidden)

        def value(rows: slice) -> np.ndarray:
            own = np.arange(rows.start, rows.stop)
            return fitted.expect(hidden.visible[rows], hidden.totals[rows], own).value

        return _by_block(hidden, value)


class NetworkRow(ModelRow):
    """The adapted network without neighbors; genes outside its list are predicted by depth and gene average."""

    def __init__(self, ensemble: EnsembleRow) -> None:
        self.ensemble, self.slot = ensemble, ensemble.slot

    def predict(
        self, hidden: Hidden, counts: sparse.csr_matrix, masked: np.ndarray, fallback: np.ndarray
    ) -> np.ndarray:
        """(n,) log1p(CP10k) at the masked places."""
        sources = self.ensemble.fit(hidden).sources

        def value(rows: slice) -> np.ndarray:
            log_rate = sources.network(hidden.visible[rows], hidden.totals[rows]) + sources.base
            return value_if_counted(log_rate, hidden.totals[rows][:, None])

        return np.where(self.slot[hidden.columns] >= 0, _by_block(hidden, value), fallback)


def _by_block(
    hidden: Hidden, function: Callable[[slice], np.ndarray], size: int = 64
) -> np.ndarray:
    """Entries at the masked places of dense blocks of rows."""
    out = np.empty(len(hidden.rows))
    for start in range(0, hidden.visible.shape[0], size):
        rows = slice(start, min(start + size, hidden.visible.shape[0]))
        lo, hi = np.searchsorted(hidden.rows, [rows.start, rows.stop])
        out[lo:hi] = function(rows)[hidden.rows[lo:hi] - rows.start, hidden.columns[lo:hi]]
    return out
