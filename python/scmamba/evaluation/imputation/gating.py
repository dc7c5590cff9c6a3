"""The gating network: how far each base predictor is weighted, fitted to masked counts of the user's own cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ...data.values import SCALE
from ...imputation.base_predictors import BasePredictors
from ...imputation.rate_fit import SPREAD
from ...neighbors.rates import truncated_mean
from ...utils.progress import track

#: One value in five is masked while the weights are fitted.
MASKED = 5


class GatingNetwork(nn.Module):
    """(n, F) features -> (n, 2) log factors over the gene's average rate: of its rate, and of its rate where it was counted."""

    def __init__(self, sources: int, width: int = 24) -> None:
        super().__init__()
        self.linear = nn.Linear(sources, 2)
        last = nn.Linear(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(sources, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )
        for weight in (*self.linear.parameters(), *last.parameters()):
            nn.init.zeros_(weight)  # before fitting every prediction is the gene's average

    def forward(self, x: Tensor) -> Tensor:
        """Logs of two factors over the gene's average rate."""
        return self.linear(x) + self.mlp(x)


def value_if_counted(log_rate: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """log1p(CP10k) of the zero-truncated Poisson mean of a rate in a cell of this depth."""
    mu = np.exp(np.minimum(log_rate, 0.0)) * totals
    return np.log1p(SCALE / totals * truncated_mean(mu)).astype(np.float32)


@dataclass
class TrainingEntries:
    """Masked counts and a sample of zeros: (n, F) features, counts, weights, log average rates, depths and cells."""

    features: np.ndarray
    count: np.ndarray
    weight: np.ndarray
    base: np.ndarray
    depth: np.ndarray
    cell: np.ndarray

    def take(self, keep: np.ndarray) -> TrainingEntries:
        """Only the entries that ``keep`` selects."""
        return TrainingEntries(
            *(
                getattr(self, name)[keep]
                for name in ("features", "count", "weight", "base", "depth", "cell")
            )
        )

    @classmethod
    def draw(
        cls,
        sources: BasePredictors,
        visible: sparse.csr_matrix,
        masked: sparse.csr_matrix,
        totals: np.ndarray,
        cells: np.ndarray,
        rng: np.random.Generator,
        batch: np.ndarray | None,
        verbose: bool,
    ) -> TrainingEntries:
        """As many zeros as masked counts, weighted to represent the masked share of all zeros."""
        parts: list[tuple[np.ndarray, ...]] = []
        parts_of_cells = np.array_split(cells, max(1, len(cells) // 64))
        for rows in track(
            parts_of_cells, "Comparing network and neighbors", len(parts_of_cells), verbose
        ):
            features = sources.features(
                visible[rows], totals[rows], rows, None if batch is None else batch[rows]
            )
            at = masked[rows].tocoo()
            shown = visible[rows].toarray() > 0
            shown[at.row, at.col] = True
            zero = np.flatnonzero(~shown.ravel())
            drawn = rng.choice(zero, min(len(zero), max(at.nnz, 1)), replace=False)
            i = np.concatenate([at.row, drawn // shown.shape[1]])
            j = np.concatenate([at.col, drawn % shown.shape[1]])
            count = np.concatenate([at.data, np.zeros(len(drawn))])
            weight = np.concatenate(
                [np.ones(at.nnz), np.full(len(drawn), len(zero) / MASKED / max(len(drawn), 1))]
            )
            parts.append(
                (features[:, i, j].T, count, weight, sources.base[j], totals[rows][i], rows[i])
            )
        return cls(*(np.concatenate(column) for column in zip(*parts)))


def fit_gating(
    table: TrainingEntries, seed: int, epochs: int = 8, batch: int = 8192
) -> GatingNetwork:
    """Fit the gating network: negative binomial likelihood for the rate, squared error of log values for masked counts."""
    columns = (table.features, table.count, table.weight, table.base, table.depth)
    x, y, weight, base, depth = (
        torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in columns
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        gating = GatingNetwork(x.shape[1])
        steps = max(300, epochs * (len(y) // batch + 1))
        optimizer = torch.optim.Adam(gating.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
        for _ in range(steps):
            i = torch.randint(0, len(y), (min(batch, len(y)),))
            loss = gating_loss(gating(x[i]) + base[i, None], y[i], weight[i], depth[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return gating.eval()


def gating_loss(log_rate: Tensor, y: Tensor, weight: Tensor, depth: Tensor) -> Tensor:
    """Negative binomial loss of (n, 2) log rates for counts ``y``, and squared error of log values where ``y`` > 0, per count."""
    log_mu = log_rate + depth.log()[:, None]
    frequency = weight * (
        (y + 1 / SPREAD) * torch.log1p(SPREAD * log_mu[:, 0].exp()) - y * log_mu[:, 0]
    )
    mu = log_mu[:, 1].exp()
    mean = torch.where(mu > 1e-4, mu / -torch.expm1(-mu.clamp(min=1e-4)), 1 + mu / 2)
    error = (torch.log1p(SCALE / depth * mean) - torch.log1p(SCALE / depth * y)) ** 2
    return (frequency.sum() + (error * (y > 0)).sum()) / (y > 0).sum().clamp(min=1)


def evaluate_gating(gating: GatingNetwork, table: TrainingEntries) -> dict[str, Any]:
    """Squared error of log values of masked counts: each base predictor alone, and the ensemble."""
    table = table.take(table.count > 0)
    depth, truth = table.depth, np.log1p(SCALE / table.depth * table.count)

    def error(log_factor: np.ndarray | float) -> float:
        return float(np.mean((value_if_counted(table.base + log_factor, depth) - truth) ** 2))

    with torch.inference_mode():
        combined = gating(torch.from_numpy(np.ascontiguousarray(table.features))).numpy()[:, 1]
    return {
        "gene_average": error(0.0),
        "network": error(table.features[:, 0]),
        "neighbors": error(table.features[:, 2]),
        "combined": error(combined),
        "judged_cells": int(len(np.unique(table.cell))),
        "judged_values": int(len(truth)),
    }
