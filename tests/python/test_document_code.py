"""Every block of Python on a page runs, and commands on pages run where a file of cells suffices.

The blocks of one page share their variables. The tutorials have tests of their own (``test_tutorials.py``), the README too.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from documents import PAGES, python_blocks, shell_blocks

import scmamba
from scmamba.datasets import brain_cohort

#: Beginning of a block that is not run -> the reason.
NOT_RUN = {
    "import cellxgene_census": "the Census is on the internet",
    "from scmamba.interop import read_seurat, write_seurat\nimport scmamba": "needs R with Seurat; "
    "tests/python/interop/interop_cases.py runs these calls",
    "import scmamba\nfrom scmamba.data import Collection": "pre-training of days; docs/tutorials/train.md runs "
    "the same calls",
}
#: Printed -> run instead: addresses of other machines, and the adaptation, which takes minutes.
SHORTER = {
    "scmamba.impute(adata)": "scmamba.impute(adata, adapt_steps=0)",
    "scmamba.impute(adata, layer": "scmamba.impute(adata, adapt_steps=0, layer",
    'scmamba.deg.robustness(adata, "disease", "donor", "cell_type")': 'scmamba.deg.robustness(adata, "disease", '
    '"donor", "cell_type", layers=["counts"], ratios=[0.5], permutations=2, max_combinations=2, null_permutations=0)',
}
CHECKED = [
    page
    for page in PAGES
    if python_blocks(page) and not page.startswith("docs/tutorials") and page != "README.md"
]


def is_run(code: str) -> bool:
    return not any(code.startswith(beginning) for beginning in NOT_RUN)


def test_blocks_that_are_not_run_are_the_listed_ones():
    left = [c for page in CHECKED for c in python_blocks(page) if not is_run(c)]
    assert len(left) == len(NOT_RUN)


@pytest.fixture(scope="module")
def nuclei():
    adata = brain_cohort(360, n_donors=6, n_genes=2500, seed=4)
    adata.layers["counts"] = adata.X.copy()
    return adata


@pytest.fixture(scope="module")
def donors():
    return brain_cohort(2000, n_donors=10, n_genes=800, seed=4)


def write_10x(adata, path: Path) -> None:
    """The layout of Cell Ranger 3, from its documentation."""
    counts = adata.X.tocsr()
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"] = np.array(counts.shape[::-1])
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        size = adata.n_vars
        columns = {
            "id": adata.var["ensembl_id"],
            "name": adata.var_names,
            "feature_type": ["Gene Expression"] * size,
            "genome": ["GRCh38"] * size,
        }
        for name, values in columns.items():
            group[f"features/{name}"] = np.array(values, dtype="S")


@contextlib.contextmanager
def needed_by(page: str, code: str, nuclei, request):
    """Variables that a page uses but does not define, and its code with addresses of this machine."""
    names = {"scmamba": scmamba, "adata": nuclei.copy()}
    if "tcp://scheduler:8786" in code:
        from distributed import LocalCluster

        with LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            dashboard_address=None,
        ) as cluster:
            yield names, code.replace("tcp://scheduler:8786", cluster.scheduler_address)
        return
    if "https://box:8642" in code:
        server = request.getfixturevalue("server")
        small = brain_cohort(120, n_donors=3, n_genes=2000, seed=5)
        names |= {"token": None, "adata": small, "atlas": small.copy(), "samples": [small.copy()]}
        yield names, code.replace("https://box:8642", server.url)
        return
    if page == "docs/index.md" or "mdata" in code:
        names["adata"] = nuclei[:150].copy()
        names["proteins"] = ad.AnnData(np.ones((150, 3)), obs=nuclei.obs[:150][[]])
    if page == "docs/deg.md":
        names["adata"] = request.getfixturevalue("donors").copy()
    yield names, code


@pytest.mark.slow
@pytest.mark.parametrize("page", CHECKED)
def test_the_python_of_a_page_runs(page, nuclei, tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    nuclei.write_h5ad("cells.h5ad")
    write_10x(nuclei, tmp_path / "filtered_feature_bc_matrix.h5")
    kept: dict = {}
    for number, printed in enumerate(filter(is_run, python_blocks(page)), start=1):
        code = printed
        for old, new in SHORTER.items():
            code = code.replace(old, new)
        with needed_by(page, code, nuclei, request) as (names, runnable):
            names = names | {k: v for k, v in kept.items() if k != "client"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(runnable, f"{page}, block {number}", "exec"), names)
            if closing := names.get("client"):
                closing.close()
            kept = {k: v for k, v in names.items() if k in ("result", "fit", "table")}


#: Page -> beginning of the commands in its shell blocks that a file of cells suffices for.
COMMANDS = {"docs/deg.md": ("compare", "find-markers", "robustness")}


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDS)
def test_commands_of_a_page_run(page, nuclei, tmp_path):
    cells = nuclei[:, :600].copy()
    cells.layers["scmamba"] = cells.X.multiply(1e4 / cells.X.sum(axis=1)).tocsr().log1p()
    cells.write_h5ad(tmp_path / "in.h5ad")
    run = []
    for code in shell_blocks(page):
        for line in code.splitlines():
            words = re.sub(r"\s+#.*", "", line).split()
            if words[:1] == ["scmamba"] and words[1] in COMMANDS[page]:
                short = "--permutations 2 --ratios 0.5 --null-permutations 1 --max-combinations 2"
                more = short.split() if words[1] == "robustness" else []
                command = [sys.executable, "-m", *words, *more]
                done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
                run.append(words[1])
    assert sorted(run) == sorted(COMMANDS[page])
    written = {path.name for path in tmp_path.iterdir()}
    assert {"report", "markers.csv", "robustness"} <= written
    shutil.rmtree(tmp_path / "report")
