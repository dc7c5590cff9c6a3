"""Network and neighbors combined: each feature by brute force, the loss against scipy, the averages by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_model
from scipy import sparse, stats

from scmamba.data.masking import interleaved_values
from scmamba.data.values import log1p_cp10k
from scmamba.evaluation.imputation import gated_ensemble
from scmamba.evaluation.imputation import gating as combine
from scmamba.evaluation.imputation.gated_ensemble import GatedEnsemble, fit_gated_ensemble
from scmamba.evaluation.imputation.gating import GatingNetwork, value_if_counted
from scmamba.imputation import base_predictors as predictors
from scmamba.imputation.base_predictors import BasePredictors, GeneMap, base_rate
from scmamba.model import Model
from scmamba.neighbors.batch_balanced import BatchBalancedKNN
from scmamba.nn import ScMamba

KNOWN, WIDTH = 40, 44  # genes of the network, columns of the data


@pytest.fixture(scope="module")
def model() -> Model:
    small = small_model("expressed", n_genes=60)
    torch.manual_seed(3)
    rated = Model(ScMamba(replace(small.config, rates=True)), small.genes)
    with torch.no_grad():
        rated.network.gene_log_rate.copy_(torch.linspace(-6, -2, 60))
        rated.network.rate_head.weight.mul_(40)
    return rated


@pytest.fixture(scope="module")
def genes() -> GeneMap:
    """Column 2 has the network's gene 9, column 3 again gene 9, and so on; columns 0 and 1 are not in its gene list."""
    rows = np.r_[2, 3, np.arange(4, 43)]
    slots = np.r_[0, 0, np.arange(1, 40)]
    gather = sparse.csr_matrix((np.ones(41), (rows, slots)), shape=(WIDTH, KNOWN))
    return GeneMap(gather, np.r_[2, np.arange(4, 43)], np.arange(9, 49))


@pytest.fixture(scope="module")
def counts() -> sparse.csr_matrix:
    rng = np.random.default_rng(0)
    kinds = rng.gamma(0.5, 2.0, (3, WIDTH))
    return sparse.csr_matrix(
        rng.poisson(kinds[rng.integers(0, 3, 130)] * rng.uniform(0.5, 2, (130, 1))).astype(float)
    )


@pytest.fixture(scope="module")
def totals(counts) -> np.ndarray:
    return np.asarray(counts.sum(axis=1)).ravel() * 1.1 + 1


@pytest.fixture(scope="module")
def sources(model, genes, counts, totals) -> BasePredictors:
    base = base_rate(counts, model, genes)
    return BasePredictors(
        model, genes, base, BatchBalancedKNN(counts, totals, components=50, seed=1)
    )


def test_constants():
    assert predictors.POOLS == (
        (8, 2000.0),
        (30, 5000.0),
        (100, 10_000.0),
        (200, 20_000.0),
    ) and predictors.RANKS == (10, 50)
    assert (gated_ensemble.MIN_CELLS, combine.SPREAD) == (100, 0.2)
    assert (
        combine.MASKED,
        gated_ensemble.FIT_CELLS,
        predictors.BATCH_NEIGHBORS,
        predictors.FLOOR,
    ) == (
        5,
        1500,
        30,
        0.02,
    )


def test_the_network_reads_its_own_genes_at_their_share_of_the_depth(genes, counts, totals):
    values, depth = genes.model_input(counts, totals)
    dense = counts.toarray()
    ours = np.column_stack([dense[:, 2] + dense[:, 3], dense[:, 4:43]])
    share = totals * ours.sum(axis=1) / dense.sum(axis=1)
    np.testing.assert_allclose(depth, share)
    np.testing.assert_allclose(values.toarray(), np.log1p(1e4 * ours / share[:, None]), rtol=1e-6)
    empty, none = genes.model_input(counts[:1] * 0, totals[:1])
    assert none.tolist() == [0] and empty.nnz == 0


def test_averages_of_rare_genes_are_shrunk_to_those_of_the_model(model, genes, counts):
    seen = np.asarray(counts.sum(axis=0)).ravel()
    prior = np.full(WIDTH, 1e-7)
    prior[genes.columns] = np.exp(np.linspace(-6, -2, 60)[9:49])
    mixed = seen + 50_000 * prior / prior.sum()
    np.testing.assert_allclose(
        np.exp(base_rate(counts, model, genes)), mixed / mixed.sum(), rtol=1e-5
    )


def test_predictions_of_the_network_keep_the_total_of_its_genes(
    model, genes, counts, totals, sources
):
    found = sources.network(counts[:5], totals[:5])
    assert found.dtype == np.float32 and not found[:, [0, 1, 3, 43]].any()
    values, _ = genes.model_input(counts[:5], totals[:5])
    ratio = model.log_ratio(values, genes.genes)
    assert ratio.std() > 0.1
    base = sources.base[genes.columns]
    rate = np.exp(base + ratio)
    rate *= np.exp(base).sum() / rate.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found[:, genes.columns], np.log(rate) - base, atol=2e-5)


@pytest.mark.parametrize("batches", [False, True])
def test_each_feature_by_brute_force(model, genes, counts, totals, sources, batches):
    batch = np.arange(130) % 2 if batches else None
    pool = BatchBalancedKNN(counts, totals, components=50, seed=1, batch=batch)
    sources = replace(sources, pool=pool)
    rows = np.array([3, 60, 129])
    found = sources.features(
        counts[rows], totals[rows], rows, None if batch is None else batch[rows]
    )
    assert found.shape == (9, 3, WIDTH) and sources.number == 9
    np.testing.assert_allclose(found[0], sources.network(counts[rows], totals[rows]), atol=1e-6)
    scores = log1p_cp10k(counts, totals).toarray().astype(float) @ pool.basis
    dense, average = counts.toarray(), np.exp(sources.base)
    level = np.log(log1p_cp10k(counts, totals).toarray().astype(float).mean(axis=0) + 0.02)
    nearest = pool.query(scores[rows], 200, rows, None if batch is None else batch[rows])
    assert nearest.shape == (3, 129)
    for i, row in enumerate(rows):
        near = nearest[i]
        assert row not in near
        if not batches:
            order = np.argsort(((scores - scores[row]) ** 2).sum(axis=1), kind="stable")
            np.testing.assert_array_equal(near, order[order != row])
        for f, (k, shrink) in enumerate(
            ((8, 2000), (30, 5000), (100, 10_000), (200, 20_000)), start=1
        ):
            rate = (dense[near[:k]].sum(axis=0) + shrink * average) / (
                dense[near[:k]].sum() + shrink
            )
            np.testing.assert_allclose(found[f, i], np.log(rate) - sources.base, atol=1e-5)
        place = scores[near[:30]].mean(axis=0) if batches else scores[row]
        for f, rank in ((5, 10), (6, 50)):
            rebuilt = np.maximum(place[:rank] @ pool.basis[:, :rank].T, 0)
            np.testing.assert_allclose(found[f, i], np.log(rebuilt + 0.02) - level, atol=2e-3)
        np.testing.assert_allclose(found[7, i], (sources.base + 9) / 2, rtol=1e-5)
        np.testing.assert_allclose(found[8, i], np.log(max(totals[row], 1)) - 8, rtol=1e-5)


def test_an_untrained_gating_network_predicts_the_average(counts, totals, sources):
    torch.manual_seed(0)
    mixer = GatingNetwork(9)
    assert not mixer(torch.randn(50, 9)).any() and mixer(torch.randn(50, 9)).shape == (50, 2)
    with torch.no_grad():
        mixer.linear.weight[0, 0], mixer.linear.bias[1] = 1.0, 0.5
        mixer.mlp[-1].weight.normal_()
    x = torch.randn(6, 9)
    torch.testing.assert_close(
        mixer(x), x @ mixer.linear.weight.T + mixer.linear.bias + mixer.mlp(x)
    )
    plain = GatedEnsemble(sources, GatingNetwork(9)).expect(counts[:4], totals[:4], np.arange(4))
    np.testing.assert_allclose(plain.rate, np.tile(np.exp(sources.base), (4, 1)), rtol=1e-5)
    mu = np.exp(sources.base) * totals[:4, None]
    np.testing.assert_allclose(
        plain.value, np.log1p(1e4 / totals[:4, None] * mu / -np.expm1(-mu)), rtol=1e-4
    )
    mlp = GatedEnsemble(sources, mixer).expect(counts[:4], totals[:4], np.arange(4))
    features = sources.features(counts[:4], totals[:4], np.arange(4))
    with torch.no_grad():
        factor = mixer(torch.from_numpy(features).permute(1, 2, 0)).numpy().astype(float)
    np.testing.assert_allclose(
        mlp.rate, np.minimum(np.exp(sources.base + factor[..., 0]), 1), rtol=1e-4
    )
    mu = np.minimum(np.exp(sources.base + factor[..., 1]), 1) * totals[:4, None]
    np.testing.assert_allclose(
        mlp.value,
        np.log1p(1e4 / totals[:4, None] * mu / -np.expm1(-np.maximum(mu, 1e-9))),
        rtol=1e-3,
    )
    alone = GatedEnsemble(replace(sources, pool=None), None).expect(counts[:4], totals[:4])
    np.testing.assert_allclose(
        alone.rate, np.exp(sources.network(counts[:4], totals[:4]) + sources.base), rtol=1e-4
    )
    deep = GatedEnsemble(replace(sources, pool=None), None).expect(counts[:4] * 0, totals[:4] * 0)
    assert np.isfinite(deep.value).all()


def test_a_predicted_count_is_at_most_the_depth():
    np.testing.assert_allclose(
        value_if_counted(np.array([[3.0]]), np.array([[50.0]])), np.log1p(1e4), rtol=1e-5
    )  # at most all counts of the cell


def test_the_loss_of_the_gating_network_is_that_of_scipy():
    """Negative binomial of every count with variance mu + 0.2 mu^2, and squared error of the log values of non-zero counts."""
    rng = np.random.default_rng(0)
    log_rate, depth = rng.normal(-6, 2, (40, 2)), rng.uniform(500, 4000, 40)
    y, weight = (
        np.where(rng.random(40) < 0.5, rng.integers(1, 20, 40), 0).astype(float),
        rng.uniform(0.5, 3, 40),
    )
    log_rate[0, 1] = -30.0

    def ours(rate: np.ndarray) -> float:
        return (
            combine.gating_loss(
                *(torch.from_numpy(v).double() for v in (rate, y, weight, depth))
            ).item()
            * (y > 0).sum()
        )

    def theirs(rate: np.ndarray) -> float:
        mu, size = np.exp(rate[:, 0]) * depth, 5.0
        likelihood = -(weight * stats.nbinom.logpmf(y, size, size / (size + mu))).sum()
        other = np.exp(rate[:, 1]) * depth
        mean = np.where(other > 1e-10, other / -np.expm1(-np.maximum(other, 1e-10)), 1.0)
        error = (np.log1p(1e4 / depth * mean) - np.log1p(1e4 / depth * y)) ** 2
        return likelihood + error[y > 0].sum()

    shifted = log_rate + rng.normal(0, 0.5, (40, 2))
    shifted[0, 1] = -30.0
    assert ours(shifted) - ours(log_rate) == pytest.approx(
        theirs(shifted) - theirs(log_rate), rel=1e-6
    )
    nothing = combine.gating_loss(
        *(torch.from_numpy(v).double() for v in (log_rate, 0 * y, weight, depth))
    ).item()
    mu = np.exp(log_rate[:, 0]) * depth
    assert nothing == pytest.approx((weight * 5 * np.log1p(0.2 * mu)).sum())


def test_entries_are_the_masked_counts_and_as_many_zeros(counts, totals, sources):
    visible, hidden = interleaved_values(counts, 5, 0)
    cells = np.array([2, 50, 51, 110])
    own = replace(sources, pool=BatchBalancedKNN(visible, totals, components=50, seed=1))
    table = combine.TrainingEntries.draw(
        own, visible, hidden, totals, cells, np.random.default_rng(0), None, False
    )
    at, dense = hidden[cells].tocoo(), counts.toarray()
    number = at.nnz
    assert (
        len(table.count) == 2 * number
        and (table.count[:number] > 0).all()
        and not table.count[number:].any()
    )
    np.testing.assert_array_equal(table.count[:number], at.data)
    np.testing.assert_array_equal(table.cell[:number], cells[at.row])
    assert (table.weight[:number] == 1).all()
    zeros = (dense[cells] == 0).sum()
    np.testing.assert_allclose(table.weight[number:], zeros / 5 / number)
    column = np.r_[at.col, np.searchsorted(np.sort(own.base), table.base[number:])]
    place = {value: j for j, value in enumerate(own.base)}
    column = np.array([place[value] for value in table.base])
    np.testing.assert_array_equal(column[:number], at.col)
    assert (
        not dense[table.cell[number:], column[number:]].any()
        and len(set(zip(table.cell[number:], column[number:]))) == number
    )
    np.testing.assert_array_equal(table.depth, totals[table.cell])
    features = own.features(visible[cells], totals[cells], cells)
    row = np.searchsorted(cells, table.cell)
    np.testing.assert_array_equal(table.features, features[:, row, column].T)
    some = table.take(table.count > 0)
    assert len(some.cell) == number == len(some.weight) == len(some.features)


def test_the_report_is_the_squared_error_of_each_source():
    rng = np.random.default_rng(0)
    n = 60
    count, depth, base = (
        rng.integers(0, 5, n).astype(float),
        rng.uniform(500, 4000, n),
        rng.normal(-6, 1, n),
    )
    table = combine.TrainingEntries(
        rng.normal(size=(n, 9)).astype(np.float32),
        count,
        np.ones(n),
        base,
        depth,
        np.arange(n) // 7,
    )
    mixer = GatingNetwork(9)
    with torch.no_grad():
        mixer.linear.weight[1] = torch.linspace(-1, 1, 9)
        mixer.linear.weight[0] = 5.0
    found = combine.evaluate_gating(mixer, table)
    on = count > 0

    def error(factor: np.ndarray | float) -> float:
        mu = np.minimum(np.exp(base + factor), 1) * depth
        value = np.log1p(1e4 / depth * mu / -np.expm1(-mu))
        return ((value - np.log1p(1e4 / depth * count)) ** 2)[on].mean()

    features = table.features.astype(float)
    expected = {
        "gene_average": error(0.0),
        "network": error(features[:, 0]),
        "neighbors": error(features[:, 2]),
        "combined": error(features @ np.linspace(-1, 1, 9)),
    }
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-4)
    assert found["judged_values"] == on.sum() and found["judged_cells"] == len(set(table.cell[on]))


def test_the_gating_network_finds_the_right_source():
    """One source has the true log factors of masked counts and zeros, the others are noise."""
    rng = np.random.default_rng(1)
    n = 1500
    base, depth, factor = rng.normal(-6, 0.5, n), rng.uniform(1000, 3000, n), rng.normal(0, 1, n)
    count = rng.poisson(np.exp(base + factor) * depth).astype(float)
    features = rng.normal(size=(n, 9)).astype(np.float32)
    features[:, 4] = factor
    table = combine.TrainingEntries(features, count, np.ones(n), base, depth, np.arange(n))
    mixer = combine.fit_gating(table, 0)
    assert not mixer.training
    with torch.no_grad():
        answer = mixer(torch.from_numpy(features)).numpy()
    for column in range(2):
        assert np.corrcoef(answer[:, column], factor)[0, 1] > 0.95
    slope = np.polyfit(factor, answer[:, 0], 1)
    assert slope[0] == pytest.approx(1, abs=0.2) and abs(slope[1]) < 0.1
    some = table.take(np.arange(300))
    assert not torch.equal(
        combine.fit_gating(some, 0).linear.weight, combine.fit_gating(some, 1).linear.weight
    )


def test_few_cells_are_imputed_by_the_network_alone(model, genes, counts, totals):
    few = fit_gated_ensemble(model, counts[:99], totals[:99], genes, verbose=False)
    assert few.gating is None and few.sources.pool is None and few.sources.model is model
    assert few.report == {"adapt": {"used": False, "reason": "fewer than 100 cells"}}
    np.testing.assert_array_equal(few.sources.base, base_rate(counts[:99], model, genes))
    enough = fit_gated_ensemble(
        model, counts[:100], totals[:100], genes, adapt_steps=0, verbose=False
    )
    assert (
        enough.gating is not None
        and "adapt" not in enough.report
        and enough.report["judged_cells"] == 10
    )
    np.testing.assert_array_equal(enough.sources.base, base_rate(counts[:100], model, genes))
    np.testing.assert_array_equal(
        enough.sources.pool.counts.toarray(), counts[:100].toarray()
    )  # no count is masked when the fitted ensemble is used
