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
from ..utils.atomic import atomic_path
from ..utils.errors import ScMambaError
from ..utils.progress import say
from .options import PrepareOptions

if TYPE_CHECKING:
    from anndata import AnnData


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


class StepFolder:
    """Results in a folder, each made once."""

    def __init__(
        self, folder: Path, identity: dict[str, Any], overwrite: bool, verbose: bool
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.verbose, self.found = folder, verbose, {}  # type: Path, bool, dict[str, dict[str, np.ndarray]]
        note = folder / "settings.json"
        text = json.dumps(identity, indent=1, sort_keys=True)
        if note.exists() and note.read_text(encoding="utf-8") != text and not overwrite:
            old = json.loads(note.read_text(encoding="utf-8"))
            other = ", ".join(key for key in identity if old.get(key) != identity[key])
            raise ScMambaError(
                f"{folder} holds the steps of another run ({other} differ). Choose another folder, or overwrite=True."
            )
        if overwrite or not note.exists():
            for old_step in [*folder.glob("[1-9]_*.npz"), *folder.glob("[1-9]_*.h5ad")]:
                old_step.unlink()
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
