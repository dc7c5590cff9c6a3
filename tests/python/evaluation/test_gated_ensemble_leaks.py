"""Masked counts stay masked: no weights, averages or adapted networks are fitted to the counts that score them.

Masked counts are drawn here entry by entry, independently of the visible ones. A prediction with a smaller error than their spread
allows, or one that changes when only they change, must have used them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_model
from scipy import sparse

from scmamba.data.masking import interleaved_values
from scmamba.evaluation.imputation import gated_ensemble as combine
from scmamba.evaluation.imputation.gated_ensemble import GeneMap, fit_gated_ensemble
from scmamba.model import Model
from scmamba.nn import ScMamba

CELLS, WIDTH, SEED = 160, 60, 4


def rated_model() -> Model:
    small = small_model("expressed", n_genes=WIDTH)
    torch.manual_seed(3)
    return Model(ScMamba(replace(small.config, rates=True)), small.genes)


def marked(low: float, high: float, seed: int) -> tuple[sparse.csr_matrix, np.ndarray, GeneMap]:
    """Counts whose masked entries are ``low`` or ``high`` at random with equal probability; depths, which do not depend on them; genes."""
    rng = np.random.default_rng(0)
    kinds = rng.gamma(0.7, 2.0, (2, WIDTH))
    counts = sparse.csr_matrix(
        rng.poisson(kinds[rng.integers(0, 2, CELLS)]).astype(float)
        + (rng.random((CELLS, WIDTH)) < 0.3)
    )
    totals = np.asarray(counts.sum(axis=1)).ravel() * 4
    visible, hidden = interleaved_values(counts, 5, SEED)
    hidden.data = np.where(np.random.default_rng(seed).random(hidden.nnz) < 0.5, low, high)
    identity = GeneMap(sparse.identity(WIDTH, format="csr"), np.arange(WIDTH), np.arange(WIDTH))
    return sparse.csr_matrix(visible + hidden), totals, identity


def learn(
    monkeypatch,
    data: tuple[sparse.csr_matrix, np.ndarray, GeneMap],
    *,
    mix: bool = False,
    **options,
):
    """Fitted parameters, the sources, and the tables that the gating network was fitted to and scored on; without ``mix`` it is untrained."""
    seen: dict = {}
    draw, judge, fit = combine.TrainingEntries.draw, combine.evaluate_gating, combine.fit_gating

    def watched(sources, *rest):
        seen["sources"], seen["table"] = sources, draw(sources, *rest)
        return seen["table"]

    def judged(mixer, table):
        seen["judged"] = table
        return judge(mixer, table)

    def fitted(table, seed):
        seen["fitted"] = table
        return fit(table, seed) if mix else combine.GatingNetwork(table.features.shape[1])

    with monkeypatch.context() as patch:
        patch.setattr(combine.TrainingEntries, "draw", watched)
        patch.setattr(combine, "evaluate_gating", judged)
        patch.setattr(combine, "fit_gating", fitted)
        found = fit_gated_ensemble(rated_model(), *data, seed=SEED, verbose=False, **options)
    return found, seen


@pytest.mark.parametrize("batches", [False, True])
def test_masked_counts_do_not_affect_the_fit(monkeypatch, batches):
    """Adapted weights, averages, neighbors and every feature are bit for bit those with other masked counts."""
    batch = np.arange(CELLS) % 2 if batches else None
    (a, one), (b, other) = (
        learn(monkeypatch, marked(1, 9, seed), adapt_steps=6, batch=batch) for seed in (1, 2)
    )
    first, second = one["sources"], other["sources"]
    assert (
        a.report["adapt"] | {"seconds": 0} == b.report["adapt"] | {"seconds": 0}
        and a.report["adapt"]["used"]
    )
    for name, value in first.model.network.state_dict().items():
        assert torch.equal(value, second.model.network.state_dict()[name]), name
    np.testing.assert_array_equal(first.base, second.base)
    for name in ("scores", "basis", "mean_value", "seen"):
        np.testing.assert_array_equal(getattr(first.pool, name), getattr(second.pool, name))
    assert (first.pool.counts != second.pool.counts).nnz == 0
    for name in ("features", "weight", "base", "depth", "cell"):
        np.testing.assert_array_equal(getattr(one["table"], name), getattr(other["table"], name))
    assert not np.array_equal(one["table"].count, other["table"].count), (
        "the counts themselves differ"
    )
    assert a.report["gene_average"] != b.report["gene_average"]
    # In use no count is masked: then they affect the result.
    assert not np.array_equal(a.sources.base, b.sources.base)
    assert (a.sources.pool.counts != b.sources.pool.counts).nnz > 0


def test_the_gating_network_is_not_fitted_to_the_cells_it_is_scored_on(monkeypatch):
    found, seen = learn(monkeypatch, marked(1, 9, 1), adapt_steps=0)
    judged, fitted = set(seen["judged"].cell), set(seen["fitted"].cell)
    assert len(judged) == 16 == found.report["judged_cells"] and not judged & fitted
    assert judged | fitted == set(range(CELLS)) and judged != set(range(16))
    assert len(seen["judged"].count) + len(seen["fitted"].count) == len(seen["table"].count)
    np.testing.assert_array_equal(np.unique(seen["judged"].count), [0, 1, 9])
    # No cell is its own neighbor: the feature is that of the pool without the cell.
    table, sources = seen["table"], seen["sources"]
    visible, _ = interleaved_values(marked(1, 9, 1)[0], 5, SEED)
    near = sources.pool.query(sources.pool.scores[:4], 8, np.arange(4))
    assert all(cell not in row for cell, row in enumerate(near))
    rate = np.asarray(visible[near[2]].sum(axis=0)).ravel() + 2000 * np.exp(sources.base)
    rate /= visible[near[2]].sum() + 2000
    own = table.features[table.cell == 2, 1]
    place = {value: j for j, value in enumerate(sources.base)}
    columns = [place[value] for value in table.base[table.cell == 2]]
    np.testing.assert_allclose(own, (np.log(rate) - sources.base)[columns], atol=1e-4)


@pytest.mark.parametrize("steps", [0, 40])
def test_the_reported_error_is_close_to_the_smallest_possible(monkeypatch, steps):
    """For two equally likely values the smallest mean squared error is a quarter of their squared distance."""
    found, seen = learn(monkeypatch, marked(1, 30, 1), mix=True, adapt_steps=steps)
    table = seen["judged"].take(seen["judged"].count > 0)
    low, high = (np.log1p(1e4 / table.depth * v) for v in (1.0, 30.0))
    least = float(np.mean(((high - low) / 2) ** 2))
    assert len(table.count) > 100
    assert 0.9 * least < found.report["combined"] < 1.25 * least
    for name in ("gene_average", "network", "neighbors"):
        assert found.report[name] > 0.9 * least, name
    # The reported number belongs to the named cells: recomputed from the gating network and the table.
    with torch.no_grad():
        factor = found.gating(torch.from_numpy(np.ascontiguousarray(table.features))).numpy()[:, 1]
    mu = np.minimum(np.exp(table.base + factor), 1) * table.depth
    error = np.log1p(1e4 / table.depth * mu / -np.expm1(-mu)) - np.log1p(
        1e4 / table.depth * table.count
    )
    assert found.report["combined"] == pytest.approx(np.mean(error**2), rel=1e-4)


def test_the_table_has_the_masked_counts_of_a_limited_number_of_cells(monkeypatch):
    monkeypatch.setattr(combine, "FIT_CELLS", 90)
    counts, totals, genes = marked(1, 9, 1)
    found, seen = learn(monkeypatch, (counts, totals, genes), adapt_steps=0)
    table, (_, hidden) = seen["table"], interleaved_values(counts, 5, SEED)
    cells = np.unique(table.cell)
    assert len(cells) == 90 and found.report["judged_cells"] == 10
    np.testing.assert_array_equal(
        np.sort(table.count[table.count > 0]), np.sort(hidden[cells].data)
    )
    assert found.sources.pool.counts.shape[0] == CELLS  # all cells are candidates for neighbors
