"""The command about cell types: ``scmamba annotate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import refuse_existing_outputs
from .files import need_columns, read_cells_file, read_markers


def annotate(
    data: Annotated[Path, typer.Argument(help="An .h5ad file of counts, cells x genes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .h5ad file to write.")],
    reference: Annotated[
        Path | None, typer.Option(help="An .h5ad file of cells whose types are known.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Its column of types; repeat from coarse to fine for several levels."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A model that classifies, or to fine-tune.")
    ] = None,
    markers: Annotated[
        Path | None,
        typer.Option(
            help="Tab-separated file: type, gene,gene,...; the brain's types if not given."
        ),
    ] = None,
    donor: Annotated[str, typer.Option(help="Column of the reference with donors.")] = "donor",
    layer: Annotated[str | None, typer.Option(help="Layer to read; X if not given.")] = None,
    gene_column: Annotated[
        str | None,
        typer.Option(help="Column of var with gene names; the best one is found if not given."),
    ] = None,
    network: Annotated[
        bool,
        typer.Option(help="Fine-tune the network on the reference; --no-network is much quicker."),
    ] = True,
    error_rate: Annotated[
        float,
        typer.Option(help="Share of wrong calls to accept; what is less certain is Unassigned."),
    ] = 0.05,
    truth: Annotated[
        str | None, typer.Option(help="Column of the data with known types: prints a report.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Also write types, probabilities and alternatives as .csv.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for the pictures.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the GPU if there is one.")
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep what is learnt of the reference for the next query.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Same seed, same result.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although few genes are shared.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output if it exists.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")] = False,
) -> None:
    """Name the cell types of an .h5ad file (obs/scmamba_type, _probability and _alternatives of a copy)."""
    from ..annotation import annotate as name_types
    from ..data.h5ad_files import check_writable, write_h5ad
    from ..utils.atomic import atomic_path

    refuse_existing_outputs(output, table, plots, overwrite=overwrite)
    adata = read_cells_file(data)
    check_writable(adata)
    need_columns(adata.obs, [] if truth is None else [truth])
    known = read_cells_file(reference) if reference is not None else None
    columns = None if not labels else labels[0] if len(labels) == 1 else labels
    found = name_types(
        adata,
        reference=known,
        labels=columns,
        model=model,
        markers=read_markers(markers) if markers else None,
        donor=donor,
        layer=layer,
        gene_column=gene_column,
        network=network,
        error_rate=error_rate,
        device=device,
        cache=cache,
        seed=seed,
        force=force,
        verbose=not quiet,
    )
    found.to_adata(adata)
    write_h5ad(adata, output)
    if table is not None:
        with atomic_path(table) as path:
            found.to_table().to_csv(path)
    known_types = None if truth is None else adata.obs[truth].astype(str).to_numpy()
    if plots is not None:
        with atomic_path(plots) as folder:
            folder.mkdir()
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
