"""Commands about data files: ``scmamba cohort`` and ``scmamba convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..datasets.options import CohortOptions
from .options import options_of

_SHORT = {"n_cells": ("--cells",), "n_donors": ("--donors",), "n_genes": ("--genes",)}


@options_of(CohortOptions, flags=_SHORT)
def cohort(
    output: Annotated[Path, typer.Argument(help="The .h5ad file to write.")],
    effects: Annotated[
        Path | None,
        typer.Option(
            help="Table (.csv, .tsv) of log2 fold changes, genes x cell types, in place of those that come with --disease."
        ),
    ] = None,
    **options: Any,
) -> None:
    """Write a SIMULATED human brain cohort (8 types, donors, a disease): raw counts and truth."""
    from ..data.h5ad_files import write_h5ad
    from ..datasets import brain_cohort

    cells = options.pop("n_cells")
    if options["n_genes"] == 0:
        options["n_genes"] = None
    table = None if effects is None else _table(effects)
    data = brain_cohort(cells, effects=table, **options)
    write_h5ad(data, output)
    donors = options["n_donors"]
    typer.echo(f"{output}: {data.n_obs:,} simulated cells x {data.n_vars:,} genes, {donors} donors")


def _table(path: Path) -> Any:
    """A table of genes x cell types, separated by tabs or commas."""
    import pandas as pd

    from ..utils.errors import DataError

    if not path.is_file():
        raise DataError(
            f"There is no file {path}; expected a table of log2 fold changes, genes x cell types."
        )
    return pd.read_csv(path, sep=None, engine="python", index_col=0)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="An .rds (Seurat, SingleCellExperiment), .h5ad, 10x .h5 or .zarr file, or an mtx folder."
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The .h5ad or .rds file to write.")],
    assay: Annotated[
        str, typer.Option(help="Seurat assay that becomes X, or that X becomes.")
    ] = "",
    to: Annotated[str, typer.Option(help="What to put in an .rds file: seurat or sce.")] = "seurat",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the target if it exists.")
    ] = False,
    compress: Annotated[bool, typer.Option(help="Compress the target; slower and smaller.")] = True,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Do not list what could not be converted.")
    ] = False,
) -> None:
    """Convert Seurat or SingleCellExperiment files (.rds) to AnnData (.h5ad), or back; 10x files to either."""
    from ..interop._convert import convert_file

    sentence = convert_file(
        source,
        target,
        assay=assay,
        to=to,
        overwrite=overwrite,
        compress=compress,
        verbose=not quiet,
    )
    typer.echo(sentence)


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(cohort)
    app.command()(convert)
