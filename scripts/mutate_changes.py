"""Small wrong changes to Python sources: read from a table, or made from the syntax tree."""

from __future__ import annotations

import ast
import csv
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARE = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
PAIRS = [
    "min max",
    "minimum maximum",
    "any all",
    "floor ceil",
    "argmin argmax",
    "zeros ones",
    "mean sum",
    "zeros_like ones_like",
    "log1p log",
    "expm1 exp",
    "nanmin nanmax",
    "union intersection",
    "amin amax",
]
OTHER_NAME = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
SYMMETRIC = {
    "min",
    "max",
    "minimum",
    "maximum",
    "isinstance",
    "allclose",
    "array_equal",
    "union",
    "logical_and",
    "logical_or",
    "intersect1d",
    "union1d",
    "gcd",
    "hypot",
}
# Texts and waiting times do not affect computed results: changes there are not mutations.
QUIET = re.compile(
    r"^(log|logger|logging|warnings?|warn|print|echo|secho|progress|status|console|note|inform|debug|info"
    r"|ax|axes|axis|fig|figure|plt|typer|report_progress|update_progress|close|flush|gc|collect)$"
)
COSMETIC = re.compile(
    r"chunk|block|batch|tile|thread|worker|n_jobs|timeout|poll|cache|buffer|seed|random_state|bytes|retry|interval|dpi"
    r"|figsize|colou?r|linewidth|alpha|font|help|desc|progress|quiet|verbose|encoding|dtype|copy|casting|daemon"
    r"|capture_output|parents|exist_ok|frozen|slots|nogil|fastmath|parallel|inline|stacklevel|category|non_blocking"
    r"|compression|maxsize|indent|strict|name$|title|label"
)
PATH = re.compile(r"path|folder|file|root|home|resources|directory", re.IGNORECASE)
KEY = re.compile(r"[A-Za-z_][\w.-]*$")
NOT_KEYS = re.compile(
    r"(u?int|float|complex)\d*$|bool$|utf-?8$|[rwa]b?$|ascii$|ignore$|backslashreplace$|id$"
)


@dataclass(frozen=True)
class Change:
    """``file[start:end]`` becomes ``new``; the offsets count characters."""

    file: str
    start: int
    end: int
    new: str
    kind: str

    def apply(self, text: str) -> str:
        """The changed text."""
        return text[: self.start] + self.new + text[self.end :]

    def lines(self, text: str) -> tuple[int, int]:
        """First and last line, from 1."""
        first = text.count("\n", 0, self.start) + 1
        return first, first + text[self.start : self.end].rstrip("\n").count("\n")

    def pair(self, text: str) -> tuple[str, str]:
        """A row of a table: the lines before and after, with preceding lines until they are unique."""
        begin = text.rfind("\n", 0, self.start) + 1
        end = text.find("\n", max(self.end, self.start + 1) - 1)
        end = len(text) if end < 0 else end
        while text.count(text[begin:end]) > 1 and begin:
            begin = text.rfind("\n", 0, begin - 1) + 1
        return text[begin:end], text[begin : self.start] + self.new + text[self.end : end]


def folder(file: str) -> str:
    """The subpackage, or the module next to them: ``python/scmamba/deg/zlm.py`` is in ``deg``."""
    parts = Path(file).parts
    return Path(parts[2] if len(parts) > 2 else parts[-1]).stem


def escape(text: str) -> str:
    """One cell of a table."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def unescape(cell: str) -> str:
    """The text of a cell."""
    letters = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda found: letters[found.group(1)], cell)


def from_table(path: Path, sources: dict[str, str], strict: bool = True) -> list[Change]:
    """The changes of a table with columns ``old``, ``new`` and maybe ``file``.

    Rows that do not match the sources end the program with a sentence for each, or are skipped if
    not ``strict``.
    """
    changes, wrong = [], []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        if not {"old", "new"} <= set(rows.fieldnames or ()):
            raise SystemExit(
                f"{path} needs a first line that names the columns old and new, separated by tabs."
            )
        for number, row in enumerate(rows, 2):
            old, new, only = (
                unescape(row["old"] or ""),
                unescape(row["new"] or ""),
                (row.get("file") or "").strip(),
            )
            places = [
                (name, text.count(old))
                for name, text in sources.items()
                if old and old in text and (not only or name == only or name.endswith("/" + only))
            ]
            times = sum(count for _, count in places)
            where = only or "python/"
            if not old:
                wrong.append(f"line {number}: the text to replace is empty")
            elif times != 1:
                found = f"this text occurs {times or 'no'} times under {where}, not once"
                wrong.append(f"line {number}: {found}: {escape(old)[:90]}")
            elif old == new:
                wrong.append(f"line {number}: old and new are the same")
            else:
                start = sources[places[0][0]].index(old)
                changes.append(Change(places[0][0], start, start + len(old), new, "table"))
    if wrong and strict:
        raise SystemExit(f"{path} cannot be used.\n  " + "\n  ".join(wrong))
    return changes


class _Finder(ast.NodeVisitor):
    """Every change that the operators can make to one file."""

    def __init__(self, file: str, text: str):
        self.file, self.text, self.found = file, text, []
        self.starts = [0]
        for line in text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.lines = text.splitlines()

    # positions: the tree counts bytes of UTF-8
    def _at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(
            node.end_lineno, node.end_col_offset
        )

    def source(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def add(self, start: int, end: int, new: str, kind: str) -> None:
        self.found.append(Change(self.file, start, end, new, kind))

    def replace(self, node: ast.AST, new: str, kind: str) -> None:
        self.add(*self.span(node), new, kind)

    def _between(self, left: ast.AST, right: ast.AST, old: str, new: str, kind: str) -> None:
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.text[start:end]
        found = re.search(
            r"(?<![\w*/<>=!])" + re.escape(old).replace(r"\ ", r"\s+") + r"(?![\w*/=])", gap
        )
        if "#" not in gap and found:
            self.add(start + found.start(), start + found.end(), new, kind)

    # excluded code
    def _skip(self, node: ast.AST) -> None:
        return None

    visit_Raise = visit_Assert = visit_Import = visit_ImportFrom = visit_JoinedStr = (
        visit_Global
    ) = _skip

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "__str__"):
            return
        arguments = [*node.args.posonlyargs, *node.args.args]
        for argument, value in [
            *zip(arguments[len(arguments) - len(node.args.defaults) :], node.args.defaults),
            *zip(node.args.kwonlyargs, node.args.kw_defaults),
        ]:
            if value is not None and not COSMETIC.search(argument.arg):
                self.visit(value)
        for statement in node.body:
            self.visit(statement)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def _cosmetic(self, target: ast.AST) -> bool:
        name = self.source(target)
        return bool(COSMETIC.search(name.lower().rpartition(".")[2])) or name.startswith("__")

    def visit_Assign(self, node: ast.Assign) -> None:
        if not self._cosmetic(node.targets[0]):
            self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None and not self._cosmetic(node.target):
            self.visit(node.value)

    # the operators
    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators
        ):
            if type(operator) in COMPARE:
                self._between(left, right, *COMPARE[type(operator)], "comparison")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        textual = any(
            isinstance(side, ast.JoinedStr)
            or isinstance(side, ast.Constant)
            and isinstance(side.value, str)
            for side in (node.left, node.right)
        )
        textual |= isinstance(node.op, ast.Div) and bool(PATH.search(self.source(node)))
        if type(node.op) in ARITHMETIC and not textual:
            self._between(node.left, node.right, *ARITHMETIC[type(node.op)], "arithmetic")
        if not textual:  # concatenated texts and paths are messages and names of files
            self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            self._between(left, right, old, new, "and/or")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if not (isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)):
            self.replace(node, self.source(node.operand), "negation")
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.replace(
            node,
            f"{self.source(node.orelse)} if {self.source(node.test)} else {self.source(node.body)}",
            "other branch",
        )
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        test = self.source(node.test)
        if "TYPE_CHECKING" in test or "__name__" in test:
            return
        if len(node.body) == 1 and isinstance(node.body[0], ast.Raise) and not node.orelse:
            self.replace(node.test, "False", "guard")
        else:
            self.replace(node.test, f"not ({test})", "condition")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if self._cosmetic(node.target):
            return
        self.replace(node, "pass", "statement")
        if type(node.op) in ARITHMETIC:
            old, new = ARITHMETIC[type(node.op)]
            self._between(node.target, node.value, old + "=", new + "=", "arithmetic")
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call) and not self._quiet(node.value):
            self.replace(node, "pass", "statement")
            self.visit(node.value)

    def _quiet(self, call: ast.Call) -> bool:
        parts = re.split(r"[.(\[]", self.source(call.func))
        return any(QUIET.match(part.lstrip("_")) for part in (parts[0], parts[-1]))

    def visit_Call(self, node: ast.Call) -> None:
        if self._quiet(node):
            return
        name = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        if name in OTHER_NAME and (name != "sum" or isinstance(node.func, ast.Attribute)):
            end = self.span(node.func)[1]
            self.add(end - len(name), end, OTHER_NAME[name], "function")
        for one, two in zip(node.args, node.args[1:]):
            alike = type(one) is type(two) and isinstance(one, (ast.Name, ast.Attribute))
            if alike and name not in SYMMETRIC and self.source(one) != self.source(two):
                (start, a), (b, end) = self.span(one), self.span(two)
                self.add(
                    start,
                    end,
                    self.source(two) + self.text[a:b] + self.source(one),
                    "argument order",
                )
        previous = node.args[-1] if node.args else None
        for keyword in node.keywords:
            if keyword.arg and not COSMETIC.search(keyword.arg):
                if previous is not None and re.fullmatch(
                    r"\s*,\s*", self.text[self.span(previous)[1] : self.span(keyword)[0]]
                ):
                    self.add(self.span(previous)[1], self.span(keyword)[1], "", "keyword")
                self.visit(keyword.value)
            previous = keyword
        for part in (node.func, *node.args):
            self.visit(part)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound, by in ((node.lower, "+ 1"), (node.upper, "- 1")):
            if bound is not None and not isinstance(bound, ast.Constant):
                self.replace(bound, f"({self.source(bound)}) {by}", "bound")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.replace(node, str(not value), "true/false")
        elif isinstance(value, int) and value < 1_000_000:
            for new in {0: [1], 1: [0, 2], 2: [1, 3]}.get(value, [value + 1, value - 1, 2 * value]):
                self.replace(node, str(new), "number")
        elif isinstance(value, float) and (
            value == 0 or 1e-5 <= value <= 1e9
        ):  # smaller ones prevent division by zero
            for new in (2 * value, value / 2) if value else (1.0,):
                self.replace(node, repr(new), "number")
        elif isinstance(value, str) and KEY.match(value) and not NOT_KEYS.match(value):
            self.replace(node, repr(value + "_").replace("'", '"'), "key")


def _differs(text: str, change: Change) -> bool:
    try:
        return ast.dump(ast.parse(change.apply(text))) != ast.dump(ast.parse(text))
    except SyntaxError:
        return False


def all_changes(file: str, text: str) -> list[Change]:
    """Every change to a file, in the order of the text."""
    finder = _Finder(file, text)
    finder.visit(ast.parse(text))
    return sorted(set(finder.found), key=lambda change: (change.start, change.end, change.new))


def sample(sources: dict[str, str], per_folder: int, seed: int) -> Iterator[Change]:
    """``per_folder`` changes of each folder, at most one a line.

    The types of changes alternate, so that the frequent ones (numbers) do not displace the others.
    """
    files = defaultdict(list)
    for file in sorted(sources):
        files[folder(file)].append(file)
    for name in sorted(files):
        draw = random.Random(f"{seed} {name}")
        kinds = defaultdict(list)
        for file in files[name]:
            for change in all_changes(file, sources[file]):
                kinds[change.kind].append(change)
        turns = sorted(kinds)
        draw.shuffle(turns)
        for kind in turns:
            draw.shuffle(kinds[kind])
        taken, count = set(), 0
        while turns and count < per_folder:
            for kind in list(turns):
                while kinds[kind]:
                    change = kinds[kind].pop()
                    place = change.file, change.lines(sources[change.file])[0]
                    if place not in taken and _differs(sources[change.file], change):
                        taken.add(place)
                        count += 1
                        yield change
                        break
                else:
                    turns.remove(kind)
                if count == per_folder:
                    break
