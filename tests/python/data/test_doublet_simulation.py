"""Simulated doublets: which cells are combined, how often, and how many of their molecules remain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scmamba.data.doublet_simulation import LEAST_SHARE, doublet_codes, simulate_doublets
from scmamba.utils.errors import DataError, ScMambaError


def counts_of(cells: int, genes: int = 12, mean: float = 3.0) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.random.default_rng(0).poisson(mean, (cells, genes)))


def test_samples_get_doublets_in_proportion_to_their_cells():
    sample = np.repeat([4, 2, 9], [60, 30, 10])
    made = simulate_doublets(counts_of(100), sample, 500, recipe="sum")
    assert dict(zip(*np.unique(made.sample, return_counts=True))) == {2: 150, 4: 300, 9: 50}
    first, second = made.parents.T
    assert (sample[first] == made.sample).all() and (sample[second] == made.sample).all()
    assert (first != second).all() and len(made) == 500 == made.counts.shape[0]
    assert len(np.unique(np.diff(np.flatnonzero(made.sample == 9)))) > 5, "samples come mixed"
    # Every cell is drawn about equally often: a chi-squared test over the sample of sixty.
    drawn = np.bincount(made.parents[made.sample == 4].ravel(), minlength=60)[:60]
    assert stats.chisquare(drawn).pvalue > 1e-3


def test_doublets_per_sample_are_rounded_at_random():
    """Four samples of a quarter each: 2.25 doublets on average, two or sometimes three."""
    sample = np.repeat([0, 1, 2, 3], 5)
    sizes = [
        np.bincount(simulate_doublets(counts_of(20), sample, 9, seed=s).sample, minlength=4)
        for s in range(150)
    ]
    sizes = np.array(sizes)
    assert set(np.unique(sizes)) == {2, 3} and abs(sizes.mean() - 2.25) < 0.06


def test_weights_are_the_frequencies_of_the_cells():
    weight = np.array([1.0, 2, 3, 4, 0])
    made = simulate_doublets(counts_of(5), np.zeros(5, int), 4000, weight=weight, recipe="sum")
    # Two different cells: P(i, j) is proportional to w_i w_j off the diagonal.
    pair = np.outer(weight, weight) * (1 - np.eye(5))
    expected = pair.sum(axis=0) / pair.sum()
    share = np.bincount(made.parents.ravel(), minlength=5) / 8000
    np.testing.assert_allclose(share, expected, atol=0.02)
    assert share[4] == 0


def test_only_cells_of_different_clusters_are_combined_if_there_are_two():
    sample = np.repeat([0, 1], [40, 20])
    cluster = np.r_[np.zeros(39, int), 1, np.full(20, 2)]
    made = simulate_doublets(counts_of(60), sample, 90, cluster=cluster, recipe="sum")
    mixed = made.parents[made.sample == 0]
    assert len(mixed) == 60 and ((mixed == 39).sum(axis=1) == 1).all(), (
        "a single cell of a second cluster is in each"
    )
    alone = made.parents[made.sample == 1]
    assert len(alone) == 30 and (alone[:, 0] != alone[:, 1]).all(), "one cluster: any two may meet"


@pytest.mark.parametrize(("recipe", "factor"), [("sum", 1.0), ("mean", 0.5)])
def test_counts_are_the_sum_of_both_parents(recipe, factor):
    counts = counts_of(10)
    made = simulate_doublets(counts, np.zeros(10, int), 30, recipe=recipe, seed=3)
    expected = factor * (counts[made.parents[:, 0]] + counts[made.parents[:, 1]]).toarray()
    np.testing.assert_array_equal(made.counts.toarray(), expected)
    assert (
        made.counts.dtype == np.float64
        and made.counts.has_sorted_indices
        and (made.counts.data != 0).all()
    )


def test_molecules_of_mixed_droplets_are_lost_independently():
    """Shares are uniform between a half and one; given its share, each molecule is kept independently."""
    assert LEAST_SHARE == 0.5
    counts = sparse.csr_matrix(
        np.full((6, 4), 2500.4)
    )  # corrected counts: the sum 5000.8 is rounded to 5001
    made = simulate_doublets(counts, np.zeros(6, int), 1500, recipe="mixed", seed=1)
    kept = made.counts.toarray() / 5001
    share = kept.mean(axis=1)
    assert stats.kstest(share, stats.uniform(0.5, 0.5).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(made.counts.toarray() % 1, 0)
    spread = (made.counts.toarray() - 5001 * share[:, None]) / np.sqrt(
        5001 * share * (1 - share) + 1e-9
    )[:, None]
    inner = share < 0.95
    assert abs(spread[inner].var() * 4 / 3 - 1) < 0.1, "binomial within a droplet"
    ones = sparse.csr_matrix(np.eye(40)[:, :20])
    few = simulate_doublets(ones, np.zeros(40, int), 300, seed=2)
    assert (few.counts.data == 1).all() or few.counts.data.min() >= 1, "what is lost is not stored"
    # Fractions are summed before they are rounded: 0.8 is one molecule, 0.4 is none.
    for fraction, molecules in ((0.4, {1.0}), (0.2, set())):
        parts = sparse.csr_matrix(np.full((6, 4), fraction))
        assert set(simulate_doublets(parts, np.zeros(6, int), 20).counts.data) == molecules
    default = simulate_doublets(counts, np.zeros(6, int), 20, seed=5)
    again = simulate_doublets(counts, np.zeros(6, int), 20, recipe="mixed", seed=5)
    assert (default.counts != again.counts).nnz == 0, "this is the default"


def test_the_result_depends_only_on_the_seed_or_generator():
    counts, sample = counts_of(30), np.repeat([0, 1], 15)
    one, two, other = (
        simulate_doublets(counts, sample, 40, seed=s) for s in (7, np.random.default_rng(7), 8)
    )
    assert np.array_equal(one.parents, two.parents) and (one.counts != two.counts).nnz == 0
    assert not np.array_equal(one.parents, other.parents)
    zero = simulate_doublets(counts, sample, 40)
    assert np.array_equal(zero.parents, simulate_doublets(counts, sample, 40, seed=0).parents)


def test_single_cells_give_no_doublet_and_wrong_lengths_are_refused():
    assert len(simulate_doublets(counts_of(4), np.arange(4), 40)) == 0
    assert simulate_doublets(counts_of(4), np.arange(4), 40).counts.shape == (0, 12)
    assert len(simulate_doublets(counts_of(2), np.zeros(2, int), 3)) == 3
    only = simulate_doublets(counts_of(3), np.zeros(3, int), 8, weight=np.array([1.0, 0, 0]))
    assert len(only) == 0
    for name in ("sample", "cluster", "weight"):
        given = {"sample": np.zeros(4, int), name: np.zeros(3)}
        with pytest.raises(DataError, match=f"{name} has 3 entries and there are 4 cells"):
            simulate_doublets(counts_of(4), given.pop("sample"), 3, **given)
    with pytest.raises(ScMambaError, match="no recipe 'half' .* choose one of mixed, sum, mean"):
        simulate_doublets(counts_of(4), np.zeros(4, int), 3, recipe="half")


#: What hashing and genotyping programs write: HTODemux, hashsolo, demuxlet, vireo, souporcell, scrublet.
WORDS = {
    1: ("Doublet", "doublets", "Multiplet", "DBL", "True", "1", "1.0"),
    0: ("Singlet", "singlets", "SNG", "False", "0", "0.0"),
    -1: ("Negative", "Ambiguous", "unassigned", "Unknown", "undetermined", "AMB", "NA", "nan", ""),
}


@pytest.mark.parametrize(
    ("word", "code"), [(word, code) for code, words in WORDS.items() for word in words]
)
def test_words_of_calls_of_doublets(word, code):
    calls = ["doublet", "singlet", f" {word} ", None]
    assert doublet_codes(pd.Categorical(calls)).tolist() == [1, 0, code, -1]


@pytest.mark.parametrize(
    "calls", [["singlet", "doublet", "neuron"], ["singlet", "negative"], ["doublet", None], [None]]
)
def test_other_columns_are_no_calls_of_doublets(calls):
    assert doublet_codes(pd.Categorical(calls)) is None
