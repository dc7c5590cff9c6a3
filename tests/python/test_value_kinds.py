"""Fifteen kinds of values, given to every public verb: one judgement, whoever is called."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import small_model
from scipy import sparse

import scmamba
from scmamba import deg
from scmamba.data import Collection
from scmamba.data.selection import select_matrix
from scmamba.data.values import classify_values
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import ScMambaError

COHORT = brain_cohort(120, n_genes=2000, n_donors=4, seed=3)
COUNTS = sparse.csr_matrix(COHORT.X, dtype=np.float64)
TOTALS = np.asarray(COUNTS.sum(axis=1)).ravel()


def of(change: Callable[[sparse.csr_matrix], np.ndarray]) -> Callable[[], sparse.csr_matrix]:
    """Counts with changed values."""

    def make() -> sparse.csr_matrix:
        out = COUNTS.copy()
        out.data = np.asarray(change(out), dtype=np.float64)
        out.eliminate_zeros()
        return out

    return make


def per_cell(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, np.diff(COUNTS.indptr))


def cp10k(counts: sparse.csr_matrix) -> np.ndarray:
    return counts.data / per_cell(TOTALS) * 1e4


def small_corrected(counts: sparse.csr_matrix) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(counts.data <= 15, counts.data * rng.uniform(0.7, 1, counts.nnz), 0)


def scaled() -> np.ndarray:
    logs = np.log1p(of(cp10k)().toarray())
    return np.minimum((logs - logs.mean(axis=0)) / (logs.std(axis=0) + 1e-9), 10)


def shifted() -> sparse.csr_matrix:
    out = COUNTS.copy()
    out.data[::50] = -1
    return out


def with_nan() -> sparse.csr_matrix:
    out = COUNTS.copy()
    out.data[5] = np.nan
    return out


#: Kind of values -> the matrix; the judgement, its base and words of its sentence.
KINDS: dict[str, tuple[Callable[[], object], str, float, str]] = {
    "raw counts": (COUNTS.copy, "counts", np.e, "raw counts (integers"),
    "raw counts, integer type": (
        lambda: COUNTS.astype(np.int32),
        "counts",
        np.e,
        "raw counts (integers",
    ),
    "corrected counts": (of(lambda x: x.data * 0.93), "counts", np.e, "non-integer counts"),
    "small corrected counts": (of(small_corrected), "counts", np.e, "non-integer counts"),
    "normalized, no logarithm": (of(cp10k), "counts", np.e, "without logarithm"),
    "log1p(CP10k)": (
        of(lambda x: np.log1p(cp10k(x))),
        "log1p",
        np.e,
        "log-normalized values (expm1",
    ),
    "log2(CP10k + 1)": (of(lambda x: np.log2(cp10k(x) + 1)), "log1p", 2.0, "base 2"),
    "log10(CP10k + 1)": (of(lambda x: np.log10(cp10k(x) + 1)), "log1p", 10.0, "base 10"),
    "log1p(counts)": (
        of(lambda x: np.log1p(x.data)),
        "log1p_counts",
        np.e,
        "without normalization",
    ),
    "log2(counts + 1)": (of(lambda x: np.log2(x.data + 1)), "log1p_counts", 2.0, "base 2"),
    "scaled": (scaled, "scaled", np.e, "scaled or centered values"),
    "negative": (shifted, "negative", np.e, "negative values"),
    "NaN": (with_nan, "not_finite", np.e, "NaN or infinite"),
    "fractions below one": (
        of(lambda x: np.random.default_rng(1).random(x.nnz)),
        "neither",
        np.e,
        "between 0 and",
    ),
    "zeros": (lambda: COUNTS * 0, "empty", np.e, "zeros only"),
}
#: What the verbs cannot use.
REFUSED = ("scaled", "negative", "not_finite", "neither", "empty")


def cells_of(kind: str) -> ad.AnnData:
    out = COHORT.copy()
    out.X = KINDS[kind][0]()
    out.uns, out.layers = {}, {}
    return out


def expected(kind: str) -> str:
    """The sentence of the judge."""
    return select_matrix(cells_of(kind)).classify().sentence


@pytest.mark.parametrize("kind", KINDS)
def test_the_judge(kind):
    make, judgement, base, words = KINDS[kind]
    found = classify_values(make())
    assert (found.kind, found.base) == (judgement, base) and words in found.sentence
    assert found.usable is (judgement not in REFUSED)
    assert classify_values(make(), block=7).kind == judgement


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][1] not in REFUSED])
def test_counts_come_back(kind):
    """Relative counts from every kind that can be used are those of the counts it was made of."""
    make, _, _, _ = KINDS[kind]
    matrix = sparse.csr_matrix(make())
    linear = matrix.copy()
    linear.data = classify_values(matrix).linear(matrix.data)
    total = np.asarray(linear.sum(axis=1)).ravel()
    got = linear.toarray() / total[:, None]
    truth = COUNTS.toarray() / TOTALS[:, None]
    if "small" not in kind:
        np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-12)


def markers(adata: ad.AnnData) -> str:
    return str(deg.find_markers(adata, "disease", "AD").attrs["values"])


def pseudobulk(adata: ad.AnnData) -> str:
    return str(deg.pseudobulk(adata, "disease", "donor", "AD", min_cells=1).attrs["values"])


def hurdle(adata: ad.AnnData) -> str:
    from scmamba.deg.values import layer_source

    deg.zlm(adata[:, :20].copy(), "~ disease")
    return layer_source(adata).values


def robustness(adata: ad.AnnData) -> str:
    from scmamba.deg.values import layer_source

    deg.robustness(
        adata,
        "disease",
        "donor",
        layers=["X"],
        donors=None,
        ratios=[0.5],
        permutations=1,
        null_permutations=0,
        verbose=False,
    )
    return layer_source(adata).values


def impute(adata: ad.AnnData) -> str:
    done = scmamba.impute(
        adata,
        model=small_model(n_genes=3000),
        method="masked",
        passes=1,
        adapt_steps=0,
        force=True,
        verbose=False,
    )
    return str(done.uns["scmamba"]["impute"]["summary"]["values"])


def embed(adata: ad.AnnData) -> str:
    done = scmamba.embed(adata, model=small_model(n_genes=3000), force=True, verbose=False)
    record = done.uns["scmamba"]["embed"]
    return str(record.get("summary", record)["values"])


def collection(adata: ad.AnnData) -> str:
    return Collection([adata], force=True, verbose=False).members[0].values.sentence


VERBS = [markers, pseudobulk, hurdle, robustness, impute, embed, collection]
#: Verbs that run with ``force=True`` here, which takes fractions below one as corrected counts.
FORCED = [impute, embed, collection]


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        pytest.param(verb, kind, id=f"{verb.__name__}-{kind}")
        for verb in VERBS
        for kind in KINDS
        if not (kind == "fractions below one" and verb in FORCED)
    ],
)
def test_every_verb_judges_alike(verb, kind):
    adata, sentence = cells_of(kind), expected(kind)
    refused = KINDS[kind][1] in REFUSED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if refused:
            with pytest.raises(ScMambaError, match=re.escape(KINDS[kind][3])):
                verb(adata)
        else:
            assert sentence in verb(adata)


def test_the_recorded_base_decides_where_the_values_do_not():
    """Two genes of log2 values whose totals differ: only the record says what they are."""
    rng = np.random.default_rng(0)
    values = rng.gamma(3, 0.4, (60, 10)) * (rng.random((60, 10)) < 0.5)
    adata = ad.AnnData(sparse.csr_matrix(values), uns={"log1p": {"base": 2}})
    found = select_matrix(adata).classify()
    assert (found.kind, found.base) == ("log1p", 2.0)
    np.testing.assert_allclose(found.natural_logs(np.array([1.0])), np.log(2))
    # The record is of X: a layer of corrected counts beside it is judged by its values.
    adata.layers["corrected"] = of(small_corrected)()[:60, :10]
    assert select_matrix(adata, "corrected").classify().kind == "counts"


def test_a_matrix_that_is_named_is_read_or_refused():
    adata = cells_of("scaled")
    adata.raw = ad.AnnData(COUNTS, obs=adata.obs, var=adata.var)
    assert select_matrix(adata, "raw").classify().integer
    assert select_matrix(adata, "X").classify().kind == "scaled"
    table = deg.find_markers(adata, "disease", "AD", layer="raw")
    pd.testing.assert_frame_equal(table, deg.find_markers(cells_of("raw counts"), "disease", "AD"))
    for layer in ("counts", "data"):
        with pytest.raises(
            ScMambaError, match=f"no layer '{layer}'. Its layers: none; it also has X and raw"
        ):
            deg.find_markers(adata, "disease", "AD", layer=layer)
    with pytest.raises(ScMambaError, match="scaled or centered"):
        deg.find_markers(adata, "disease", "AD")


def test_objects_that_hold_several_matrices_or_lazy_ones():
    class MuData:  # the class of mudata, which is not installed here, has the modalities in `mod`
        mod = {"rna": COHORT, "prot": COHORT}

    with pytest.raises(
        ScMambaError, match=r"MuData object with the modalities rna, prot.*mdata\['rna'\]"
    ):
        select_matrix(MuData())
    array = pytest.importorskip("dask.array")
    lazy = array.from_array(COUNTS.toarray(), chunks=(50, 500)).map_blocks(sparse.csr_matrix)
    adata = cells_of("raw counts")
    adata.X = lazy
    assert select_matrix(adata).classify().integer
    pd.testing.assert_frame_equal(
        deg.find_markers(adata, "disease", "AD"),
        deg.find_markers(cells_of("raw counts"), "disease", "AD"),
    )
