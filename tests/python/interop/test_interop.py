"""Runs ``interop_cases.py`` in a separate process (in this one R would stay loaded for all other tests)."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("interop_cases.py")
NAMES = re.findall(r"^def (test_\w+)", CASES.read_text(), flags=re.M)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    if not shutil.which("R") or importlib.util.find_spec("rpy2") is None:
        pytest.skip("R or rpy2 is not installed (pip install 'scmamba[r]')")
    found = subprocess.run(
        ["Rscript", "-e", "cat(requireNamespace('Seurat', quietly = TRUE))"],
        capture_output=True,
        text=True,
    )
    if "TRUE" not in found.stdout:
        pytest.skip("R has no Seurat")
    report = tmp_path_factory.mktemp("interop") / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(CASES),
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    environment = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert report.exists(), run.stdout + run.stderr
    cases: dict = {}
    for case in xml.parse(report).getroot().iter("testcase"):
        cases.setdefault(case.get("name").split("[")[0], []).append(case)
    return cases


@pytest.mark.parametrize("name", NAMES)
def test_in_r(outcome, name):
    assert name in outcome, f"{name} did not run"
    skipped = [case.find("skipped") for case in outcome[name]]
    if all(s is not None for s in skipped):
        pytest.skip(skipped[0].get("message"))
    bad = [part for case in outcome[name] for part in case if part.tag in ("failure", "error")]
    assert not bad, "\n".join(part.text for part in bad)
