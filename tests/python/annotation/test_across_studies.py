"""Refusals in cells of another study: each measure by hand, and cells drawn from known rates with factors of a laboratory."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from scipy.special import logit

import scmamba
from scmamba.annotation import across_studies as across
from scmamba.annotation.across_studies import (
    StudyShift,
    cluster_measures,
    clusters_of,
    count_scale,
    fit_of_calls,
    gene_factors,
    usual_fit,
)
from scmamba.annotation.brain_reference import load_reference
from scmamba.annotation.novelty import unit
from scmamba.annotation.result import own_components
from scmamba.data.values import log1p_cp10k

KINDS = ["Astrocyte", "Oligodendrocyte", "Microglia", "Endothelial"]
OPTIONS = dict(label_key="kind", cache=False, verbose=False, return_result=True)


def draw(kinds: list[str], each: int, seed: int, spread: float = 0.0) -> ad.AnnData:
    """Cells of these types with a log-normal factor for each of 3,000 genes, and a twentieth of ambient RNA."""
    reference, rng = load_reference(), np.random.default_rng(seed)
    types = reference.table["type"].to_numpy(str)
    rates = np.array([reference.rates[:, types == k].mean(axis=1) for k in kinds])
    best = np.argsort(-reference.rates.max(axis=1), kind="stable")[:3000]
    rates = rates[:, best] * np.exp(rng.normal(0, spread, len(best)))
    rates /= rates.sum(axis=1, keepdims=True)
    rates = 0.95 * rates + 0.05 * rates.mean(axis=0)
    code = np.repeat(np.arange(len(kinds)), each)
    depth = rng.lognormal(np.log(1500), 0.3, len(code))
    cells = ad.AnnData(sparse.csr_matrix(rng.poisson(rates[code] * depth[:, None]).astype(float)))
    cells.var_names = list(reference.genes[best])
    cells.obs_names = [f"c{i}" for i in range(len(code))]
    cells.obs["kind"] = np.array(kinds)[code]
    cells.obs["donor"] = [f"d{i % 4}" for i in range(len(code))]
    return cells


@pytest.fixture(scope="module")
def known() -> ad.AnnData:
    return draw(KINDS[:3], 60, 0)


def test_absent_types_of_another_study_are_refused_and_known_ones_named(known):
    query = draw(KINDS, 60, 1, spread=0.6)
    found = scmamba.annotate(query, reference=known, across_studies=True, **OPTIONS)
    calls, truth = found.labels().astype(str), query.obs["kind"].to_numpy(str)
    absent, given = truth == "Endothelial", calls != "Unassigned"
    about = found.provenance
    assert about["study_shift"] > across.SHIFT
    assert about["not_fitting"] >= 0.8 * absent.sum()
    assert (~given[absent]).mean() >= 0.8 and given[~absent].mean() >= 0.6
    assert np.mean(calls[given] != truth[given]) <= 0.05


def test_nothing_is_refused_in_cells_of_the_same_study(known):
    query = draw(KINDS[:3], 40, 2)
    found = scmamba.annotate(query, reference=known, across_studies=True, **OPTIONS)
    assert found.provenance["study_shift"] < across.SHIFT
    assert found.provenance["not_fitting"] == found.provenance["doubtful"] == 0
    alone = scmamba.annotate(query, reference=known, **OPTIONS)
    np.testing.assert_array_equal(found.is_novel, alone.is_novel)


@pytest.mark.parametrize("across_studies", [False, True])
def test_the_message_counts_the_calls_that_do_not_fit(known, capsys, across_studies):
    query = draw(KINDS, 60, 1, spread=0.6)
    options = {**OPTIONS, "verbose": True, "across_studies": across_studies}
    found = scmamba.annotate(query, reference=known, **options)
    printed, about = capsys.readouterr().err, found.provenance
    assert f"{about['not_fitting']} cells whose cluster does not fit its type" in printed
    assert ("more than 5% of the calls may be wrong" in printed) is not across_studies
    unassigned = (found.labels().astype(str) == "Unassigned").sum()
    assert about["not_fitting"] > 0
    assert bool(unassigned >= about["not_fitting"]) is across_studies


# ---------------------------------------------------------------- by hand


def test_counts_are_read_from_their_logarithms():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, (30, 80)).astype(float))
    counts[4] = 0
    counts = sparse.csr_matrix(counts)
    counts.eliminate_zeros()
    logs = log1p_cp10k(counts, np.asarray(counts.sum(axis=1)).ravel())
    found = count_scale(sparse.csr_matrix(logs)).toarray()
    np.testing.assert_allclose(found, counts.toarray(), atol=1e-4)
    half = sparse.csr_matrix(np.log1p([[0.5, 9999.5]]))  # no counts: not more than 10,000
    assert count_scale(half).sum() == pytest.approx(1e4)


def test_factors_of_the_genes_by_hand(monkeypatch):
    monkeypatch.setattr(across, "_MIN_COUNTS", 100.0)
    rates = np.array([[0.5, 0.1], [0.3, 0.2], [0.2, 0.7]])
    average = np.full(3, 1 / 3)
    pooled = np.array([[300.0, 300, 100], [200, 50, 50], [30, 60, 410], [9, 9, 9]])
    total, weights = np.zeros(3), np.zeros(3)
    for code, rows in ((0, [0, 1]), (1, [2])):
        observed = pooled[rows].sum(axis=0)
        expected = observed.sum() * (0.95 * rates[:, code] + 0.05 / 3)
        weight = expected / (expected + 10)
        total += weight * np.log((observed + 2) / (expected + 2))
        weights += weight
    found = gene_factors(pooled, np.array([0, 0, 1, 2]), np.column_stack([rates, average]), average)
    np.testing.assert_allclose(found, total / (weights + 1))


def test_measures_of_a_cluster_by_hand():
    rng = np.random.default_rng(1)
    rates = rng.dirichlet(np.ones(60), 2).T
    shifted = rates * np.exp(rng.normal(0, 0.5, 60))[:, None]
    shifted /= shifted.sum(axis=0)
    average = np.full(60, 1 / 60)
    observed = rng.poisson(3000 * rates[:, 1]).astype(float)
    observed[7] = 700.0
    depth = observed.sum()
    plain, expected = (depth * (0.95 * r[:, 0] + 0.05 * average) for r in (rates, shifted))
    ratios = [
        np.log((o + 1) / (e + 1)) / np.sqrt(0.16 + 1 / (o + 1))
        for o, e in zip(observed, expected)
        if o >= 5 or e >= 5
    ]
    beyond = sum(max(0.0, o - 3 * e - 3 * e**0.5 - 2) for o, e in zip(observed, plain))
    found = cluster_measures(observed, 0, rates, shifted, average)
    assert found[0] == pytest.approx(np.mean(sorted(ratios)[-10:]))
    assert found[1] == pytest.approx(np.log(beyond / depth + 0.005))
    few = np.zeros(60)
    few[:19] = 30.0
    assert np.isnan(cluster_measures(few, 0, rates * 1e-9, shifted * 1e-9, average * 0)).all()


def test_small_objects_are_also_separated_by_call():
    place, called = np.ones((60, 2)), np.arange(60) % 3
    place[30:] = -1
    assert np.unique(clusters_of(place[:50], called[:50], 0)).size == 3
    many = clusters_of(np.vstack([place] * 4), np.tile(called, 4), 0)
    assert len(np.unique(many)) <= 6 and (many[:30] == many[0]).all() and many[30] != many[0]


def test_the_reference_is_compared_with_its_other_donors(known):
    x = sparse.csr_matrix(known.X)
    x = sparse.csr_matrix(log1p_cp10k(x, np.asarray(x.sum(axis=1)).ravel()), dtype=np.float64)
    codes = np.unique(known.obs["kind"], return_inverse=True)[1]
    fold = np.arange(len(codes)) % 2
    found = usual_fit(x, codes, 4, fold, 0)
    sums = [np.expm1(x[(fold == 1) & (codes == c)].toarray()).sum(axis=0) for c in range(3)]
    rates = np.array([s + np.expm1(x[fold == 1].toarray()).mean(axis=0) + 1e-3 for s in sums]).T
    own = x[fold == 0]
    shown = fit_of_calls(
        count_scale(own), unit(own_components(own, 0)), codes[fold == 0], rates / rates.sum(0), 0
    )
    # The rates of the fourth type, without a cell, are not compared with any.
    assert found.shape == (4, 3) and np.isfinite(found).all()
    assert found[0, 0] == pytest.approx(np.median(shown[codes[fold == 0] == 0, 0]), abs=0.05)
    assert (found[:3, 0] > 0.8).all()
    assert np.isnan(usual_fit(x, codes, 3, np.zeros(len(codes)), 0)).all()


def test_rules_by_hand():
    measures = np.array([[0.1, 1.0, 0.9]] * 18 + [[0.7, 2.0, 2.0]] * 2)
    against = np.column_stack([np.linspace(-6, 0, 20), np.full(20, -2.0)])
    shift = StudyShift(measures, against)
    assert shift.is_shifted and shift.size == pytest.approx(0.9)
    common = np.minimum(np.quantile(measures, 0.1, axis=0), [0.25, 2.0, 1.0])
    score = (measures - common) @ [3.7, 0.15, 1.0] - 1.8
    np.testing.assert_array_equal(shift.is_absent(), score > 0)
    assert shift.is_absent().tolist() == [False] * 18 + [True] * 2
    for rate in (0.01, 0.05, 0.2):
        odds = against @ [0.49, 0.37] + 2.66
        expected = odds > logit(rate) - logit(0.05)
        np.testing.assert_array_equal(shift.is_doubtful(rate), expected)
    assert 0 < shift.is_doubtful(0.2).sum() < shift.is_doubtful(0.05).sum()
    # What is common is not subtracted beyond the caps: all cells may be of absent types.
    far = StudyShift(measures * 0 + [0.6, 4.0, 3.0], against)
    assert far.is_absent().all()
    same = StudyShift(measures - [0, 0, 0.41], against)
    assert not same.is_shifted and not same.is_absent().any() and not same.is_doubtful(0.05).any()
    empty = StudyShift(measures[:0], against[:0])
    assert empty.size == 0 and not empty.is_absent().any()


def test_a_measure_that_cannot_be_taken_is_usual():
    p = np.array([[0.9, 0.1]] * 8)
    x = sparse.csr_matrix(np.log1p(np.full((8, 4), 2500.0)))
    profiles = np.log(np.full((2, 4), 0.25))
    shift = StudyShift.of(x, np.ones((8, 1)), p, profiles, np.full((2, 3), np.nan), 0)
    assert not shift.measures.any() and not shift.is_shifted
    np.testing.assert_allclose(shift.against, -logit(0.9))


def test_constants():
    assert (across.SHIFT, across.COMMON, across.ENOUGH) == (0.5, 0.1, 20)
    assert (across.CLUSTER, across.MOST_CLUSTERS, across.FEW_CELLS) == (40, 80, 200)
    assert across.COMMON_CAPS.tolist() == [0.25, 2.0, 1.0]
    assert across.ABSENT.tolist() == [3.7, 0.15, 1.0, -1.8]
    assert across.DOUBT.tolist() == [0.49, 0.37, 2.66]
