"""Lazy imports: help and verbs start without the packages that they do not use."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import scmamba", {"numpy", "pandas", "scipy", "torch", "numba"}),
        ("from scmamba.cli import app", {"pandas", "scipy", "torch", "numba", "anndata"}),
        ("import scmamba; scmamba.find_doublets", {"torch"}),
        ("import scmamba; scmamba.find_markers, scmamba.deg.find_all_markers", {"torch"}),
    ],
)
def test_heavy_packages_are_imported_on_first_use(code, absent):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not absent & set(done.stdout.split())
