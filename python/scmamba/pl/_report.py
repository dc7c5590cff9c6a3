"""One HTML file about the results in an object; everything it shows is inside the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .._version import __version__
from ..utils.atomic import atomic_path
from ..utils.errors import DataError
from ._cells import annotation, doublets
from ._common import as_types, category_colors, coordinates, make_axes, need_numbers, scatter

if TYPE_CHECKING:
    from anndata import AnnData

_CITATION = (
    "Oh G, Choi B, Jin S, Jung I, Ye JC. scMamba: A Pre-Trained Model for Single-Nucleus RNA Sequencing Analysis in "
    "Neurodegenerative Disorders. arXiv:2502.19429 (2025)."
)
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.6rem}h2{font-size:1.2rem;border-bottom:1px solid #ddd;padding-bottom:.2rem;margin-top:2rem}
table{border-collapse:collapse;margin:.6rem 0}td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top}
th{font-weight:600}img{max-width:100%}.note{background:#fff6df;padding:.4rem .8rem}"""
#: Below this share of cells with a type, or above this share of doublets or of cells of low depth, a reader is warned.
_FEW_TYPED, _MANY_DOUBLETS, _MANY_SHALLOW = 0.7, 0.2, 0.1


def write_report(
    adata: AnnData, path: str | PathLike[str], *, title: str = "scMamba results"
) -> list[str]:
    """Write one self-contained HTML page about the results in an object, to be sent to its owner.

    Parameters
    ----------
    adata
        An object that scMamba has written results into.
    path
        The file to write.
    title
        Title of the page.

    Returns
    -------
    Titles of the sections: what was read and done by each verb, cell types, doublets, warnings, how to cite.

    Raises
    ------
    DataError
        The object holds no result of scMamba.

    Examples
    --------
    >>> import tempfile
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(60, n_genes=500, seed=0)
    >>> adata.uns["scmamba"] = {"embed": {"version": "0.2.0", "params": {}, "summary": {"values": "counts"}}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scmamba.pl.write_report(adata, f"{folder}/report.html")
    ['embed', 'How to cite']
    """
    records = adata.uns.get("scmamba", {})
    if not isinstance(records, Mapping):
        raise DataError(
            f"uns['scmamba'] is {type(records).__name__} and was not made by scMamba; rename it, and call a verb such as scmamba.impute."
        )
    if not records:
        raise DataError(
            "The data hold no result of scMamba (uns['scmamba'] is empty); call a verb such as scmamba.impute first."
        )
    sections = [
        *((verb, _record(record)) for verb, record in records.items()),
        *_types(adata),
        *_doublets(adata),
        *_warnings(adata),
        ("How to cite", f"<p>{escape(_CITATION)} Software: scMamba {__version__}.</p>"),
    ]
    body = "".join(f"<h2>{escape(name)}</h2>{content}" for name, content in sections)
    page = (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{_STYLE}</style><h1>{escape(title)}</h1>"
        f"<p>{adata.n_obs:,} cells, {adata.n_vars:,} genes.</p>{body}</html>"
    )
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return [name for name, _ in sections]


def _record(record: Any) -> str:
    """Provenance of one verb as a table."""
    if not isinstance(record, Mapping):
        return f"<p>{escape(str(record))}</p>"
    return _table(list(_flat(record)))


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            text = ", ".join(map(str, np.ravel(value)[:20])) if np.ndim(value) else str(value)
            yield f"{prefix}{name}", text


def _table(rows: list[tuple[str, str]], head: tuple[str, ...] = ()) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{lines}</table>"


def _picture(figure: Any, text: str) -> str:
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)  # or a notebook would show it a second time
    data = base64.b64encode(file.getvalue()).decode()
    return f"<img alt='{escape(text)}' src='data:image/png;base64,{data}'>"


def _types(adata: AnnData) -> Iterator[tuple[str, str]]:
    """Cells of each type, and the map if there is one."""
    if "scmamba_type" not in adata.obs:
        return
    types = as_types(adata.obs["scmamba_type"])
    counts = pd.Series(types).value_counts()
    rows = [(name, f"{n:,} ({n / adata.n_obs:.1%})") for name, n in counts.items() if n]
    content = _table(rows, ("cell type", "cells"))
    drawn = "X_umap" in adata.obsm and np.isfinite(coordinates(adata, "X_umap")).any()
    if drawn and "scmamba_probability" in adata.obs:
        content += _picture(annotation(adata)[0].figure, "map of the cells by type and probability")
    elif drawn:
        (axis,) = make_axes(1, None)
        colors = category_colors(adata, "scmamba_type", [str(c) for c in types.categories])
        scatter(axis, coordinates(adata, "X_umap"), [colors[str(t)] for t in types], "")
        content += _picture(axis.figure, "map of the cells by type")
    yield "Cell types", content


def _doublets(adata: AnnData) -> Iterator[tuple[str, str]]:
    if {"scmamba_doublet", "scmamba_doublet_score"} <= set(adata.obs):
        yield "Doublets", _picture(doublets(adata).figure, "histogram of the doublet scores")


def _share(adata: AnnData, column: str, verb: str) -> float:
    """Share of the cells for which a column is true."""
    return float((need_numbers(adata, column, verb) > 0).mean())


def _warnings(adata: AnnData) -> Iterator[tuple[str, str]]:
    """What a reader should doubt."""
    obs, found = adata.obs, []
    if "scmamba_type" in obs:
        typed = float((as_types(obs["scmamba_type"]) != "Unassigned").mean())
        if typed < _FEW_TYPED:
            found.append(
                f"Only {typed:.0%} of the cells received a type; the reference may lack types of these data."
            )
    if (
        "scmamba_doublet" in obs
        and (share := _share(adata, "scmamba_doublet", "find_doublets")) > _MANY_DOUBLETS
    ):
        found.append(f"{share:.0%} of the cells were called doublets; up to 20% is typical.")
    if (
        "scmamba_low_depth" in obs
        and (share := _share(adata, "scmamba_low_depth", "impute")) > _MANY_SHALLOW
    ):
        found.append(
            f"{share:.0%} of the cells have fewer counts than any cell the models were trained on."
        )
    if found:
        yield "Warnings", "".join(f"<p class='note'>{escape(text)}</p>" for text in found)
