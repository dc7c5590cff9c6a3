"""How a command ends when something is wrong: one sentence on stderr and exit status 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ..utils.errors import ScMambaError


class CommandGroup(TyperGroup):
    """Commands whose :class:`~scmamba.utils.errors.ScMambaError` is printed as one sentence."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Parameters
        ----------
        ctx
            Context of click.

        Raises
        ------
        typer.Exit
            With status 1, after the sentence was printed.
        """
        try:
            return super().invoke(ctx)
        except ScMambaError as error:
            typer.secho(f"Error: {error}", fg="red", err=True)
            raise typer.Exit(1) from error


def refuse_existing_outputs(*outputs: Path | None, overwrite: bool) -> None:
    """Refuse to write where something is already, before any work is done.

    Parameters
    ----------
    *outputs
        Files and folders to be written; ``None`` is skipped.
    overwrite
        Replace them.

    Raises
    ------
    ScMambaError
        One of them exists and ``overwrite`` is not set.
    """
    for output in outputs:
        if output is not None and output.exists() and not overwrite:
            raise ScMambaError(
                f"{output} exists already. Choose another name, or pass --overwrite."
            )
