"""Build the compact gene tables that ship with the package.

Run once per release of the annotation: ``python scripts/build_gene_tables.py --data FOLDER``.
The folder holds ``gene_annotation_grch38.csv.gz`` (GRCh38, Ensembl 109, older releases for retired IDs),
``scmamba_vocab_19306.csv`` (the gene list published with scMamba, in its order) and
``mouse_human_orthologs_ens105.csv.gz`` (Ensembl 105). Identifiers, symbols, chromosomes and orthology are facts;
the tables written here keep those columns only.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import pandas as pd

RESOURCES = Path(__file__).resolve().parents[1] / "python" / "scmamba" / "resources"


def write_table(table: pd.DataFrame, name: str, header: str) -> None:
    """One packed table with a header line."""
    # mtime=0: the same input gives the same bytes.
    with gzip.GzipFile(RESOURCES / name, "wb", compresslevel=9, mtime=0) as file:
        file.write(
            (
                "# " + header + "\n" + table.to_csv(sep="\t", index=False, lineterminator="\n")
            ).encode()
        )


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data

    annotation = pd.read_csv(data / "gene_annotation_grch38.csv.gz")
    published = pd.read_csv(data / "scmamba_vocab_19306.csv")
    order = pd.Series(range(len(published)), index=published.ensembl_id)
    genes = pd.DataFrame(
        {
            "ensembl_id": annotation.ensgene,
            "symbol": annotation.symbol.fillna(""),
            "chromosome": annotation.chr.fillna(""),
            "biotype": annotation.biotype.fillna(""),
            "vocabulary": annotation.ensgene.map(order).fillna(-1).astype(int),
        }
    )
    # An ID without a symbol that is in no model only enlarges the table.
    genes = genes[(genes.symbol != "") | (genes.vocabulary >= 0)].sort_values("ensembl_id")
    about = "GRCh38, Ensembl 109 (retired IDs from older releases); vocabulary = position in the published scMamba list, -1 = not in it"
    write_table(genes, "genes_grch38.tsv.gz", about)

    orthologs = pd.read_csv(data / "mouse_human_orthologs_ens105.csv.gz")
    orthologs = orthologs[orthologs.one2one & orthologs.human_in_scmamba_vocab]
    orthologs = orthologs[["mouse", "mouse_ensembl_id", "human_ensembl_id"]].rename(
        columns={"mouse": "mouse_symbol"}
    )
    about = "one-to-one orthologs, Ensembl 105, human gene in the published scMamba list"
    write_table(orthologs.sort_values("mouse_ensembl_id"), "orthologs_mouse_human.tsv.gz", about)


if __name__ == "__main__":
    main()
