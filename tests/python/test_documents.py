"""What README and docs say can be typed: code runs or at least fits the functions, commands parse, files exist, figures agree."""

from __future__ import annotations

import ast
import glob
import importlib.util
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import scmamba
from scmamba.cli.main import app
from scmamba.datasets import brain_cohort

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(p.relative_to(ROOT))
    for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
)
COMMAND = typer.main.get_command(app)


def text_of(page: str) -> str:
    """A page with continued lines joined."""
    return (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block, and of indented ones (language '')."""
    lines = text_of(page).splitlines()
    at = 0
    while at < len(lines):
        opened = re.match(r"( *)```(\w*)", lines[at])
        if opened:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            depth = len(opened[1])
            yield opened[2], "\n".join(line[depth:] for line in lines[at + 1 : end])
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield "", "\n".join(line[4:] for line in lines[at:end])
            at = end
        else:
            at += 1


def python_blocks(page: str) -> list[str]:
    """Blocks of Python: marked as such, or indented and importing scmamba."""
    return [
        code
        for language, code in blocks(page)
        if language == "python" or (not language and re.search(r"^import scmamba", code, re.M))
    ]


def shell_lines(page: str) -> Iterator[tuple[str, bool]]:
    """Calls of ``scmamba``, and whether they are whole; those in running text may lack arguments."""
    for language, code in blocks(page):
        if language in ("", "sh", "bash"):
            for line in code.splitlines():
                if call := re.search(r"(?:^|srun |--no-python )(scmamba (?!is )[a-z].*)", line):
                    yield call[1], True
    for call in re.findall(r"(?<!`)`(scmamba [^`\n]+)`(?!`)", text_of(page)):
        yield call, False


# --- Python


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    brain_cohort(90, n_donors=4, n_genes=2000, seed=0).write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    (code,) = python_blocks("README.md")
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    adata = names["adata"]
    assert "scmamba" in adata.layers and adata.obsm["X_scmamba"].shape[0] == 90
    assert {"scmamba_type", "scmamba_doublet_score"} <= set(adata.obs)
    assert "p_val_adj" in names["markers"]


def called(node: ast.expr, names: dict[str, object]) -> object:
    """The function that an expression such as ``scmamba.deg.zlm`` names; ``None`` for others."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = called(node.value, names)
        return None if owner is None else getattr(owner, node.attr)
    return None


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)])
def test_functions_and_keywords_of_python_blocks_exist(page):
    from scmamba.data import Collection

    names: dict[str, object] = {"scmamba": scmamba, "server": scmamba.Client}
    names |= {"cells": Collection, "train": Collection}
    for code in python_blocks(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("scmamba"):
                module = importlib.import_module(node.module)
                names |= {a.asname or a.name: getattr(module, a.name) for a in node.names}
            if not isinstance(node, ast.Call):
                continue
            function = called(node.func, names)
            if function is None or not getattr(function, "__module__", "").startswith("scmamba"):
                continue
            parameters = inspect.signature(function).parameters
            if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                continue
            unknown = {k.arg for k in node.keywords} - set(parameters)
            assert not unknown, f"{page}: {ast.unparse(node.func)} has no {sorted(unknown)}"


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
                words = words[1:]
            if command.name != "serve":
                command.make_context(name, [w for w in words if w != "..."])
        except Exception as error:
            text = getattr(error, "message", None) or str(error)
            missing = "missing" in type(error).__name__.lower() or text.startswith("Missing")
            incomplete = missing or "requires an argument" in text
            if type(error).__name__ != "Exit" and (whole or not incomplete):
                problems.append(f"{line}: {text}")
    assert problems == []


@pytest.mark.parametrize("page", PAGES)
def test_named_files_and_modules_exist(page):
    text = text_of(page)
    for module in re.findall(r"python -m (benchmarks\.[a-z]\w+)", text):
        assert importlib.util.find_spec(module), f"{page}: {module}"
    absent = []
    folders = "python/scmamba|tests|benchmarks|docs|scripts|deploy|R|man|vignettes"
    for path in re.findall(rf"`((?:{folders})/[\w./*-]+)`", text):
        if not glob.glob(str(ROOT / path)):
            absent.append(path)
    assert absent == []


# --- figures


def test_the_figures_of_the_readme_are_those_of_the_pages():
    card = "".join(p.read_text() for p in ROOT.glob("python/scmamba/model/pretrained/*/*.md"))
    rows = [
        r for r in text_of("README.md").splitlines() if r.startswith("| ") and r.count("|") == 5
    ]
    compared = 0
    for row in rows:
        _, _, ours, theirs, where, _ = (cell.strip() for cell in row.split("|"))
        page = re.search(r"docs/\w+\.md", where)
        if not page and where != "model card":
            continue
        source = text_of(page[0]) if page else card
        for number in re.findall(r"(?<!\d)\.\d{3}\b", f"{ours} {theirs}"):
            assert number in source, (
                f"{number} of the README is not in {page[0] if page else where}"
            )
            compared += 1
    assert compared > 30


def part(page: str, begin: str, end: str | None) -> str:
    """What a page has between two markers."""
    rest = (ROOT / page).read_text(encoding="utf-8").split(begin)[1]
    return (rest if end is None else rest.split(end)[0]).strip()


def test_the_tables_of_the_pages_are_those_of_the_result_files():
    from benchmarks import deg, model, scan

    results = ROOT / "benchmarks" / "results"
    for name, module in (("scan", scan), ("model", model)):
        made = module.table(json.loads((results / f"{name}.json").read_text()))
        shown = part("docs/scan.md", f"<!-- {name}: begin -->", f"<!-- {name}: end -->")
        assert shown == made.strip()
    speed = deg.table(json.loads((results / "deg_speed.json").read_text())["rows"])
    assert part("docs/deg.md", "<!-- speed -->", "<!-- /speed -->").startswith(speed.strip())
    scores = (results / "annotation.md").read_text(encoding="utf-8")
    assert part("docs/annotation.md", "<!-- results -->", None) == scores.strip()
    rows = [row for row in (results / "doublets.md").read_text().splitlines() if "|" in row]
    page = (ROOT / "docs" / "doublets.md").read_text(encoding="utf-8")
    assert rows and [row for row in rows if row not in page] == []


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
