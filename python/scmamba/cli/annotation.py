"""The command about cell types: ``scmamba annotate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..annotation.options import FINETUNE_STEPS, AnnotateOptions
from ..utils.columns import require_column
from .errors import refuse_existing_outputs, require_h5ad_name
from .files import read_cells_file
from .options import Former, Input, Output, Quiet, options_of


@options_of(
    AnnotateOptions,
    skip=("label_key", "overwrite"),
    flags={"donor_key": ("--donor-key", "--donor")},
    former={"network": Former("finetune_steps", bool, lambda on: FINETUNE_STEPS if on else 0)},
)
def annotate(
    data: Input,
    output: Output,
    reference: Annotated[
        str | None,
        typer.Option(
            help="An .h5ad file of cells whose types are known; or human-brain (the default), which needs no labels."
        ),
    ] = None,
    label_key: Annotated[
        list[str] | None,
        typer.Option(
            "--label-key", "--labels", help=AnnotateOptions.help("label_key") + " Repeatable."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model that classifies, or to fine-tune.")
    ] = None,
    markers: Annotated[
        str | None,
        typer.Option(
            help="Marker genes: a text file with a cell type, a tab and its genes on each line; "
            "or 'panel' for the panel of the human brain, which is used where few genes were measured."
        ),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="Column of the data with known types: prints a report.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Also write types, probabilities and alternatives as .csv.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for the figures.")] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help=AnnotateOptions.help("overwrite") + " Also replace the output if it exists.",
        ),
    ] = False,
    quiet: Quiet = False,
    **options: Any,
) -> None:
    """Name the cell types of an .h5ad file (obs/scmamba_type, _probability and _alternatives of a copy).

    Without --reference, --model and --markers: by the expected counts of human brain cell types that come with scMamba.
    """
    from ..annotation import annotate as name_types
    from ..annotation.brain_reference import is_shipped
    from ..annotation.result import refuse_foreign_columns
    from ..data.h5ad_files import check_writable, open_backed
    from ..data.h5ad_stream import write_with_annotations
    from ..datasets.marker_panels import read_marker_panel
    from ..utils.atomic import atomic_path
    from ..utils.result_folder import result_folder
    from ..utils.tables import write_csv

    refuse_existing_outputs(output, table, overwrite=overwrite, folders=[plots])
    require_h5ad_name(output)
    adata = open_backed(data)  # the matrix stays on disk and is read in blocks of cells
    check_writable(adata)
    if truth is not None:
        require_column(adata.obs, truth)
    shipped = is_shipped(reference)
    known = reference if shipped or reference is None else read_cells_file(Path(str(reference)))
    columns = None if not label_key else label_key[0] if len(label_key) == 1 else label_key
    if not overwrite:
        in_tree = shipped or (reference is None and model is None and markers is None)
        refuse_foreign_columns(adata, AnnotateOptions(label_key=columns), in_tree=in_tree)
    panel = markers if markers is None or markers == "panel" else read_marker_panel(markers)
    found = name_types(
        adata,
        reference=known,
        label_key=columns,
        model=model,
        markers=panel,
        return_result=True,
        verbose=not quiet,
        **options,
    )
    write_with_annotations(data, output, adata, found.to_adata, verbose=not quiet)
    if table is not None:
        with atomic_path(table) as path:
            write_csv(found.to_table(), path)
    known_types = None if truth is None else adata.obs[truth].astype(object).to_numpy()
    if plots is not None:
        with result_folder(plots, overwrite) as folder:
            for name, figure in found.to_plots(known_types).items():
                figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    if known_types is not None:
        typer.echo(found.report(known_types).round(3).to_string())
    unassigned = int((found.labels().astype(str) == "Unassigned").sum())
    typer.echo(
        f"{output}: types of {adata.n_obs - unassigned:,} of {adata.n_obs:,} cells, the others Unassigned"
    )


def genes(
    names: Annotated[list[str], typer.Argument(help="Symbols or Ensembl IDs.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Neighbours of each.")] = 10,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Name or checkpoint folder; default brain-mini."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--map", help="Also draw the brain's marker genes (.png, .pdf).")
    ] = None,
) -> None:
    """Show the genes whose learned embeddings are nearest to those of some genes."""
    from ..embedding import gene_neighbors, marker_map, plot_marker_map
    from ..utils.atomic import atomic_path

    typer.echo(gene_neighbors(names, model=model, n=n).round(3).to_string(index=False))
    if picture is not None:
        table = marker_map(model=model)
        with atomic_path(picture) as path:
            plot_marker_map(table).savefig(path, dpi=150, bbox_inches="tight")
        own, chance = table["own_type"].mean(), table.attrs["expected"]
        typer.echo(
            f"{picture}: the nearest other marker is of the same type for {own:.0%} of {len(table)} markers (chance {chance:.0%})"
        )


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(annotate)
    app.command()(genes)
