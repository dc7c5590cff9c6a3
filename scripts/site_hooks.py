"""Additions of the site to docs/: figures of the benchmarks, and the executed tutorials with their pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Notebooks that scripts/tutorials.py has executed.
TUTORIALS = ROOT / ".cache" / "tutorials"

_pages: dict[str, str] = {}


def on_files(files: Files, config: Any) -> Files:
    """Add the figures that pages show from ``benchmarks/results``, and the tutorials' notebooks, pictures and data."""
    for picture in sorted(RESULTS.glob("*.png")):
        source = f"results/{picture.name}"
        files.append(File.generated(config, source, abs_src_path=str(picture)))
    for data in sorted(TUTORIALS.glob("*.h5ad")):
        source = f"tutorials/{data.name}"
        files.append(File.generated(config, source, abs_src_path=str(data)))
    for notebook in sorted(TUTORIALS.glob("*.ipynb")):
        source = f"tutorials/{notebook.name}"
        files.append(File.generated(config, source, abs_src_path=str(notebook)))
        text, pictures = as_markdown(notebook)
        _pages[f"tutorials/{notebook.stem}.md"] = text
        for name, content in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def as_markdown(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """An executed notebook as a page: text, code, output, and the files of its pictures."""
    from nbconvert import MarkdownExporter

    resources = {"output_files_dir": f"{notebook.stem}_files", "unique_key": "output"}
    text, made = MarkdownExporter().from_filename(str(notebook), resources=resources)
    # The theme styles and scrolls tables without a class.
    text = re.sub(r"<style scoped>.*?</style>\n*", "", text, flags=re.S)
    text = text.replace('<table border="1" class="dataframe">', "<table>")
    text = re.sub(r"!\[png\]\(", "![output](", text)
    note = f"*This page was run when the site was built: [the notebook]({notebook.name}).*"
    head, _, rest = text.partition("\n")
    return f"{head}\n\n{note}\n{rest}", made["outputs"]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Show the executed tutorial, and point links to figures of the benchmarks; in the repository these are one folder up."""
    markdown = _pages.get(page.file.src_uri, markdown)
    return markdown.replace("](../benchmarks/results/", "](results/")


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Show the roles of docstrings (``:func:`name```) as code."""
    return re.sub(r":(?:func|class|meth|mod|attr|data|exc):(<code>)~?", r"\1", html)
