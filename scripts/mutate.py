#!/usr/bin/env python3
"""Make small changes to the code, one at a time, and test whether the tests detect them.

    scripts/mutate.py --record                                # once: which tests reach which lines
    scripts/mutate.py --changes tests/mutations/known.tsv     # a list of changes
    scripts/mutate.py --folders deg genes --per-folder 40     # changes made from the syntax tree

Own code, because mutmut and cosmic-ray neither take a list of changes nor find the tests of what
runs in compiled functions, in subprocesses or on import.

Everything runs in copies of the tree under the temporary folder, with an empty HOME and nothing
beside the copy. A change is made in a copy; the tests that reach it (mutate_reach.py) run until the
first one fails, those named after the module and the fast ones first, at most ``--limit`` seconds
of them. A change is *killed* if a test fails that passes without it, *timed out* if the tests hang
with it only, *survived* if all pass, *not covered* if no test reaches it, *unsure* if its tests
fail or hang without it too. Results are used again while the file, the change and its tests stay
the same.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import fcntl
import gzip
import json
import os
import queue
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mutate_reach
from mutate_changes import Change, escape, folder, from_table, sample
from mutate_reach import Reach, digest

OUTCOMES = ("killed", "timed out", "survived", "not covered", "unsure", "equivalent")
PRELOAD = [
    "torch",
    "numba",
    "scipy.stats",
    "scipy.sparse.linalg",
    "pandas",
    "anndata",
    "sklearn.neighbors",
    "h5py",
    "matplotlib",
]
KEPT_AT_HOME = (".cache/scmamba", ".cache/matplotlib")  # compiled code and fonts: only time


class Copy:
    """One copy of the tree, in which one change at a time is made and undone."""

    def __init__(self, root: Path, place: Path, preload: list[str]):
        self.preload, self.server = preload, None
        self.place, self.tree, self.home = place, place / "tree", place / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        wanted = set(_files(root))
        for path in [p for p in self.tree.rglob("*") if not p.is_dir() or p.is_symlink()]:
            if (
                path.relative_to(self.tree).as_posix() not in wanted
                and "__pycache__" not in path.parts
            ):
                path.unlink()
        for file in wanted:
            source, target = root / file, self.tree / file
            if not target.exists() or source.read_bytes() != target.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
                _forget_bytecode(target)

    def run(
        self, tests: list[str], limit: float, extra: tuple[str, ...] = (), **variables: str
    ) -> tuple[int | None, str]:
        """Exit status of pytest (None: out of time, and ended with its children) and its output."""
        temporary = self.place / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for path in [*self.home.glob("*"), *self.home.glob(".cache/*")]:
            if path.relative_to(self.home).as_posix() not in (".cache", *KEPT_AT_HOME):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        chosen, output = self.place / "tests.txt", self.place / "output.txt"
        chosen.write_text("".join(test + "\n" for test in tests))
        arguments = ["-p", "no:cacheprovider", "-q", "-rfE", "--tb=short", *extra, f"@{chosen}"]
        if variables:
            with output.open("w") as stream:
                process = self._start(
                    "-m", "pytest", *arguments, stdout=stream, stderr=subprocess.STDOUT, **variables
                )
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(limit)
            code = process.poll()
            _end(process.pid, str(temporary))
            process.wait()
        else:
            code = self._fork(arguments, output, limit, str(temporary))
        return code, output.read_text(errors="replace")

    def _start(self, *command: str, **settings) -> subprocess.Popen:
        """Python in the copy, with an empty HOME and only the necessary variables."""
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        pipes = {
            name: settings.pop(name)
            for name in ("stdin", "stdout", "stderr", "bufsize")
            if name in settings
        }
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TMPDIR": str(self.place / "tmp"),
            "PYTHONPATH": str(self.tree / "python"),
            **threads,
            **settings,
        }
        pipes = {"stdin": subprocess.DEVNULL, **pipes}
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.tree,
            env=environment,
            start_new_session=True,
            **pipes,
        )

    def _fork(self, arguments: list[str], output: Path, limit: float, mark: str) -> int | None:
        if self.server is None or self.server.poll() is not None:
            script = Path(__file__).with_name("mutate_fork.py")
            self.server = self._start(
                str(script), *self.preload, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
        self.server.stdin.write(
            json.dumps({"arguments": arguments, "output": str(output)}).encode() + b"\n"
        )
        pid = int(self.server.stdout.readline())
        late = not select.select([self.server.stdout], [], [], limit)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        code = int(self.server.stdout.readline())
        _end(pid, mark, but=self.server.pid)
        return None if late else code

    def stop(self) -> None:
        """End all processes of this copy at once."""
        _end(self.server.pid if self.server else 0, str(self.place / "tmp"))

    def close(self) -> None:
        """End the process that waits for work."""
        if self.server is not None:
            self.server.stdin.close()
            self.server.wait()
            self.server = None

    def change(self, file: str, text: str, compiled: set[str]):
        """Write a changed file and hide its code compiled by numba; returns a function that undoes both."""
        path = self.tree / file
        status, before = path.stat(), path.read_bytes()
        hidden = self.place / "hidden"
        shutil.rmtree(hidden, ignore_errors=True)
        for found in self._machine_code(compiled):
            (hidden / found.relative_to(self.place)).parent.mkdir(parents=True, exist_ok=True)
            found.rename(hidden / found.relative_to(self.place))
        path.write_text(text, encoding="utf-8")
        _forget_bytecode(path)

        def undo() -> None:
            path.write_bytes(before)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # numba compares it
            _forget_bytecode(path)
            for found in self._machine_code(compiled):
                found.unlink()
            for found in [p for p in hidden.rglob("*") if p.is_file()]:
                target = self.place / found.relative_to(hidden)
                target.parent.mkdir(parents=True, exist_ok=True)
                found.rename(target)

        return undo

    def _machine_code(self, stems: set[str]) -> list[Path]:
        if not stems:
            return []
        found = [p for top in (self.tree / "python", self.home) for p in top.rglob("*.nb[ic]")]
        return [p for p in found if p.name.partition(".")[0] in stems]


def _files(root: Path) -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        names = [name for name in done.stdout.split("\0") if name]
    else:
        names = [
            p.relative_to(root).as_posix()
            for top in ("python", "tests")
            for p in (root / top).rglob("*")
        ]
        names += [p.name for p in root.iterdir()]
    return [
        name
        for name in names
        if (root / name).is_file() and not (root / name).is_symlink() and "__pycache__" not in name
    ]


def _forget_bytecode(path: Path) -> None:
    """Python reuses the bytecode of a changed file whose size and second are the same, so remove it."""
    for stale in (path.parent / "__pycache__").glob(path.stem + ".*.pyc"):
        stale.unlink()


def _end(pid: int, mark: str, but: int = 0) -> None:
    """End a run's process group and its other children, which are found by their TMPDIR."""
    if pid:  # 0 would be this program's own group
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if int(
                entry.parent.name
            ) != but and f"TMPDIR={mark}".encode() in entry.read_bytes().split(b"\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)


class Runner:
    """The copies, the record of which tests reach which lines, and the results so far."""

    def __init__(self, root: Path, options: argparse.Namespace):
        self.root, self.options = root, options
        self.kept = root / ".cache" / "mutate"
        (self.kept / "record" / "sources").mkdir(parents=True, exist_ok=True)
        self.sources = {
            p.relative_to(root).as_posix(): p.read_text(encoding="utf-8")
            for p in sorted((root / "python").rglob("*.py"))
        }
        tests = sorted((root / "tests").rglob("test_*.py"))
        self.tests = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in tests}
        helpers = [p for p in sorted((root / "tests").rglob("*.py")) if p not in tests]
        self.helpers = digest("".join(p.read_text(encoding="utf-8") for p in helpers))
        self.tree = digest(self.helpers + json.dumps([self.sources, self.tests], sort_keys=True))
        self.workspace = Path(
            options.workspace or f"{tempfile.gettempdir()}/mutate-{digest(str(root))[:8]}"
        )
        self.workspace.mkdir(parents=True, exist_ok=True)
        self.lock = (self.workspace / "lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"Another run of mutate.py uses {self.workspace}; wait for it or give --workspace."
            ) from None
        self.copies: queue.Queue[Copy] = queue.Queue()
        self.all_copies = [
            Copy(root, self.workspace / f"copy{number}", options.preload)
            for number in range(options.jobs)
        ]
        for copy in self.all_copies:
            self.copies.put(copy)
        self.writing = threading.Lock()
        self.state = self.kept / "state.jsonl"
        self.results: dict[str, dict] = {}
        if options.resume and self.state.exists():
            self.results = {
                entry.pop("key"): entry
                for entry in map(json.loads, self.state.read_text().splitlines())
            }

    def keep(self, key: str, entry: dict) -> dict:
        """Add a result to the state file."""
        with self.writing, self.state.open("a") as stream:
            self.results[key] = entry
            stream.write(json.dumps({"key": key, **entry}) + "\n")
        return entry

    def in_parallel(self, work, items):
        """``work(copy, item)`` for all items; yields (item, result) as they are ready."""

        def one(item):
            copy = self.copies.get()
            try:
                return work(copy, item)
            finally:
                self.copies.put(copy)

        with ThreadPoolExecutor(self.options.jobs) as pool:
            futures = {pool.submit(one, item): item for item in items}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for copy in self.all_copies:
                    copy.stop()
                raise

    def close(self) -> None:
        """Release the copies."""
        while not self.copies.empty():
            self.copies.get().close()
        self.lock.close()

    # ---- which tests reach which lines
    def record(self, files: list[str]) -> None:
        """Run files of tests under coverage, each in its own process."""
        longest = {file: -len(self.tests[file]) for file in files}
        for done, (file, outcome) in enumerate(
            self.in_parallel(self._record, sorted(files, key=longest.get)), 1
        ):
            print(f"[{done}/{len(files)}] recorded {file}: {outcome}", flush=True)

    def _record(self, copy: Copy, file: str) -> str:
        out = copy.place / "recording"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        settings = out / "settings.ini"
        settings.write_text(mutate_reach.SETTINGS.format(folder=out, source=copy.tree / "python"))
        packages = " ".join(p.stem for p in (copy.tree / "python").iterdir())
        began = time.time()
        paths = os.pathsep.join([str(copy.tree / "python"), str(Path(__file__).resolve().parent)])
        code, output = copy.run(
            [file],
            3600,
            ("-p", "mutate_reach"),
            COVERAGE_PROCESS_START=str(settings),
            MUTATE_OUT=str(out / "tests.json"),
            MUTATE_PACKAGES=packages,
            PYTHONPATH=paths,
        )
        (self.kept / "record" / (Path(file).stem + ".log")).write_text(output)
        if not (out / "tests.json").exists():
            log = self.kept / "record" / (Path(file).stem + ".log")
            return f"FAILED (exit status {code}), see {log}"
        record = mutate_reach.read_recording(out, copy.tree)
        shutil.rmtree(out)
        record |= {"test": digest(self.tests[file]), "sources": {}}
        for source in record["lines"]:
            text = self.sources.get(source, "")
            record["sources"][source] = digest(text)
            (self.kept / "record" / "sources" / digest(text)).write_bytes(
                gzip.compress(text.encode(), mtime=0)
            )
        with gzip.open(Reach.path(self.kept / "record", file), "wt") as stream:
            json.dump(record, stream)
        outcomes = Counter(entry["outcome"] for entry in record["tests"].values())
        counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        return f"{counted} in {time.time() - began:.0f} s"

    # ---- one change
    def try_change(self, copy: Copy, task: tuple[Change, list[str]]) -> dict:
        """Choose the tests for a change and run them, or look up the stored result."""
        change, tests = task
        text = self.sources[change.file]
        key = digest(json.dumps([change.file, digest(text), change.apply(text)]))
        chosen, planned = [], 0.0
        for test in tests:
            planned += self.reach.seconds[test]
            if chosen and planned > self.options.limit:
                planned -= self.reach.seconds[test]
                break
            chosen.append(test)
        files = sorted({test.partition("::")[0] for test in chosen})
        by_tests = digest(
            json.dumps([self.helpers, sorted(chosen), [self.tests[file] for file in files]])
        )
        before = self.results.get(key, {})
        if before.get("by") == by_tests and before["outcome"] != "unsure":
            return before
        entry = {
            "outcome": "not covered",
            "test": "",
            "tests": len(chosen),
            "left": len(tests) - len(chosen),
            "seconds": 0.0,
        }
        entry["by"] = by_tests
        if not tests:
            return self.keep(key, entry)
        if before.get("test") in chosen:  # the test that detected it last time is first
            chosen.insert(0, chosen.pop(chosen.index(before["test"])))
        began = time.time()
        entry["outcome"], entry["test"] = self._verdict(
            copy, change, self._by_file(chosen), planned
        )
        return self.keep(key, entry | {"seconds": round(time.time() - began, 1)})

    def _by_file(self, tests: list[str]) -> list[str]:
        """File by file, so that no fixture is set up twice; the files in the given order."""
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        place = {test: number for number, test in enumerate(self.reach.seconds)}
        return sorted(
            tests,
            key=lambda test: (files.index(test.partition("::")[0]), test != tests[0], place[test]),
        )

    def _verdict(
        self, copy: Copy, change: Change, tests: list[str], planned: float
    ) -> tuple[str, str]:
        text = self.sources[change.file]
        compiled = self._compiled_from(change.file)
        limit = min(self.options.cap, 60 + self.options.factor * planned) + (300 if compiled else 0)
        for _ in range(5):
            undo = copy.change(change.file, change.apply(text), compiled)
            try:
                code, output = copy.run(tests, limit, ("-x",))
            finally:
                undo()
            if code == 0:
                return "survived", ""
            if code is None:
                if copy.run(tests, limit, ("-x",))[0] == 0:
                    return "timed out", ""
                limit *= 2  # the tests themselves are slower now
                continue
            failed = [
                test
                for test in tests
                if re.search(rf"^(FAILED|ERROR) {re.escape(test)}( - |$)", output, re.MULTILINE)
            ]
            if not failed:  # an import failed, or the process died
                return (
                    ("killed", "(import)")
                    if copy.run(tests, limit, ("--collect-only",))[0] == 0
                    else ("unsure", "")
                )
            if self._sound(copy, failed[0], limit):
                return "killed", failed[0]
            tests = [test for test in tests if test != failed[0]]  # it fails without the change too
            if not tests:
                break
        return "unsure", ""

    def _sound(self, copy: Copy, test: str, limit: float) -> bool:
        """Whether a test passes alone and without any change."""
        key = f"alone {test} {self.tree}"
        if key not in self.results:
            self.keep(key, {"passed": copy.run([test], limit)[0] == 0})
        return self.results[key]["passed"]

    def _compiled_from(self, file: str) -> set[str]:
        """Modules whose compiled functions contain code of a file.

        numba looks at the file of a function only, not at those of what it calls.
        """
        affected, grown = {file}, True
        while grown:
            grown = False
            for user, source in self.reach.sources.items():
                if user in affected or not source.foreign:
                    continue
                for node in ast.walk(ast.parse(source.text)):
                    if not isinstance(node, ast.ImportFrom):
                        continue
                    names = {alias.asname or alias.name for alias in node.names}
                    stems = {
                        Path(f).parent.name if f.endswith("__init__.py") else Path(f).stem
                        for f in affected
                    }
                    if {alias.name for alias in node.names} & stems or (
                        node.module or ""
                    ).rpartition(".")[2] in stems:
                        pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
                        if any(
                            on and pattern.search(line)
                            for on, line in zip(source.compiled[1:], source.lines)
                        ):
                            affected.add(user)
                            grown = True
                            break
        return {Path(f).stem for f in affected if self.reach.sources[f].foreign}

    # ---- all of them
    def run(self, changes: list[Change], equivalent: set[str]) -> int:
        """Try all changes and write the table."""
        self.reach = Reach(self.kept / "record", self.sources, self.tests)
        if self.reach.stale:
            print(f"{len(self.reach.stale)} changed files of tests are recorded again.")
            self.record(self.reach.stale)
            self.reach = Reach(self.kept / "record", self.sources, self.tests)
        if self.reach.unrecorded:
            names = ", ".join(Path(file).name for file in self.reach.unrecorded)
            print(f"Not recorded, so not run (--record): {names}")
        bad = [test for test, outcome in self.reach.unusable.items() if outcome == "failed"]
        if bad:
            print(f"Failed without any change, so not run: {', '.join(bad)}")
        rows, tasks = [], []
        for change in changes:
            if digest(change.file + change.apply(self.sources[change.file])) in equivalent:
                rows.append(
                    (
                        change,
                        {"outcome": "equivalent", "test": "", "tests": 0, "left": 0, "seconds": 0},
                    )
                )
            else:
                tasks.append((change, self.reach.tests(change)))
        if self.options.list:
            rows += [
                (change, {"outcome": "", "test": "", "tests": len(tests), "left": 0, "seconds": 0})
                for change, tests in tasks
            ]
            tasks = []
        try:
            for (change, _), entry in self.in_parallel(
                self.try_change, [(change, tuple(tests)) for change, tests in tasks]
            ):
                rows.append((change, entry))
                line = change.lines(self.sources[change.file])[0]
                place = f"{change.file}:{line} {change.kind}"
                cost = f"{entry['tests']} tests, {entry['seconds']:.0f} s"
                count = f"[{len(rows)}/{len(changes)}]"
                print(f"{count} {entry['outcome']:11} {place}, {cost} {entry['test']}", flush=True)
        except KeyboardInterrupt:
            print("Stopped; the same command goes on from here.")
        self.write(rows)
        return 130 if len(rows) < len(changes) else 0

    def write(self, rows: list[tuple[Change, dict]]) -> None:
        """The table of all changes, and the counts of each folder."""
        table = Path(self.options.table or self.kept / "table.tsv")
        table.parent.mkdir(parents=True, exist_ok=True)
        rows.sort(key=lambda row: (row[0].file, row[0].start, row[0].new))
        counts = defaultdict(Counter)
        with table.open("w", newline="", encoding="utf-8") as stream:
            out = csv.writer(
                stream, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n"
            )
            out.writerow(
                [
                    "file",
                    "line",
                    "kind",
                    "outcome",
                    "test",
                    "tests",
                    "left",
                    "seconds",
                    "old",
                    "new",
                ]
            )
            for change, entry in rows:
                text = self.sources[change.file]
                counts[folder(change.file)][entry["outcome"]] += 1
                values = [entry[name] for name in ("outcome", "test", "tests", "left", "seconds")]
                out.writerow(
                    [
                        change.file,
                        change.lines(text)[0],
                        change.kind,
                        *values,
                        *map(escape, change.pair(text)),
                    ]
                )
        print(f"\n{'folder':14}" + "".join(f"{name:>13}" for name in OUTCOMES) + f"{'noticed':>13}")
        counts["all"] = sum(counts.values(), Counter())
        for name, count in counts.items():
            noticed, real = (
                count["killed"] + count["timed out"],
                sum(count.values()) - count["equivalent"],
            )
            share = f"{100 * noticed / real:.0f}%" if real else ""
            print(
                f"{name:14}"
                + "".join(f"{count[outcome]:>13}" for outcome in OUTCOMES)
                + f"{share:>13}"
            )
        print(f"Every change: {table}")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--record",
        nargs="*",
        metavar="TESTS",
        help="record files of tests (none named: all that are new or changed), then stop",
    )
    add(
        "--changes",
        type=Path,
        metavar="FILE.tsv",
        help="columns old, new (with \\n, \\t, \\\\) and maybe file: old occurs once under python/",
    )
    add(
        "--folders",
        nargs="+",
        default=[],
        help="only these subpackages or top-level modules, such as deg genes",
    )
    add(
        "--exclude",
        nargs="+",
        default=[],
        metavar="FILE",
        help="omit files whose path ends so",
    )
    add("--per-folder", type=int, default=40, help="how many changes to make in each folder")
    add("--seed", type=int, default=0)
    add(
        "--equivalent",
        type=Path,
        default=None,
        help="a table of changes that change nothing; tests/mutations/equivalent.tsv",
    )
    add(
        "--list",
        action="store_true",
        help="write the table of changes and the number of tests for each, run nothing",
    )
    add("--table", help="where to write the table; .cache/mutate/table.tsv")
    add("--jobs", type=int, default=os.cpu_count() or 1)
    add("--limit", type=float, default=180, help="seconds of tests for one change, as recorded")
    add(
        "--factor",
        type=float,
        default=6,
        help="a change has timed out after a minute and so many times the recorded seconds",
    )
    add(
        "--cap",
        type=float,
        default=900,
        help="and after so many seconds at most (300 more where numba compiles)",
    )
    add(
        "--preload",
        nargs="*",
        default=PRELOAD,
        metavar="MODULE",
        help="libraries that are loaded once, not for every run",
    )
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="use the results of earlier runs",
    )
    add("--root", type=Path, default=Path(__file__).resolve().parents[1], help=argparse.SUPPRESS)
    add("--workspace", help="folder of the copies")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    runner = Runner(root, options)
    try:
        return work(runner, root, options)
    finally:
        runner.close()


def work(runner: Runner, root: Path, options: argparse.Namespace) -> int:
    """Options of the command line."""
    if options.record is not None:
        named = [
            Path(name).resolve().relative_to(root).as_posix() if Path(name).exists() else name
            for name in options.record
        ]
        if unknown := [name for name in named if name not in runner.tests]:
            raise SystemExit(f"These are no files of tests: {', '.join(unknown)}")
        reach = None if named else Reach(runner.kept / "record", runner.sources, runner.tests)
        runner.record(named or [*reach.stale, *reach.unrecorded])
        return 0

    def wanted(file: str) -> bool:
        return (not options.folders or folder(file) in options.folders) and not file.endswith(
            tuple(options.exclude) or ("\0",)
        )

    if options.changes:
        changes = [
            change for change in from_table(options.changes, runner.sources) if wanted(change.file)
        ]
    else:
        sources = {file: text for file, text in runner.sources.items() if wanted(file)}
        changes = list(sample(sources, options.per_folder, options.seed))
    listed = options.equivalent or root / "tests" / "mutations" / "equivalent.tsv"
    same = from_table(listed, runner.sources, strict=False) if listed.exists() else []
    return runner.run(
        changes,
        {digest(change.file + change.apply(runner.sources[change.file])) for change in same},
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left running
    sys.exit(main())
