"""How a command ends when something is wrong: one sentence on stderr and exit status 1."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ..utils.atomic import no_room
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
            if error.__cause__ is not None and no_room(error.__cause__, Path("output")):
                # HDF5 tries to write what is left when its objects are freed, and Python prints each failure.
                sys.unraisablehook = _ignore
            raise typer.Exit(1) from error
        except OSError as error:
            if not no_room(error, Path("output")):
                raise
            typer.secho(
                f"Error: The output could not be written: {error.strerror or error}.",
                fg="red",
                err=True,
            )
            _drop_output()
            raise typer.Exit(1) from error


def _ignore(_: Any) -> None:
    """Say nothing."""


def _drop_output() -> None:
    """Send what is still buffered for stdout nowhere; Python would try to write it once more when it ends."""
    with contextlib.suppress(OSError, ValueError):  # stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
