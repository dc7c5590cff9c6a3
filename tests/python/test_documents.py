"""README and pages: code runs or fits the functions, commands parse, named files and functions exist."""

from __future__ import annotations

import ast
import glob
import importlib.util
import inspect
import re
import shlex
import subprocess
import warnings
from collections.abc import Iterator

import documents
import pytest
import r_calls
import typer.main
from documents import CARDS, PAGES, ROOT, VIGNETTES, blocks, python_blocks, spans, text_of

import scmamba
from scmamba.cli.main import app
from scmamba.datasets import brain_cohort

COMMAND = typer.main.get_command(app)
ALL = [*PAGES, *CARDS, *VIGNETTES]


def shell_lines(page: str) -> Iterator[tuple[str, bool]]:
    """Calls of ``scmamba``, and whether they are complete; those in running text may lack arguments."""
    for language, code in blocks(page):
        if language in ("", "sh", "bash"):
            for line in code.splitlines():
                if call := re.search(r"(?:^|srun |--no-python )(scmamba (?!is )[a-z].*)", line):
                    yield call[1], True
    for call in re.findall(r"(?<!`)`(scmamba [^`\n]+)`(?!`)", text_of(page)):
        yield call, False


# --- Python


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """As printed, except that the adaptation of ``impute``, which takes minutes, is skipped."""
    cohort = brain_cohort(320, n_donors=4, n_genes=3000, seed=2)
    cohort.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("README.md")
    assert "scmamba.impute(adata)" in code
    code = code.replace("scmamba.impute(adata)", "scmamba.impute(adata, adapt_steps=0)")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    adata = names["adata"]
    assert "scmamba" in adata.layers and adata.obsm["X_scmamba"].shape[0] == adata.n_obs > 200
    assert {"scmamba_type", "scmamba_doublet_score"} <= set(adata.obs)
    assert "p_val_adj" in names["result"].table


#: Modules in which a name without its module is looked up.
HOMES = (
    "scmamba",
    *(f"scmamba.{room}" for room in ("deg", "evaluation", "interop", "datasets", "ops", "data")),
    *(f"scmamba.{room}" for room in ("model", "training", "neighbors", "annotation", "imputation")),
    "scmamba.pl",
)


def public(name: str) -> object:
    """The object of a name without its module, if it is public."""
    for home in HOMES:
        module = importlib.import_module(home)
        if name in module.__all__:
            return getattr(module, name)
    return None


def called(node: ast.expr, names: dict[str, object]) -> object:
    """The function of an expression such as ``scmamba.deg.zlm``; ``None`` for others."""
    if isinstance(node, ast.Name):
        return names[node.id] if node.id in names else public(node.id)
    if isinstance(node, ast.Attribute):
        owner = called(node.value, names)
        if owner is None or not getattr(
            owner, "__module__", getattr(owner, "__name__", "")
        ).startswith("scmamba"):
            return None
        if inspect.isclass(owner) and node.attr in getattr(owner, "__dataclass_fields__", {}):
            return None
        found = inspect.getattr_static(owner, node.attr, None) if inspect.isclass(owner) else None
        return found if isinstance(found, property) else getattr(owner, node.attr)
    return None


def made_by(function: object) -> object:
    """The class of scmamba that a function returns, so that its methods can be checked."""
    if inspect.isclass(function):
        return function
    name = str(getattr(function, "__annotations__", {}).get("return", "")).split("|")[0].strip()
    module = importlib.import_module(getattr(function, "__module__", "scmamba"))
    found = getattr(module, name, None) if name.isidentifier() else None
    return found if inspect.isclass(found) and found.__module__.startswith("scmamba") else None


def unknown_names(code: str, names: dict[str, object]) -> list[str]:
    """Functions and keywords in code that scmamba does not have; former names are included."""
    problems = []
    nodes = sorted(ast.walk(ast.parse(code)), key=lambda n: getattr(n, "lineno", 0))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("scmamba"):
            module = importlib.import_module(node.module)
            names |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = called(node.value.func, names)
            for target in node.targets:
                if isinstance(target, ast.Name):
                    names[target.id] = made_by(made) if made is not None else None
        if not isinstance(node, ast.Call):
            continue
        shown = ast.unparse(node.func)
        try:
            function = called(node.func, names)
        except AttributeError as error:
            problems.append(f"{shown}: {error}")
            continue
        if function is None or not callable(function):
            continue
        today = getattr(function, "__wrapped__", function).__name__
        last = shown.split(".")[-1]
        if last not in {today, *names} and not inspect.isclass(function):
            problems.append(f"{shown} is now {today}")
        parameters = inspect.signature(function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            unknown = {k.arg for k in node.keywords} - set(parameters) - {None}
            problems += [f"{shown} has no {name}=" for name in sorted(unknown)]
    return problems


def start_names() -> dict[str, object]:
    """Variables that blocks use but do not define."""
    from scmamba.data import Collection

    names: dict[str, object] = {"scmamba": scmamba, "server": scmamba.Client}
    return names | {"cells": Collection, "train": Collection, "table": None, "adata": None}


@pytest.mark.parametrize("page", [p for p in ALL if python_blocks(p)])
def test_functions_and_keywords_of_python_blocks_exist(page):
    names = start_names()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        assert [p for code in python_blocks(page) for p in unknown_names(code, names)] == []


def test_functions_and_keywords_within_sentences_exist():
    problems, compared = [], 0
    for page in ALL:
        for span in spans(page):
            for part in re.split(r"; ", span):
                if not re.search(r"[a-z_]\(", part) or re.search(
                    r"ScMamba[A-Z]|scmamba_config|::", part
                ):
                    continue
                try:
                    found = unknown_names(part, start_names())
                except SyntaxError:
                    continue
                compared += 1
                problems += [f"{page}: {problem}" for problem in found]
    assert compared > 40
    assert problems == []


def test_single_keywords_exist():
    """A keyword such as ``label_key=`` within a sentence belongs to a function or to R."""
    known = {
        name
        for home in HOMES
        for public_name in importlib.import_module(home).__all__
        if callable(value := public(public_name)) and not public_name.startswith("_")
        for name in parameters_of(value)
    }
    r_arguments = set().union(*r_calls.formals().values())
    former = re.compile(r"former|old name|From 0\.1|are now", re.I)
    problems = []
    for page in ALL:
        for paragraph in text_of(page).split("\n\n"):
            if former.search(paragraph):
                continue
            for name in re.findall(r"(?<!`)`([a-z][\w.]*)=[^`=]*`(?!`)", paragraph):
                if name not in known | r_arguments:
                    problems.append(f"{page}: {name}=")
    assert problems == []


def parameters_of(value: object) -> set[str]:
    """Parameters of a function, or of a class and its public methods."""
    functions = [value]
    if inspect.isclass(value):
        functions += [f for n, f in inspect.getmembers(value, callable) if not n.startswith("_")]
    names: set[str] = set()
    for function in functions:
        try:
            names |= set(inspect.signature(function).parameters)
        except ValueError:
            continue
    return names


# --- R


@pytest.mark.parametrize("page", [p for p in ALL if documents.r_blocks(p)])
def test_r_blocks_parse_and_use_existing_names(page):
    assert [p for code in documents.r_blocks(page) for p in r_calls.unknown_arguments(code)] == []


def test_r_within_sentences_uses_existing_names():
    problems, compared = [], 0
    for page in ALL:
        for span in spans(page):
            if re.search(r"ScMamba[A-Z]\w*\(|(^|::)(scmamba_\w+|install_scmamba)\(", span):
                compared += 1
                problems += [f"{page}: {p}" for p in r_calls.unknown_arguments(span)]
    assert compared > 20
    assert problems == []


# --- commands


@pytest.mark.parametrize("page", [p for p in PAGES if any(True for _ in shell_lines(p))])
def test_commands_parse(page):
    problems = []
    for line, whole in shell_lines(page):
        words = shlex.split(line, comments=True)[1:]
        if not words or words[0].startswith("-") or "..." in words:
            continue
        try:
            command, name = COMMAND, "scmamba"
            while hasattr(command, "commands"):
                if not words or words[0] not in command.commands:
                    raise ValueError(f"no command {words[:1]}")
                name, command = words[0], command.commands[words[0]]
                if command.hidden:
                    raise ValueError(f"{name} is a former name")
                words = words[1:]
            if command.name != "serve":
                given = command.make_context(name, [w for w in words if w != "..."]).params
                for parameter in command.params:
                    if getattr(parameter, "hidden", False) and given[parameter.name] is not None:
                        raise ValueError(f"--{parameter.name} is a former option")
        except Exception as error:
            text = getattr(error, "message", None) or str(error)
            missing = "missing" in type(error).__name__.lower() or text.startswith("Missing")
            incomplete = missing or "requires an argument" in text
            if type(error).__name__ != "Exit" and (whole or not incomplete):
                problems.append(f"{line}: {text}")
    assert problems == []


@pytest.mark.parametrize("page", [p for p in ALL if documents.shell_blocks(p)])
def test_shell_blocks_parse(page):
    for code in documents.shell_blocks(page):
        found = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)
        assert found.returncode == 0, f"{page}: {found.stderr}"


@pytest.mark.parametrize("page", ALL)
def test_named_files_and_modules_exist(page):
    text = text_of(page)
    assert not re.search(r"python benchmarks/|benchmarks/\w+\.py -", text), (
        f"{page}: python -m benchmarks.x"
    )
    for path in re.findall(r"(?:\.\./)+[\w./-]*", text):
        inside = (ROOT / page).parent.joinpath(path).resolve().is_relative_to(ROOT.resolve())
        assert inside, f"{page}: {path} is outside the repository"
    for module in re.findall(r"python -m (benchmarks\.[a-z]\w+)", text):
        assert importlib.util.find_spec(module), f"{page}: {module}"
    absent = []
    folders = "python/scmamba|tests|benchmarks|docs|scripts|deploy|R|man|vignettes"
    for path in re.findall(rf"`((?:{folders})/[\w./*-]+)`", text):
        if not glob.glob(str(ROOT / path)):
            absent.append(path)
    assert absent == []


# --- words

#: Words that docs/style.md replaces.
AVOIDED = (
    "left out|leaves out|evened|somebody|nobody|at hand|anew|told|knows|asks|asked|sees|believes|wants|alike|"
    "opinions?|looked at|says|said|learnt|labelled|normalised|neighbours?|recognised"
)


def test_pages_follow_the_words_of_the_style_page():
    helps = documents.listed("man/*.Rd")
    found = []
    for page in [*ALL, *helps]:
        if page != "docs/style.md":
            prose = re.sub(r"^```.*?^```|`[^`\n]+`", "", text_of(page), flags=re.S | re.M)
            found += [f"{page}: {word}" for word in re.findall(rf"\b({AVOIDED})\b", prose, re.I)]
    assert found == []


# --- the site


def test_the_reference_names_every_public_function():
    shown = set()
    for page in ROOT.glob("docs/api/*.md"):
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.M):
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute), f"{page.name}: {name}"
            shown.add(attribute)
    assert set(scmamba.__all__) - {"__version__", "settings"} - shown == set()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert {str(p.relative_to(ROOT / "docs")) for p in ROOT.glob("docs/**/*.md")} == listed
