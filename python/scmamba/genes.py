"""Gene vocabularies: which row of a data set is which gene of a model.

A model identifies its genes by Ensembl stable ID in a fixed order. People's files name them by ID with or without a version,
by symbol, in another case, or as Seurat rewrote them (``_`` became ``-``). :func:`match_genes` maps one to the other by
position, reports what it did, and :meth:`GeneMatch.check` refuses when too few genes fit for an answer to mean anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .utils.errors import GeneError

if TYPE_CHECKING:
    from anndata import AnnData

#: Below this share of the data's genes recognized, names are of another species or another kind: refuse.
MIN_RECOGNISED = 0.5
#: Data with a smaller share of the model's genes are refused, because most of its input is missing.
MIN_COVERAGE = 0.10
#: Columns of ``var`` that commonly hold better names than the index does.
NAME_COLUMNS = (
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
)

_ENSEMBL = re.compile(r"^(ENS[A-Z]{0,6}G\d{11})(\.\d+)?(_PAR_Y)?$", re.IGNORECASE)
_TITLED = re.compile(r"^([A-Z][a-z][a-z0-9.-]*|mt-[A-Z][a-z0-9]+)$")
_SPECIES = {
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "rhesus macaque",
    "ENSSSCG": "pig",
    "ENSCJAG": "marmoset",
    "ENSMFAG": "cynomolgus macaque",
    "ENSGALG": "chicken",
}


@lru_cache(maxsize=1)
def annotation() -> pd.DataFrame:
    """Human genes (GRCh38, Ensembl 109): columns ``ensembl_id symbol chromosome biotype vocabulary``."""
    return _resource("genes_grch38.tsv.gz").astype({"vocabulary": int})


@lru_cache(maxsize=1)
def orthologs() -> pd.DataFrame:
    """One-to-one mouse orthologs (Ensembl 105): columns ``mouse_symbol mouse_ensembl_id human_ensembl_id``."""
    return _resource("orthologs_mouse_human.tsv.gz")


def _resource(name: str) -> pd.DataFrame:
    with resources.as_file(resources.files("scmamba") / "resources" / name) as path:
        return pd.read_csv(path, sep="\t", comment="#", dtype=str, keep_default_na=False)


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of genes.

    Attributes
    ----------
    ensembl_ids
        Ensembl stable IDs in upper case, no version; position = position in the model's sequence.
    symbols
        Symbols at the same positions, ``""`` if there is none.
    """

    ensembl_ids: tuple[str, ...]
    symbols: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ensembl_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ensembl_ids)

    def __getitem__(self, position: int) -> str:
        return self.ensembl_ids[position]

    @classmethod
    def from_ids(cls, ids: Sequence[str], symbols: Sequence[str] | None = None) -> Vocabulary:
        """Build from Ensembl IDs (any case); symbols are looked up where not given."""
        clean = tuple(_strip_version(str(i)) or str(i).upper() for i in ids)
        if len(set(clean)) != len(clean):
            raise GeneError(
                "The vocabulary names a gene twice; every Ensembl ID must be listed once."
            )
        if symbols is None:
            known = dict(zip(annotation().ensembl_id, annotation().symbol))
            symbols = [known.get(i, "") for i in clean]
        return cls(clean, tuple(str(s) for s in symbols))

    @classmethod
    def published(cls) -> Vocabulary:
        """The 19,306 genes of the scMamba paper in their published order (GRCh38; union of its studies, no chrY)."""
        table = annotation()
        table = table[table.vocabulary >= 0].sort_values("vocabulary")
        return cls(tuple(table.ensembl_id), tuple(table.symbol))

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """Read ``genes.tsv`` of a checkpoint (columns ``ensembl_id``, ``symbol``)."""
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
        if "ensembl_id" not in table:
            raise GeneError(f"{path} has no column 'ensembl_id'; found {list(table.columns)}.")
        return cls.from_ids(
            list(table.ensembl_id), list(table["symbol"]) if "symbol" in table else None
        )

    def write(self, path: str | Path) -> None:
        """Write ``genes.tsv``."""
        frame = pd.DataFrame({"ensembl_id": self.ensembl_ids, "symbol": self.symbols})
        frame.to_csv(path, sep="\t", index=False, lineterminator="\n")

    def subset(self, positions: np.ndarray) -> Vocabulary:
        """The genes at ``positions`` (integers), in that order."""
        return Vocabulary(
            tuple(self.ensembl_ids[i] for i in positions), tuple(self.symbols[i] for i in positions)
        )

    @property
    def _lookup(self) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
        return _build_lookup(self)


@lru_cache(maxsize=8)
def _build_lookup(vocabulary: Vocabulary) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Position by Ensembl ID, by exact symbol, and by symbol folded to upper case with ``_`` as ``-``."""
    by_id = {gene: i for i, gene in enumerate(vocabulary.ensembl_ids)}
    by_symbol: dict[str, int] = {}
    by_folded: dict[str, int] = {}
    # Where two genes of a vocabulary share a symbol the lower Ensembl ID, the older gene, carries it.
    for i in sorted(range(len(vocabulary)), key=lambda i: vocabulary.ensembl_ids[i]):
        symbol = vocabulary.symbols[i]
        if symbol:
            by_symbol.setdefault(symbol, i)
            by_folded.setdefault(_fold(symbol), i)
    return by_id, by_symbol, by_folded


def _fold(name: str) -> str:
    return name.upper().replace("_", "-")


def _strip_version(name: str) -> str | None:
    """The stable ID in upper case if ``name`` is one, with or without version; else ``None``."""
    name = name.strip()
    if name[:3].upper() != "ENS":  # most names are symbols: not worth a regular expression
        return None
    found = _ENSEMBL.match(name)
    return found.group(1).upper() if found and not found.group(3) else None


@dataclass
class GeneMatch:
    """What :func:`match_genes` found.

    Attributes
    ----------
    positions
        (n,) for each name given its position in the vocabulary, -1 where it has none.
    how
        (n,) one of ``ensembl``, ``symbol``, ``case`` (matched after folding case or ``_``/``-``), ``known`` (a human gene
        that is not in the vocabulary), ``unknown``, ``other`` (no gene: an antibody, a guide, a peak).
    source
        Where the names came from: ``var_names`` or the column of ``var``.
    """

    positions: np.ndarray
    how: np.ndarray
    vocabulary: Vocabulary
    names: np.ndarray
    source: str = "var_names"
    looks_like: str | None = None
    _table: pd.DataFrame | None = field(default=None, repr=False)

    @property
    def matched(self) -> np.ndarray:
        """(m,) indices of the data's genes of the model."""
        return np.flatnonzero(self.positions >= 0)

    @property
    def recognised(self) -> float:
        """Share of the data's genes that are human genes we can name, in the vocabulary or not."""
        genes = self.how[self.how != "other"]
        return float(np.mean(genes != "unknown")) if len(genes) else 0.0

    @property
    def coverage(self) -> float:
        """Share of the model's genes that the data measured."""
        return len(np.unique(self.positions[self.positions >= 0])) / max(len(self.vocabulary), 1)

    @property
    def duplicates(self) -> int:
        """How many rows of the data are a second or later row of the same gene."""
        known = self.positions[self.positions >= 0]
        return int(len(known) - len(np.unique(known)))

    def ignore(self, rows: np.ndarray) -> None:
        """Take rows for unknown that are not genes, such as antibodies named like their gene.

        Parameters
        ----------
        rows
            (n,) bool.
        """
        self.positions = np.where(rows, -1, self.positions)
        self.how = np.where(rows, "other", self.how)

    def table(self) -> pd.DataFrame:
        """The coverage table people are shown: how names matched, and how many."""
        words = {
            "ensembl": "matched by Ensembl ID",
            "symbol": "matched by symbol",
            "case": "matched after folding case or '_'/'-'",
            "known": "human gene outside the model's list",
            "unknown": "name not recognized",
        }
        counts = pd.Series(self.how).value_counts()
        if "other" in counts:
            words["other"] = "row of another feature type (not a gene)"
        rows = [(text, int(counts.get(key, 0))) for key, text in words.items()]
        rows.append(("rows sharing a gene with another row", self.duplicates))
        rows.append(
            (
                f"of the model's {len(self.vocabulary):,} genes measured",
                round(self.coverage * len(self.vocabulary)),
            )
        )
        return pd.DataFrame(rows, columns=["genes", "number"])

    def summary(self) -> str:
        """One line: how many genes matched and how much of the model they cover."""
        again = (
            f"; {self.duplicates:,} rows repeat a gene and count with its first row"
            if self.duplicates
            else ""
        )
        return (
            f"{len(self.matched):,} of {len(self.positions):,} genes matched ({self.source}), "
            f"{100 * self.coverage:.1f}% of the model's {len(self.vocabulary):,} genes{again}"
        )

    def check(self, *, force: bool = False, min_coverage: float = MIN_COVERAGE) -> None:
        """Refuse data whose genes do not fit.

        Raises
        ------
        GeneError
            Names of another species; fewer than half of the names recognized; or, unless ``force``, fewer than
            ``min_coverage`` of the model's genes measured.
        """
        examples = ", ".join(str(n) for n in self.names[:4])
        if self.looks_like is not None:
            advice = (
                "map them first with scmamba.genes.mouse_to_human(adata)"
                if self.looks_like == "mouse"
                else ("map them to human one-to-one orthologs first")
            )
            raise GeneError(
                f"The gene names look like {self.looks_like} genes ({examples}, ...), and this model was trained on human genes. "
                f"If the data are {self.looks_like}, {advice}."
            )
        if len(self.matched) == 0 and self.recognised >= MIN_RECOGNISED:
            raise GeneError(
                f"{100 * self.recognised:.0f}% of the {len(self.names):,} gene names ({examples}, ...) are human genes, but none of them is "
                f"among the {len(self.vocabulary):,} genes of this model. Give an object with more genes, or another model."
            )
        if len(self.matched) == 0 or (self.recognised < MIN_RECOGNISED and not force):
            raise GeneError(
                f"Only {100 * self.recognised:.0f}% of the {len(self.names):,} gene names ({examples}, ...) are human Ensembl IDs or "
                f"symbols; at least {100 * MIN_RECOGNISED:.0f}% are expected. Give human gene names as var_names, or name the "
                f"column of var that holds them (gene_column=...).\n{self.table().to_string(index=False, header=False)}"
            )
        if self.coverage < min_coverage and not force:
            raise GeneError(
                f"The data measure only {100 * self.coverage:.1f}% of the {len(self.vocabulary):,} genes this model reads; below "
                f"{100 * min_coverage:.0f}% its predictions are not reliable. Use the unfiltered matrix (no variable-gene selection), or pass "
                f"force=True (R: force = TRUE) to continue all the same.\n{self.table().to_string(index=False, header=False)}"
            )


def match_genes(
    names: Sequence[str], vocabulary: Vocabulary | None = None, *, source: str = "var_names"
) -> GeneMatch:
    """Map gene names to positions in a vocabulary.

    Each name is tried as an Ensembl ID (version removed, any case), as a symbol, then as a symbol with case folded and
    ``_`` read as ``-`` (Seurat writes it so). Mouse-style capitals (``Snap25``) are distinguished from human names in odd case
    and reported in ``looks_like``, because matching them silently would treat one species as another.

    Parameters
    ----------
    names
        (n,) gene names.
    vocabulary
        The model's genes; default the published 19,306.
    """
    vocabulary = vocabulary or Vocabulary.published()
    by_id, by_symbol, by_folded = vocabulary._lookup
    known_ids, known_folded = _known_human()
    clean = np.array([str(n).strip() for n in names], dtype=object)
    positions = np.full(len(clean), -1, dtype=np.int64)
    how = np.full(len(clean), "unknown", dtype=object)
    ids = [_strip_version(name) for name in clean]
    for k, (name, gene_id) in enumerate(zip(clean, ids)):
        if gene_id is not None:
            positions[k] = by_id.get(gene_id, -1)
            how[k] = (
                "ensembl" if positions[k] >= 0 else "known" if gene_id in known_ids else "unknown"
            )
        elif name in by_symbol:
            positions[k], how[k] = by_symbol[name], "symbol"
        elif _fold(name) in by_folded:
            positions[k], how[k] = by_folded[_fold(name)], "case"
        elif _fold(name) in known_folded:
            how[k] = "known"
    return GeneMatch(positions, how, vocabulary, clean, source, _other_species(clean, how, ids))


@lru_cache(maxsize=1)
def _known_human() -> tuple[set[str], set[str]]:
    table = annotation()
    return set(table.ensembl_id), {_fold(s) for s in table.symbol if s}


def _other_species(names: np.ndarray, how: np.ndarray, ids: list[str | None]) -> str | None:
    """The species the names belong to when it is plainly not human, else ``None``."""
    if len(names) == 0:
        return None
    prefixes = pd.Series(
        [n[:7].upper() for n, i in zip(names, ids) if i and not n.upper().startswith("ENSG0")]
    )
    if len(prefixes) > 0.5 * len(names):
        return _SPECIES.get(prefixes.mode()[0], f"another species' ({prefixes.mode()[0]})")
    # 'Snap25' and 'mt-Nd1': one capital, then lower case. Human symbols in title case are rare (C1orf112 keeps its digits).
    symbols = np.array([i is None for i in ids])
    if not symbols.any() or np.mean(how[symbols] == "symbol") >= 0.2:
        return None
    titled = [bool(_TITLED.match(n)) for n in names[symbols]]
    return "mouse" if np.mean(titled) > 0.5 else None


def match_adata(
    adata: AnnData, vocabulary: Vocabulary | None = None, *, gene_column: str | None = None
) -> GeneMatch:
    """Match the genes of an AnnData object, by ``gene_column`` or by whichever of its names match best.

    Tries ``var_names`` and the common columns (``gene_ids``, ``symbol``, ...); the index wins ties.

    Raises
    ------
    GeneError
        If ``gene_column`` is not a column of ``adata.var``.
    """
    if gene_column is not None:
        if gene_column not in adata.var:
            raise GeneError(
                f"adata.var has no column '{gene_column}'; its columns are {list(adata.var.columns)}."
            )
        return match_genes(
            adata.var[gene_column].astype(str).tolist(), vocabulary, source=f"var['{gene_column}']"
        )
    best = match_genes(adata.var_names.tolist(), vocabulary)
    for column in NAME_COLUMNS:
        if len(best.matched) == adata.n_vars:  # another column would have to match more
            break
        if column in adata.var and not adata.var[column].equals(adata.var_names.to_series()):
            names = adata.var[column].astype(str).tolist()
            candidate = match_genes(names, vocabulary, source=f"var['{column}']")
            if len(candidate.matched) > len(best.matched):
                best = candidate
    return best


def mouse_to_human(adata: AnnData) -> AnnData:
    """Return a copy of mouse data with its genes renamed to their human one-to-one orthologs.

    Genes without a one-to-one ortholog in the published gene list are omitted. ``var`` keeps the mouse names in
    ``mouse_gene``; ``var_names`` become human Ensembl IDs. Source: Ensembl 105.

    Raises
    ------
    GeneError
        If fewer than 5% of the genes are mouse symbols or mouse Ensembl IDs with an ortholog.
    """
    table = orthologs()
    by_name = dict(zip(table.mouse_symbol, table.human_ensembl_id)) | dict(
        zip(table.mouse_ensembl_id, table.human_ensembl_id)
    )
    human = np.array(
        [by_name.get(_strip_version(str(n)) or str(n), "") for n in adata.var_names], dtype=object
    )
    first = ~pd.Series(human).duplicated().to_numpy()
    keep = (human != "") & first
    if keep.sum() < 0.05 * adata.n_vars:
        raise GeneError(
            f"Only {int(keep.sum())} of {adata.n_vars} genes are mouse genes with a one-to-one human ortholog "
            f"(names like {', '.join(map(str, adata.var_names[:3]))}); are these mouse symbols or ENSMUSG IDs?"
        )
    result = adata[:, keep].copy()
    result.var["mouse_gene"] = result.var_names.astype(str)
    result.var_names = pd.Index(human[keep].astype(str))
    return result
