"""Commands about differential expression: ``scmamba deg`` and ``scmamba robustness``."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..utils.errors import ScMambaError

if TYPE_CHECKING:
    import pandas as pd

Input = Annotated[
    Path, typer.Argument(help="An .h5ad file: raw counts or log values, cells x genes.")
]
GroupBy = Annotated[str, typer.Option("--groupby", help="Column of obs that holds the groups.")]


def _stop(error: Exception) -> None:
    typer.secho(f"Error: {error}", fg="red", err=True)
    raise typer.Exit(1)


def _read(path: Path) -> Any:
    import anndata as ad

    if not path.is_file():
        raise ScMambaError(f"There is no file {path}.")
    try:
        return ad.read_h5ad(path)
    except OSError as error:
        raise ScMambaError(f"{path} is no .h5ad file: {error}") from error


def _values(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def deg(
    data: Input,
    groupby: GroupBy,
    group1: Annotated[str, typer.Option(help="Value(s) of the column, comma-separated.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .csv file to write.")],
    group2: Annotated[
        str | None, typer.Option(help="What it is compared with; all other cells if not given.")
    ] = None,
    test: Annotated[
        str, typer.Option(help="MAST, wilcox, or pseudobulk (needs --donor).")
    ] = "MAST",
    donor: Annotated[
        str | None, typer.Option(help="Column of obs that names the donors (pseudobulk).")
    ] = None,
    latent: Annotated[
        str | None, typer.Option(help="Columns of obs to adjust for, comma-separated.")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Layer to test, for example scmamba; X if not given.")
    ] = None,
    seurat: Annotated[str, typer.Option(help="Filters and fold change of Seurat 5 or 4.")] = "5",
    min_pct: Annotated[float | None, typer.Option(help="Least share of expressing cells.")] = None,
    logfc_threshold: Annotated[float | None, typer.Option(help="Least log2 fold change.")] = None,
    only_pos: Annotated[bool, typer.Option(help="Only genes higher in group 1.")] = False,
) -> None:
    """Genes that differ between two groups, as Seurat's FindMarkers with MAST finds them."""
    from ..deg import find_markers, pseudobulk

    try:
        adata = _read(data)
        first, second = _values(group1) or [], _values(group2)
        if test == "pseudobulk":
            if donor is None:
                raise ScMambaError(
                    "The pseudobulk test counts donors: name their column with --donor."
                )
            table = pseudobulk(
                adata, groupby, donor, first, second, layer=layer, covariates=_values(latent)
            )
        else:
            table = find_markers(
                adata,
                groupby,
                first,
                second,
                latent_vars=_values(latent),
                layer=layer,
                min_pct=min_pct,
                test=test,  # type: ignore[arg-type]
                seurat=seurat,  # type: ignore[arg-type]  # checked there, with a sentence
                logfc_threshold=logfc_threshold,
                only_pos=only_pos,
            )
        _write(table, output)
    except ScMambaError as error:
        _stop(error)
    significant = int((table["p_val_adj"] < 0.05).sum())
    typer.echo(f"{output}: {len(table):,} genes tested, {significant:,} with adjusted p < 0.05")


def _write(table: pd.DataFrame, output: Path) -> None:
    from ..utils.atomic import atomic_path

    with atomic_path(output) as path:
        table.to_csv(path)


def robustness(
    data: Input,
    groupby: GroupBy,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and figures.")],
    donor: Annotated[str | None, typer.Option(help="Column of obs that names the donors.")] = None,
    cell_type: Annotated[
        str | None, typer.Option(help="Column of obs that holds the cell types.")
    ] = None,
    group1: Annotated[str | None, typer.Option(help="The condition of interest.")] = None,
    group2: Annotated[str | None, typer.Option(help="What it is compared with.")] = None,
    layers: Annotated[
        str, typer.Option(help="Layers to compare, comma-separated; the first is the reference.")
    ] = "counts,scmamba",
    ratios: Annotated[
        str, typer.Option(help="Shares of the cells, comma-separated.")
    ] = "0.1,0.2,0.35,0.5,0.75,0.9",
    permutations: Annotated[int, typer.Option(help="Subsamples per share.")] = 100,
    donors: Annotated[
        str, typer.Option(help="Donors per group, for example 3v3; none for no donor runs.")
    ] = "3v3",
    null_permutations: Annotated[int, typer.Option(help="Runs of each null; 0 for none.")] = 20,
    seurat: Annotated[str, typer.Option(help="Filters and fold change of Seurat 5 or 4.")] = "5",
    adjust: Annotated[str, typer.Option(help="bonferroni or bh.")] = "bonferroni",
    seed: Annotated[int, typer.Option(help="The same seed gives the same subsamples.")] = 0,
    jobs: Annotated[int, typer.Option(help="Worker processes.")] = 1,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of finished work, to go on after a stop.")
    ] = None,
) -> None:
    """Do the same DEGs come back from fewer cells or other donors, and how many are false? (Fig. 7)."""
    from ..deg import robustness as analyse

    try:
        adata = _read(data)
        try:
            shares = [float(x) for x in _values(ratios) or []]
        except ValueError as error:
            raise ScMambaError(
                f"--ratios {ratios!r} cannot be read: write numbers, as 0.2,0.5."
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the result prints its warnings itself
            result = analyse(
                adata,
                groupby,
                donor,
                cell_type,
                group1=group1,
                group2=group2,
                layers=_values(layers) or [],
                ratios=shares,
                permutations=permutations,
                donors=None if donors == "none" else donors,
                null_permutations=null_permutations,
                seurat=seurat,
                adjust=adjust,
                seed=seed,
                n_jobs=jobs,
                resume=resume,
            )
        result.save(output)
    except ScMambaError as error:
        _stop(error)
    typer.echo(repr(result))
    typer.echo(f"{output}: tables and figures")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(deg)
    app.command()(robustness)
