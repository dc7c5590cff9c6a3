"""``scmamba report``: one HTML file about the results in an .h5ad file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import refuse_existing_outputs
from .files import read_cells_file
from .options import Overwrite


def report(
    data: Annotated[Path, typer.Argument(help="An .h5ad file that scMamba has written.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to write.")],
    title: Annotated[
        str | None, typer.Option(help="Title of the page; the file's name if not given.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write one self-contained HTML page about the results in a file: what was read, done and found, and how to cite."""
    from ..pl import write_report

    refuse_existing_outputs(output, overwrite=overwrite)
    sections = write_report(read_cells_file(data), output, title=title or data.name)
    typer.echo(f"{output}: {', '.join(sections)}")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(report)
