"""The Wald test against pydeseq2, the implementation of DESeq2 in Python (``pip install "scmamba[deg]"``)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scmamba.deg.likelihood_ratio import fit_dispersions, wald_test

dds = pytest.importorskip("pydeseq2.dds", reason="pydeseq2 is not installed")
ds = pytest.importorskip("pydeseq2.ds", reason="pydeseq2 is not installed")


def test_fold_changes_and_p_of_the_wald_test_are_those_of_pydeseq2():
    rng = np.random.default_rng(4)
    group = np.arange(12) % 2
    batch = np.array([0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1])
    mean = np.exp(rng.normal(4, 1, 300))[None, :] * np.exp(
        np.where(np.arange(300) < 60, 0.8, 0.0) * group[:, None]
        + rng.normal(0, 0.3, 300) * batch[:, None]
    )
    mean *= np.exp(rng.normal(0, 0.4, 12))[:, None]
    shape = 1 / (0.1 * np.exp(rng.normal(0, 0.4, 300)))
    counts = rng.poisson(mean * rng.gamma(shape, 1 / shape, mean.shape))
    names = [f"s{i}" for i in range(12)]
    frame = pd.DataFrame(
        {"batch": [f"b{b}" for b in batch], "group": [f"g{g}" for g in group]}, index=names
    )
    fitted = dds.DeseqDataSet(
        counts=pd.DataFrame(counts, index=names, columns=[f"gene{i}" for i in range(300)]),
        metadata=frame,
        design="~batch + group",
        quiet=True,
    )
    fitted.deseq2()
    theirs = ds.DeseqStats(fitted, contrast=["group", "g1", "g0"], cooks_filter=False, quiet=True)
    theirs.summary()
    table = theirs.results_df
    factors = fitted.obs["size_factors"].to_numpy(dtype=float)
    design = np.column_stack([np.ones(12), batch, group]).astype(float)
    found = wald_test(fit_dispersions(counts.T.astype(float), design, np.log(factors), 2))
    change = table["log2FoldChange"].to_numpy()
    assert np.median(np.abs(found.change / np.log(2) - change)) < 0.01
    assert np.corrcoef(found.change, change)[0, 1] > 0.999
    assert 0.9 < np.median(found.se / np.log(2) / table["lfcSE"]) < 1.1
    assert stats.spearmanr(found.p, table["pvalue"])[0] > 0.97
