"""``scmamba evaluate``: how good answers are where the truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._errors import ScMambaError

app = typer.Typer(no_args_is_help=True, help="Compare answers with what is known.")


@app.command("annotation")
def annotation(
    data: Annotated[Path, typer.Argument(help="An .h5ad file with known types and calls in its obs.")],
    truth: Annotated[str, typer.Option(help="Column of known types.")],
    called: Annotated[list[str] | None, typer.Option(help="Column of calls; repeat to compare several. Default scmamba_type.")] = None,
    confidence: Annotated[str | None, typer.Option(help="Column of probabilities of the first calls; default scmamba_probability.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for report.md, the tables and the pictures.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
) -> None:
    """Score cell types: F1 macro, micro and weighted, per type, confusion, and accuracy against coverage."""
    from ._files import atomic_path
    from .data.files import open_backed
    from .evaluation.annotation_report import annotation_report

    if output is not None and output.exists() and not overwrite:
        raise ScMambaError(f"{output} exists already. Choose another name, or pass --overwrite.")
    table = open_backed(data).obs
    columns = called or ["scmamba_type"]
    sure = confidence or ("scmamba_probability" if columns[0] == "scmamba_type" and "scmamba_probability" in table else None)
    for column in [truth, *columns] + ([sure] if sure else []):
        if column not in table:
            raise ScMambaError(f"The data have no column '{column}'; they have {', '.join(map(str, table.columns)) or 'none'}.")
    kept = table[table[truth].notna().to_numpy()]
    if not len(kept):
        raise ScMambaError(f"The column '{truth}' holds no type.")
    calls = {column: kept[column].astype(object).fillna("Unassigned").astype(str).to_numpy() for column in columns}
    report = annotation_report(kept[truth].astype(str).to_numpy(), calls, None if sure is None else kept[sure].to_numpy(dtype=float))
    typer.echo(report.summary.round(4).to_string())
    if output is not None:
        with atomic_path(output) as folder:
            report.write(folder)
        typer.echo(f"{output}: report.md, tables and pictures of {len(kept):,} cells")


def register(main: typer.Typer) -> None:
    """Add the commands of this module to ``main``."""
    main.add_typer(app, name="evaluate")
