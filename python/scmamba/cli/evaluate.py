"""``scmamba evaluate``: accuracy of results where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..utils.columns import require_column, warn_similar
from ..utils.errors import ScMambaError
from ..utils.layers import layer_names
from .errors import refuse_existing_outputs

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

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
    from ..evaluation.annotation_report import annotation_report

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    table = open_backed(data).obs
    columns = called or ["scmamba_type"]
    sure = confidence or (
        "scmamba_probability"
        if columns[0] == "scmamba_type" and "scmamba_probability" in table
        else None
    )
    for column in [truth, *columns] + ([sure] if sure else []):
        require_column(table, column)
    kept = table[table[truth].notna().to_numpy()]
    if not len(kept):
        raise ScMambaError(f"The column '{truth}' holds no type.")
    for column in columns:
        warn_similar({*kept[truth].astype(str), *kept[column].dropna().astype(str)}, column)
    calls = {
        column: kept[column].astype(object).fillna("Unassigned").astype(str).to_numpy()
        for column in columns
    }
    report = annotation_report(
        kept[truth].astype(str).to_numpy(),
        calls,
        None if sure is None else _probabilities(kept[sure]),
    )
    _print_report(report, output, f"{len(kept):,} cells", overwrite)


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
    import numpy as np
    import pandas as pd

    from ..data.h5ad_files import open_backed
    from ..evaluation.reports import doublet_report

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    table = open_backed(data).obs
    columns = score or ["scmamba_doublet_score"]
    for column in [truth, *columns, *([called] if called else [])]:
        require_column(table, column)
    kept = table[table[truth].notna().to_numpy()]
    scores = {
        name: pd.to_numeric(kept[name], errors="coerce").to_numpy(dtype=float) for name in columns
    }
    if empty := [name for name, values in scores.items() if not np.isfinite(values).any()]:
        raise ScMambaError(f"The column '{empty[0]}' holds no numbers.")
    calls = {columns[0]: _is_doublet(kept[called])} if called else None
    _print_report(
        doublet_report(_is_doublet(kept[truth]), scores, calls),
        output,
        f"{len(kept):,} droplets",
        overwrite,
    )


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
    import numpy as np

    from ..data.h5ad_files import open_backed
    from ..evaluation import nonzero_imputation
    from ..evaluation.reports import imputation_report

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    adata = open_backed(data)
    rows = np.arange(adata.n_obs)
    if cells is not None and cells < adata.n_obs:
        rows = np.sort(np.random.default_rng(seed).choice(adata.n_obs, cells, replace=False))
    models = {Path(name).name: name for name in model or ["brain-mini"]}
    table = nonzero_imputation(
        adata[rows].to_memory(),
        models,
        predictors=predictor or None,
        layer=layer,
        min_total=min_total,
        seed=seed,
        verbose=not quiet,
    )
    _print_report(imputation_report(table), output, f"{table.attrs['cells']:,} cells", overwrite)


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
    from ..deg.values import layer_source
    from ..evaluation.reports import cluster_report

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    adata = open_backed(data)
    layers = layer or ["scmamba"]
    if missing := [name for name in layers if name not in adata.layers]:
        have = ", ".join(layer_names(adata.layers)) or "none"
        raise ScMambaError(
            f"The data have no layer '{missing[0]}'; they have {have}. 'scmamba impute' makes one."
        )
    for column in [truth, *([donor] if donor else [])]:
        require_column(adata.obs, column)
    kept = adata[adata.obs[truth].notna().to_numpy()].to_memory()
    values = {"counts": layer_source(kept).logs(), **{name: kept.layers[name] for name in layers}}
    donors = None if donor is None else kept.obs[donor].astype(str).to_numpy()
    _print_report(
        cluster_report(values, kept.obs[truth].astype(str).to_numpy(), donors, seed=seed),
        output,
        f"{kept.n_obs:,} cells",
        overwrite,
    )


def _probabilities(column: pd.Series) -> np.ndarray:
    """(n,) probabilities; anything else is refused."""
    import numpy as np
    import pandas as pd

    values = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=float)
    if bad := int((~((values >= 0) & (values <= 1))).sum()):
        raise ScMambaError(
            f"The column '{column.name}' holds no probability (a number from 0 to 1) for {bad:,} of {len(values):,} cells. "
            "Name the column with the probabilities of the calls: --confidence."
        )
    return np.asarray(values)


def _is_doublet(column: pd.Series) -> np.ndarray:
    """(n,) bool of truths, numbers or words."""
    import pandas as pd

    from ..data.doublet_simulation import DOUBLET_WORDS, SINGLET_WORDS

    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float) > 0
    words = column.astype(str).str.strip().str.lower()
    known = dict.fromkeys(DOUBLET_WORDS, True) | dict.fromkeys(SINGLET_WORDS, False)
    if is_novel := sorted(set(words) - set(known)):
        raise ScMambaError(
            f"The column '{column.name}' holds '{is_novel[0]}'; it must be true or false, or 'doublet' or 'singlet'."
        )
    return words.map(known).to_numpy(dtype=bool)


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
