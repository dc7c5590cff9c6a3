"""Building a gene vocabulary as the paper did: which genes of several studies a new model reads."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..genes import Vocabulary, annotation
from ..utils.errors import DataError
from .collection import Collection

if TYPE_CHECKING:
    from anndata import AnnData

#: Genes detected in a smaller share of the cells are omitted (paper, Methods).
MIN_FRACTION = 0.005
_ATTRIBUTE = re.compile(r'(gene_id|gene_name) "([^"]*)"')


def build_vocabulary(
    sources: Sequence[str | os.PathLike[str] | AnnData],
    *,
    gtf: str | os.PathLike[str] | None = None,
    min_fraction: float = MIN_FRACTION,
    without: Sequence[str] = ("Y",),
    not_counted: Sequence[str | os.PathLike[str] | AnnData] = (),
    cache: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> tuple[Vocabulary, pd.DataFrame]:
    """The paper's rule: the union of the studies' genes in the annotation, not on chromosome Y, seen in 0.5% of all cells.

    A study that did not measure a gene counts as not having seen it.

    Parameters
    ----------
    sources
        Files of raw counts (see :class:`~scmamba.data.collection.Collection`).
    gtf
        Annotation, ``.gtf`` or ``.gtf.gz``; default the packaged table (GRCh38, Ensembl 109).
    without
        Chromosomes whose genes are omitted.
    not_counted
        Studies that are excluded from the rule: their cells count neither among those with a gene nor among all. The table has their
        cells with each gene in the column ``cells_not_counted``, which shows what the vocabulary lacks of them.

    Returns
    -------
    The vocabulary, in the order of Ensembl IDs like the published one, and a table of all annotated genes seen at all: ``ensembl_id symbol
    chromosome cells fraction kept`` (see ``not_counted``).

    Raises
    ------
    DataError
        Files or annotation that cannot be read, or no gene that passes.
    """
    table = annotation()[["ensembl_id", "symbol", "chromosome"]] if gtf is None else read_gtf(gtf)
    table = (
        table[~table.chromosome.isin(list(without))]
        .drop_duplicates("ensembl_id")
        .sort_values("ensembl_id")
    )
    known = Vocabulary.from_ids(table.ensembl_id.tolist(), table.symbol.tolist())
    counted = Collection(sources, vocabulary=known, min_coverage=0.0, cache=cache, verbose=verbose)
    cells, n = counted.detected(), len(counted)
    table = table.assign(cells=cells, fraction=cells / n, kept=cells >= min_fraction * n)
    table.loc[table.cells == 0, "kept"] = False
    if not table.kept.any():
        raise DataError(f"No gene is seen in {100 * min_fraction:g}% of the {n:,} cells.")
    seen = cells > 0
    if len(not_counted):
        others = Collection(
            not_counted, vocabulary=known, min_coverage=0.0, cache=cache, verbose=verbose
        ).detected()
        table, seen = table.assign(cells_not_counted=others), seen | (others > 0)
    kept = table[table.kept]
    vocabulary = Vocabulary.from_ids(kept.ensembl_id.tolist(), kept.symbol.tolist())
    return vocabulary, table[seen].reset_index(drop=True)


def read_gtf(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Genes of a GTF file: ``ensembl_id symbol chromosome`` (without version, without ``chr``).

    Raises
    ------
    DataError
        No such file, or no gene in it.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"There is no annotation {path}.")
    rows = []
    with gzip.open(path, "rt") if path.suffix == ".gz" else open(path) as lines:
        for line in lines:
            fields = line.rstrip("\n").split("\t")
            if line.startswith("#") or len(fields) < 9 or fields[2] != "gene":
                continue
            named = dict(_ATTRIBUTE.findall(fields[8]))
            if "gene_id" in named and not named["gene_id"].endswith("_PAR_Y"):
                rows.append(
                    (
                        named["gene_id"].split(".")[0],
                        named.get("gene_name", ""),
                        fields[0].removeprefix("chr"),
                    )
                )
    if not rows:
        raise DataError(f"{path} holds no line of feature 'gene' with a gene_id; is it a GTF file?")
    return pd.DataFrame(rows, columns=["ensembl_id", "symbol", "chromosome"])
