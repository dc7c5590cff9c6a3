"""``scmamba evaluate``: accuracy of results where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import refuse_existing_outputs

if TYPE_CHECKING:
    from ..evaluation.annotation_report import AnnotationReport
    from ..evaluation.reports import Report

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Folder for report.md, the tables and the pictures."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the files of an earlier report in the folder; other files stay.",
    ),
]

app = typer.Typer(
    no_args_is_help=True, help="Compare results with known types, doublets or values."
)


@app.command("annotation")
def annotation(
    data: Annotated[
        Path, typer.Argument(help="An .h5ad file with known types and calls in its obs.")
    ],
    truth: Annotated[str, typer.Option(help="Column of known types.")],
    called: Annotated[
        list[str] | None,
        typer.Option(help="Column of calls; repeat to compare several. Default scmamba_type."),
    ] = None,
    confidence: Annotated[
        str | None,
        typer.Option(
            help="Column of probabilities of the first calls; default scmamba_probability."
        ),
    ] = None,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Score cell types: F1 macro, micro and weighted, per type, confusion, and accuracy against coverage."""
    from ..data.h5ad_files import open_backed
    from ..evaluation.of_object import annotation_of

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    table = open_backed(data).obs
    report = annotation_of(table, truth, called, confidence)
    _print_report(report, output, f"{table[truth].notna().sum():,} cells", overwrite)


@app.command("doublets")
def doublets(
    data: Annotated[
        Path, typer.Argument(help="An .h5ad file with the truth and scores in its obs.")
    ],
    truth: Annotated[
        str, typer.Option(help="Column that is true (or 'doublet') for droplets with two cells.")
    ],
    score: Annotated[
        list[str] | None,
        typer.Option(help="Column of scores; repeat for several. Default scmamba_doublet_score."),
    ] = None,
    called: Annotated[
        str | None,
        typer.Option(help="Column of calls of the first score; by default as many as are true."),
    ] = None,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Score doublets: precision, recall, TNR, F1, AUROC, AUPRC, and at fixed identification rates."""
    from ..data.h5ad_files import open_backed
    from ..evaluation.of_object import doublets_of

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    table = open_backed(data).obs
    report = doublets_of(table, truth, score, called)
    _print_report(report, output, f"{table[truth].notna().sum():,} droplets", overwrite)


@app.command("imputation")
def imputation(
    data: Annotated[
        Path,
        typer.Argument(
            help="An .h5ad file of raw counts, of donors that were not used for training the models."
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A model; repeat for several. Default brain-mini."),
    ] = None,
    predictor: Annotated[
        list[str] | None, typer.Option(help="Simple predictor beside it; default: all installed.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer to read; X if not given.")] = None,
    min_total: Annotated[float, typer.Option(help="Minimum total counts of a cell.")] = 2000,
    cells: Annotated[
        int | None, typer.Option(help="Number of cells, drawn at random; all if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same result.")] = 0,
    output: Output = None,
    overwrite: Overwrite = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")] = False,
) -> None:
    """Mask every counted value once, predict it, and compare the predictions with simple predictors."""
    from ..data.h5ad_files import open_backed
    from ..evaluation.of_object import imputation_of

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    report = imputation_of(
        open_backed(data),
        model,
        predictor,
        layer=layer,
        min_total=min_total,
        cells=cells,
        seed=seed,
        verbose=not quiet,
    )
    _print_report(report, output, f"{report.summary.attrs['cells']:,} cells", overwrite)


@app.command("clusters")
def clusters(
    data: Annotated[
        Path,
        typer.Argument(help="An .h5ad file of raw counts with known types, and layers to compare."),
    ],
    truth: Annotated[str, typer.Option(help="Column of known types.")],
    donor: Annotated[str | None, typer.Option(help="Column of donors.")] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Layer of log values to compare; repeat for several. Default scmamba."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed; the same seed gives the same result.")] = 0,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Cluster the counts and imputed layers in the same way: NMI, ARI and silhouette by type, and by donor."""
    from ..data.h5ad_files import open_backed
    from ..evaluation.of_object import clusters_of

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    adata = open_backed(data)
    report = clusters_of(adata, truth, layer, donor, seed=seed)
    _print_report(report, output, f"{adata.obs[truth].notna().sum():,} cells", overwrite)


def _print_report(
    report: Report | AnnotationReport, output: Path | None, what: str, overwrite: bool
) -> None:
    from ..utils.result_folder import result_folder

    typer.echo(report.summary.round(4).to_string())
    if output is not None:
        with result_folder(output, overwrite) as folder:
            report.write(folder)
        typer.echo(f"{output}: report.md, tables and pictures of {what}")


def register(main: typer.Typer) -> None:
    """Add the commands of this module to ``main``."""
    main.add_typer(app, name="evaluate")
