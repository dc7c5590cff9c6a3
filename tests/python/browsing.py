"""What the tests of the server's page share: a headless Chromium with the page of a real server, and files to send."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import anndata as ad
import pytest

from scmamba.datasets import brain_cohort

CHROMIUM = (
    os.environ.get("SCMAMBA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
)

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(accept_downloads=True, viewport={"width": 900, "height": 1500})
    opened = context.new_page()
    opened.complaints = []
    opened.on(
        "console",
        lambda message: opened.complaints.append(message.text) if message.type == "error" else None,
    )
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.goto(server.url)
    opened.wait_for_selector("#model option", state="attached")
    yield opened
    context.close()


@pytest.fixture(scope="module")
def page_nuclei() -> ad.AnnData:
    return brain_cohort(200, n_donors=2, seed=5)


@pytest.fixture(scope="module")
def page_files(page_nuclei, tmp_path_factory) -> tuple[Path, Path]:
    """Cells to be annotated, and labeled ones."""
    folder = tmp_path_factory.mktemp("files")
    page_nuclei[:100].copy().write_h5ad(folder / "cells.h5ad")
    page_nuclei[100:].copy().write_h5ad(folder / "known.h5ad")
    return folder / "cells.h5ad", folder / "known.h5ad"


def wait_for_end(page) -> None:
    # The page forbids evaluated code, including the polling of a test.
    until = time.monotonic() + 240
    while (
        page.text_content("#status") not in ("Done", "Failed", "Refused", "Cancelled")
        and time.monotonic() < until
    ):
        page.wait_for_timeout(100)
