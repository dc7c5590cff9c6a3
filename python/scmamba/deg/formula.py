"""R's formulas: read, expanded into terms, and written as R writes them.

Python's formula libraries evaluate Python expressions, so ``percent.mt``, ``I(x^2)`` or a column named ``C`` mean
something else there. This reader follows R's grammar (R Language Definition, "Operators"; ``?formula``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from ..utils.errors import DataError

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?L?")
_NAME = re.compile(r"(?:[^\W\d_]|\.(?!\d))[\w.]*")
_SYNTACTIC = re.compile(r"((?:[^\W\d_]|\.(?!\d))[\w.]*)\Z")
_RESERVED = {"TRUE", "FALSE", "NA", "NULL", "Inf", "NaN", "if", "else", "for", "in", "function"}
_STRING = re.compile(r"\"([^\"\\]*)\"|'([^'\\]*)'")
#: Binding power of every operator, weakest first.
_POWER = {"|": 1, "+": 2, "-": 2, "*": 3, "/": 3, ":": 5, "^": 7}
_SPACED = {"|", "+", "-", "*"}


@dataclass(frozen=True)
class Node:
    """One part of a formula: ``kind`` is number, string, name, call, operator, minus or parentheses."""

    kind: str
    text: str
    parts: tuple[Node, ...] = ()
    keys: tuple[str, ...] = ()  # names of a call's arguments, "" for positional ones

    def __str__(self) -> str:
        """The part as R's ``deparse`` writes it."""
        if self.kind == "string":
            return f'"{self.text}"'
        if self.kind == "name":
            return quoted(self.text)
        if self.kind == "call":
            given = [f"{k} = {p}" if k else str(p) for k, p in zip(self.keys, self.parts)]
            return f"{self.text}({', '.join(given)})"
        if self.kind == "operator":
            left, right = self.parts
            space = " " if self.text in _SPACED else ""
            return f"{left}{space}{self.text}{space}{right}"
        if self.kind == "minus":
            return f"-{self.parts[0]}"
        if self.kind == "parentheses":
            return f"({self.parts[0]})"
        return self.text

    def names(self) -> Iterator[str]:
        """Columns that the part uses."""
        if self.kind == "name":
            yield self.text
        for part in self.parts:
            yield from part.names()


def quoted(name: str) -> str:
    """A column's name as written in a formula: in backticks unless it is a name in R."""
    return name if _SYNTACTIC.match(name) and name not in _RESERVED else f"`{name}`"


class _Reader:
    """Reads one formula; ``columns`` are the names that need no backticks."""

    def __init__(
        self, formula: str, text: str, columns: Collection[str], longest_first: bool
    ) -> None:
        self.formula = formula
        self.tokens = list(self._split(text, columns, longest_first))
        self.at = 0
        self.depth = 0  # of the calls around the token

    def refuse(self, reason: str) -> NoReturn:
        raise DataError(f"The formula {self.formula!r} cannot be read: {reason}.")

    def _split(
        self, text: str, columns: Collection[str], longest_first: bool
    ) -> Iterator[tuple[str, str]]:
        odd = sorted((c for c in columns if not _SYNTACTIC.match(c)), key=len, reverse=True)
        at = 0
        while at < len(text):
            if text[at].isspace():
                at += 1
                continue
            here = [c for c in odd if c and text.startswith(c, at)] if longest_first else []
            here = [c for c in here if not re.match(r"[\w.]", text[at + len(c) : at + len(c) + 1])]
            if here:
                yield "name", here[0]
                at += len(here[0])
            elif text[at] == "`":
                end = text.find("`", at + 1)
                if end < 0:
                    self.refuse("a backtick is not closed")
                yield "name", text[at + 1 : end]
                at = end + 1
            elif found := _STRING.match(text, at):
                yield "string", found[1] if found[1] is not None else found[2]
                at = found.end()
            elif found := _NUMBER.match(text, at):
                yield "number", found[0].rstrip("L")
                at = found.end()
            elif found := _NAME.match(text, at):
                yield "name", found[0]
                at = found.end()
            elif text[at] in "+-*/:^()|,=":
                yield "sign", text[at]
                at += 1
            else:
                self.refuse(f"{text[at]!r} has no meaning here")

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "the end")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, sign: str) -> None:
        kind, text = self.take()
        if (kind, text) != ("sign", sign):
            self.refuse(f"expected {sign!r}, found {text!r}")

    def expression(self, least: int = 0) -> Node:
        left = self.operand()
        while True:
            kind, text = self.peek()
            power = _POWER.get(text, -1) if kind == "sign" else -1
            if power < least or power < 0:
                return left
            self.take()
            # ^ binds to the right, all others to the left.
            right = self.expression(power if text == "^" else power + 1)
            left = Node("operator", text, (left, right))

    def operand(self) -> Node:
        kind, text = self.take()
        if (kind, text) == ("sign", "("):
            inner = self.expression()
            self.expect(")")
            return Node("parentheses", "", (inner,))
        if kind == "sign" and text in "+-":
            inner = self.expression(6)  # binds less than ^ and more than :
            return Node("minus", "", (inner,)) if text == "-" else inner
        if kind == "name" and self.peek() == ("sign", "("):
            return self.call(text)
        if kind == "name" and text in ("TRUE", "FALSE", "T", "F") and self.depth:
            return Node("word", {"T": "TRUE", "F": "FALSE"}.get(text, text))
        if kind not in ("name", "number", "string"):
            self.refuse(f"expected a column, found {text!r}")
        return Node(kind, text)

    def call(self, name: str) -> Node:
        self.take()
        self.depth += 1
        parts: list[Node] = []
        keys: list[str] = []
        while self.peek() != ("sign", ")"):
            key = ""
            if self.peek()[0] == "name" and self.tokens[self.at + 1 : self.at + 2] == [
                ("sign", "=")
            ]:
                key = self.take()[1]
                self.take()
            keys.append(key)
            parts.append(self.expression())
            if self.peek() == ("sign", ","):
                self.take()
            elif self.peek() != ("sign", ")"):
                self.refuse(f"expected ')', found {self.peek()[1]!r}")
        self.take()
        self.depth -= 1
        return Node("call", name, tuple(parts), tuple(keys))

    def whole(self) -> Node:
        tree = self.expression()
        if self.peek()[0] != "end":
            self.refuse(f"expected an operator, found {self.peek()[1]!r}")
        return tree


def read_formula(formula: str, columns: Collection[str]) -> Node:
    """The right-hand side of a formula as a tree.

    Parameters
    ----------
    formula
        One-sided R formula; the tilde may be omitted.
    columns
        Names of the columns. One that is no name in R (``age at death``) may stand with or without backticks, unless
        R reads it as an expression of other columns (``a-b`` where ``a`` and ``b`` are columns).

    Raises
    ------
    DataError
        The formula is empty, has a left-hand side, breaks R's grammar, or names a column that does not exist.
    """
    text = formula.strip()
    if "~" in text.lstrip("~").replace("`~`", "") and not any("~" in c for c in columns):
        raise DataError(
            f"The formula {formula!r} has a left-hand side. Give the right-hand side alone: the genes are what is modeled."
        )
    text = text[1:].strip() if text.startswith("~") else text
    if not text:
        raise DataError("The formula is empty. Name the columns of the model: '~ group + age'.")
    failure: DataError | None = None
    for longest_first in (False, True):
        try:
            tree = _Reader(formula, text, columns, longest_first).whole()
            unknown = [name for name in tree.names() if name not in columns]
            if not unknown:
                return tree
            raise DataError(
                f"The formula {formula!r} names {unknown[0]!r}, which is no column of the cell table. "
                f"It has: {', '.join(list(map(str, columns))[:20])}."
            )
        except DataError as error:
            failure = failure or error
    assert failure is not None
    raise failure


@dataclass(frozen=True)
class Terms:
    """A formula expanded: ``variables`` by label, ``terms`` as sets of their labels, ``random`` intercepts."""

    variables: Mapping[str, Node]
    terms: tuple[frozenset[str], ...]
    intercept: bool
    random: tuple[str, ...] = ()

    def label(self, term: frozenset[str]) -> str:
        """Name of a term: its variables in the order in which the formula first mentions them."""
        return ":".join(v for v in self.variables if v in term)


class _Expander:
    """Collects variables and random intercepts while a tree is expanded into terms."""

    def __init__(self, formula: str) -> None:
        self.formula = formula
        self.variables: dict[str, Node] = {}
        self.random: list[str] = []

    def refuse(self, part: Node, why: str) -> NoReturn:
        raise DataError(f"{part} in the formula {self.formula!r} {why}.")

    def expand(self, node: Node) -> list[frozenset[str]]:
        """Terms of a part, each once; the empty set is the intercept."""
        if node.kind == "parentheses":
            inner = node.parts[0]
            return self.bar(inner) if inner.text == "|" else self.expand(inner)
        if node.kind == "number":
            if node.text not in ("0", "1"):
                self.refuse(node, "is no term: only 0 and 1 are numbers with a meaning there")
            return [frozenset()] if node.text == "1" else [_NO_INTERCEPT]
        if node.kind == "minus" and str(node) == "-1":
            return [_NO_INTERCEPT]
        if node.kind in ("name", "call"):
            if node.kind == "call" and node.text == "offset":
                self.refuse(
                    node, "is an offset, which these models do not take: normalize the values"
                )
            self.variables.setdefault(str(node), node)
            return [frozenset([str(node)])]
        if node.kind == "operator":
            return self.operator(node)
        self.refuse(node, "is no term")

    def operator(self, node: Node) -> list[frozenset[str]]:
        left, right = node.parts
        if node.text == "+":
            return _unique(self.expand(left) + self.expand(right))
        if node.text == "-":
            first, removed = self.expand(left), self.expand(right)
            kept = [t for t in first if t not in removed]
            return [*kept, _NO_INTERCEPT] if frozenset() in removed else kept
        if node.text == ":":
            return self.crossed(self.expand(left), self.expand(right))
        if node.text == "*":
            first, second = self.expand(left), self.expand(right)
            return _unique(first + second + self.crossed(first, second))
        if node.text == "/":
            first, second = self.expand(left), self.expand(right)
            nest: frozenset[str] = frozenset().union(*first)
            return _unique(first + [nest | t for t in second])
        if node.text == "^":
            if right.kind != "number" or not right.text.isdigit() or int(right.text) < 1:
                self.refuse(
                    node, f"needs a whole number after '^'; write I({node}) for the power of values"
                )
            terms = base = self.expand(left)
            for _ in range(int(right.text) - 1):
                terms = _unique(terms + self.crossed(terms, base))
            return terms
        return self.bar(node)

    @staticmethod
    def crossed(first: list[frozenset[str]], second: list[frozenset[str]]) -> list[frozenset[str]]:
        return _unique([a | b for a in first for b in second])

    def bar(self, node: Node) -> list[frozenset[str]]:
        left, right = node.parts
        if str(left) != "1" or right.kind != "name":
            self.refuse(
                node, "is no random effect that can be fitted: only intercepts, (1 | donor), can"
            )
        self.random.append(right.text)
        return []


_NO_INTERCEPT = frozenset(["\0no intercept"])


def _unique(terms: list[frozenset[str]]) -> list[frozenset[str]]:
    return list(dict.fromkeys(terms))


def expand_terms(formula: str, tree: Node) -> Terms:
    """The terms of a formula, ordered by degree and then by appearance, as R's ``terms``.

    Parameters
    ----------
    formula
        The text, for messages.
    tree
        What :func:`read_formula` returned.

    Raises
    ------
    DataError
        A part is no term (a number, an offset, a random slope).
    """
    expander = _Expander(formula)
    terms = expander.expand(tree)
    intercept = _NO_INTERCEPT not in terms
    real = [t for t in terms if t and t != _NO_INTERCEPT]
    return Terms(
        expander.variables, tuple(sorted(real, key=len)), intercept, tuple(expander.random)
    )
