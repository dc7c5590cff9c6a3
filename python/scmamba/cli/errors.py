"""How a command ends when something is wrong: one sentence on stderr and exit status 1."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from ..utils.atomic import check_target, no_room
from ..utils.errors import ScMambaError
from ..utils.result_folder import refuse_existing_folder

#: Suffixes of formats that no command writes where an .h5ad file is expected.
_OTHER_FORMATS = frozenset(
    (
        ".rds",
        ".rdata",
        ".csv",
        ".tsv",
        ".txt",
        ".xlsx",
        ".loom",
        ".zarr",
        ".gz",
        ".zip",
        ".h5mu",
        ".mtx",
    )
)


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


def refuse_existing_outputs(
    *outputs: Path | None, overwrite: bool, folders: Iterable[Path | None] = ()
) -> None:
    """Refuse targets that cannot be written, or that hold something already, before any work is done.

    Parameters
    ----------
    *outputs
        Files to be written; ``None`` is skipped.
    overwrite
        Replace the files, and in ``folders`` the files of an earlier result.
    folders
        Folders of results to be written; ``None`` is skipped.

    Raises
    ------
    ScMambaError
        Two of them are one path, one exists and ``overwrite`` is not set, is a folder where a file is written (or a file where a
        folder is), or lies in a folder that does not exist or cannot be written.
    """
    chosen = [Path(path) for path in (*outputs, *folders) if path is not None]
    places = [path.resolve() for path in chosen]
    for number, path in enumerate(chosen):
        if places[number] in places[:number]:
            raise ScMambaError(
                f"{path} is the target of two outputs. Choose a different name for each."
            )
    for output in outputs:
        if output is None:
            continue
        if output.is_dir():
            raise ScMambaError(
                f"{output} exists already and is a folder; a file is written here. Choose another name."
            )
        if output.exists() and not overwrite:
            raise ScMambaError(
                f"{output} exists already. Choose another name, or pass --overwrite."
            )
    for folder in folders:
        if folder is not None:
            refuse_existing_folder(folder, overwrite)
    for path in chosen:
        check_target(path)


def require_h5ad_name(output: Path) -> None:
    """Refuse a name that promises another format than the .h5ad file that is written.

    Parameters
    ----------
    output
        The file to be written.

    Raises
    ------
    ScMambaError
        It ends with the suffix of another format.
    """
    suffix = output.suffix.lower()
    if suffix in _OTHER_FORMATS:
        more = (
            f", then convert it with 'scmamba convert {output.stem}.h5ad {output.name}'"
            if suffix == ".rds"
            else ""
        )
        raise ScMambaError(
            f"{output.name} ends with {suffix}, but this command writes an .h5ad file. Name it {output.stem}.h5ad{more}."
        )
