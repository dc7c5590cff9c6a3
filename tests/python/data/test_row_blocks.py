"""Matrices in files are read in blocks of rows, and what is computed of them is what matrices in memory give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scmamba
from scmamba.data import row_store
from scmamba.data.file_rows import FileRows
from scmamba.data.h5ad_files import open_backed
from scmamba.data.row_store import RowStore, collect, with_values
from scmamba.data.selection import SelectedMatrix
from scmamba.datasets import brain_cohort
from scmamba.deg import find_all_markers, find_markers


@pytest.fixture(scope="module")
def matrix():
    values = sparse.random(5003, 40, 0.2, "csr", rng=np.random.default_rng(0))
    values.data = np.rint(values.data * 9) + 1
    return values


@pytest.fixture(scope="module")
def store(matrix):
    parts = (matrix[k : k + 1700] for k in range(0, 5003, 1700))
    return collect(parts, 40, on_disk=True)


def test_products_and_sums_are_those_of_the_matrix(matrix, store):
    rng = np.random.default_rng(1)
    right, left = rng.standard_normal((40, 3)), rng.standard_normal((5003, 2))
    assert isinstance(store, RowStore) and store.shape == matrix.shape and store.nnz == matrix.nnz
    np.testing.assert_allclose(store @ right, matrix @ right, rtol=1e-12)
    np.testing.assert_allclose(store.T @ left, matrix.T @ left, rtol=1e-9)
    np.testing.assert_allclose(store.sum(axis=0), np.asarray(matrix.sum(axis=0)).ravel())
    np.testing.assert_allclose(store.sum(axis=1), np.asarray(matrix.sum(axis=1)).ravel())


@pytest.mark.parametrize(
    "rows",
    [
        np.array([5002, 3, 3, 2500]),
        slice(10, 4000, 7),
        np.arange(5003) % 3 == 0,
        np.zeros(0, dtype=int),
    ],
    ids=["positions", "slice", "bool", "none"],
)
def test_any_rows_can_be_read(matrix, store, rows):
    assert (store[rows] != matrix[rows]).nnz == 0
    assert (store[rows, [4, 2]] != matrix[rows][:, [4, 2]]).nnz == 0
    selected = SelectedMatrix(matrix, pd.DataFrame(index=map(str, range(40))), "X")
    assert (FileRows(selected).take(rows, [4, 2]) != matrix[rows][:, [4, 2]]).nnz == 0


def test_values_are_changed_as_they_are_read(matrix, store):
    logs = with_values(with_values(store, np.log1p), np.sqrt)
    expected = with_values(with_values(matrix, np.log1p), np.sqrt)
    np.testing.assert_array_equal(logs[:, [1, 7]].toarray(), expected[:, [1, 7]].toarray())
    np.testing.assert_array_equal(store[:, [1, 7]].toarray(), matrix[:, [1, 7]].toarray())


@pytest.fixture(scope="module")
def cells():
    found = brain_cohort(600, n_donors=3, n_genes=1500, seed=4)
    found.obs["half"] = pd.Categorical(np.where(np.arange(600) % 2, "a", "b"))
    return found


@pytest.fixture
def backed(cells, tmp_path, monkeypatch):
    """The cells in a file, blocks of 64 rows, and the number of rows of each reading of the file."""
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read: list[int] = []
    rows = SelectedMatrix.rows

    def counted(self, index):
        found = rows(self, index)
        if not row_store.is_in_memory(self.matrix):
            read.append(found.shape[0])
        return found

    monkeypatch.setattr(SelectedMatrix, "rows", counted)
    for module in (
        "scmamba.data.file_rows",
        "scmamba.annotation.expression",
        "scmamba.annotation._label_free",
        "scmamba.doublets._find",
    ):
        monkeypatch.setattr(f"{module}.BLOCK", 64)
    monkeypatch.setattr("scmamba.deg.twogroup._ROWS", 64)
    yield open_backed(tmp_path / "cells.h5ad")
    assert read and max(read) <= 64 and sum(read) >= 600


def test_types_of_a_file_are_those_of_the_same_cells_in_memory(cells, backed):
    expected = scmamba.annotate(cells, return_result=True, verbose=False)
    found = scmamba.annotate(backed, return_result=True, verbose=False)
    np.testing.assert_array_equal(found.labels(), expected.labels())
    np.testing.assert_allclose(
        found.probabilities["subtype"], expected.probabilities["subtype"], atol=1e-8
    )
    assert found.provenance["ambient_share"] == expected.provenance["ambient_share"]


def test_doublets_of_a_file_are_those_of_the_same_cells_in_memory(cells, backed):
    expected = scmamba.find_doublets(cells, rounds=2, copy=True, verbose=False)
    scmamba.find_doublets(backed, rounds=2, verbose=False)
    pd.testing.assert_frame_equal(backed.obs, expected.obs)


@pytest.mark.parametrize(
    "options",
    [{}, {"covariates": "donor"}, {"test": "wilcox", "min_pct": 0.3}, {"scale": "counts"}],
    ids=["MAST", "covariate", "wilcox", "stated"],
)
def test_markers_of_a_file_are_those_of_the_same_cells_in_memory(cells, backed, options):
    expected = find_markers(cells, "half", "a", "b", logfc_threshold=0, **options)
    found = find_markers(backed, "half", "a", "b", logfc_threshold=0, **options)
    pd.testing.assert_frame_equal(found, expected)


def test_markers_of_all_groups_of_a_file_are_those_in_memory(cells, backed):
    pd.testing.assert_frame_equal(
        find_all_markers(backed, "cell_type"), find_all_markers(cells, "cell_type")
    )
