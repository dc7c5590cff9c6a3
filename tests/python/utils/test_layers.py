"""Names of layers, whatever the version of anndata."""

import anndata as ad
import numpy as np

from scmamba.utils.layers import layer_names


def test_x_is_no_layer():
    adata = ad.AnnData(np.ones((2, 2)), layers={"counts": np.ones((2, 2))})
    assert layer_names(adata.layers) == ["counts"]
    assert layer_names({None: 1, "a": 2, "b": 3}) == ["a", "b"]
