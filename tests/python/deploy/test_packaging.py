"""The conda recipe, the files of continuous integration and of Read the Docs agree with the package and with make."""

from __future__ import annotations

import re
import sys

import pytest
import yaml
from documents import ROOT

import scmamba

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

#: Name on PyPI -> on conda-forge.
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def recipe() -> dict:
    text = (ROOT / "recipe" / "meta.yaml").read_text().replace("{{ PYTHON }}", "python")
    return yaml.safe_load(text)


def test_the_recipe_has_the_version_and_the_dependencies_of_the_package():
    made = recipe()
    assert made["package"]["version"] == scmamba.__version__
    needed = {f"python {project()['requires-python']}"}
    for line in project()["dependencies"]:
        name, limit = re.fullmatch(r"([\w-]+)(.*)", line).groups()
        needed.add(f"{CONDA.get(name, name)} {limit}")
    assert set(made["requirements"]["run"]) == needed
    (command,) = made["build"]["entry_points"]
    assert command == f"scmamba = {project()['scripts']['scmamba']}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_run_make_targets_that_exist(path):
    flow = yaml.safe_load(path.read_text())
    targets = set(re.findall(r"^([a-z0-9-]+)[^=\n]*:", (ROOT / "Makefile").read_text(), re.M))
    targets |= {"test-lowest", "test-newest"}
    called = set()
    for job in flow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            for words in re.findall(r"^make (.+)$", step.get("run", ""), re.M):
                if found := re.fullmatch(r"\$\{\{ matrix\.(\w+) \}\}", words.strip()):
                    called |= set(matrix[found[1]])
                else:
                    called |= set(words.split())
    assert called and called <= targets, called - targets


def test_every_supported_python_is_tested_on_three_systems():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    matrix = flow["jobs"]["python"]["strategy"]["matrix"]
    named = [c.rpartition(" ")[2] for c in project()["classifiers"] if "Python :: 3." in c]
    assert matrix["python"] == named
    systems = {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert set(matrix["os"]) == systems
    runs = {(r["os"], r["r"]) for r in flow["jobs"]["r"]["strategy"]["matrix"]["include"]}
    assert {("ubuntu-latest", "devel"), *((s, "release") for s in systems)} == runs


def test_read_the_docs_installs_the_packages_of_the_setup():
    made = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    lists = re.findall(
        r"^APT_\w+=\((.*?)\)", (ROOT / "scripts" / "setup.sh").read_text(), re.M | re.S
    )
    needed = {name for text in lists for name in text.split()} | {"r-cran-pkgdown"}
    assert len(needed) > 15 and needed <= set(made["build"]["apt_packages"])


def test_extras_that_messages_name_exist():
    named = set()
    for path in [*ROOT.glob("python/scmamba/**/*.py"), *ROOT.glob("docs/**/*.md")]:
        named |= set(re.findall(r"scmamba\[([a-z,]+)\]'?", path.read_text("utf-8")))
    asked = {extra for text in named for extra in text.split(",")}
    assert "hub" in asked and asked <= set(project()["optional-dependencies"])
