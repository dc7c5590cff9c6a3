"""Reports of the robustness analysis: tables and figures in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.result_folder import result_folder
from .figures import all_figures

if TYPE_CHECKING:
    from .result import RobustnessResult


def write_report(result: RobustnessResult, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write the tables as CSV, settings, notes and warnings as JSON, and the figures as PNG.

    Parameters
    ----------
    result
        What :func:`scmamba.deg.robustness` returned.
    folder
        Folder to write; its parent exists.
    overwrite
        Replace the files of an earlier result in that folder.

    Returns
    -------
    The folder.

    Raises
    ------
    DataError
        The folder holds files and ``overwrite`` is not set.
    """
    target = Path(folder)
    with result_folder(target, overwrite) as path:
        for name in ("runs", "nulls", "full"):
            getattr(result, name).to_csv(path / f"{name}.csv", index=False)
        result.summary().to_csv(path / "summary.csv", index=False)
        result.tests().to_csv(path / "tests.csv", index=False)
        result.false_positives().to_csv(path / "false_positives.csv", index=False)
        card = {
            "settings": dict(result.settings),
            "notes": list(result.notes),
            "warnings": list(result.warnings),
        }
        (path / "settings.json").write_text(json.dumps(card, indent=1))
        for name, figure in all_figures(result).items():
            figure.savefig(path / f"{name}.png", dpi=150, bbox_inches="tight")
    return target
