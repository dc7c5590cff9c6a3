"""Value scales and preprocessing at the limits of every rule: small matrices, closed forms."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmamba.data import (
    detect_value_scale,
    interleaved_groups,
    interleaved_values,
    preprocess,
    read_cells,
)
from scmamba.data.values import SCALE, log1p_cp10k
from scmamba.genes import Vocabulary
from scmamba.utils.errors import DataError, GeneError

GENES = ("ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000000004")
VOCABULARY = Vocabulary(GENES, ("", "", "", ""))


def cells_of(matrix, names=GENES, **options):
    data = ad.AnnData(
        sparse.csr_matrix(np.asarray(matrix, dtype=np.float64)), var=pd.DataFrame(index=list(names))
    )
    return read_cells(data, VOCABULARY, **options)


# --- scale of the values
# -------------------------------------------------------------------------------


def totals_of(ratio: float) -> np.ndarray:
    """101 totals whose 95% quantile is ``ratio`` times their 5% quantile."""
    high = (0.95 - 0.05 * ratio) / (0.95 * ratio - 0.05)  # of 1 + x (b - 1): solved for 1/b
    return np.linspace(high, 1, 101) * 1000 / high


def logs_with_totals(totals: np.ndarray) -> np.ndarray:
    return np.log1p(totals[:, None] * np.array([[0.1234, 0.3333, 0.5433]]))


def test_integers_are_counts():
    for matrix in (
        [[3, 0], [0, 7]],
        np.array([[True, False]]),
        np.array([[3.0, 70.0]], np.float32),
        sparse.csc_matrix([[2, 5]]),
    ):
        values = detect_value_scale(matrix if sparse.issparse(matrix) else np.asarray(matrix))
        assert (values.kind, values.scale) == ("counts", 1e4)
    assert (
        detect_value_scale(np.array([[3, 0], [0, 7]])).sentence
        == "X holds raw counts (integers, largest 7)"
    )


def test_fractions_above_twenty_are_corrected_counts():
    values = detect_value_scale(np.array([[0.5, 20.1]]))
    assert (values.kind, values.scale) == ("counts", 1e4)
    assert values.sentence == "X holds non-integer counts (largest 20.1), read as corrected counts"
    assert detect_value_scale(np.array([[0.5, 20.0]])).kind == "log1p"


def test_logs_of_counts_give_integers_back():
    counts = np.array([[1.0, 2, 300000], [5, 0, 40001]])
    for dtype in (np.float32, np.float64):
        values = detect_value_scale(np.log1p(counts).astype(dtype))
        assert values.kind == "log1p_counts" and values.scale == 1e4
    # 0.01 next to an integer is not an integer, in any cell.
    almost = counts.copy()
    almost[1, 0] = 5.01
    assert detect_value_scale(np.log1p(almost), force=True).kind == "log1p"


@pytest.mark.parametrize("scale", [100.0, 1e4, 1e6])
def test_logs_of_one_total_per_cell(scale):
    """Up to a gene with nearly all of a million counts: 13.8."""
    share = np.array([[0.999123457, 0.000876543, 0.0], [0.2003171, 0.3, 0.4996829]])
    values = detect_value_scale(np.log1p(scale * share))
    assert values.kind == "log1p" and values.scale == pytest.approx(scale)
    assert (
        values.sentence
        == f"X holds log-normalized values (expm1 sums to about {scale:,.0f} per cell)"
    )


def test_how_much_totals_may_differ():
    near, apart = logs_with_totals(totals_of(1.49)), logs_with_totals(totals_of(1.51))
    q = np.quantile(totals_of(1.51), [0.05, 0.95])
    assert q[1] / q[0] == pytest.approx(1.51)
    assert detect_value_scale(near).scale == pytest.approx(np.median(totals_of(1.49)))
    with pytest.raises(DataError, match=f"lie between {q[0]:,.0f} and {q[1]:,.0f};"):
        detect_value_scale(apart)
    forced = detect_value_scale(apart, force=True)
    assert forced.kind == "log1p" and forced.scale == pytest.approx(np.median(totals_of(1.51)))
    assert detect_value_scale(logs_with_totals(np.array([100.0, 100, 130]))).scale == pytest.approx(
        100
    )
    # Cells without counts do not affect the scale.
    silent = np.vstack([near, np.zeros((60, 3))])
    assert detect_value_scale(silent).scale == pytest.approx(np.median(totals_of(1.49)))


def test_any_genes_accepts_logs_of_any_total_and_no_fractions():
    """Verbs that normalize over other genes themselves read logarithms of selected genes."""
    apart = logs_with_totals(totals_of(3.0))
    for matrix, words in ((apart, "totals without the logarithm"), (apart / 10, "fractions")):
        with pytest.raises(DataError, match=words):
            cells_of(matrix, GENES[:3])
    assert cells_of(apart, GENES[:3], any_genes=True).values.kind == "log1p"
    with pytest.raises(DataError, match="fractions"):
        cells_of(apart / 10, GENES[:3], any_genes=True)
    assert cells_of(apart / 10, GENES[:3], force=True).values.kind == "counts"


def test_every_block_of_cells_is_checked():
    matrix = np.array([[1.0, 2], [3, 4], [5, 6], [7, 8], [9, 10]])
    assert detect_value_scale(matrix, block=2).kind == "counts"
    for row, value, words in (
        (4, np.nan, "1 values of X are NaN"),
        (2, -1.5, r"\(down to -1.5\)"),
        (4, -np.inf, "infinite"),
    ):
        bad = matrix.copy()
        bad[row, 1] = value
        with pytest.raises(DataError, match=words):
            detect_value_scale(bad, block=2, force=True)
    fraction = matrix.copy()
    fraction[4, 0] = 100.5
    assert "corrected counts" in detect_value_scale(fraction, block=2).sentence
    logs = logs_with_totals(totals_of(1.3))
    assert detect_value_scale(logs, block=7) == detect_value_scale(logs)
    with pytest.raises(DataError, match="2 values of X are NaN or infinite"):
        detect_value_scale(np.array([[np.nan, 1], [np.inf, 2]]))


def test_other_objects_are_refused():
    with pytest.raises(DataError, match="holds zeros only"):
        detect_value_scale(sparse.csr_matrix((np.zeros(2), ([0, 1], [0, 1])), shape=(2, 2)))
    with pytest.raises(DataError, match="object values; numbers are expected"):
        detect_value_scale(np.array([["a", "b"]], dtype=object))
    twice = sparse.csr_matrix(
        (np.array([0.5, 0.5, 2.0]), np.array([1, 1, 0]), np.array([0, 3])), shape=(1, 2)
    )
    assert detect_value_scale(twice).kind == "counts", "entries of one place are one value"


# --- preprocessing
# ---------------------------------------------------------------------------------


def test_values_are_normalized_to_ten_thousand_and_logged():
    counts = sparse.csr_matrix(np.array([[1, 0, 3], [0, 0, 0], [7, 2, 0]]))
    counts.data[1] = 0  # a stored zero is not a count
    totals = np.array([8.0, 0, 9])  # the total includes counts that are not in this matrix
    found = log1p_cp10k(counts, totals)
    expected = np.log1p(np.array([[1e4 / 8, 0, 0], [0, 0, 0], [7e4 / 9, 2e4 / 9, 0]])).astype(
        np.float32
    )
    assert (
        found.dtype == np.float32
        and found.nnz == 3
        and counts.dtype.kind == "i"
        and counts.data.tolist() == [1, 0, 7, 2]
    )
    np.testing.assert_array_equal(found.toarray(), expected)
    assert SCALE == 1e4 and preprocess.MIN_TOTAL == 200


def test_rows_of_the_data_are_assigned_to_genes_of_the_model():
    names = [GENES[2], "unknown", GENES[0], GENES[2], "ENSG00000000003.9"]
    cells = cells_of([[1, 50, 2, 4, 8], [0, 9, 0, 0, 3], [0, 5, 0, 0, 0]], names)
    assert cells.genes.tolist() == [0, 2] and cells.columns.tolist() == [2, 0] and len(cells) == 3
    assert cells.gather.toarray().tolist() == [[0, 1], [0, 0], [1, 0], [0, 1], [0, 1]]
    x, totals = cells.to_model(cells.linear(slice(0, 3)))
    assert totals.tolist() == [15, 3, 0] and x.dtype == np.float32
    np.testing.assert_allclose(
        x.toarray(), np.log1p(1e4 * np.array([[2 / 15, 13 / 15], [0, 1], [0, 0]])), rtol=1e-6
    )
    x, totals = cells.to_model(cells.linear(np.array([1])))
    assert totals.tolist() == [3] and [(s.start, s.stop) for s in cells.blocks(2)] == [
        (0, 2),
        (2, 3),
    ]
    counts, depths = cells.counts(slice(0, 2))
    assert counts.toarray().tolist() == [[1, 50, 2, 4, 8], [0, 9, 0, 0, 3]] and depths.tolist() == [
        65,
        12,
    ]


def test_logs_are_inverted_with_the_smallest_value_as_one_count():
    relative = np.array([[1, 3, 7, 0], [1, 4, 24, 20], [0, 0, 0, 0]]) / np.array([[11], [49], [1]])
    cells = cells_of(np.log1p(1e4 * relative))
    assert cells.values.kind == "log1p"
    np.testing.assert_allclose(cells.linear(slice(0, 3)).toarray(), 1e4 * relative, rtol=1e-12)
    counts, depths = cells.counts(slice(0, 3))
    np.testing.assert_allclose(
        counts.toarray(), [[1, 3, 7, 0], [1, 4, 24, 20], [0, 0, 0, 0]], rtol=1e-12
    )
    np.testing.assert_allclose(depths, [11, 49, 0], rtol=1e-12)


def test_logs_of_counts_give_those_counts_even_if_none_is_one():
    cells = cells_of(np.log1p([[2, 4, 0, 6], [1, 0, 0, 3]]))
    assert cells.values.kind == "log1p_counts"
    counts, depths = cells.counts(slice(0, 2))
    np.testing.assert_allclose(counts.toarray(), [[2, 4, 0, 6], [1, 0, 0, 3]], rtol=1e-12)
    np.testing.assert_allclose(depths, [12, 4], rtol=1e-12)


def test_logs_of_counts_of_one_gene_can_be_summed():
    cells = cells_of(np.log1p([[1, 2, 3, 4]]), [GENES[0], GENES[0], GENES[1], GENES[3]])
    assert cells.to_model(cells.linear(slice(0, 1)))[1].tolist() == pytest.approx([10])
    scaled = cells_of(np.log1p(1e4 * np.array([[1, 2, 4]]) / 7), [GENES[0], GENES[0], GENES[1]])
    assert scaled.to_model(scaled.linear(slice(0, 1)))[1].tolist() == pytest.approx([1e4])


def test_the_named_matrix_is_read():
    data = ad.AnnData(
        np.array([[1.0, 2, 3, 4]]),
        var=pd.DataFrame({"other": list(GENES[::-1])}, index=list(GENES)),
    )
    data.layers["raw"] = np.array([[5.0, 6, 7, 8]])
    assert read_cells(data, VOCABULARY).linear(slice(0, 1)).toarray().tolist() == [[1, 2, 3, 4]]
    read = read_cells(data, VOCABULARY, layer="raw", gene_column="other")
    assert read.linear(slice(0, 1)).toarray().tolist() == [
        [5, 6, 7, 8]
    ] and read.columns.tolist() == [3, 2, 1, 0]
    with pytest.raises(DataError, match=r"no layer 'x'. Its layers: 'raw'; it also has X\."):
        read_cells(data, VOCABULARY, layer="x")
    data.X = None
    with pytest.raises(DataError, match=r"X is empty. Its layers: 'raw'\."):
        read_cells(data, VOCABULARY)
    assert len(read_cells(data, VOCABULARY, layer="raw")) == 1


def test_force_and_coverage_reach_the_genes():
    names = [GENES[0], "7a", "7b"]
    with pytest.raises(GeneError, match="Only 33%"):
        cells_of([[1, 2, 3]], names)
    assert cells_of([[1, 2, 3]], names, force=True).genes.tolist() == [0]
    with pytest.raises(GeneError, match="below 30%"):
        cells_of([[1.0]], GENES[:1], min_coverage=0.3)
    assert cells_of([[1.0]], GENES[:1], min_coverage=0.25).genes.tolist() == [0]


# --- masked values
# --------------------------------------------------------------------------------------------


def test_groups_are_numbered_along_each_row():
    hidden = np.array([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0]], bool)
    assert interleaved_groups(hidden, 2).tolist() == [
        [0, 1, -1, 0, 1, 0],
        [-1] * 6,
        [-1, 0, -1, -1, 1, -1],
    ]
    assert interleaved_groups(hidden, 4)[0].tolist() == [0, 1, -1, 2, 3, 0]


def test_masked_values_are_every_kth_from_a_random_start_in_each_row():
    rng = np.random.default_rng(3)
    dense = rng.integers(1, 90, (600, 40)) * (rng.random((600, 40)) < 0.7)
    counts = sparse.csr_matrix(dense)
    visible, hidden = interleaved_values(counts, 5, seed=11)
    starts = []
    for row in range(600):
        there = np.flatnonzero(dense[row])
        ranks = np.searchsorted(there, hidden[row].indices)
        assert (np.diff(ranks) == 5).all() and ranks[0] < 5 and ranks[-1] >= len(there) - 5
        assert hidden[row].data.tolist() == dense[row, hidden[row].indices].tolist()
        starts.append(ranks[0])
    share = np.bincount(starts, minlength=5) / 600
    assert (np.abs(share - 0.2) < 0.07).all(), "every start is as likely"
    drawn = np.random.default_rng(11).integers(0, 5, 600)
    np.testing.assert_array_equal(starts, -drawn % 5)
    # The masked values of a cell do not depend on the other cells.
    dense[0, :] = 1
    rest = interleaved_values(sparse.csr_matrix(dense), 5, seed=11)[1][1:]
    assert (rest != hidden[1:]).nnz == 0
    dense[0] = (visible + hidden)[0].toarray()
    assert ((visible + hidden).toarray() == dense).all() and visible.multiply(hidden).nnz == 0
    again, other = (
        interleaved_values(counts, 5, seed=11)[1],
        interleaved_values(counts, 5, seed=12)[1],
    )
    assert (again != hidden).nnz == 0 and (other != hidden).nnz > 0
    assert (interleaved_values(counts, 5)[1] != interleaved_values(counts, 5, seed=0)[1]).nnz == 0


def test_stored_zeros_and_order_do_not_change_the_masked_values():
    plain = sparse.csr_matrix(np.array([[4, 0, 5, 6], [0, 7, 0, 0]]))
    messy = sparse.csr_matrix(
        (np.array([6, 0, 5, 4, 7]), np.array([3, 1, 2, 0, 1]), np.array([0, 4, 5])), shape=(2, 4)
    )
    for found, expected in zip(
        interleaved_values(messy, 2, seed=1), interleaved_values(plain, 2, seed=1)
    ):
        assert found.toarray().tolist() == expected.toarray().tolist()
    assert messy.nnz == 5, "the counts themselves stay as they are"
