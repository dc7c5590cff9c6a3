"""Commands about raw libraries: ``scmamba find-doublets`` and ``scmamba prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..doublets.options import DoubletOptions
from .errors import refuse_existing_outputs
from .files import read_cells_file
from .options import Input, ModelOption, Output, Quiet, options_of, renamed_command


@options_of(
    DoubletOptions,
    skip=("expected_rate", "overwrite"),
    flags={"sample_key": ("--sample-key", "--sample"), "label_key": ("--label-key", "--labels")},
)
def find_doublets(
    data: Input,
    output: Output,
    model: ModelOption = None,
    expected_rate: Annotated[
        float | None, typer.Option(help=DoubletOptions.help("expected_rate"))
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Also write the scores, calls and parents as .csv.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help=DoubletOptions.help("overwrite") + " Also replace the output if it exists.",
        ),
    ] = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Find doublets in an .h5ad file (obs/scmamba_doublet, _score and _parents of a copy)."""
    from ..data.h5ad_files import check_writable, write_h5ad
    from ..doublets import find_doublets as find
    from ..utils.atomic import atomic_path

    refuse_existing_outputs(output, table, overwrite=overwrite)
    adata = read_cells_file(data)
    check_writable(adata)
    find(
        adata,
        model=model,
        expected_rate=expected_rate,
        overwrite=overwrite,
        verbose=not quiet,
        **options,
    )
    write_h5ad(adata, output)
    if table is not None:
        with atomic_path(table) as path:
            adata.obs.filter(like="scmamba_doublet").to_csv(path)
    typer.echo(
        f"{output}: {int(adata.obs['scmamba_doublet'].sum())} of {adata.n_obs} droplets called doublets"
    )


def prepare(
    data: Annotated[list[Path], typer.Argument(help=".h5ad files of raw counts, one a study.")],
    folder: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for every step's result and prepared.h5ad."),
    ],
    donor: Annotated[str, typer.Option(help="Column of obs that names the donor.")] = "donor",
    markers: Annotated[
        Path | None,
        typer.Option(
            help="Marker panels: a table of type<TAB>GENE,GENE,... instead of the paper's."
        ),
    ] = None,
    min_total: Annotated[float, typer.Option(help="Least counts of a cell.")] = 200,
    min_cells_per_donor: Annotated[int, typer.Option(help="Least cells of a donor.")] = 200,
    resolution: Annotated[float, typer.Option(help="Resolution of the Leiden clusters.")] = 1.8,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin again in a folder that holds another run.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages.")] = False,
) -> None:
    """Filter, score, integrate, cluster and label libraries as the paper did; stopped runs go on."""
    from ..datasets.marker_panels import read_marker_panel
    from ..preprocessing import PrepareConfig
    from ..preprocessing import prepare as run

    config = PrepareConfig(
        min_total=min_total,
        min_cells_per_donor=min_cells_per_donor,
        resolution=resolution,
        seed=seed,
    )
    panels = None if markers is None else read_marker_panel(markers)
    result = run(
        list(data),
        folder=folder,
        donor=donor,
        markers=panels,
        config=config,
        overwrite=overwrite,
        verbose=not quiet,
    )
    labelled = int(result.obs["scmamba_label"].notna().sum())
    typer.echo(
        f"{folder / 'prepared.h5ad'}: {result.n_obs} cells x {result.n_vars} genes, {labelled} labelled"
    )


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(find_doublets)
    app.command()(prepare)
    renamed_command(app, "doublets", "find-doublets", find_doublets)
