"""Results of the steps in a folder: each is made once, and a stopped run continues after the last one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.h5ad_files import write_h5ad
from ..utils.atomic import atomic_path, check_target
from ..utils.errors import DataError, ScMambaError
from ..utils.progress import say
from .options import PrepareOptions

if TYPE_CHECKING:
    from anndata import AnnData

#: Files of the steps and of the result, in a folder beside ``settings.json``.
STEP_FILES = (
    "1_filtered.h5ad",
    "2_scrublet.npz",
    "3_pca.npz",
    "4_harmony.npz",
    "5_graph.npz",
    "prepared.h5ad",
)


def run_identity(
    studies: list[AnnData], options: PrepareOptions, panels: Mapping[str, Any]
) -> dict[str, Any]:
    """What makes two runs the same one."""
    digest = hashlib.sha256()
    for study in studies:
        for part in (study.X.data, study.X.indices, study.X.indptr):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(
            "\n".join(
                [*study.obs_names, *study.obs["donor"].astype(str), *study.var_names]
            ).encode()
        )
    return {
        "cells": digest.hexdigest(),
        "options": {k: v for k, v in asdict(options).items() if k != "donor_key"},
        "donor": options.donor_key,
        "markers": {k: list(v) for k, v in panels.items()},
    }


def refuse_step_folder(folder: Path) -> None:
    """Refuse a folder in which steps cannot be kept, or whose files they would replace; called before any work.

    Parameters
    ----------
    folder
        Where the steps are going to be kept; made if absent.

    Raises
    ------
    DataError
        It is a file, or holds a file with the name of a step that :func:`scmamba.prepare` did not write.
    ScMambaError
        It cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file. Choose the name of a folder for the steps.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScMambaError(f"{folder} cannot be made: {error.strerror}.") from error
    note = folder / "settings.json"
    check_target(note)
    kept = _settings(note)
    foreign = [name for name in (note.name, *STEP_FILES) if (folder / name).exists()]
    if foreign and kept is None:
        raise DataError(
            f"{folder / foreign[0]} was not written by scmamba.prepare() and would be replaced. Choose another folder."
        )


def _settings(note: Path) -> dict[str, Any] | None:
    """The settings of an earlier run; ``None`` if there are none, or the file is another program's."""
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and {"cells", "options", "markers"} <= set(kept) else None


class StepFolder:
    """Results in a folder, each made once."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], overwrite: bool, verbose: bool
    ) -> None:
        refuse_step_folder(folder)
        self.folder, self.verbose, self.found = folder, verbose, {}  # type: Path, bool, dict[str, dict[str, np.ndarray]]
        note = folder / "settings.json"
        text = json.dumps(identity, indent=1, sort_keys=True)
        kept = _settings(note)
        if kept is not None and note.read_text(encoding="utf-8") != text and not overwrite:
            other = ", ".join(key for key in identity if kept.get(key) != identity[key])
            raise ScMambaError(
                f"{folder} holds the steps of another run ({other} differ). Choose another folder, or overwrite=True."
            )
        if overwrite and kept is not None:
            for name in STEP_FILES:
                (folder / name).unlink(missing_ok=True)
        with atomic_path(note) as path:
            path.write_text(text, encoding="utf-8")

    def adata(self, name: str, make: Callable[[], AnnData]) -> AnnData:
        """The cells of a step."""
        import anndata

        path = self.folder / f"{name}.h5ad"
        if path.exists():
            say(f"{name}: taken from {self.folder.name}", self.verbose)
            return anndata.read_h5ad(path)
        say(name, self.verbose)
        made = make()
        write_h5ad(made, path, verbose=self.verbose)
        return made

    def arrays(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> None:
        """The numbers of a step, into ``found``."""
        path = self.folder / f"{name}.npz"
        if path.exists():
            say(f"{name}: taken from {self.folder.name}", self.verbose)
            with np.load(path, allow_pickle=False) as file:
                self.found[name] = dict(file)
            return
        say(name, self.verbose)
        self.found[name] = make()
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **self.found[name])  # type: ignore[arg-type]
