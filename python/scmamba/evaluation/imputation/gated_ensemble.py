"""A gated ensemble, scored beside imputation: rates predicted by the network and by nearest neighbors, weighted by a gating network.

Neighbors reflect the user's data, the network the nuclei it was trained on; neither is better everywhere. A fifth of the
counts is masked, every base predictor predicts the rates of the masked genes, and the gating network is fitted to them. It
is given neither the cell nor the gene, only the predictions, so a few hundred cells suffice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse

from ...data.masking import interleaved_values
from ...imputation.adaptation import adapt_rates
from ...imputation.base_predictors import RANKS, BasePredictors, GeneMap, base_rate
from ...imputation.options import ADAPT_STEPS
from ...model import Model
from ...neighbors.batch_balanced import BatchBalancedKNN
from ...training.batches import CellSource
from ...utils.progress import say
from .gating import (
    MASKED,
    GatingNetwork,
    TrainingEntries,
    evaluate_gating,
    fit_gating,
    value_if_counted,
)

#: With fewer cells there are too few neighbors, and nothing to fit weights to.
MIN_CELLS = 100
#: Cells the weights are fitted to, at most.
FIT_CELLS = 1500


@dataclass
class Prediction:
    """Predictions for a block of cells, (r, n_vars) float32.

    Attributes
    ----------
    rate
        Share of the cell's counts expected to be the gene's.
    value
        log1p(CP10k) expected if the gene was counted at all: what a masked count most likely is.
    """

    rate: np.ndarray
    value: np.ndarray


@dataclass
class GatedEnsemble:
    """Base predictors and the gating network that weights them.

    Attributes
    ----------
    sources
        The base predictors.
    gating
        The gating network; ``None`` with too few cells, where the network predicts alone.
    report
        How well each base predictor predicted masked counts of held-out cells.
    """

    sources: BasePredictors
    gating: GatingNetwork | None
    report: dict[str, Any] = field(default_factory=dict)

    def expect(
        self,
        counts: sparse.csr_matrix,
        totals: np.ndarray,
        own: np.ndarray | None = None,
        batch: np.ndarray | None = None,
    ) -> Prediction:
        """Rates and values of all genes in some cells, a few dozen at a time; arguments as for :meth:`BasePredictors.features`."""
        depth = np.maximum(totals, 1.0)[:, None]
        base = self.sources.base.astype(np.float32)
        if self.gating is None:
            log_rate = log_counted = self.sources.network(counts, totals) + base
        else:
            log_rate, log_counted = (
                self._mix(self.sources.features(counts, totals, own, batch)) + base
            )
        return Prediction(np.minimum(np.exp(log_rate), 1.0), value_if_counted(log_counted, depth))

    def _mix(self, features: np.ndarray) -> np.ndarray:
        """(F, r, n_vars) -> (2, r, n_vars) float32."""
        assert self.gating is not None
        flat = torch.from_numpy(features.reshape(len(features), -1))
        answer = np.empty((2, flat.shape[1]), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, flat.shape[1], 1 << 18):
                part = flat[:, start : start + (1 << 18)].T.contiguous()
                answer[:, start : start + (1 << 18)] = self.gating(part).T.numpy()
        return answer.reshape(2, *features.shape[1:])


def fit_gated_ensemble(
    model: Model,
    counts: sparse.csr_matrix,
    totals: np.ndarray,
    genes: GeneMap,
    *,
    batch: np.ndarray | None = None,
    adapt_steps: int = ADAPT_STEPS,
    seed: int = 0,
    verbose: bool = True,
) -> GatedEnsemble:
    """Adapt the network to these cells and fit the weights of the base predictors.

    The masked fifth is masked during the adaptation too: weights fitted to counts that the network was trained on would
    be too large.

    Parameters
    ----------
    counts, totals, genes
        (n, n_vars) counts of some cells, their (n,) depths, and the columns of genes in the model. With fewer than
        :data:`MIN_CELLS` cells nothing is fitted and the network predicts alone.
    batch
        (n,) code of each cell's donor or library, if neighbors are balanced across them.
    adapt_steps
        Steps of adaptation (:func:`adapt_rates`); 0 turns it off.
    seed
        Seed of what is masked, drawn and fitted.
    verbose
        Print messages and progress.

    Returns
    -------
    A :class:`GatedEnsemble` whose neighbors are these cells with nothing masked.
    """
    if counts.shape[0] < MIN_CELLS:
        say(
            f"Only {counts.shape[0]} cells ({MIN_CELLS} needed): skipping adaptation and neighbors, using the pre-trained network alone.",
            verbose,
        )
        sources = BasePredictors(model, genes, base_rate(counts, model, genes), None)
        return GatedEnsemble(
            sources, None, {"adapt": {"used": False, "reason": f"fewer than {MIN_CELLS} cells"}}
        )
    rng = np.random.default_rng(seed)
    visible, masked = interleaved_values(counts, MASKED, seed)
    report: dict[str, Any] = {}
    if adapt_steps:
        values, depth = genes.model_input(visible, totals)
        source = CellSource("cells", values, genes.genes, np.full(len(depth), ""), depth)
        adapted = adapt_rates(model, source, steps=adapt_steps, seed=seed, verbose=verbose)
        model, report["adapt"] = adapted.model, adapted.report
    base = base_rate(visible, model, genes)
    cells = np.arange(counts.shape[0])
    if len(cells) > FIT_CELLS:
        cells = np.sort(rng.choice(cells, FIT_CELLS, replace=False))
    sources = BasePredictors(
        model,
        genes,
        base,
        BatchBalancedKNN(visible, totals, components=max(RANKS), seed=seed, batch=batch),
    )
    table = TrainingEntries.draw(sources, visible, masked, totals, cells, rng, batch, verbose)
    judged = np.isin(table.cell, rng.permutation(cells)[: max(10, len(cells) // 10)])
    gating = fit_gating(table.take(~judged), seed)
    report |= evaluate_gating(gating, table.take(judged))
    say(
        f"Squared error of masked counts in {report['judged_cells']} held-out cells: gene average x depth {report['gene_average']:.4f}, "
        f"network {report['network']:.4f}, neighbors {report['neighbors']:.4f}, ensemble {report['combined']:.4f}.",
        verbose,
    )
    pool = BatchBalancedKNN(counts, totals, components=max(RANKS), seed=seed, batch=batch)
    full = BasePredictors(model, genes, base_rate(counts, model, genes), pool)
    return GatedEnsemble(full, gating, report)
