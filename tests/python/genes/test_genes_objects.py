"""Which names of an object are read, and mouse genes as their human orthologs."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scmamba.genes import Vocabulary, match_adata, mouse_to_human
from scmamba.utils.errors import GeneError

GFAP, SNAP25, AQP4 = "ENSG00000131095", "ENSG00000132639", "ENSG00000171885"


def human(count: int) -> list[str]:
    return list(Vocabulary.published())[:count]


def nonsense(count: int) -> list[str]:
    return [f"7x{i}q" for i in range(count)]


def table(index: list[str], **columns: list[str]) -> ad.AnnData:
    return ad.AnnData(np.ones((2, len(index)), np.float32), var=pd.DataFrame(columns, index=index))


@pytest.mark.parametrize(
    "column",
    [
        "ensembl_id",
        "gene_ids",
        "gene_id",
        "ensembl",
        "feature_id",
        "symbol",
        "gene_symbols",
        "gene_symbol",
        "gene_name",
        "gene_names",
        "feature_name",
    ],
)
def test_the_common_columns_are_searched(column):
    match = match_adata(table(nonsense(3), other=human(3), **{column: human(3)}))
    assert match.source == f"var['{column}']" and match.positions.tolist() == [0, 1, 2]


def test_of_equal_columns_the_first_is_used_and_the_index_before_all():
    ids, symbols = human(6), list(Vocabulary.published().symbols[6:12])
    assert match_adata(table(ids, symbol=symbols, gene_ids=symbols)).source == "var_names"
    assert match_adata(table(nonsense(6), symbol=symbols, gene_ids=ids)).source == "var['gene_ids']"
    assert (
        match_adata(table(nonsense(6), feature_name=ids, gene_name=symbols)).source
        == "var['gene_name']"
    )
    assert (
        match_adata(table(nonsense(6), gene_symbols=ids, symbol=symbols)).source == "var['symbol']"
    )
    best = match_adata(
        table([*ids[:5], "7x"], symbol=[*symbols[:4], "8x", "9x"], gene_name=symbols)
    )
    assert best.source == "var['gene_name']" and best.positions.tolist() == [6, 7, 8, 9, 10, 11]
    assert (
        match_adata(table([*ids[:5], "7x"], symbol=[*symbols[:4], "8x", "9x"])).source
        == "var_names"
    )


def test_the_named_column_is_read():
    data = table(human(4), mine=["GFAP", "AQP4", "7x", "SNAP25"])
    match = match_adata(data, gene_column="mine")
    assert match.source == "var['mine']" and match.how.tolist() == [
        "symbol",
        "symbol",
        "unknown",
        "symbol",
    ]
    small = Vocabulary(
        ("ENSG00000000009", "ENSG00000000002", "ENSG00000000007"), ("TWIN", "TWIN", "AbC")
    )
    own = match_adata(table(nonsense(2), symbol=["AbC", "7x"]), small)
    assert own.vocabulary == small and own.positions.tolist() == [2, -1]
    assert match_adata(data, small, gene_column="mine").vocabulary == small
    index = match_adata(table(["7x", "AbC"]), small)
    assert index.vocabulary == small and index.positions.tolist() == [-1, 2]
    with pytest.raises(GeneError, match=r"no column 'nope'; its columns are \['mine'\]"):
        match_adata(data, gene_column="nope")


# --- mouse
# ---------------------------------------------------------------------------------------------


def test_mouse_genes_get_the_names_of_their_orthologs():
    names = ["Gm1", "Snap25", "ENSMUSG00000020932.5", "ensmusg00000027273", "Aqp4", "snap25"]
    data = ad.AnnData(
        np.arange(12, dtype=np.float32).reshape(2, 6),
        var=pd.DataFrame({"chr": list("abcdef")}, index=names),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # writing to a view would warn
        human_data = mouse_to_human(data)
    # Of two rows of one gene the first stays; the others keep their order and counts.
    assert human_data.var_names.tolist() == [SNAP25, GFAP, AQP4]
    assert human_data.var["mouse_gene"].tolist() == ["Snap25", "ENSMUSG00000020932.5", "Aqp4"]
    assert human_data.var["chr"].tolist() == ["b", "c", "e"]
    assert human_data.X.tolist() == [[1, 2, 4], [7, 8, 10]]
    assert data.var_names.tolist() == names and list(data.var.columns) == ["chr"], (
        "the object itself stays as it was"
    )


def test_one_mouse_gene_in_twenty_is_enough():
    ones = np.ones((1, 20), np.float32)
    assert (
        mouse_to_human(ad.AnnData(ones, var=pd.DataFrame(index=["Snap25", *nonsense(19)]))).n_vars
        == 1
    )
    with pytest.raises(
        GeneError, match=r"Only 1 of 21 genes are mouse genes .*names like Snap25, 7x0q, 7x1q"
    ):
        mouse_to_human(
            ad.AnnData(
                np.ones((1, 21), np.float32), var=pd.DataFrame(index=["Snap25", *nonsense(20)])
            )
        )
    with pytest.raises(GeneError, match="Only 0 of 3 genes"):
        mouse_to_human(ad.AnnData(np.ones((1, 3), np.float32), var=pd.DataFrame(index=human(3))))
