"""Run the tutorials of ``docs/tutorials``: pages in Markdown whose blocks of Python are the cells of a notebook.

    python scripts/tutorials.py FOLDER [NAME ...]     executed notebooks, and the files they offer, into FOLDER

Two run at a time. A cell that fails ends the command with its traceback.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "tutorials"
#: Runs first and is not part of the result: pictures at print size on a page, without interaction, and a UMAP that is not compiled
#: again by each notebook.
_BEFORE = """\
import warnings
from scmamba.utils.compiled_code import import_umap
import_umap()
%matplotlib inline
%config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "dpi": 130}
warnings.filterwarnings("ignore", message="(n_jobs value 1 overridden|IProgress not found)")
warnings.filterwarnings("ignore", category=FutureWarning, module="(scanpy|anndata|legacy_api_wrap)")
"""
#: Runs before that in a kernel that has run other tutorials: names, folder and settings as in a new one. (Each filter of warnings
#: that is added makes Python show warnings again that it has shown before.)
_AGAIN = """\
%reset -f
%cd -q {work}
import matplotlib, scmamba
matplotlib.rcdefaults()
scmamba.settings.verbosity = 2
"""


class Kernel:
    """One process for several tutorials, one after another; each starts without the names and settings of the others."""

    def __init__(self) -> None:
        self.manager = AsyncKernelManager(kernel_name="python3")

    def close(self) -> None:
        """End the process."""
        if self.manager.has_kernel:
            run_sync(self.manager.shutdown_kernel)(now=True)


def names() -> list[str]:
    """Names of the tutorials."""
    return sorted(page.stem for page in PAGES.glob("*.md"))


def read(name: str) -> nbformat.NotebookNode:
    """A tutorial as a notebook; blocks of other languages stay text."""
    notebook = jupytext.read(PAGES / f"{name}.md", fmt="md")
    for cell in notebook.cells:
        if cell.cell_type == "code" and (other := re.match(r"%%(\w+)\n", cell.source)):
            cell.cell_type = "markdown"
            cell.source = f"```{other[1].lower()}\n{cell.source[other.end() :]}\n```"
            cell.pop("outputs", None), cell.pop("execution_count", None)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return notebook


def run(name: str, work: Path, kernel: Kernel | None = None) -> nbformat.NotebookNode:
    """Execute a tutorial in the folder ``work``, in a new process unless ``kernel`` is given.

    A cell that fails raises nbclient's ``CellExecutionError``.
    """
    notebook = read(name)
    again = _AGAIN.format(work=work) if kernel and kernel.manager.has_kernel else ""
    first = nbformat.v4.new_code_cell(again + _BEFORE)
    notebook.cells.insert(0, first)
    # Kernels write their connection files and histories there, not into the user's home.
    env = os.environ | {"IPYTHONDIR": str(work / ".ipython"), "PYTHONPATH": str(ROOT / "python")}
    client = NotebookClient(
        notebook,
        km=kernel.manager if kernel else None,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(work)}},
    )
    try:
        client.execute(env=env)
    finally:
        if kernel and client.kc:
            client.kc.stop_channels()
    del notebook.cells[0]
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), start=1):
        cell.execution_count = number
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    return notebook


def write_data(folder: Path) -> None:
    """The files that tutorials read: 300 real blood cells (PBMC 3k, 10x Genomics, CC BY 4.0)."""
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    try:
        from reference_numbers import write_pbmc
    finally:
        sys.path.pop(0)
    write_pbmc(folder)


def _one(name: str, folder: Path) -> float:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        for file in folder.glob("*.h5ad"):
            shutil.copy(file, work)
        notebook = run(name, Path(work))
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return time.monotonic() - started


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tutorials named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", nargs="*", default=names())
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.name) - set(names())):
        parser.error(f"there is no tutorial {', '.join(unknown)}; there are {', '.join(names())}")
    options.folder.mkdir(parents=True, exist_ok=True)
    write_data(options.folder)
    with ThreadPoolExecutor(2) as pool:
        done = {name: pool.submit(_one, name, options.folder) for name in options.name}
        for name, result in done.items():
            print(f"{name}: {result.result():.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
