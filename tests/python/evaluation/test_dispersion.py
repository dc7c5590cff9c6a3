"""Dispersion within cell types, and split counts that are independent by it, on counts of known dispersion."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from scmamba.evaluation import count_splitting, dispersion_within, split_counts
from scmamba.utils.errors import DataError, OptionError

CELLS, GENES = 1500, 300
TRUTH = np.repeat([0.1, 0.4, 1.5], 100)
LABELS = np.repeat(["a", "b"], [1000, 500])


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Negative binomial counts of two types with different profiles and depths, and their means."""
    rng = np.random.default_rng(0)
    profile = rng.dirichlet(np.full(GENES, 3.0), 2)
    depth = rng.uniform(750, 2250, (CELLS, 1))
    mean = profile[(LABELS == "b").astype(int)] * depth
    return stats.nbinom.rvs(1 / TRUTH, 1 / (1 + TRUTH * mean), random_state=1), mean


def test_the_known_dispersion_is_found_within_types_only(drawn):
    found = dispersion_within(sparse.csr_matrix(drawn[0]), LABELS)
    for truth in np.unique(TRUTH):
        assert found[truth == TRUTH].mean() == pytest.approx(truth, rel=0.15)
    together = dispersion_within(sparse.csr_matrix(drawn[0]), np.repeat("all", CELLS))
    assert together.mean() > found.mean() + 0.1, "differences between types are added"


def test_many_types_of_three_cells_have_no_bias():
    """Sums over pairs of cells: means of three cells do not lower the dispersion by a third."""
    counts = stats.nbinom.rvs(2, 2 / (2 + 8), size=(3000, 40), random_state=3)
    found = dispersion_within(sparse.csr_matrix(counts), np.repeat(np.arange(1000), 3))
    assert found.mean() == pytest.approx(0.5, rel=0.08)


def test_poisson_counts_have_no_dispersion_and_rare_genes_the_average():
    rng = np.random.default_rng(4)
    counts = sparse.csr_matrix(rng.poisson(4.0, (2000, 30)))
    assert dispersion_within(counts, np.repeat("a", 2000)).max() < 0.03
    spread = stats.nbinom.rvs(2, 2 / (2 + 8), size=(2000, 30), random_state=5)
    spread[:, 0] = 0
    spread[:2, 0] = 1
    found = dispersion_within(sparse.csr_matrix(spread), np.repeat("a", 2000))
    assert found[0] == pytest.approx(0.5, rel=0.1)


def test_parts_split_by_the_fitted_dispersion_are_independent_given_the_means(drawn):
    counts, mean = drawn

    def dependence(dispersion: np.ndarray | float) -> float:
        parts = split_counts(sparse.csr_matrix(counts), 0.5, dispersion=dispersion, seed=6)
        left, right = (part.toarray() - mean / 2 for part in parts)
        each = [stats.pearsonr(left[:, g], right[:, g]).statistic for g in range(GENES)]
        return float(np.mean(each))

    fitted = dispersion_within(sparse.csr_matrix(counts), LABELS)
    assert abs(dependence(fitted)) < 0.02
    assert dependence(0.0) > 0.2, "binomial parts share the deviation of the cell"


def test_count_splitting_uses_the_fitted_dispersion_of_scored_genes(drawn):
    counts = drawn[0].copy()
    counts[:, 5] = 0  # counted in no cell: not scored
    obs = pd.DataFrame({"type": LABELS}, index=[f"c{i}" for i in range(CELLS)])
    cells = ad.AnnData(sparse.csr_matrix(counts.astype(float)), obs=obs)
    seen = []

    def own(part: ad.AnnData) -> np.ndarray:
        seen.append(part.X.toarray())
        return (seen[-1] + 1) / (seen[-1] + 1).sum(axis=1, keepdims=True)

    options = dict(label_key="type", seed=3, verbose=False)
    table = count_splitting(cells, {"own": own}, dispersion="fitted", **options)
    whole = dispersion_within(cells.X, LABELS)
    given = count_splitting(cells, {"own": own}, dispersion=whole, **options)
    kept = np.arange(GENES) != 5
    exact = split_counts(cells.X[:, kept], 0.8, dispersion=whole[kept], seed=3)[0].toarray()
    np.testing.assert_array_equal(seen[0], exact)
    np.testing.assert_array_equal(seen[1], exact)
    pd.testing.assert_frame_equal(table, given)
    binomial = count_splitting(cells, {"own": own}, **options)
    # The cell's own counts predict their binomial copies: a gain that is not there in new counts of the same cell type.
    assert binomial.loc["own", "gain"] > table.loc["own", "gain"] + 0.1


def test_what_cannot_be_fitted_is_refused(drawn):
    counts = sparse.csr_matrix(drawn[0][:4].astype(float))
    with pytest.raises(DataError, match="one for each cell"):
        dispersion_within(counts, np.array(["a"]))
    with pytest.raises(DataError, match="no type has two cells"):
        dispersion_within(counts, np.arange(4))
    cells = ad.AnnData(counts)
    with pytest.raises(OptionError, match="label_key"):
        count_splitting(cells, {}, dispersion="fitted", verbose=False)
    with pytest.raises(OptionError, match="'guess'"):
        count_splitting(cells, {}, dispersion="guess", verbose=False)
