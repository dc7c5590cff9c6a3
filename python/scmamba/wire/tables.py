"""Tables as they travel between server and client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Tables:
    """The result of a task that gives tables; values outside the tables are in ``about``."""

    frames: Mapping[str, pd.DataFrame]
    about: Mapping[str, Any] = field(default_factory=dict)


def write_tables(tables: Tables, task: str, folder: Path) -> None:
    """Numbers go as raw doubles, not as text, so that they arrive as they were."""
    import anndata

    from ..utils.h5_output import write_anndata
    from ..wire.scmb import write

    arrays: dict[str, np.ndarray] = {}
    about: dict[str, Any] = {}
    for name, frame in tables.frames.items():
        columns: list[dict[str, Any]] = []
        for column in frame.columns:
            values, place = frame[column], f"{name}/{column}"
            if values.dtype.kind in "iufb":
                arrays[place] = values.to_numpy(
                    dtype=np.int32 if values.dtype.kind == "b" else np.float64
                )
                columns.append(
                    {"name": str(column), "kind": "flag" if values.dtype.kind == "b" else "number"}
                )
            else:
                columns.append(
                    {
                        "name": str(column),
                        "kind": "text",
                        "values": [None if v is None or v != v else str(v) for v in values],
                    }
                )
        named = frame.index.dtype.kind not in "iu"
        about[name] = {
            "n": len(frame),
            "rows": list(map(str, frame.index)) if named else None,
            "columns": columns,
        }
    write(
        folder / "result.scmb", {"task": task, "tables": about, "about": dict(tables.about)}, arrays
    )
    text = {key: json.dumps(value) for key, value in tables.about.items()}
    made = anndata.AnnData(uns={"scmamba": {task: {**tables.frames, **text}}})
    write_anndata(made, folder / "result.h5ad")


def read_tables(path: Path) -> Tables:
    """What :func:`write_result` wrote of tables, from the plain form."""
    import pandas as pd

    from ..wire.scmb import read

    header, arrays = read(path)
    frames = {}
    for name, table in header["tables"].items():
        columns: dict[str, Any] = {}
        for column in table["columns"]:
            values = (
                column["values"] if column["kind"] == "text" else arrays[f"{name}/{column['name']}"]
            )
            columns[column["name"]] = values.astype(bool) if column["kind"] == "flag" else values
        frames[name] = pd.DataFrame(
            columns, index=table["rows"] if table["rows"] is not None else range(table["n"])
        )
    return Tables(frames, header["about"])


def plain_frame(column: Any) -> list[Any]:
    """The column as a list of JSON values."""
    import pandas as pd

    return [None if pd.isna(v) else plain_value(v) for v in column]


def plain_value(value: Any) -> Any:
    """A numpy scalar as Python's own type; anything else unchanged."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, (str, int, float, bool)) else str(value)
