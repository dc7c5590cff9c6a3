"""Which tests reach which lines: recorded with coverage, test by test, and looked up for a change.

Loaded by pytest (``-p mutate_reach``) this module is the recorder: it marks what coverage records with
the name of the running test. What runs in a fixture shared by several tests counts for all of them,
what runs while a file of tests is collected for all tests of that file; results kept by
``functools`` are forgotten before every test, so that each one shows what it needs. Subprocesses
take the name from the environment, ``TEST`` below.
"""

from __future__ import annotations

import ast
import difflib
import functools
import glob
import gzip
import hashlib
import json
import os
import re
import sys
from collections import defaultdict
from pathlib import Path

from mutate_changes import Change

try:
    import pytest
except ImportError:  # only the recorder needs it
    pytest = None

TEST = "MUTATE_TEST"  # owner of the lines: a test, "fixture NAME", or none on import
SETTINGS = """[run]
data_file = {folder}/lines
parallel = true
source = {source}
context = ${{MUTATE_TEST-}}
core = ctrace
patch = _exit
sigterm = true
disable_warnings = no-data-collected, module-not-imported, module-not-measured
"""
COMPILED = re.compile(
    r"\b(njit|jit|vectorize|guvectorize|intrinsic|overload|cfunc|stencil|heuristics|autotune)\b"
)
COMPILER = re.compile(r"^\s*(?:from|import) (?:numba|triton|llvmlite)\b", re.MULTILINE)


# ---- the recorder
class Recorder:
    """Switches coverage's context; records which tests ran, how long, with which shared fixtures."""

    def __init__(self, out: str):
        import coverage

        self.out, self.tests, self.stack, self.began = out, {}, [""], 0.0
        self.coverage = coverage.Coverage.current()
        if self.coverage is None:
            raise pytest.UsageError(
                "coverage did not start: is it installed, version 7.10 or newer?"
            )

    def _switch(self) -> None:
        os.environ[TEST] = self.stack[-1]
        self.coverage.switch_context(self.stack[-1])

    def entry(self, node: str) -> dict:
        """The record of a test."""
        return self.tests.setdefault(node, {"seconds": 0.0, "outcome": "", "fixtures": []})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Clear cached results, and assign the following lines to this test."""
        packages = os.environ["MUTATE_PACKAGES"].split()
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in packages:
                classes = [value for value in vars(module).values() if isinstance(value, type)]
                for holder in (module, *classes):
                    for kept in list(vars(holder).values()):
                        kept = getattr(kept, "__func__", kept)  # of a class or static method
                        if isinstance(kept, functools._lru_cache_wrapper):
                            kept.cache_clear()
        self.began = sum(os.times()[:4])
        self.stack = [nodeid]
        self._switch()

    def pytest_runtest_logreport(self, report) -> None:
        """Add up the time; a test passes if all its parts do."""
        entry = self.entry(report.nodeid)
        entry["seconds"] = round(entry["seconds"] + report.duration, 3)
        if report.outcome != "passed" or not entry["outcome"]:
            entry["outcome"] = report.outcome

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Assign the following lines to no test; waiting time on a busy machine is not a cost."""
        worked = sum(os.times()[:4]) - self.began
        entry = self.entry(nodeid)
        entry["seconds"] = round(min(entry["seconds"], 1 + 2 * worked), 3)
        self.stack = [""]
        self._switch()

    def around_fixture(self, fixturedef, request):
        """Assign the lines of a shared fixture to all tests that use it."""
        if fixturedef.scope == "function":
            yield
            return
        self.stack.append(f"fixture {fixturedef.baseid}::{fixturedef.argname}")
        self._switch()
        yield
        self.stack.pop()
        self._switch()

    def pytest_runtest_setup(self, item) -> None:
        """Note which shared fixtures a test uses."""
        definitions = [d for found in item._fixtureinfo.name2fixturedefs.values() for d in found]
        self.entry(item.nodeid)["fixtures"] = [
            f"fixture {d.baseid}::{d.argname}" for d in definitions if d.scope != "function"
        ]

    def pytest_sessionfinish(self) -> None:
        """Write the record."""
        Path(self.out).write_text(json.dumps(self.tests))


if pytest is not None:
    Recorder.around_fixture = pytest.hookimpl(hookwrapper=True)(Recorder.around_fixture)
    Recorder.pytest_fixture_setup = Recorder.around_fixture
    Recorder.pytest_runtest_setup = pytest.hookimpl(tryfirst=True)(Recorder.pytest_runtest_setup)


def pytest_configure(config) -> None:
    """Start recording."""
    config.pluginmanager.register(Recorder(os.environ["MUTATE_OUT"]))


def read_recording(folder: Path, root: Path) -> dict:
    """The record of a run in ``folder``: its tests, and which of them reach which lines."""
    from coverage import CoverageData

    tests = json.loads((folder / "tests.json").read_text())
    users = defaultdict(list)
    for number, entry in enumerate(tests.values()):
        for fixture in entry.pop("fixtures"):
            users[fixture].append(number)
    numbers = {name: [number] for number, name in enumerate(tests)} | users
    everyone = list(range(len(tests)))
    lines: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for name in glob.glob(f"{folder}/lines*"):
        data = CoverageData(name)
        data.read()
        for file in data.measured_files():
            if not Path(file).is_relative_to(root):
                continue
            for line, contexts in data.contexts_by_lineno(file).items():
                reached = lines[Path(file).relative_to(root).as_posix()][line]
                for context in contexts:
                    # a child of a child carries the name twice, joined by "|"
                    reached.update(
                        numbers.get(context) or numbers.get(context.partition("|")[0]) or everyone
                    )
    return {
        "tests": tests,
        "lines": {
            file: {line: sorted(who) for line, who in of.items()} for file, of in lines.items()
        },
    }


# ---- queries
def digest(text: str) -> str:
    """A short name for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Source:
    """One file, line by line: the statement, the enclosing functions, the names that it binds."""

    def __init__(self, text: str):
        self.text, self.lines = text, text.splitlines()
        count = len(self.lines) + 2
        self.statement = [(line, line) for line in range(count)]
        self.functions: list[tuple[str, ...]] = [()] * count
        self.compiled = [False] * count
        self.names: list[tuple[str, ...]] = [()] * count
        self.foreign = bool(COMPILER.search(text))  # coverage records at most the compilation
        self.mentions: dict[str, list[int]] = defaultdict(list)  # word -> lines, but for imports
        for line, content in enumerate(self.lines, 1):
            if not re.match(r"\s*(from|import|def|class) ", content):
                for word in set(re.findall(r"\w+", content)):
                    self.mentions[word].append(line)
        self._walk(ast.parse(text).body, (), (), False)

    def _walk(
        self,
        body: list[ast.stmt],
        functions: tuple[str, ...],
        names: tuple[str, ...],
        compiled: bool,
    ) -> None:
        for node in body:
            inner = [
                child
                for field in ("body", "orelse", "finalbody")
                for child in getattr(node, field, [])
            ]
            inner += [
                child
                for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]
                for child in part.body
            ]
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            last = max(first, inner[0].lineno - 1) if inner else node.end_lineno
            bound = names
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                bound = (*names, node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                bound = names + tuple(
                    n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
                )
            for line in range(first, last + 1):
                self.statement[line] = first, last
            for line in range(first, node.end_lineno + 1):
                self.functions[line], self.names[line], self.compiled[line] = (
                    functions,
                    bound,
                    compiled,
                )
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                jit = compiled or any(COMPILED.search(ast.unparse(d)) for d in node.decorator_list)
                self._walk(inner, (*functions, node.name), bound, jit)
            else:
                self._walk(
                    inner, functions, bound if isinstance(node, ast.ClassDef) else names, compiled
                )


class Reach:
    """The recorded runs, one for each file of tests, against the current sources."""

    def __init__(self, folder: Path, sources: dict[str, str], test_files: dict[str, str]):
        self.folder = folder
        self.sources = {file: Source(text) for file, text in sources.items()}
        self.seconds: dict[str, float] = {}
        self.stale: list[str] = []  # recorded, and changed since
        self.unrecorded: list[str] = []
        self.unusable: dict[str, str] = {}
        self.by_line: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.test_words = {file: set(re.findall(r"\w+", text)) for file, text in test_files.items()}
        for file, text in test_files.items():
            self._load(file, text)

    @staticmethod
    def path(folder: Path, file: str) -> Path:
        """Where the recording of a file of tests lies."""
        return folder / (file.replace("/", "__") + ".json.gz")

    def _load(self, file: str, text: str) -> None:
        path = self.path(self.folder, file)
        if not path.exists():
            self.unrecorded.append(file)
            return
        with gzip.open(path, "rt") as stream:
            record = json.load(stream)
        if record["test"] != digest(text):
            self.stale.append(file)
        names = list(record["tests"])
        for name, entry in record["tests"].items():
            if entry["outcome"] == "passed":
                self.seconds[name] = entry["seconds"]
            else:
                self.unusable[name] = entry["outcome"]
        for source, lines in record["lines"].items():
            moved = self._moved(source, record["sources"][source])
            for line, who in lines.items():
                for now in moved(int(line)):
                    self.by_line[source][now].update(
                        names[i] for i in who if names[i] in self.seconds
                    )

    def _moved(self, source: str, then: str):
        """From lines of the recorded text to lines of the current one."""
        if source not in self.sources:
            return lambda line: ()
        if digest(self.sources[source].text) == then:
            return lambda line: (line,)
        return lambda line: self._map(source, then).get(line, ())

    @functools.cache  # noqa: B019 - one object exists as long as the program
    def _map(self, source: str, then: str) -> dict[int, tuple[int, ...]]:
        old = gzip.decompress((self.folder / "sources" / then).read_bytes()).decode().splitlines()
        new, mapped = self.sources[source].lines, {}
        for _, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            for line in range(
                a, b
            ):  # a rewritten piece is reached by the tests that reached the old one
                mapped[line + 1] = (
                    (c + line - a + 1,) if b - a == d - c else tuple(range(c + 1, d + 1))
                )
        return mapped

    def tests(self, change: Change) -> list[str]:
        """The tests that reach a change: by its lines, or by its names if coverage does not record them."""
        source = self.sources[change.file]
        first, last = change.lines(source.text)
        lines = {
            line
            for at in range(first, last + 1)
            for line in range(source.statement[at][0], source.statement[at][1] + 1)
        }
        direct = set().union(*(self.by_line[change.file].get(line, ()) for line in lines))
        if (
            source.functions[first]
            and not source.compiled[first]
            and (direct or not source.foreign)
        ):
            # A forked process that ends at once reports nothing: the files of tests that name the function run.
            return self._order(change.file, direct or self._naming(source.functions[first][-1]))
        names = set(source.functions[first][-1:] or source.names[first])
        reached = self._through(names, change.file, lines)
        reached = reached.union(*map(self._naming, names))
        if not reached:
            inside = (line for line, around in enumerate(source.functions) if around)
            reached = (
                set().union(*(self.by_line[change.file].get(line, ()) for line in inside)) or direct
            )
        return self._order(change.file, reached)

    def _naming(self, name: str) -> set[str]:
        """The tests of all files of tests in which a name occurs."""
        files = tuple(file + "::" for file, words in self.test_words.items() if name in words)
        return {test for test in self.seconds if test.startswith(files)}

    def _through(self, names: set[str], home: str, own: set[int]) -> set[str]:
        """Tests that run a line which mentions one of the names.

        A mention in a compiled function, or where something else is bound on import, leads to the
        mentions of that.
        """
        reached, seen, queue = set(), set(), sorted(names)
        while queue:
            name = queue.pop()
            if name in seen or len(seen) > 60:
                continue
            seen.add(name)
            for file, source in self.sources.items():
                for line in source.mentions.get(name, ()):
                    if file == home and line in own:
                        continue
                    around = source.functions[line]
                    if around:
                        start, end = source.statement[line]
                        reached = reached.union(
                            *(self.by_line[file].get(at, ()) for at in range(start, end + 1))
                        )
                    if (around and (source.compiled[line] or source.foreign)) or not around:
                        queue += around[-1:] or source.names[line]
        return reached

    def _order(self, file: str, tests: set[str]) -> list[str]:
        """Tests named after the module or its folder first, then the fast ones."""
        words = {part.strip("_") for part in Path(file).with_suffix("").parts[2:]}
        related = {test: any(word in test.partition("::")[0] for word in words) for test in tests}
        return sorted(tests, key=lambda test: (not related[test], self.seconds[test], test))
