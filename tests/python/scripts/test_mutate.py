"""scripts/mutate.py on a package of a few lines whose tests detect some changes and miss others."""

from __future__ import annotations

import ast
import csv
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import mutate
import mutate_changes
import mutate_reach
import pytest

SOURCE = '''"""Sums, min and max > 0 in words."""
import functools
import threading

FACTOR = 3


def add(a, b):
    return a + b


def scaled(x):
    return FACTOR * x


def band(n):
    if n > 10:
        return "high"
    return "low"


def wait():
    return threading.Event().wait(timeout=0.01)


@functools.cache
def table():
    return {"one": 1, "two": 22}


def unused(n):
    return n * 5


def late():
    return 8


def in_a_fork(n):
    return n * 7


def printed(n):
    print(n + 100)


if __name__ == "__main__":
    printed(1)
'''
TESTS = """
import os
import subprocess
import sys
import pathlib
import pytest
from tiny import sums


@pytest.fixture(scope="module")
def both():
    return sums.add(1, 1), sums.add(2, 3)


def test_first_sum(both):
    assert both[0] > -5


def test_second_sum(both):
    assert both[1] == 5


def test_scaled():
    assert sums.scaled(2) == 6


@pytest.mark.parametrize("n", [1, 20])
def test_band(n):
    assert sums.band(n) == ("high" if n > 10 else "low")


def test_wait():
    assert not sums.wait()


def test_one():
    assert sums.table()["one"] == 1


def test_two():
    assert sums.table()["two"] == 22


def test_printed():
    assert subprocess.check_output([sys.executable, "-m", "tiny.sums"], text=True) == "101\\n"


ORDER = []


def test_before():
    ORDER.append(1)


def test_fork():
    child = os.fork()
    if child == 0:
        os._exit(sums.in_a_fork(3))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 21


def test_fails_alone():
    assert ORDER and sums.late() > 0


def test_conditions():
    here = pathlib.Path(__file__).resolve()
    assert not list(pathlib.Path.home().iterdir())
    assert not any((parent / "shared").exists() for parent in here.parents)
    assert "SECRET" not in os.environ
"""
CHANGES = [
    ("return a + b", "return a - b", "killed"),
    ("FACTOR = 3", "FACTOR = 4", "killed"),
    ("if n > 10:", "if n >= 10:", "survived"),
    ("wait(timeout=0.01)", "wait()", "timed out"),
    ('"two": 22', '"two": 2', "killed"),
    ("return n * 5", "return n * 6", "not covered"),
    ("print(n + 100)", "print(n)", "killed"),
    ("return n * 7", "return n * 8", "killed"),
    ("return 8", "return 9", "unsure"),
]


def write_table(path: Path, rows: list[tuple[str, ...]], columns=("old", "new")) -> Path:
    cells = ["\t".join(map(mutate_changes.escape, row)) for row in rows]
    path.write_text("\n".join(["\t".join(columns), *cells]) + "\n")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    (root / "python" / "tiny").mkdir(parents=True)
    (root / "python" / "tiny" / "__init__.py").write_text("")
    (root / "python" / "tiny" / "sums.py").write_text(SOURCE)
    (root / "tests").mkdir()
    (root / "tests" / "test_sums.py").write_text(TESTS)
    (root / "shared").mkdir()
    plugins = {plugin.name for plugin in importlib.metadata.entry_points(group="pytest11")}
    (root / "pytest.ini").write_text(
        f"[pytest]\naddopts = {' '.join(f'-p no:{name}' for name in sorted(plugins))}\n"
    )
    return root


@pytest.fixture(scope="module")
def options(tiny, tmp_path_factory) -> Iterator[list[str]]:
    where = str(tmp_path_factory.mktemp("copies"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET", "1")
        yield ["--root", str(tiny), "--workspace", where, "--jobs", "2", "--preload", "--cap", "20"]


@pytest.fixture(scope="module")
def outcomes(tiny, options) -> dict[str, dict[str, str]]:
    """The row of every change, by its old text."""
    table = write_table(tiny.parent / "changes.tsv", [change[:2] for change in CHANGES])
    mutate.main([*options, "--record"])
    mutate.main([*options, "--changes", str(table)])
    with (tiny / ".cache" / "mutate" / "table.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {old: next(row for row in rows if old in row["old"]) for old, *_ in CHANGES}


@pytest.mark.parametrize("old, new, outcome", CHANGES)
def test_every_change_has_the_expected_outcome(outcomes, old, new, outcome):
    assert outcomes[old]["outcome"] == outcome
    assert outcomes[old]["new"].strip().endswith(new) or new in outcomes[old]["new"]


def test_only_tests_that_reach_a_change_are_run(outcomes):
    counts = {old: int(row["tests"]) for old, row in outcomes.items()}
    expected = {
        "return a + b": 2,  # a fixture counts for all tests that use it
        "FACTOR = 3": 1,
        "if n > 10:": 2,
        "wait(timeout=0.01)": 1,
        '"two": 22': 2,  # a cached result does too
        "print(n + 100)": 1,
    }
    assert {old: counts[old] for old in expected} == expected
    assert outcomes["return a + b"]["test"] == "tests/test_sums.py::test_second_sum"
    assert outcomes["print(n + 100)"]["test"] == "tests/test_sums.py::test_printed"


def test_the_tree_is_unchanged(tiny, outcomes):
    files = {
        p.relative_to(tiny).as_posix()
        for p in tiny.rglob("*")
        if p.is_file() and ".cache" not in p.parts
    }
    assert files == {
        "pytest.ini",
        "python/tiny/__init__.py",
        "python/tiny/sums.py",
        "tests/test_sums.py",
    }
    assert (tiny / "python" / "tiny" / "sums.py").read_text() == SOURCE


def test_results_are_reused_until_the_tests_change(tiny, options, outcomes, capsys):
    state = tiny / ".cache" / "mutate" / "state.jsonl"
    before = state.read_text()
    table = write_table(tiny.parent / "one.tsv", [CHANGES[2][:2]])
    mutate.main([*options, "--changes", str(table)])
    assert state.read_text() == before
    test = tiny / "tests" / "test_sums.py"
    test.write_text(TESTS + "\n\ndef test_edge():\n    assert sums.band(10) == 'low'\n")
    try:
        mutate.main([*options, "--changes", str(table)])
    finally:
        test.write_text(TESTS)
    assert (
        "killed" in capsys.readouterr().out
        and '"test": "tests/test_sums.py::test_edge"' in state.read_text()
    )


def test_recorded_results_follow_moved_lines(tiny, options, outcomes):
    moved = SOURCE.replace("FACTOR = 3\n", "FACTOR = 3\n\n\ndef new():\n    return 7\n")
    sources = {"python/tiny/sums.py": moved}
    reach = mutate_reach.Reach(
        tiny / ".cache" / "mutate" / "record", sources, {"tests/test_sums.py": TESTS}
    )

    def tests(text):
        start = moved.index(text)
        return reach.tests(
            mutate_changes.Change("python/tiny/sums.py", start, start + len(text), "pass", "")
        )

    assert reach.unusable == {}  # test_conditions passes too
    assert {test.partition("::")[2] for test in tests("return a + b")} == {
        "test_first_sum",
        "test_second_sum",
    }
    assert tests("return 7") == []


def test_an_inconsistent_table_is_refused(tiny, options):
    rows = [("return", "yield"), ("nowhere", "x"), ("FACTOR = 3", "FACTOR = 3")]
    table = write_table(tiny.parent / "bad.tsv", rows)
    with pytest.raises(SystemExit) as refused:
        mutate.main([*options, "--changes", str(table)])
    message = str(refused.value)
    assert (
        f"line 2: this text occurs {SOURCE.count('return')} times" in message
        and "line 3: this text occurs no times" in message
    )
    assert "line 4: old and new are the same" in message
    with pytest.raises(SystemExit, match="columns old and new"):
        mutate.main(
            [*options, "--changes", str(write_table(tiny.parent / "bad.tsv", rows, ("was", "is")))]
        )


def test_a_table_may_name_the_file_and_have_line_breaks(tiny):
    sources = {"python/tiny/a.py": "x = 1\n\ty = '\\n'\n", "python/tiny/b.py": "x = 1\n"}
    rows = [("x = 1\n\ty = '\\n'", "x = 2\n\ty = '\\t'", ""), ("x = 1", "x = 3", "tiny/b.py")]
    table = write_table(tiny.parent / "good.tsv", rows, ("old", "new", "file"))
    first, second = mutate_changes.from_table(table, sources)
    assert first.apply(sources[first.file]) == "x = 2\n\ty = '\\t'\n"
    assert (second.file, second.apply(sources[second.file])) == ("python/tiny/b.py", "x = 3\n")


GENERATED = '''"""Numbers > 0 and True."""

import numpy as np

LIMITS: dict[str, int] = {"least": 4}


def f(x: "list[int]", size: int = 1, *, strict: bool = True, dtype="float32") -> "bool":
    """Never changed: 1 < 2."""
    if size < 1:
        raise ValueError(f"size is {size + 1}, less than 1")
    log.info("done 5", 6)
    y = np.minimum(x, size, axis=0)
    y += g(x, size)
    return y[: len(x)] if size > 2 and not strict else -y
'''


def test_changes_do_not_affect_texts_and_types():
    changes = mutate_changes.all_changes("python/tiny/made.py", GENERATED)
    made = {(change.kind, GENERATED[change.start : change.end], change.new) for change in changes}
    assert {
        ("comparison", "<", "<="),
        ("guard", "size < 1", "False"),
        ("function", "minimum", "maximum"),
        ("statement", "y += g(x, size)", "pass"),
        ("keyword", ", axis=0", ""),
        ("number", "4", "8"),
        (
            "other branch",
            "y[: len(x)] if size > 2 and not strict else -y",
            "-y if size > 2 and not strict else y[: len(x)]",
        ),
        ("argument order", "x, size", "size, x"),
        ("and/or", "and", "or"),
        ("bound", "len(x)", "(len(x)) - 1"),
        ("negation", "-y", "y"),
        ("key", '"least"', '"least_"'),
        ("arithmetic", "+=", "-="),
    } <= made
    untouched = [
        "Numbers > 0",
        "dict[str, int]",
        "Never changed",
        "size + 1",
        "done 5",
        '"list[int]"',
        "strict: bool",
        "float32",
    ]
    for text in untouched:
        start = GENERATED.index(text)
        assert not [change for change in changes if start <= change.start < start + len(text)], text
    for change in changes:
        assert ast.dump(ast.parse(change.apply(GENERATED))) != ast.dump(ast.parse(GENERATED))


def test_a_sample_covers_all_types_of_changes_and_is_written_as_a_table(tiny):
    sources = {"python/tiny/made.py": GENERATED}
    chosen = list(mutate_changes.sample(sources, 5, seed=3))
    assert (
        chosen
        == list(mutate_changes.sample(sources, 5, seed=3))
        != list(mutate_changes.sample(sources, 5, seed=4))
    )
    assert (
        len({change.kind for change in chosen})
        == 5
        == len({change.lines(GENERATED) for change in chosen})
    )
    table = write_table(tiny.parent / "made.tsv", [change.pair(GENERATED) for change in chosen])
    again = mutate_changes.from_table(table, sources)
    assert [change.apply(GENERATED) for change in again] == [
        change.apply(GENERATED) for change in chosen
    ]


def test_the_list_of_known_changes_matches_the_code():
    root = Path(__file__).resolve().parents[3]
    sources = {
        p.relative_to(root).as_posix(): p.read_text() for p in (root / "python").rglob("*.py")
    }
    changes = mutate_changes.from_table(root / "tests" / "mutations" / "known.tsv", sources)
    assert len(changes) >= 50
    for change in changes:
        ast.parse(change.apply(sources[change.file]))


def test_the_documented_counts_are_those_of_the_kept_sample():
    """docs/testing.md: changes, noticed first and now, equivalent, left; by subpackage and of all."""
    root = Path(__file__).parents[3]
    with (root / "tests" / "mutations" / "sample.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    counts: dict[str, list[int]] = {}
    for row in rows:
        part = row["file"].split("/")[2].removesuffix(".py")
        first, now = (row[name] in ("killed", "timed out") for name in ("outcome", "outcome_now"))
        same = row["outcome_now"] == "equivalent"
        for name in (f"`{part}`", "all"):
            number = counts.setdefault(name, [0] * 5)
            for i, one in enumerate((1, first, now, same, not now and not same)):
                number[i] += one
    text = (root / "docs" / "testing.md").read_text(encoding="utf-8")
    for name, number in counts.items():
        assert f"| {name} | {' | '.join(map(str, number))} |" in text
