"""Matrices that arrive in blocks of cells, as R sends them."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmamba.data.h5ad_files import open_backed
from scmamba.data.h5ad_writer import H5adWriter
from scmamba.utils.errors import DataError

CELLS, GENES = [f"c{i}" for i in range(11)], [f"g{i}" for i in range(7)]


def counts() -> sparse.csr_matrix:
    """Cells x genes with an empty cell, an empty gene and a large count."""
    dense = np.random.default_rng(0).poisson(0.4, (len(CELLS), len(GENES))).astype(float)
    dense[3], dense[:, 2], dense[5, 1] = 0, 0, 2**31 + 1
    return sparse.csr_matrix(dense)


def written(path, sizes, obs=None):
    """The file written in blocks of these numbers of cells."""
    whole, start = counts(), 0
    writer = H5adWriter(path, GENES, CELLS)
    for size in sizes:
        block = whole[start : start + size]
        writer.append(block.data, block.indices, block.indptr)
        start += size
    writer.finish(obs)


@pytest.mark.parametrize("sizes", [[11], [1] * 11, [4, 4, 3], [0, 10, 0, 1]])
def test_blocks_of_any_size_give_the_same_file(tmp_path, sizes):
    obs = pd.DataFrame({"donor": pd.Categorical(list("aabbccddeef")), "age": np.arange(11.0)})
    written(tmp_path / "cells.h5ad", sizes, obs)
    found = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (counts() != found.X).nnz == 0
    assert list(found.obs_names) == CELLS and list(found.var_names) == GENES
    assert list(found.obs["donor"].astype(str)) == list("aabbccddeef")
    assert found.obs["age"].tolist() == list(range(11))
    backed = open_backed(tmp_path / "cells.h5ad")
    assert (backed.X[4:9] != counts()[4:9]).nnz == 0


def test_missing_cells_are_refused(tmp_path):
    with pytest.raises(DataError, match="8 of 11 cells"):
        written(tmp_path / "cells.h5ad", [4, 4])
