"""Commands about raw libraries: ``scmamba find-doublets``, ``scmamba ambient-rna`` and ``scmamba prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..doublets.options import DoubletOptions
from ..preprocessing.options import AmbientOptions, PrepareOptions
from .errors import refuse_existing_outputs, require_h5ad_name
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
    from ..data.h5ad_files import check_writable, open_backed
    from ..data.h5ad_stream import write_with_annotations
    from ..doublets import find_doublets as find
    from ..utils.atomic import atomic_path
    from ..utils.tables import write_csv

    refuse_existing_outputs(output, table, overwrite=overwrite)
    require_h5ad_name(output)
    adata = open_backed(data)  # the matrix stays on disk and is read sample by sample
    check_writable(adata)
    find(
        adata,
        model=model,
        expected_rate=expected_rate,
        overwrite=overwrite,
        verbose=not quiet,
        **options,
    )
    # The results are in adata, whose obs and uns are written.
    write_with_annotations(data, output, adata, lambda _: None, verbose=not quiet)
    if table is not None:
        with atomic_path(table) as path:
            write_csv(adata.obs.filter(like="scmamba_doublet"), path)
    typer.echo(
        f"{output}: {int(adata.obs['scmamba_doublet'].sum())} of {adata.n_obs} droplets called doublets"
    )


@options_of(
    AmbientOptions,
    skip=("overwrite",),
    flags={"sample_key": ("--sample-key", "--sample"), "label_key": ("--label-key", "--labels")},
)
def ambient_rna(
    data: Input,
    output: Output,
    table: Annotated[
        Path | None, typer.Option(help="Also write the share of each sample as .csv.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help=AmbientOptions.help("overwrite") + " Also replace the output if it exists.",
        ),
    ] = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Estimate the share of ambient RNA in each sample of an .h5ad file (obs/scmamba_ambient of a copy)."""
    from ..data.h5ad_files import check_writable, write_h5ad
    from ..preprocessing import ambient_rna as estimate
    from ..preprocessing import ambient_table
    from ..utils.atomic import atomic_path
    from ..utils.tables import write_csv

    refuse_existing_outputs(output, table, overwrite=overwrite)
    require_h5ad_name(output)
    adata = read_cells_file(data)
    check_writable(adata)
    estimate(adata, overwrite=overwrite, verbose=not quiet, **options)
    write_h5ad(adata, output)
    shares = ambient_table(adata)
    if table is not None:
        with atomic_path(table) as path:
            write_csv(shares.set_index("sample"), path)
    known = int(shares["share"].notna().sum())
    typer.echo(f"{output}: share of ambient RNA known for {known} of {len(shares)} samples")


@options_of(PrepareOptions, flags={"donor_key": ("--donor-key", "--donor")})
def prepare(
    data: Annotated[
        list[Path],
        typer.Argument(help="Files of raw counts (.h5ad, 10x .h5, mtx folder), one per study."),
    ],
    folder: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the result of every step and prepared.h5ad."
        ),
    ],
    markers: Annotated[
        Path | None,
        typer.Option(
            help="Marker panels: a table of type<TAB>GENE,GENE,... instead of the paper's."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start again in a folder that holds another run.")
    ] = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Filter, score, integrate, cluster and label libraries as the paper did; a stopped run can be continued."""
    from ..datasets.marker_panels import read_marker_panel
    from ..preprocessing import prepare as run

    panels = None if markers is None else read_marker_panel(markers)
    result = run(
        list(data),
        folder=folder,
        markers=panels,
        overwrite=overwrite,
        verbose=not quiet,
        **options,
    )
    labelled = int(result.obs["scmamba_label"].notna().sum())
    typer.echo(
        f"{folder / 'prepared.h5ad'}: {result.n_obs} cells x {result.n_vars} genes, {labelled} labeled"
    )


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(find_doublets)
    app.command()(ambient_rna)
    app.command()(prepare)
    renamed_command(app, "doublets", "find-doublets", find_doublets)
