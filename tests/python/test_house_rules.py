"""Rules of the code that no linter here checks: private names, long functions, modules at the root, documented parameters, examples."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import scmamba

ROOT = Path(scmamba.__file__).parent
LONGEST = 60
#: Modules whose functions are compiled to machine code; each is one loop over positions, written out.
KERNELS = (
    "ops/cpu/",
    "ops/triton_backend.py",
    "deg/discrete.py",
    "deg/continuous.py",
    "deg/negative_binomial.py",
    "deg/one_factor.py",
    "data/csr_remap.py",
    "deg/mixed_kernel.py",
)


def modules() -> list[tuple[str, ast.Module]]:
    """Path below the package, and syntax tree, of every module."""
    files = sorted(ROOT.rglob("*.py"))
    return [(str(f.relative_to(ROOT)), ast.parse(f.read_text(encoding="utf-8"))) for f in files]


def foreign_private_names(path: str, tree: ast.Module) -> Iterator[str]:
    """Underscored names of other modules that this one uses."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        beside = node.level == 1 and not (node.module and "." in node.module)
        for alias in node.names:
            name = alias.name
            if name.startswith("_") and not name.startswith("__"):
                # `from . import _module` of the same package is not a private name of another one.
                if not (beside and node.module is None):
                    yield f"{path}: {'.' * node.level}{node.module or ''}.{name}"
            elif name.islower():
                imported.add(alias.asname or name)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in imported
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and f"{node.value.id}.py" in {p.name for p in ROOT.rglob("*.py")}
        ):
            yield f"{path}: {node.value.id}.{node.attr}"


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function after its signature and docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return 0 if not body else body[-1].end_lineno - body[0].lineno + 1


def test_no_private_name_crosses_a_module():
    found = {use for path, tree in modules() for use in foreign_private_names(path, tree)}
    assert sorted(found) == []


def test_no_function_is_longer_than_60_lines():
    found = {
        f"{path}: {node.name}": body_lines(node)
        for path, tree in modules()
        if not path.startswith(KERNELS)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_lines(node) > LONGEST
    }
    assert {name: n for name, n in found.items() if n > LONGEST} == {}


def test_at_most_six_modules_at_the_root():
    assert len(list(ROOT.glob("*.py"))) <= 6


#: Search term of a reader -> the folder with the computation.
HOMES = {
    "doublet": "doublets",
    "neighbo": "neighbors",
    "novel": "annotation",
    "calibrat": "training",
}
#: Folders that only show, serve or score the results of others.
SURFACES = ("cli", "client", "evaluation", "pl", "serve")
#: Names in other folders, and the reason.
ELSEWHERE = {
    "data/doublet_simulation.py": "training reads it as well; scmamba.doublets has its names",
    "data/doublet_simulation.py: simulate_doublets": "as above",
    "data/doublet_simulation.py: doublet_codes": "as above",
    "training/finetune_classifier.py: labels_from_doublet_calls": "labels of a training",
    "training/finetune_classifier.py: labels_from_simulated_doublets": "labels of a training",
    "embedding/_genes.py: gene_neighbors": "a verb about genes, not cells",
    "preprocessing/analysis.py: neighbor_graph": "scanpy's graph, a step of prepare",
}


def test_a_search_ends_in_one_folder():
    found: dict[str, str] = {}
    for path, tree in modules():
        defined = (ast.FunctionDef, ast.ClassDef)
        names = [n.name for n in tree.body if isinstance(n, defined) and n.name[0] != "_"]
        for word, home in HOMES.items():
            if path.split("/")[0] in (home, *SURFACES):
                continue
            found |= {path: home} if word in path.lower() else {}
            found |= {f"{path}: {name}": home for name in names if word in name.lower()}
    assert set(found) == set(ELSEWHERE), {name: found[name] for name in set(found) - set(ELSEWHERE)}
    for name in ("find_doublets", "simulate_doublets", "Simulated", "DoubletOptions"):
        assert hasattr(importlib.import_module("scmamba.doublets"), name)


def test_tests_and_benchmarks_import_by_package():
    repository = ROOT.parents[1]
    changed = re.compile(r"sys\.path(\.insert|\.append|\[| *=)")
    files = [*repository.glob("tests/python/**/*.py"), *repository.glob("benchmarks/**/*.py")]
    here = Path(__file__)
    assert [str(f) for f in files if f != here and changed.search(f.read_text("utf-8"))] == []
    assert importlib.util.find_spec("benchmarks.report") is not None


def test_the_checks_detect_violations():
    code = "from ..ops.cpu import pool\nfrom .jit import _run\nfrom . import _own\npool._size\n"
    tree = ast.parse(code + "def f():\n    '''Doc.'''\n" + "    x = 1\n" * 61)
    assert list(foreign_private_names("a.py", tree)) == ["a.py: .jit._run", "a.py: pool._size"]
    assert body_lines(tree.body[-1]) == 61


# --- documented parameters


def public_functions() -> dict[str, object]:
    """Everything callable that ``scmamba.__all__`` and the packages' ``__all__`` reach, and the methods of public classes."""
    found: dict[str, object] = {}
    rooms = sorted(p.parent.name for p in ROOT.glob("*/__init__.py"))
    for module in (scmamba, *(importlib.import_module(f"scmamba.{room}") for room in rooms)):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if not callable(thing) or not getattr(thing, "__module__", "").startswith("scmamba"):
                continue
            found[f"{thing.__module__}.{thing.__qualname__}"] = thing
            if inspect.isclass(thing):
                for member, value in vars(thing).items():
                    function = (
                        value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                    )
                    if not member.startswith("_") and inspect.isfunction(function):
                        found[f"{thing.__module__}.{thing.__qualname__}.{member}"] = function
    return found


def undocumented(thing: object) -> list[str]:
    """Parameters that the docstring does not describe, and described ones that do not exist (with a ``-``)."""
    from numpydoc.docscrape import NumpyDocString

    documents = [inspect.getdoc(thing) or ""]
    if inspect.isclass(thing):  # a subclass documents its additions
        documents = [
            inspect.getdoc(c) or "" for c in thing.__mro__ if c.__module__.startswith("scmamba")
        ]
        own = vars(thing).get("__init__")
        if own is not None and own.__doc__ and not dataclasses.is_dataclass(thing):
            documents.append(inspect.getdoc(own) or "")
    described: set[str] = set()
    for document in documents:
        parsed = NumpyDocString(document)
        for section in ("Parameters", "Attributes", "Other Parameters"):
            for entry in parsed[section]:
                described |= {name.strip().lstrip("*") for name in entry.name.split(",")}
    try:
        signature = inspect.signature(thing)
    except (ValueError, TypeError):
        return []
    parameters = [p for p in signature.parameters if p not in ("self", "cls", "ctx")]
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        # Options are documented by their fields.
        described |= {f.name for f in dataclasses.fields(thing) if f.metadata.get("help")}
    missing = [p for p in parameters if p not in described]
    if not inspect.isclass(thing):
        missing += [f"-{name}" for name in sorted(described - set(parameters))]
    return missing


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_every_parameter_is_documented(name):
    assert undocumented(public_functions()[name]) == []


# --- examples


def modules_with_examples() -> list[str]:
    """Names of modules whose docstrings have examples."""
    files = [f for f in ROOT.rglob("*.py") if re.search(r"^ *>>> ", f.read_text("utf-8"), re.M)]
    names = [".".join(("scmamba", *f.relative_to(ROOT).with_suffix("").parts)) for f in files]
    # Those of the client need a server.
    return sorted(n.removesuffix(".__init__") for n in names if not n.startswith("scmamba.client"))


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.attempted > 0 and result.failed == 0


def test_the_reduced_suite_names_files_that_exist():
    """``make test-lowest`` and ``make test-newest`` stop at a name that was changed."""
    script = (ROOT.parents[1] / "scripts" / "versions.sh").read_text("utf-8")
    names = re.search(r"^NAMES=\((.*?)\)", script, re.M | re.S).group(1).split()
    there = {path.stem for path in (ROOT.parents[1] / "tests" / "python").rglob("test_*.py")}
    assert len(names) > 30 and [name for name in names if f"test_{name}" not in there] == []
