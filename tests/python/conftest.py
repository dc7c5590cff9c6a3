"""Fixtures shared by all Python tests."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import anndata as ad
import pytest
import torch
from browsing import browser, page, page_files, page_nuclei  # noqa: F401
from reference_numbers import Reference, write_pbmc
from serving import database, queue, queue_url, server  # noqa: F401
from shared_fixtures import (  # noqa: F401
    pytest_fixture_post_finalizer,
    pytest_fixture_setup,
    pytest_runtest_call,
)

from scmamba.datasets import brain_cohort
from scmamba.genes import Vocabulary
from scmamba.model import Model
from scmamba.nn import ModelConfig, ScMamba

#: The server runs on Linux and macOS: it forks, limits its processes and locks files. So does the script that mutates code.
_NEED_FORK = [
    "serve",
    "deploy",
    "test_options.py",
    "cli/test_client.py",
    "scripts/test_mutate.py",
]
collect_ignore = [] if hasattr(os, "fork") else _NEED_FORK


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that compile other packages for a minute to the suites that change the versions of these packages."""
    if not os.environ.get("SCMAMBA_TEST_VERSIONS"):
        omitted = [item for item in items if item.get_closest_marker("versions")]
        config.hook.pytest_deselected(items=omitted)
        items[:] = [item for item in items if item not in omitted]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """Keep converted files and summaries of files out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SCMAMBA_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Reference:
    """Recorded results of the published code, MAST and Seurat; always available."""
    return Reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def pbmc(tmp_path_factory) -> Path:
    """A file of 300 real blood cells with their clusters; always available."""
    return write_pbmc(tmp_path_factory.mktemp("pbmc"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data next to the repository; skip if it is absent."""
    for parent in Path(__file__).resolve().parents:
        candidate = parent / "shared"
        if (candidate / "data").is_dir():
            return candidate
    pytest.skip("the folder of real cells (../shared/data) is not here")


def small_model(
    reads: str = "all",
    n_classes: int = 0,
    seed: int = 0,
    n_genes: int | None = None,
    vocabulary: Vocabulary | None = None,
) -> Model:
    """A network of the real architecture and vocabulary, tiny and untrained."""
    vocabulary = vocabulary or Vocabulary.published()
    if n_genes:
        vocabulary = vocabulary.subset(range(n_genes))
    torch.manual_seed(seed)
    config = ModelConfig(
        n_genes=len(vocabulary),
        d_model=8,
        n_layer=1,
        d_state=4,
        n_classes=n_classes,
        reads=reads,
        name="small",
    )
    network = ScMamba(config)
    with torch.no_grad():  # tokens are initialized to zero and would have no effect
        network.backbone.mask_token.normal_()
        network.backbone.cls_token.normal_()
        network.regressor.bias.fill_(0.5)
    return Model(network, vocabulary, [f"type {i}" for i in range(n_classes)] or None)


def with_rate_head(model: Model, seed: int = 0) -> Model:
    """The same network with a rate head of random weights whose average rates differ from the initial ones, like a trained one."""
    torch.manual_seed(seed)
    made = Model(ScMamba(replace(model.config, rates=True)), model.genes)
    with torch.no_grad():
        made.network.gene_log_rate[0] -= 1e-4
    return made


@pytest.fixture(scope="session")
def cohort() -> ad.AnnData:
    """Forty simulated nuclei; tests copy it before they change it."""
    return brain_cohort(40, n_donors=4, seed=1)
