"""What the comparison of embeddings counts, on points and cells small enough to work out by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from benchmarks import embeddings


def test_ranks_follow_counts_over_medians():
    # ENSG00000131095 GFAP, ENSG00000132639 SNAP25, ENSG00000171885 AQP4
    counts = np.array([[4, 6, 0, 90], [1, 0, 3, 96]], dtype=np.float32)
    adata = ad.AnnData(counts)
    adata.var_names = ["GFAP", "SNAP25", "AQP4", "not-a-gene"]
    tokens = {"ENSG00000131095": 11, "ENSG00000132639": 12, "ENSG00000171885": 13}
    medians = {"ENSG00000131095": 1.0, "ENSG00000132639": 2.0, "ENSG00000171885": 5.0}
    first, second = embeddings.rank_values(adata, tokens, medians)
    # 4 / 1 before 6 / 2; 1 / 1 before 3 / 5
    assert first.tolist() == [11, 12] and second.tolist() == [11, 13]
    del medians["ENSG00000131095"]
    assert embeddings.rank_values(adata, tokens, medians)[0].tolist() == [12]


def test_neighbor_accuracy_uses_other_donors_only():
    angle = np.array([0.0, 0.01, 1.5, 1.51, 0.02, 1.52])
    points = np.column_stack([np.cos(angle), np.sin(angle)])
    types = np.array(["A", "A", "B", "B", "A", "B"])
    donors = np.array(["1", "1", "1", "1", "2", "2"])
    # Among the four cells of donor 1 and the two of donor 2 the types tie, and the first name wins.
    assert embeddings.neighbor_accuracy(points, types, donors) == pytest.approx(3 / 6)
    many = np.repeat(points, 40, axis=0), np.repeat(types, 40), np.repeat(donors, 40)
    assert embeddings.neighbor_accuracy(*many) == 1.0
    # A type that only one donor has is never right.
    alone = np.where(donors == "1", "C", types)
    assert embeddings.neighbor_accuracy(many[0], np.repeat(alone, 40), many[2]) == 0.0


def test_kept_runs_have_distinct_files():
    paths = {
        embeddings.kept_path(name, method, seed)
        for name in ("kang", "heldout")
        for method in embeddings.METHODS
        for seed in range(2)
    }
    assert len(paths) == 4 * len(embeddings.METHODS)
