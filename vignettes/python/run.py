"""Run the Python blocks of a page in order, printing each one's output: ``python run.py page.md [folder]``.

Files the page writes go to ``folder`` (default: a temporary one). Exits with an error at the first block that fails.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path


def blocks(page: str) -> list[str]:
    """The page's ```python blocks."""
    return re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M)


def run(path: Path, folder: Path) -> dict[str, object]:
    """Execute all blocks in one namespace, inside ``folder``, and return the namespace."""
    code = blocks(path.read_text())
    os.chdir(folder)
    space: dict[str, object] = {"__name__": "__page__"}
    for number, block in enumerate(code, start=1):
        print(f"--- block {number} of {len(code)}", flush=True)
        exec(compile(block, f"{path.name}, block {number}", "exec"), space)
    return space


if __name__ == "__main__":
    page = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        run(page, Path(sys.argv[2] if len(sys.argv) > 2 else temporary).resolve())
