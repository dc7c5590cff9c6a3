"""Commands of differential expression: ``find-markers``, ``compare`` and ``robustness``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..deg.options import CompareOptions, MarkerOptions, PseudobulkOptions, RobustnessOptions
from ..utils.errors import OptionError
from .errors import refuse_existing_outputs
from .files import read_cells_file
from .options import Overwrite, options_of, renamed_command

if TYPE_CHECKING:
    import pandas as pd

Input = Annotated[
    Path, typer.Argument(help="An .h5ad file: raw counts or log values, cells x genes.")
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


def _values(given: Sequence[str] | None, known: Any = ()) -> list[str] | None:
    """Values of a repeatable option; a text that is no ``known`` value is split at its commas."""
    if given is None:
        return None
    whole = set(map(str, known))
    out: list[str] = []
    for text in given:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        out += [text] if text in whole else [text.strip()] if text.strip() in whole else parts
    return out


def _present(adata: Any, column: str) -> list[str]:
    """Values of a column of obs; none if there is no such column, which the verb then refuses."""
    return list(adata.obs[column].dropna().astype(str).unique()) if column in adata.obs else []


@options_of(
    MarkerOptions,
    only=("layer", "seurat", "min_pct", "logfc_threshold", "only_pos"),
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
            help=f"{MarkerOptions.help('test')} 'pseudobulk': moderated t-test between donors (needs --donor-key)."
        ),
    ] = "MAST",
    donor: Annotated[
        str | None,
        typer.Option("--donor-key", "--donor", help=PseudobulkOptions.help("donor_key")),
    ] = None,
    covariates: Covariates = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Find genes that differ between two groups of cells, as Seurat's FindMarkers with MAST."""
    from ..deg import find_markers as test_cells
    from ..deg import pseudobulk

    refuse_existing_outputs(output, overwrite=overwrite)
    adata = read_cells_file(data)
    known = _present(adata, groupby)
    first, second = _values(group1, known) or [], _values(group2, known)
    adjusted = _values(covariates, adata.obs.columns)
    if test == "pseudobulk":
        if donor is None:
            raise OptionError(
                "--test pseudobulk compares donors: name their column with --donor-key."
            )
        layer = options["layer"]
        table = pseudobulk(adata, groupby, donor, first, second, layer=layer, covariates=adjusted)
    else:
        checked: Any = test  # refused there with the list of tests
        table = test_cells(
            adata, groupby, first, second, covariates=adjusted, test=checked, **options
        )
    _write(table, output)
    typer.echo(table.attrs["values"])
    significant = int((table["p_val_adj"] < 0.05).sum())
    typer.echo(f"{output}: {len(table):,} genes tested, {significant:,} with adjusted p < 0.05")


def _write(table: pd.DataFrame, output: Path) -> None:
    from ..utils.atomic import atomic_path
    from ..utils.tables import write_csv

    with atomic_path(output) as path:
        write_csv(table, path)


@options_of(
    RobustnessOptions,
    skip=("condition_key",),
    flags={
        "donor_key": ("--donor-key", "--donor"),
        "label_key": ("--label-key", "--labels", "--cell-type"),
        "n_jobs": ("--n-jobs", "--jobs"),
    },
)
def robustness(
    data: Input,
    condition: Annotated[
        str,
        typer.Option(
            "--condition-key",
            "--condition",
            "--groupby",
            help=RobustnessOptions.help("condition_key"),
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and figures.")],
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Measure how reproducible DEGs are across subsamples and donors, and how many are false (Fig. 7)."""
    from ..deg import robustness as analyze

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    adata = read_cells_file(data)
    donor, labels = options.pop("donor_key"), options.pop("label_key")
    if options["donors"] == "none":
        options["donors"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the result prints its warnings itself
        result = analyze(adata, condition, donor, labels, **options)
    result.save(output, overwrite=overwrite)
    typer.echo(repr(result))
    typer.echo(f"{output}: tables and figures")


@options_of(
    CompareOptions,
    skip=("condition_key", "donor_key", "covariates", "cell_types"),
    flags={"label_key": ("--label-key", "--labels")},
)
def compare(
    data: Input,
    condition: Annotated[
        str,
        typer.Option("--condition-key", "--condition", help=CompareOptions.help("condition_key")),
    ],
    donor: Annotated[
        str, typer.Option("--donor-key", "--donor", help=CompareOptions.help("donor_key"))
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tables and figures.")],
    covariates: Covariates = None,
    cell_types: Annotated[
        list[str] | None,
        typer.Option(help=f"{CompareOptions.help('cell_types')} Repeat the option."),
    ] = None,
    overwrite: Overwrite = False,
    **options: Any,
) -> None:
    """Compare two conditions in every cell type, with donors as the unit: genes, power, figures."""
    from ..deg import compare as compare_donors

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    adata = read_cells_file(data)
    labels = options.pop("label_key")
    result = compare_donors(
        adata,
        condition,
        donor,
        labels,
        covariates=_values(covariates, adata.obs.columns),
        cell_types=_values(cell_types, _present(adata, labels) if labels else ()),
        **options,
    )
    result.save(output, overwrite=overwrite)
    typer.echo(repr(result))
    typer.echo(f"{output}: tables and figures")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(find_markers)
    app.command()(compare)
    app.command()(robustness)
    renamed_command(app, "deg", "find-markers", find_markers)
