"""Fixtures shared by all Python tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers beside the repository; skip where it is absent."""
    for parent in Path(__file__).resolve().parents:
        candidate = parent / "shared"
        if (candidate / "reference").is_dir():
            return candidate
    pytest.skip("the folder of reference numbers (../shared) is not here")
