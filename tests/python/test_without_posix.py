"""The package, its commands and the tests themselves load where POSIX is absent, as on Windows.

``without_posix/sitecustomize.py`` takes ``fcntl``, ``resource``, ``pwd``, ``grp`` and ``os.fork`` from a new Python. What differs on
Windows beyond that (paths, files that are open) only the matrix of continuous integration can show.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from documents import ROOT

HOOK = ROOT / "tests" / "python" / "without_posix"
IMPORTS = """\
import importlib, pkgutil
try:
    import fcntl
except ImportError:
    print("absent")
import scmamba
for module in pkgutil.walk_packages(scmamba.__path__, "scmamba."):
    # The server refuses to start there; the other one runs the command line.
    if not module.name.startswith("scmamba.serve") and module.name != "scmamba.__main__":
        importlib.import_module(module.name)
        print(module.name)
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(HOOK), str(ROOT / "python")])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "100"},
    )


@pytest.mark.slow
def test_every_module_but_the_server_can_be_imported():
    done = run("-c", IMPORTS)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert names[0] == "absent" and len(names) > 100


def test_the_command_line_prints_its_help():
    done = run("-m", "scmamba", "--help")
    assert done.returncode == 0 and "find-doublets" in done.stdout, done.stderr


def test_the_server_names_the_systems_it_runs_on(tmp_path):
    done = run("-m", "scmamba", "serve", "--data", str(tmp_path))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr and "on Windows, run it in WSL" in done.stderr


@pytest.mark.slow
def test_the_tests_are_collected():
    done = run("-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", "tests/python")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "tests/python/serve" not in done.stdout
