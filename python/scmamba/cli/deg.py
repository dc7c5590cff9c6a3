"""Commands of differential expression: ``scmamba find-markers`` and ``scmamba robustness``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..deg.options import MarkerOptions, PseudobulkOptions, RobustnessOptions
from ..utils.deprecation import REMOVED_IN
from ..utils.errors import ScMambaError

if TYPE_CHECKING:
    import pandas as pd

Input = Annotated[
    Path, typer.Argument(help="An .h5ad file: raw counts or log values, cells x genes.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the result of an earlier run.")
]
Covariates = Annotated[
    list[str] | None,
    typer.Option(
        "--covariates",
        "--latent",
        help=f"{PseudobulkOptions.help('covariates')} Repeat the option, or separate by commas.",
    ),
]
_SEVERAL = "Repeat the option for several values that form one group; commas separate values, too."


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


def _values(given: Sequence[str] | str | None, known: Any = ()) -> list[str] | None:
    """Values of a repeatable option; a text that is no ``known`` value is split at its commas."""
    if given is None:
        return None
    whole = set(map(str, known))
    out: list[str] = []
    for text in [given] if isinstance(given, str) else given:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        out += [text.strip()] if text.strip() in whole else parts
    return out


def _present(adata: Any, column: str) -> list[str]:
    """Values of a column of obs; none if there is no such column, which the verb then refuses."""
    return list(adata.obs[column].dropna().astype(str).unique()) if column in adata.obs else []


def _free(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise ScMambaError(
            f"{output} exists already. Choose another name, or pass --overwrite to replace it."
        )


def find_markers(
    data: Input,
    groupby: Annotated[str, typer.Option(help=MarkerOptions.help("groupby"))],
    group1: Annotated[list[str], typer.Option(help=f"{MarkerOptions.help('group1')} {_SEVERAL}")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .csv file to write.")],
    group2: Annotated[
        list[str] | None, typer.Option(help=f"{MarkerOptions.help('group2')} {_SEVERAL}")
    ] = None,
    test: Annotated[
        str,
        typer.Option(
            help=f"{MarkerOptions.help('test')} 'pseudobulk': moderated t-test between donors (needs --donor)."
        ),
    ] = "MAST",
    donor: Annotated[str | None, typer.Option(help=PseudobulkOptions.help("donor_key"))] = None,
    covariates: Covariates = None,
    layer: Annotated[str | None, typer.Option(help=MarkerOptions.help("layer"))] = None,
    seurat: Annotated[str, typer.Option(help=MarkerOptions.help("seurat"))] = "5",
    min_pct: Annotated[float | None, typer.Option(help=MarkerOptions.help("min_pct"))] = None,
    logfc_threshold: Annotated[
        float | None, typer.Option(help=MarkerOptions.help("logfc_threshold"))
    ] = None,
    only_pos: Annotated[
        bool, typer.Option("--only-pos", help=MarkerOptions.help("only_pos"))
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Find genes that differ between two groups of cells, as Seurat's FindMarkers with MAST."""
    from ..deg import find_markers as test_cells
    from ..deg import pseudobulk

    try:
        _free(output, overwrite)
        adata = _read(data)
        known = _present(adata, groupby)
        first, second = _values(group1, known) or [], _values(group2, known)
        adjusted = _values(covariates, adata.obs.columns)
        if test == "pseudobulk":
            if donor is None:
                raise ScMambaError(
                    "--test pseudobulk compares donors: name their column with --donor."
                )
            table = pseudobulk(
                adata, groupby, donor, first, second, layer=layer, covariates=adjusted
            )
        else:
            table = test_cells(
                adata,
                groupby,
                first,
                second,
                covariates=adjusted,
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
    condition: Annotated[
        str,
        typer.Option("--condition", "--groupby", help=RobustnessOptions.help("condition_key")),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and figures.")],
    donor: Annotated[str | None, typer.Option(help=RobustnessOptions.help("donor_key"))] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", "--cell-type", help=RobustnessOptions.help("label_key")),
    ] = None,
    group1: Annotated[str | None, typer.Option(help=RobustnessOptions.help("group1"))] = None,
    group2: Annotated[str | None, typer.Option(help=RobustnessOptions.help("group2"))] = None,
    layers: Annotated[
        str, typer.Option(help=f"{RobustnessOptions.help('layers')} Separated by commas.")
    ] = "counts,scmamba",
    ratios: Annotated[
        str, typer.Option(help=f"{RobustnessOptions.help('ratios')} Separated by commas.")
    ] = "0.1,0.2,0.35,0.5,0.75,0.9",
    permutations: Annotated[int, typer.Option(help=RobustnessOptions.help("permutations"))] = 100,
    donors: Annotated[
        str, typer.Option(help="Donors per group of the combinations, such as 3v3; none for none.")
    ] = "3v3",
    null_permutations: Annotated[
        int, typer.Option(help=RobustnessOptions.help("null_permutations"))
    ] = 20,
    seurat: Annotated[str, typer.Option(help=RobustnessOptions.help("seurat"))] = "5",
    adjust: Annotated[str, typer.Option(help=RobustnessOptions.help("adjust"))] = "bonferroni",
    seed: Annotated[int, typer.Option(help=RobustnessOptions.help("seed"))] = 0,
    jobs: Annotated[
        int, typer.Option("--n-jobs", "--jobs", help=RobustnessOptions.help("n_jobs"))
    ] = 1,
    resume: Annotated[Path | None, typer.Option(help=RobustnessOptions.help("resume"))] = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how reproducible DEGs are across subsamples and donors, and how many are false (Fig. 7)."""
    from ..deg import robustness as analyze
    from ..utils.result_folder import refuse_existing_folder

    try:
        refuse_existing_folder(output, overwrite)
        adata = _read(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the result prints its warnings itself
            result = analyze(
                adata,
                condition,
                donor,
                labels,
                group1=group1,
                group2=group2,
                layers=_values(layers) or [],
                ratios=_numbers(ratios),
                permutations=permutations,
                donors=None if donors == "none" else donors,
                null_permutations=null_permutations,
                seurat=seurat,
                adjust=adjust,
                seed=seed,
                n_jobs=jobs,
                resume=resume,
            )
        result.save(output, overwrite=overwrite)
    except ScMambaError as error:
        _stop(error)
    typer.echo(repr(result))
    typer.echo(f"{output}: tables and figures")


def _numbers(ratios: str) -> list[float]:
    try:
        return [float(x) for x in _values(ratios) or []]
    except ValueError as error:
        raise ScMambaError(
            f"--ratios {ratios!r} cannot be read: write numbers separated by commas, as 0.2,0.5."
        ) from error


def _warn_old_name() -> None:
    typer.secho(
        f"'scmamba deg' was renamed to 'scmamba find-markers'; the old name stops working in scMamba {REMOVED_IN}.",
        fg="yellow",
        err=True,
    )


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    import functools

    @functools.wraps(find_markers)
    def old_name(*args: Any, **kwargs: Any) -> None:
        _warn_old_name()
        find_markers(*args, **kwargs)

    app.command("find-markers")(find_markers)
    app.command("deg", hidden=True)(old_name)
    app.command()(robustness)
