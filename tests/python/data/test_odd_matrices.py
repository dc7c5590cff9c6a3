"""One table of counts in every form that numpy, SciPy and dask have: every reader gets the same numbers or refuses it."""

from __future__ import annotations

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmamba import deg
from scmamba.data import Collection, read_cells
from scmamba.data.selection import select_matrix
from scmamba.data.storage import MemoryStore, open_store
from scmamba.deg.values import as_csr
from scmamba.doublets._find import _counts
from scmamba.genes import Vocabulary
from scmamba.utils.errors import ScMambaError

GENES = ["ENSG00000095970", "ENSG00000171885", "ENSG00000131095", "ENSG00000132639"]
GENES += ["ENSG00000130203", "ENSG00000197971", "ENSG00000149295", "ENSG00000170558"]
VOCABULARY = Vocabulary.from_ids(GENES)
RNG = np.random.default_rng(0)
#: Some values above 100, so that sums exceed eight bits; an empty cell and an empty gene.
COUNTS = RNG.poisson(2, (40, 8)) + 100 * (RNG.random((40, 8)) < 0.1)
COUNTS[3], COUNTS[:, 5] = 0, 0


def unsorted() -> sparse.csr_matrix:
    made = sparse.csr_matrix(COUNTS.astype(np.float32))
    for i in range(40):
        part = slice(made.indptr[i], made.indptr[i + 1])
        made.indices[part], made.data[part] = (
            made.indices[part][::-1].copy(),
            made.data[part][::-1].copy(),
        )
    made.has_sorted_indices = False
    return made


def halves() -> sparse.csr_matrix:
    """Every value stored twice, as two halves."""
    whole = sparse.csr_matrix(COUNTS.astype(np.float32))
    made = sparse.csr_matrix(
        (np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), whole.indptr * 2), shape=(40, 8)
    )
    made.has_canonical_format = False
    return made


def stored_zeros() -> sparse.csr_matrix:
    rows, columns = np.divmod(np.arange(320), 8)
    made = sparse.csr_matrix((40, 8), dtype=np.float32)
    made.data, made.indices = COUNTS.ravel().astype(np.float32), columns.astype(np.int32)
    made.indptr = (8 * np.arange(41)).astype(np.int32)
    assert len(rows) == made.nnz
    return made


def long_indices() -> sparse.csr_matrix:
    made = sparse.csr_matrix(COUNTS.astype(np.float32))
    made.indices, made.indptr = made.indices.astype(np.int64), made.indptr.astype(np.int64)
    return made


def lazy():
    array = pytest.importorskip("dask.array")
    return array.from_array(COUNTS.astype(np.float32), chunks=(7, 3)).map_blocks(sparse.csr_matrix)


FORMS = {
    "int8": lambda: sparse.csr_matrix(COUNTS.astype(np.int8)),
    "uint8": lambda: sparse.csr_matrix(COUNTS.astype(np.uint8)),
    "int8, by genes": lambda: sparse.csc_matrix(COUNTS.astype(np.int8)),
    "uint16 dense": lambda: COUNTS.astype(np.uint16),
    "int64": lambda: sparse.csr_matrix(COUNTS.astype(np.int64)),
    "half precision": lambda: COUNTS.astype(np.float16),
    "extended precision": lambda: COUNTS.astype(np.longdouble),
    "big endian": lambda: COUNTS.astype(">f4"),
    "Fortran order": lambda: np.asfortranarray(COUNTS.astype(np.float32)),
    "strided": lambda: np.repeat(COUNTS.astype(np.float32), 2, axis=1)[:, ::2],
    "masked, nothing hidden": lambda: np.ma.masked_array(COUNTS.astype(np.float32)),
    "sparse array": lambda: sparse.csr_array(COUNTS.astype(np.float32)),
    "sparse array by genes": lambda: sparse.csc_array(COUNTS.astype(np.float32)),
    "unsorted": unsorted,
    "values stored twice": halves,
    "stored zeros": stored_zeros,
    "64-bit indices": long_indices,
    "dask with sparse chunks": lazy,
}


def cells(matrix) -> ad.AnnData:
    obs = pd.DataFrame(
        {"group": list("ab") * 20, "donor": [f"d{i % 8}" for i in range(40)]},
        index=[f"c{i}" for i in range(40)],
    )
    made = ad.AnnData(obs=obs, var=pd.DataFrame(index=list(GENES)))
    made.X = matrix
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore")
def test_every_form_is_read_as_the_same_counts(form):
    data = cells(FORMS[form]())
    assert select_matrix(data).classify().integer
    np.testing.assert_array_equal(as_csr(data.X)[:].toarray(), COUNTS)
    np.testing.assert_array_equal(_counts(data, None)[0][:].toarray(), COUNTS)
    np.testing.assert_array_equal(MemoryStore(data, None, "x").read(2, 30).toarray(), COUNTS[2:30])
    reader = read_cells(data, VOCABULARY)
    np.testing.assert_array_equal(reader.linear(slice(0, 40)).toarray(), COUNTS)
    found = Collection([data], vocabulary=VOCABULARY, verbose=False)
    np.testing.assert_array_equal(found.totals, COUNTS.sum(axis=1))
    np.testing.assert_array_equal(found.lengths, (COUNTS > 0).sum(axis=1))
    np.testing.assert_array_equal(found.gene_sums()[0], COUNTS.sum(axis=0))


TESTS = {
    "find_markers": lambda x: deg.find_markers(x, "group", "a", min_pct=0, logfc_threshold=0),
    "pseudobulk": lambda x: deg.pseudobulk(x, "group", "donor", "a", min_cells=1),
}


@pytest.mark.parametrize(
    "form", ["int8", "half precision", "big endian", "values stored twice", "unsorted"]
)
@pytest.mark.filterwarnings("ignore")
def test_gene_statistics_are_those_of_the_counts(form):
    for name, test in TESTS.items():
        expected = test(cells(sparse.csr_matrix(COUNTS.astype(np.float64))))
        pd.testing.assert_frame_equal(test(cells(FORMS[form]())), expected, obj=name)


@pytest.mark.parametrize("kind", ["f2", "f4", ">f4", "i1", "u8"])
def test_files_with_every_number_type(tmp_path, kind):
    """Dense and by rows, as h5py stores them; h5ad files with half precision come from other languages."""
    data = cells(COUNTS.astype(np.float32))
    data.write_h5ad(tmp_path / "dense.h5ad")
    data.X = sparse.csr_matrix(data.X)
    data.write_h5ad(tmp_path / "rows.h5ad")
    for name, key in (("dense", "X"), ("rows", "X/data")):
        path = tmp_path / f"{name}.h5ad"
        with h5py.File(path, "r+") as file:
            values, attributes = file[key][:], dict(file[key].attrs)
            del file[key]
            file.create_dataset(key, data=values.astype(kind)).attrs.update(attributes)
        np.testing.assert_array_equal(open_store(path).read(1, 9).toarray(), COUNTS[1:9])
        found = Collection([path], vocabulary=VOCABULARY, cache=tmp_path, verbose=False)
        np.testing.assert_array_equal(found.totals, COUNTS.sum(axis=1))


def hidden():
    made = np.ma.masked_array(COUNTS.astype(np.float32))
    made[0, 0] = np.ma.masked
    return made


REFUSED = {
    "hidden values": (hidden, "NaN"),
    "text": (lambda: COUNTS.astype(str).astype(object), "object values; numbers are expected"),
    "complex": (lambda: COUNTS.astype(complex), "complex128 values; numbers are expected"),
}


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_values_that_are_not_numbers_are_refused_with_a_sentence(form):
    make, words = REFUSED[form]
    data = cells(COUNTS.astype(np.float32))
    try:
        data.layers["odd"] = make()
    except Exception:
        pytest.skip("AnnData itself refuses it")
    verbs = [
        lambda x: deg.find_markers(x, "group", "a", layer="odd"),
        lambda x: deg.pseudobulk(x, "group", "donor", "a", layer="odd"),
        lambda x: _counts(x, "odd"),
        lambda x: read_cells(x, VOCABULARY, layer="odd"),
        lambda x: Collection([x], vocabulary=VOCABULARY, layer="odd", verbose=False),
    ]
    for verb in verbs:
        with warnings.catch_warnings(), pytest.raises(ScMambaError, match=words):
            verb(data)


class Lazy:
    """Like the result of ``anndata.experimental.read_lazy``, which needs xarray: obs is not a DataFrame."""

    obs, var, layers = object(), object(), {}
    n_obs, n_vars = 5, 5


@pytest.mark.parametrize(
    "verb",
    [
        lambda x: deg.find_markers(x, "group", "a"),
        lambda x: _counts(x, None),
        lambda x: read_cells(x, VOCABULARY),
        lambda x: Collection([x], vocabulary=VOCABULARY, verbose=False),
    ],
)
def test_lazy_objects_are_named_in_the_error(verb):
    made = Lazy()
    made.uns = {}
    with pytest.raises(ScMambaError, match="read lazily .*read_lazy.*to_memory"):
        verb(made)
