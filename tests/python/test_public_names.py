"""The names of the package: all are there, documented, and former ones still work and warn."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys

import pytest

import scmamba


def test_every_public_name_exists_and_help_shows_it():
    members = dict(inspect.getmembers(scmamba))
    assert set(scmamba.__all__) <= set(members) and "models" in members
    page = pydoc.plain(pydoc.render_doc(scmamba))
    missing = [
        name
        for name in scmamba.__all__
        if name.strip("_") not in page.replace("VERSION", "version")
    ]
    assert not missing and "list_models" in page


def test_rooms_and_verbs_do_not_hide_each_other():
    # A package and a function of one name would answer differently by the order of imports.
    program = (
        "import scmamba.models, scmamba.model, inspect, scmamba; inspect.getmembers(scmamba); "
    )
    program += "assert inspect.ismodule(scmamba.model) and inspect.ismodule(scmamba.models); "
    program += "assert callable(scmamba.robustness) and callable(scmamba.impute)"
    for first in ("", "import scmamba.deg; ", "import scmamba.cli.main; "):
        subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:scmamba", "-c", first + program],
            check=True,
        )


def test_the_former_list_of_models_warns_and_works():
    with pytest.warns(DeprecationWarning, match=r"scmamba.list_models\(\).*0\.3\.0"):
        former = scmamba.models()
    assert former == scmamba.list_models() and "brain-mini" in former


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'imputee'"):
        scmamba.imputee  # noqa: B018


def test_importing_the_package_loads_no_science():
    program = "import sys, scmamba; print([m for m in ('torch', 'anndata', 'pandas', 'numba') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
