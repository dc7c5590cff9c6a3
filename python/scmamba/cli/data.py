"""Commands about data files: ``scmamba cohort`` and ``scmamba convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cohort(
    output: Annotated[Path, typer.Argument(help="The .h5ad file to write.")],
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 2000,
    donors: Annotated[int, typer.Option(help="Number of donors.")] = 8,
    genes: Annotated[
        int | None, typer.Option(help="Keep this many genes; all 10,000 if not given.")
    ] = None,
    disease_fraction: Annotated[float, typer.Option(help="Share of donors with AD.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same cohort.")] = 0,
) -> None:
    """Write a SIMULATED human brain cohort (8 types, donors, a disease): raw counts and truth."""
    from ..data.h5ad_files import write_h5ad
    from ..datasets import brain_cohort

    data = brain_cohort(
        cells,
        n_donors=donors,
        n_genes=genes or None,
        disease_fraction=disease_fraction,
        seed=seed,
    )
    write_h5ad(data, output)
    typer.echo(f"{output}: {data.n_obs:,} simulated cells x {data.n_vars:,} genes, {donors} donors")


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
