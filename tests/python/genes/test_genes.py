"""Names of genes: which match, which are refused, and with which message."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scmamba.genes import Vocabulary, annotation, match_adata, match_genes, mouse_to_human
from scmamba.utils.errors import GeneError

PUBLISHED = Vocabulary.published()


def test_the_published_vocabulary_is_the_published_list(reference):
    lines = (reference.official / "vocab.txt").read_text().split()
    assert list(PUBLISHED) == [line.upper() for line in lines if not line.startswith("[")]
    assert len(PUBLISHED) == 19306


def test_every_notation_of_a_gene_is_found():
    gfap, hla = PUBLISHED.symbols.index("GFAP"), PUBLISHED.symbols.index("HLA-DRA")
    orf = next(i for i, s in enumerate(PUBLISHED.symbols) if s.startswith("C1orf"))
    names = [
        PUBLISHED[gfap],
        PUBLISHED[gfap].lower(),
        PUBLISHED[gfap] + ".17",
        "GFAP",
        "gfap",
        "HLA_DRA",
        PUBLISHED.symbols[orf].upper(),
    ]
    match = match_genes(names)
    assert match.positions.tolist() == [gfap] * 5 + [hla, orf]
    assert match.how.tolist() == ["ensembl"] * 3 + ["symbol", "case", "case", "case"]
    assert match.duplicates == 4


def test_human_genes_outside_the_model_differ_from_unknown_names():
    outside = annotation()[(annotation().vocabulary < 0) & (annotation().symbol != "")].iloc[0]
    match = match_genes([outside.symbol, outside.ensembl_id, "not-a-gene", "GFAP"])
    assert match.how.tolist() == ["known", "known", "unknown", "symbol"]
    assert match.recognised == 0.75


def test_a_shared_symbol_means_the_older_gene():
    assert PUBLISHED[match_genes(["ATXN7"]).positions[0]] == "ENSG00000163635"


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["Snap25", "Gfap", "Aqp4", "mt-Nd1", "Olig2"], "mouse"),
        (["ENSMUSG00000000001", "ENSMUSG00000000037.3"], "mouse"),
        (["ENSRNOG00000000001", "ENSRNOG00000000007"], "rat"),
        (["ENSDARG00000000001"], "zebrafish"),
    ],
)
def test_another_species_is_refused_even_with_force(names, word):
    with pytest.raises(GeneError, match=word):
        match_genes(names).check(force=True)


def test_unknown_names_are_refused():
    with pytest.raises(GeneError, match="0% of the 3 gene names"):
        match_genes(["a1x", "b2y", "c3z"]).check()


def test_five_percent_coverage_is_refused_without_force():
    match = match_genes(list(PUBLISHED)[:965])
    with pytest.raises(GeneError, match=r"only 5\.0% of the 19,306 genes"):
        match.check()
    match.check(force=True)


def test_the_better_column_of_names_is_found():
    ids = list(PUBLISHED)[:3000]
    data = ad.AnnData(np.ones((2, 3000)))
    data.var["gene_ids"] = [f"{i}.2" for i in ids]
    match = match_adata(data)
    assert match.source == "var['gene_ids']" and match.positions.tolist() == list(range(3000))
    with pytest.raises(GeneError, match="no column 'nope'"):
        match_adata(data, gene_column="nope")


def test_mouse_orthologs_agree_with_the_annotation_of_real_mouse_data(reference):
    genes = reference.genes["orthologs"].set_index("mouse")
    data = ad.AnnData(np.ones((2, len(genes))), var=genes)
    human = mouse_to_human(data)
    # Real data may list a mouse gene under an ortholog of another release: nearly all agree, and none is new.
    assert (human.var["human_ensembl_id"].astype(str) == human.var_names).mean() > 0.99
    match_adata(human, gene_column=None).check()
