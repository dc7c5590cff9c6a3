"""The model's input for a cell, against scanpy and closed forms."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from scmamba.data import detect_value_scale, interleaved_groups, interleaved_values, read_cells
from scmamba.genes import Vocabulary
from scmamba.utils.errors import DataError

PUBLISHED = Vocabulary.published()


def model_input(data, **options):
    cells = read_cells(data, PUBLISHED, **options)
    x, totals = cells.to_model(cells.linear(slice(0, len(cells))))
    return cells, x.toarray(), totals


def test_the_input_is_the_published_one(reference):
    expected = np.load(reference.official / "expected.npz")
    data = ad.AnnData(sparse.csr_matrix(expected["counts"]))
    data.var_names = list(PUBLISHED)
    cells, x, totals = model_input(data)
    assert cells.genes.tolist() == list(range(19306))
    assert totals.tolist() == expected["counts"].sum(axis=1).tolist()
    np.testing.assert_allclose(x, expected["log1p_cp10k"], rtol=0, atol=1e-6)


def test_counts_match_scanpy_over_the_genes_of_the_model(cohort):
    known = cohort[:, np.isin(cohort.var["ensembl_id"], list(PUBLISHED))].copy()
    cells, x, _ = model_input(cohort)
    sc.pp.normalize_total(known, target_sum=1e4)
    sc.pp.log1p(known)
    order = [known.var["ensembl_id"].tolist().index(PUBLISHED[g]) for g in cells.genes]
    np.testing.assert_allclose(x, known.X.toarray()[:, order], rtol=1e-5)


def test_log_values_give_the_same_input_as_their_counts(cohort):
    logs = cohort.copy()
    logs.X = logs.X.astype(np.float32)
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    cells, x, _ = model_input(logs)
    assert cells.values.kind == "log1p" and "10,000" in cells.values.sentence
    np.testing.assert_allclose(x, model_input(cohort)[1], atol=2e-5)


def test_log1p_of_counts_is_inverted(cohort):
    logged = cohort.copy()
    logged.X = logged.X.astype(np.float64).log1p()
    cells, x, _ = model_input(logged)
    assert cells.values.kind == "log1p_counts"
    np.testing.assert_allclose(x, model_input(cohort)[1], atol=1e-5)


def test_order_of_genes_does_not_matter(cohort):
    shuffled = cohort[:, np.random.default_rng(0).permutation(cohort.n_vars)].copy()
    np.testing.assert_array_equal(model_input(shuffled)[1], model_input(cohort)[1])


def test_rows_of_one_gene_are_summed(cohort):
    twice = ad.concat([cohort, cohort], axis="var", merge="first")
    twice.var_names = twice.var["ensembl_id"].astype(str)
    cells, x, totals = model_input(twice)
    assert cells.match.duplicates == len(cells.genes)
    np.testing.assert_allclose(x, model_input(cohort)[1], rtol=1e-6)
    assert totals.tolist() == (2 * model_input(cohort)[2]).tolist()


def _changed(cohort, change):
    data = cohort.copy()
    data.X = data.X.astype(np.float64)
    change(data)
    return data


def _set(value):
    def change(data):
        data.X.data[3] = value

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_set(np.nan), "1 values of X are NaN or infinite"),
        (_set(np.inf), "NaN or infinite"),
        (_set(-2.0), "negative values"),
        (lambda data: sc.pp.scale(data), "scaled or centered values"),
        (lambda data: setattr(data, "X", data.X * 0), "X holds zeros only"),
        (lambda data: setattr(data, "X", (data.X * 0.37).log1p()), "X looks like logarithms"),
        (
            lambda data: setattr(data, "obs_names", ["a"] * data.n_obs),
            "cell names are duplicated",
        ),
    ],
)
def test_bad_values_are_refused(cohort, change, sentence):
    with pytest.raises(DataError, match=sentence):
        read_cells(_changed(cohort, change), PUBLISHED)


def test_empty_objects_and_missing_layers_are_refused(cohort):
    for empty in (cohort[:0].copy(), cohort[:, :0].copy()):
        with pytest.raises(DataError, match="The object is empty"):
            read_cells(empty, PUBLISHED)
    with pytest.raises(DataError, match="no layer 'counts'"):
        read_cells(cohort, PUBLISHED, layer="counts")


def test_log_values_of_repeated_genes_are_summed_on_the_natural_scale(cohort):
    twice = ad.concat([cohort, cohort], axis="var", merge="first")
    twice.var_names = twice.var["ensembl_id"].astype(str)
    twice.X = twice.X.astype(np.float32)
    sc.pp.normalize_total(twice, target_sum=1e4)
    sc.pp.log1p(twice)
    np.testing.assert_allclose(model_input(twice)[1], model_input(cohort)[1], rtol=1e-5)


def test_corrected_counts_are_accepted_as_counts():
    values = detect_value_scale(np.array([[0.5, 30.2], [1.5, 0.0]]))
    assert values.kind == "counts" and "corrected" in values.sentence


def test_interleaved_groups_number_masked_positions_in_turn():
    hidden = np.array([[True, False, True, True, True], [False, False, False, True, False]])
    assert interleaved_groups(hidden, 3).tolist() == [[0, -1, 1, 2, 0], [-1, -1, -1, 0, -1]]


def test_one_value_in_k_is_masked_and_no_count_is_lost():
    counts = sparse.random(40, 300, density=0.2, format="csr", random_state=0)
    visible, hidden = interleaved_values(counts, 5, seed=3)
    assert abs(visible + hidden - counts).max() == 0
    assert visible.multiply(hidden).nnz == 0
    here, there = np.diff(hidden.indptr), np.diff(counts.indptr)
    assert ((here == there // 5) | (here == -(-there // 5))).all()
