"""The names of the package: all exist and are documented, and former ones still work and warn."""

from __future__ import annotations

import contextlib
import inspect
import pydoc
import subprocess
import sys

import pandas as pd
import pytest

import scmamba
from scmamba.data import Collection
from scmamba.datasets import brain_cohort

#: All functions with former names: new name of each parameter by the old one, then of each value.
FORMER: dict[str, tuple[object, dict[str, str], dict[str, dict[str, str]]]] = {
    "impute": (
        scmamba.impute,
        {"batch": "batch_key", "adapt": "adapt_steps"},
        {"method": {"rates": "ensemble", "published": "masked"}},
    ),
    "impute_file": (
        scmamba.impute_file,
        {"batch": "batch_key", "adapt": "adapt_steps"},
        {"method": {"rates": "ensemble", "published": "masked"}},
    ),
    "annotate": (
        scmamba.annotate,
        {"labels": "label_key", "donor": "donor_key", "network": "finetune_steps"},
        {},
    ),
    "find_doublets": (
        scmamba.find_doublets,
        {"sample": "sample_key", "labels": "label_key", "recipe": "doublet_simulation"},
        {},
    ),
    "find_markers": (scmamba.find_markers, {"latent_vars": "covariates"}, {}),
    "pseudobulk": (
        scmamba.pseudobulk,
        {"groupby": "condition_key", "donor": "donor_key", "latent_vars": "covariates"},
        {},
    ),
    "robustness": (
        scmamba.robustness,
        {"groupby": "condition_key", "donor": "donor_key", "cell_type": "label_key"},
        {},
    ),
    "prepare": (scmamba.prepare, {"donor": "donor_key"}, {}),
    "Collection": (
        Collection.__init__,
        {
            "donor": "donor_key",
            "study": "study_key",
            "disease": "condition_key",
            "label": "label_key",
        },
        {},
    ),
    "Client.annotate": (
        scmamba.Client.annotate,
        {"labels": "label_key", "donor": "donor_key"},
        {},
    ),
    "Client.keep_reference": (
        scmamba.Client.keep_reference,
        {"labels": "label_key", "donor": "donor_key"},
        {},
    ),
    "Client.find_markers": (scmamba.Client.find_markers, {"latent_vars": "covariates"}, {}),
    "Client.robustness": (
        scmamba.Client.robustness,
        {"groupby": "condition_key", "donor": "donor_key", "cell_type": "label_key"},
        {},
    ),
}


@pytest.mark.parametrize("verb", FORMER)
def test_every_former_name_is_taken_and_names_the_new_one(verb):
    """Each reaches the function under its new name; the calls end there, as there are no cells."""
    function, names, values = FORMER[verb]
    assert function.former_names == names and function.former_values == values
    given = [(old, None) for old in names] + [(p, old) for p, new in values.items() for old in new]
    parameters = inspect.signature(function).parameters
    collects = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert collects or {*names.values(), *values} <= set(parameters)
    assert not set(names) & set(parameters)
    for old, value in given:
        new = f"{names[old]}=" if old in names else f"{old}={values[old][value]!r}"
        call = f"{verb}({old}=)" if old in names else f"{verb}({old}={value!r})"
        with (
            pytest.warns(DeprecationWarning) as caught,
            contextlib.suppress(Exception) as _,
        ):
            function(None, None, **{old: value})
        (message,) = [str(w.message) for w in caught if "renamed" in str(w.message)]
        assert message.startswith(f"{call} was renamed to {verb}({new}"), message


def test_former_names_give_the_same_result():
    cells = brain_cohort(60, n_donors=4, n_genes=500, seed=0)
    with pytest.warns(
        DeprecationWarning, match=r"^Collection\(label=\) was renamed to Collection\(label_key=\)"
    ):
        old = Collection([cells], label="disease", donor="batch", min_coverage=0, verbose=False)
    new = Collection([cells], label_key="disease", donor_key="batch", min_coverage=0, verbose=False)
    pd.testing.assert_frame_equal(old.obs, new.obs)
    with pytest.warns(DeprecationWarning):
        table = scmamba.pseudobulk(
            cells, groupby="disease", donor="donor", group1="AD", latent_vars=None, min_cells=1
        )
    same = scmamba.pseudobulk(
        cells, condition_key="disease", donor_key="donor", group1="AD", min_cells=1
    )
    pd.testing.assert_frame_equal(table, same)
    with pytest.warns(DeprecationWarning, match="PrepareOptions"):
        assert scmamba.PrepareConfig(neighbours=15) == scmamba.PrepareOptions(n_neighbors=15)


@pytest.mark.parametrize(
    ("old", "new"), [("detect_doublets", "find_doublets"), ("gene_neighbours", "gene_neighbors")]
)
def test_former_functions_warn(old, new):
    function = getattr(scmamba, old)
    assert function.__wrapped__ is getattr(scmamba, new)
    with (
        pytest.warns(DeprecationWarning, match=rf"^{old}\(\) was renamed to {new}\(\)"),
        contextlib.suppress(Exception),
    ):
        function(None)


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


def test_packages_and_verbs_do_not_hide_each_other():
    # With a package and a function of one name the order of imports would determine the result.
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


def test_importing_the_package_loads_no_heavy_dependency():
    program = "import sys, scmamba; print([m for m in ('torch', 'anndata', 'pandas', 'numba') if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
