"""Simulated nuclei for a first try of the page.

``python -m scmamba.serve.demo FILE`` writes them; a separate process, so that the server stays small.
"""

from __future__ import annotations

import sys
from pathlib import Path

#: Nuclei and donors of the file; half of the donors have the disease.
NUCLEI, DONORS = 400, 4


def main() -> None:
    """Write the file."""
    from ..datasets import brain_cohort
    from ..utils.atomic import atomic_path
    from ..utils.h5_output import write_anndata

    with atomic_path(Path(sys.argv[1])) as path:
        cells = brain_cohort(NUCLEI, n_donors=DONORS, seed=0)
        for slot in (cells.uns, cells.varm):
            slot.clear()
        write_anndata(cells, path, compression="gzip")


if __name__ == "__main__":
    main()
