"""Training sequences against tables worked out by hand: genes, masks, weights, and batches of cells."""

from __future__ import annotations

from dataclasses import asdict, replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scmamba.data.values import log1p_cp10k
from scmamba.genes import Vocabulary
from scmamba.training import make_batch, read_sources
from scmamba.training.batches import (
    CellSource,
    SequenceConfig,
    _number_of_zeros,
    _share,
    _zero_columns,
    expressed_genes,
    is_zero_share,
    pad,
    sample_rows,
)
from scmamba.utils.errors import DataError


def source_of(counts: np.ndarray, genes: np.ndarray | None = None) -> CellSource:
    """Cells with these counts; their depth is a fifth more than the sum of the counts."""
    totals = 1.2 * counts.sum(axis=1)
    values = log1p_cp10k(sparse.csr_matrix(counts), totals)
    where = np.arange(counts.shape[1]) if genes is None else genes
    return CellSource(
        "cells", values, where, np.array([f"d{i % 3}" for i in range(len(counts))]), totals
    )


@pytest.fixture(scope="module")
def many() -> CellSource:
    rng = np.random.default_rng(0)
    return source_of(
        (rng.random((50, 300)) < np.linspace(0.2, 0.8, 50)[:, None])
        * rng.integers(1, 9, (50, 300)),
        np.arange(5, 605, 2),
    )


def test_defaults_are_the_papers_pre_training():
    assert asdict(SequenceConfig()) == {
        "mask_nonzero": 0.15,
        "mask_zero": 0.0,
        "genes_per_step": 0,
        "zeros": (100, 2000),
    }


def test_padding_by_hand():
    cells = [
        (
            np.array([0, 2]),
            np.array([1.5, 2.5], np.float32),
            np.array([True, False]),
            np.array([1.0, 0.5]),
        ),
        (np.array([1]), np.array([3.0], np.float32), np.array([False]), np.array([2.0])),
    ]
    batch = pad(cells, np.array([10, 20, 30]))
    assert batch.x.tolist() == [[1.5, 2.5], [3.0, 0.0]] and batch.genes.tolist() == [
        [10, 30],
        [20, 0],
    ]
    assert batch.mask.tolist() == [[True, False], [False, False]] and batch.keep.tolist() == [
        [True, True],
        [True, False],
    ]
    assert batch.weight.tolist() == [[1.0, 0.5], [2.0, 0.0]] and batch.x.dtype == torch.float32
    nothing = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool), np.zeros(0))
    assert (
        pad([nothing], np.arange(3)).x.shape == (1, 1)
        and not pad([nothing], np.arange(3)).keep.any()
    )


def test_cells_are_ranked_by_length():
    source = source_of(np.array([[1, 1, 1], [1, 0, 0], [0, 2, 2], [0, 0, 3]]))
    assert source.by_length.tolist() == [1, 3, 2, 0] and len(source) == 4
    some = source.take(np.array([2, 0]))
    np.testing.assert_array_equal(some.values.toarray(), source.values.toarray()[[2, 0]])
    assert (
        some.groups.tolist() == ["d2", "d0"]
        and some.totals.tolist() == pytest.approx([4.8, 3.6])
        and some.by_length.tolist() == [0, 1]
    )


def test_zeros_are_the_columns_in_no_other_group():
    on = np.array([0, 3, 4, 9])
    rng = np.random.default_rng(1)
    assert sorted(_zero_columns(on, 11, 7, rng)) == [1, 2, 5, 6, 7, 8, 10]
    drawn = np.array([_zero_columns(on, 11, 3, rng) for _ in range(3000)])
    assert all(len(set(row)) == 3 for row in drawn[:50])
    assert np.bincount(drawn.ravel(), minlength=11)[[1, 2, 5, 6, 7, 8, 10]] == pytest.approx(
        9000 / 7, rel=0.1
    )
    assert _zero_columns(on, 11, 0, rng).tolist() == [] and len(_zero_columns(on, 11, 1, rng)) == 1


def test_how_many_zeros_are_masked():
    rng = np.random.default_rng(0)
    between = SequenceConfig(mask_zero=0.04, zeros=(3, 6))
    found = {_number_of_zeros(between, 100, rng) for _ in range(200)}
    assert found == {3, 4, 5, 6} and {_number_of_zeros(between, 4, rng) for _ in range(50)} == {
        3,
        4,
    }
    assert _number_of_zeros(replace(between, mask_zero=0.0), 100, rng) == 0
    shares = SequenceConfig(mask_zero=0.04, zeros=(0.01, 1.0))
    assert (
        is_zero_share(shares)
        and not is_zero_share(between)
        and not is_zero_share(replace(shares, mask_zero=0.0))
    )
    # Uniform on the logarithmic scale: half below the geometric mean of both ends.
    drawn = np.array([_share(shares, rng) for _ in range(4000)])
    assert (
        0.01 <= drawn.min() < 0.0105
        and 0.95 < drawn.max() <= 1
        and np.mean(drawn < 0.1) == pytest.approx(0.5, abs=0.03)
    )
    numbers = np.array([_number_of_zeros(shares, 1000, rng) for _ in range(4000)])
    assert (
        numbers.min() >= 10
        and numbers.max() <= 1000
        and np.median(numbers) == pytest.approx(100, rel=0.15)
    )
    assert {_number_of_zeros(replace(shares, zeros=(1e-6, 1e-6)), 50, rng)} == {
        1
    } and _number_of_zeros(shares, 0, rng) == 0


def test_the_sequence_of_one_cell_by_hand(many):
    config = SequenceConfig(mask_nonzero=0.4, mask_zero=0.04, genes_per_step=40, zeros=(25, 25))
    row = 30
    truth = many.values[row].toarray()[0]
    on, zeros = np.flatnonzero(truth), np.flatnonzero(truth == 0)
    hidden_share = []
    for seed in range(60):
        columns, x, hidden, weight = expressed_genes(many, row, config, np.random.default_rng(seed))
        np.testing.assert_array_equal(x, truth[columns])
        assert (np.diff(columns) > 0).all() and (x > 0).sum() == 40 and (x == 0).sum() == 25
        assert hidden[x == 0].all() and (weight[x > 0] == 1).all()
        # 4% of all zeros, scaled like the subsampled non-zeros, represented by 25 of them
        np.testing.assert_allclose(weight[x == 0], 0.04 * len(zeros) * (40 / len(on)) / 25)
        hidden_share.append(hidden[x > 0].mean())
    assert np.mean(hidden_share) == pytest.approx(0.4, abs=0.03)
    columns, x, hidden, weight = expressed_genes(
        many, row, replace(config, genes_per_step=len(on)), np.random.default_rng(0)
    )
    assert (x > 0).sum() == len(on) and np.allclose(weight[x == 0], 0.04 * len(zeros) / 25)
    one = replace(
        config, zeros=(1e-9, 1e-9), genes_per_step=0
    )  # a share that is rounded up to one zero
    columns, x, hidden, weight = expressed_genes(many, row, one, np.random.default_rng(0))
    assert weight[x == 0].tolist() == pytest.approx([0.04 * len(zeros)])
    columns, x, hidden, weight = expressed_genes(
        many, row, replace(config, mask_zero=0.0), np.random.default_rng(0)
    )
    assert (x > 0).all() and len(x) == 40


def test_a_batch_of_short_sequences_has_positions_in_the_vocabulary(many):
    batch = make_batch(
        many,
        np.array([49, 3]),
        SequenceConfig(mask_nonzero=0.0),
        "expressed",
        np.random.default_rng(0),
    )
    for i, row in enumerate((49, 3)):
        keep = batch.keep[i]
        on = np.flatnonzero(many.values[row].toarray()[0])
        np.testing.assert_array_equal(batch.genes[i][keep], many.genes[on])
        np.testing.assert_array_equal(batch.x[i][keep], many.values[row].toarray()[0][on])
    assert not batch.mask.any()


def test_whole_cells_are_masked_with_the_given_probabilities(many):
    rows, rng = np.tile(np.arange(50), 4), np.random.default_rng(0)
    batch = make_batch(many, rows, SequenceConfig(mask_nonzero=0.4, mask_zero=0.04), "all", rng)
    np.testing.assert_array_equal(batch.x, many.values[rows].toarray())
    np.testing.assert_array_equal(batch.genes, many.genes)
    there, mask = batch.x.numpy() != 0, batch.mask.numpy()
    assert batch.keep is None and (batch.weight == 1).all()
    assert mask[there].mean() == pytest.approx(0.4, abs=0.01) and mask[
        ~there
    ].mean() == pytest.approx(0.04, abs=0.006)
    # Shares: each cell masks its own share of zeros, and the weights compensate for it.
    batch = make_batch(
        many, rows, SequenceConfig(mask_nonzero=0.4, mask_zero=0.04, zeros=(0.02, 0.9)), "all", rng
    )
    mask, weight = batch.mask.numpy(), batch.weight.numpy()
    assert (weight[there] == 1).all() and mask[there].mean() == pytest.approx(0.4, abs=0.01)
    shares = []
    for i in range(len(rows)):
        (share,) = np.unique(0.04 / weight[i][~there[i]])
        assert abs(mask[i][~there[i]].mean() - share) < 0.25
        shares.append(share)
    assert min(shares) > 0.0199 and max(shares) < 0.901 and len(set(shares)) > 150
    assert np.corrcoef(shares, [mask[i][~there[i]].mean() for i in range(200)])[0, 1] > 0.98
    only = make_batch(many, rows, SequenceConfig(), "all", rng)
    assert not only.mask.numpy()[~there].any() and only.mask.numpy()[there].mean() == pytest.approx(
        0.15, abs=0.01
    )


def test_cells_are_drawn_from_a_window_of_the_ranking(many):
    """Windows of four times the batch; at either end of the ranking the window begins or ends with the last cell."""
    size, window, n = 3, 12, 50
    rank = np.argsort(many.by_length)
    rng, seen = np.random.default_rng(0), np.zeros(n)
    for _ in range(6000):
        rows = sample_rows(many, size, rng)
        assert len(set(rows)) == size and np.ptp(rank[rows]) < window
        seen[rank[rows]] += 1
    expected = np.zeros(n)
    for start in range(-6, 50 - 6 + 1):
        first = min(max(start, 0), n - window)
        expected[first : first + window] += size / window / 51
    np.testing.assert_allclose(seen / 6000, expected, atol=0.02)
    assert sorted(sample_rows(many, 80, rng)) == list(range(50))


def genes_and_cells() -> tuple[Vocabulary, ad.AnnData]:
    """Six cells over forty genes of the vocabulary in reverse order and one unknown gene."""
    vocabulary = Vocabulary.published().subset(range(40))
    counts = np.zeros((6, 41), dtype=np.float32)
    counts[:, :40] = np.random.default_rng(3).integers(0, 3, (6, 40))
    for cell, total in enumerate((199, 200, 201, 500, 600, 700)):
        counts[cell, 0] += total - counts[cell, :40].sum()
    counts[:, 40] = 1000
    data = ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame({"donor": list("aabbbc")}, index=[f"c{i}" for i in range(6)]),
    )
    data.var_names = [*reversed(vocabulary.ensembl_ids), "nothing-known"]
    data.uns["name"] = "six"
    return vocabulary, data


def test_files_are_read_with_the_filters_of_the_paper(tmp_path):
    vocabulary, data = genes_and_cells()
    (source,) = read_sources([data], vocabulary)
    # 200 counts of the model's genes, the smallest allowed; 199 are too few, whatever the other counts.
    assert source.totals.tolist() == [200, 201, 500, 600, 700] and source.groups.tolist() == [
        "a",
        "b",
        "b",
        "b",
        "c",
    ]
    assert source.name == "six" and source.genes.tolist() == list(range(40))
    exact = np.log1p(1e4 * data.X.toarray()[1:, 39::-1] / source.totals[:, None])
    np.testing.assert_allclose(source.values.toarray(), exact, rtol=1e-6)
    assert len(read_sources([data], vocabulary, min_total=1)[0]) == 6
    # Donors are counted after shallow cells are removed.
    assert read_sources([data], vocabulary, min_cells_per_donor=2)[0].groups.tolist() == [
        "b",
        "b",
        "b",
    ]
    assert read_sources([data], vocabulary, min_cells_per_donor=3)[0].groups.tolist() == [
        "b",
        "b",
        "b",
    ]
    assert read_sources([data], vocabulary, min_cells_per_donor=2, min_total=1)[
        0
    ].groups.tolist() == ["a", "a", "b", "b", "b"]
    with pytest.raises(DataError, match="No cell of six has 200 counts .and a donor with 4 cells"):
        read_sources([data], vocabulary, min_cells_per_donor=4)
    assert (
        read_sources([data], vocabulary, donor=None, min_cells_per_donor=4)[0].groups.tolist()
        == [""] * 5
    )
    data.write_h5ad(tmp_path / "cells.h5ad")
    first, second = read_sources([tmp_path / "cells.h5ad", data], vocabulary)
    assert first.name == "cells" and (first.values != second.values).nnz == 0
