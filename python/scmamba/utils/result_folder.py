"""Folders of results: written whole, never over files that scMamba did not write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .atomic import atomic_path, temporary_folder
from .errors import DataError

#: Lists the files of a result folder that scMamba wrote, and that --overwrite may therefore remove.
MANIFEST = ".scmamba-files.json"


def refuse_existing_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Refuse a target that exists; call it before long work.

    Parameters
    ----------
    folder
        Where results are going to be written. An empty folder counts as free.
    overwrite
        Accept a folder; only files that an earlier result left there will be replaced.

    Returns
    -------
    The folder as a path.

    Raises
    ------
    DataError
        The folder holds files and ``overwrite`` is not set, or something that is no folder has its name.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise DataError(f"{path} is a file. Choose the name of a folder for the results.")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise DataError(
            f"{path} exists already and is not empty. Choose another folder, or set overwrite=True (--overwrite) to "
            "replace the files of an earlier result there; other files stay."
        )
    return path


@contextmanager
def result_folder(folder: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder; its files move to ``folder`` when the block succeeds.

    Parameters
    ----------
    folder
        Target. With ``overwrite`` the files of an earlier result, which its manifest lists, are removed; all other
        files stay.
    overwrite
        Accept a folder that holds files.

    Raises
    ------
    DataError
        As :func:`refuse_existing_folder`; or a file that scMamba did not write has the name of a result.
    ScMambaError
        The parent folder does not exist, or the disk is full.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "report"
    >>> with result_folder(target) as path:
    ...     _ = (path / "table.csv").write_text("gene,p")
    >>> (target / "table.csv").read_text()
    'gene,p'
    """
    target = refuse_existing_folder(folder, overwrite)
    if not target.is_dir() or not any(target.iterdir()):
        with atomic_path(target) as path:
            path.mkdir()
            yield path
            _write_manifest(path, _files(path))
        return
    with temporary_folder(target) as holder:
        path = holder / target.name
        path.mkdir()
        yield path
        _replace_files(path, target)


def _replace_files(path: Path, target: Path) -> None:
    """Move the files of ``path`` to ``target`` in place of those of an earlier result."""
    new, old = _files(path), _own_files(target)
    foreign = [name for name in new if (target / name).exists() and name not in old]
    if foreign:
        raise DataError(
            f"{target / foreign[0]} exists already and was not written by scMamba. Move it, or choose another "
            "folder; nothing was replaced."
        )
    for name in old:
        (target / name).unlink(missing_ok=True)
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path / name, target / name)
    _write_manifest(target, new)


def _files(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name != MANIFEST
    )


def _write_manifest(folder: Path, files: list[str]) -> None:
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))


def _own_files(folder: Path) -> set[str]:
    """Files listed in the manifest; names that lead out of the folder are ignored."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    inside = folder.resolve()
    return {
        name
        for name in listed
        if isinstance(name, str) and (inside / name).resolve().is_relative_to(inside)
    }
