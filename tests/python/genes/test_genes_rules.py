"""Every rule for matching names to genes, at its limits: small tables written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from scmamba.genes import Vocabulary, annotation, match_genes, orthologs
from scmamba.utils.errors import GeneError

GFAP, SNAP25, AQP4 = "ENSG00000131095", "ENSG00000132639", "ENSG00000171885"
TNMD = "ENSG00000000005"  # human, not in the published list
#: Not in the order of Ensembl IDs; two genes share a symbol, two differ only in case, one has none.
SMALL = Vocabulary(
    (
        "ENSG00000000009",
        "ENSG00000000002",
        "ENSG00000000007",
        "ENSG00000000004",
        "ENSG00000000006",
        "ENSG00000000001",
    ),
    ("TWIN", "TWIN", "AbC", "ABC", "X-Y", ""),
)


def human(count: int) -> list[str]:
    return list(Vocabulary.published())[:count]


def nonsense(count: int) -> list[str]:
    return [f"7x{i}q" for i in range(count)]


# --- tables of the package ------------------------------------------------------------------------


def test_the_annotation_is_that_of_ensembl():
    table = annotation().set_index("ensembl_id")
    assert table.loc[[GFAP, SNAP25, AQP4, TNMD], "symbol"].tolist() == [
        "GFAP",
        "SNAP25",
        "AQP4",
        "TNMD",
    ]
    assert table.loc[[GFAP, SNAP25, AQP4, TNMD], "chromosome"].tolist() == ["17", "20", "18", "X"]
    assert table.vocabulary.dtype == int and table.loc[TNMD, "vocabulary"] == -1
    assert table.symbol.map(type).eq(str).all() and (table.symbol == "").sum() == 2150, (
        "no symbol is the empty string"
    )
    mouse = orthologs().set_index("mouse_symbol")
    assert mouse.loc["Snap25"].tolist() == ["ENSMUSG00000027273", SNAP25]


def test_length_order_and_ends_of_the_published_list():
    published = Vocabulary.published()
    assert len(published) == len(set(published)) == 19306
    assert (
        list(published) == sorted(published)
        and published[0] == "ENSG00000000003"
        and published[19305] == "ENSG00000288436"
    )
    positions = annotation().set_index("ensembl_id").vocabulary
    assert positions[list(published)].tolist() == list(range(19306))
    assert published.symbols[positions[GFAP]] == "GFAP"
    chromosome = annotation().set_index("ensembl_id").chromosome
    assert "Y" not in set(chromosome[list(published)])


# --- vocabularies
# -----------------------------------------------------------------------------------


def test_a_vocabulary_of_ids_is_cleaned_and_named():
    made = Vocabulary.from_ids([f" {GFAP.lower()}.12 ", "my-gene", TNMD])
    assert made.ensembl_ids == (GFAP, "MY-GENE", TNMD) and made.symbols == ("GFAP", "", "TNMD")
    assert Vocabulary.from_ids([GFAP], ["own"]).symbols == ("own",)
    with pytest.raises(GeneError, match="names a gene twice"):
        Vocabulary.from_ids([GFAP, GFAP + ".3"])
    part = SMALL.subset(np.array([4, 0]))
    assert (part.ensembl_ids, part.symbols) == (
        ("ENSG00000000006", "ENSG00000000009"),
        ("X-Y", "TWIN"),
    )
    assert (len(part), part[1], list(part)) == (
        2,
        "ENSG00000000009",
        ["ENSG00000000006", "ENSG00000000009"],
    )


def test_a_vocabulary_is_unchanged_after_writing_and_reading(tmp_path):
    made = Vocabulary((GFAP, TNMD, SNAP25), ("NA", "", "null"))
    made.write(tmp_path / "genes.tsv")
    assert (
        tmp_path / "genes.tsv"
    ).read_bytes() == f"ensembl_id\tsymbol\n{GFAP}\tNA\n{TNMD}\t\n{SNAP25}\tnull\n".encode()
    assert Vocabulary.read(tmp_path / "genes.tsv") == made
    (tmp_path / "ids.tsv").write_text(f"ensembl_id\n{SNAP25}\n{GFAP}\n")
    assert Vocabulary.read(tmp_path / "ids.tsv") == Vocabulary((SNAP25, GFAP), ("SNAP25", "GFAP"))
    (tmp_path / "other.tsv").write_text("id\tsymbol\na\tb\n")
    with pytest.raises(GeneError, match=r"no column 'ensembl_id'; found \['id', 'symbol'\]"):
        Vocabulary.read(tmp_path / "other.tsv")


# --- one name
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "position", "how"),
    [
        ("ENSG00000000007", 2, "ensembl"),
        (" ensg00000000007.33 ", 2, "ensembl"),
        ("ENSG00000000007.", -1, "unknown"),
        ("ENSG00000000007.a", -1, "unknown"),
        ("ENSG00000000007_PAR_Y", -1, "unknown"),  # the copy on Y is a different gene
        ("ENSG00000000007.3_PAR_Y", -1, "unknown"),
        ("ENSG0000000007", -1, "unknown"),  # ten digits
        ("ENSG000000000070", -1, "unknown"),  # twelve
        ("xENSG00000000007", -1, "unknown"),
        ("ENSG00000000007x", -1, "unknown"),
        ("AbC", 2, "symbol"),
        ("ABC", 3, "symbol"),
        ("abc", 3, "case"),  # of two matches without case the lower Ensembl ID
        ("TWIN", 1, "symbol"),
        ("twin", 1, "case"),
        ("X-Y", 4, "symbol"),
        ("X_Y", 4, "case"),
        ("x_y", 4, "case"),
        ("x.y", -1, "unknown"),
        ("", -1, "unknown"),
        ("GFAP", -1, "known"),
        ("gfap", -1, "known"),
        ("HLA_DRA", -1, "known"),
        (GFAP, -1, "known"),
        (GFAP.lower() + ".7", -1, "known"),
        ("ENSG99999999999", -1, "unknown"),
        ("ENSMUSG00000027273", -1, "unknown"),
    ],
)
def test_one_name(name, position, how):
    match = match_genes(["AbC", name], SMALL)
    assert (match.positions[1], match.how[1]) == (position, how)


def test_the_default_vocabulary_is_the_published_one():
    match = match_genes(["GFAP"])
    assert match.vocabulary == Vocabulary.published() and match.source == "var_names"
    assert match.vocabulary[match.positions[0]] == GFAP


# --- many names
# --------------------------------------------------------------------------------------


def test_counts_and_report_of_a_match():
    names = ["ENSG00000000009", "TWIN", "twin", "x_y", "GFAP", "7x", "ENSG00000000002"]
    match = match_genes(names, SMALL, source="var['gene_ids']")
    assert match.positions.tolist() == [0, 1, 1, 4, -1, -1, 1]
    assert match.matched.tolist() == [0, 1, 2, 3, 6]
    assert (
        match.recognised == pytest.approx(6 / 7)
        and match.coverage == pytest.approx(3 / 6)
        and match.duplicates == 2
    )
    assert match.table().to_numpy().tolist() == [
        ["matched by Ensembl ID", 2],
        ["matched by symbol", 1],
        ["matched after folding case or '_'/'-'", 2],
        ["human gene outside the model's list", 1],
        ["name not recognized", 1],
        ["rows sharing a gene with another row", 2],
        ["of the model's 6 genes measured", 3],
    ]
    assert list(match.table().columns) == ["genes", "number"]
    assert match.summary() == (
        "5 of 7 genes matched (var['gene_ids']), 50.0% of the model's 6 genes; "
        "2 rows repeat a gene and count with its first row"
    )
    assert (
        match_genes(["ABC"], SMALL).summary()
        == "1 of 1 genes matched (var_names), 16.7% of the model's 6 genes"
    )
    nothing = match_genes([], SMALL)
    assert nothing.table()["number"].tolist() == [0] * 7
    assert (nothing.recognised, nothing.coverage, nothing.duplicates, nothing.looks_like) == (
        0.0,
        0.0,
        0,
        None,
    )
    with pytest.raises(GeneError):
        nothing.check(force=True)


def test_half_of_the_names_must_be_human():
    match_genes(human(20) + nonsense(20)).check(min_coverage=0)
    few = match_genes(human(20) + nonsense(21))
    with pytest.raises(
        GeneError, match=r"Only 49% of the 41 gene names .* at least 50% are expected"
    ):
        few.check(min_coverage=0)
    few.check(force=True)
    with pytest.raises(GeneError, match="Only 0% of the 3 gene names"):
        match_genes(nonsense(3)).check(force=True)  # no names at all
    with pytest.raises(
        GeneError, match="100% of the 1 gene names .* are human genes, but none of them"
    ):
        match_genes([TNMD]).check(force=True)


def test_a_tenth_of_the_models_genes_must_be_measured():
    hundred = Vocabulary.published().subset(range(100))
    match_genes(list(hundred)[:10], hundred).check()
    few = match_genes(list(hundred)[:9] * 2, hundred)
    with pytest.raises(
        GeneError, match=r"only 9\.0% of the 100 genes this model reads; below 10% its predictions"
    ):
        few.check()
    few.check(force=True)
    few.check(min_coverage=0.09)
    with pytest.raises(GeneError, match="below 50%"):
        few.check(min_coverage=0.5)


# --- other species
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "word"),
    [
        ("ENSMUSG", "mouse"),
        ("ENSRNOG", "rat"),
        ("ENSDARG", "zebrafish"),
        ("ENSMMUG", "rhesus macaque"),
        ("ENSSSCG", "pig"),
        ("ENSCJAG", "marmoset"),
        ("ENSMFAG", "cynomolgus macaque"),
        ("ENSGALG", "chicken"),
        ("ENSBTAG", "another species' (ENSBTAG)"),
    ],
)
def test_the_species_of_ids(prefix, word):
    match = match_genes([f"{prefix}{i:011d}" for i in range(6)] + human(5))
    assert match.looks_like == word
    with pytest.raises(GeneError) as caught:
        match.check(force=True)
    assert ("mouse_to_human" in str(caught.value)) == (word == "mouse")
    assert match_genes([f"{prefix.lower()}{i:011d}.2" for i in range(6)]).looks_like == word
    # More than half of the names are needed: exactly half is not enough.
    assert match_genes([f"{prefix}{i:011d}" for i in range(5)] + human(5)).looks_like is None
    # The most common of several.
    assert (
        match_genes(
            [f"{prefix}{i:011d}" for i in range(4)] + [f"ENSOARG{i:011d}" for i in range(3)]
        ).looks_like
        == word
    )


@pytest.mark.parametrize("name", ["Snap25", "mt-Nd1", "Gm123", "Rps-ps1.2", "Xy"])
def test_a_symbol_in_mouse_style(name):
    assert match_genes([name] * 3).looks_like == "mouse"


@pytest.mark.parametrize(
    "name",
    [
        "SNAP25",
        "snap25",
        "C1orf112",
        "X",
        "mt-nd1",
        "MT-Nd1",
        "mt-N",
        "H2-K1",
        "Snap_25",
        "SnaP25",
        "7Snap",
        "ENSMUSG0000002727",
    ],
)
def test_a_symbol_in_another_style(name):
    assert match_genes([name] * 3).looks_like is None


def test_how_many_symbols_must_be_in_mouse_style():
    titled = ["Snap25", "Gfap", "Aqp4", "Olig2", "Mbp", "Plp1", "Slc1a2", "Gad1"]
    assert match_genes(titled[:6] + nonsense(5)).looks_like == "mouse"
    assert match_genes(titled[:5] + nonsense(5)).looks_like is None, "more than half"
    assert match_genes([*titled[:6], "GFAP", *nonsense(3)]).looks_like == "mouse"
    # A fifth are exact human symbols: the case of the others is unusual, but the data are human.
    assert match_genes([*titled, "GFAP", "AQP4"]).looks_like is None
    assert match_genes([*titled, "GFAP"]).looks_like == "mouse"
    # IDs are not symbols and are not counted.
    assert match_genes(human(20) + titled).looks_like == "mouse"


def test_columns_are_matched_once_and_only_if_they_can_be_best(monkeypatch):
    """One call for each distinct column that could still match more names than the best so far."""
    import anndata as ad

    from scmamba import genes

    calls = []
    match = genes.match_genes
    monkeypatch.setattr(
        genes, "match_genes", lambda *a, **k: calls.append(k.get("source")) or match(*a, **k)
    )
    symbols, ids = ["GAD1", "SLC17A7", "AQP4"], [f"ENSG0000000000{k}" for k in range(3)]
    adata = ad.AnnData(np.ones((2, 3)))
    adata.var_names = symbols
    adata.var["gene_ids"] = ids
    assert genes.match_adata(adata).source == "var_names" and calls == [None]
    adata.var_names = ["GAD1", "x", "y"]
    adata.var["symbol"] = list(adata.var_names)
    adata.var["gene_symbols"] = symbols
    adata.var["gene_name"] = symbols
    calls.clear()
    assert genes.match_adata(adata).source == "var['gene_symbols']"
    assert calls == [None, "var['gene_ids']", "var['gene_symbols']"]


@pytest.mark.parametrize("column", ["gene_ids", "symbol"])
def test_the_row_names_win_ties(column):
    """A column that matches as many names as the row names, but other genes, is not used."""
    import anndata as ad

    from scmamba.genes import match_adata

    adata = ad.AnnData(np.ones((1, 4)))
    adata.var_names = ["GFAP", "AQP4", "MBP", "no gene"]
    adata.var[column] = ["MBP", "GFAP", "SNAP25", "none"]
    found = match_adata(adata)
    assert found.source == "var_names" and len(found.matched) == 3
