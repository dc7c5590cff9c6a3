"""Variables of R's formulas: columns and functions of them, as R evaluates and codes them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..utils.errors import DataError
from .formula import Node

# R sorts levels by the Unicode collation: blanks and punctuation before digits, digits before letters, lower
# case before upper case only when everything else ties.
_PUNCTUATION = " _-,;:!?.'\"()[]{}@*/\\&#%`^+<=>|~$"


_ELEMENTWISE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "abs": np.abs,
}
FUNCTIONS = (
    *("I", "scale", "poly", "factor", "as.factor", "relevel", "as.numeric", "log"),
    *_ELEMENTWISE,
)


def r_sort_key(text: str) -> tuple[object, ...]:
    """Key that sorts strings as ``levels(factor(x))`` does in a UTF-8 R session (not ASCII order)."""
    plain = unicodedata.normalize("NFKD", text)
    base = [c for c in plain if not unicodedata.combining(c)]

    def weight(c: str) -> tuple[int, str]:
        if c in _PUNCTUATION:
            return 0, chr(_PUNCTUATION.index(c))
        return (1, c) if c.isdigit() else (2, c.casefold())

    return tuple(weight(c) for c in base), plain.casefold(), tuple(c.isupper() for c in base)


def factor(values: pd.Series) -> pd.Series:
    """The column as a categorical with R's levels; a categorical keeps its own order, unused levels go."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = values.array.remove_unused_categories()
        if levels.categories.map(str).is_unique:  # 1 and "1" are one level, as in R
            return pd.Series(levels, index=values.index, name=values.name)
        values = values.astype(object)
    text = (
        values.map({True: "TRUE", False: "FALSE"}) if values.dtype == bool else values.astype(str)
    )
    return pd.Series(
        pd.Categorical(text, sorted(set(text), key=r_sort_key)),
        index=values.index,
        name=values.name,
    )


@dataclass(frozen=True)
class Variable:
    """An evaluated variable: a factor, or one or several numeric columns with the suffixes of their names."""

    label: str
    levels: pd.Series | None
    numbers: np.ndarray | None = None  # (rows, columns)
    suffixes: tuple[str, ...] = ("",)

    def columns(self, contrasts: bool) -> list[tuple[str, np.ndarray]]:
        """Names and values of its columns; a factor without ``contrasts`` has one column for each level."""
        if self.levels is None:
            assert self.numbers is not None
            return [(f"{self.label}{s}", self.numbers[:, i]) for i, s in enumerate(self.suffixes)]
        names, codes = self.levels.cat.categories, self.levels.cat.codes.to_numpy()
        first = 1 if contrasts else 0
        return [
            (f"{self.label}{_text(names[i])}", (codes == i).astype(np.float64))
            for i in range(first, len(names))
        ]


def _text(level: object) -> str:
    """A level as R's ``as.character`` writes it: at most fifteen digits, no ".0"."""
    return f"{level:.15g}" if isinstance(level, (float, np.floating)) else str(level)


class Evaluator:
    """Evaluates the variables of a formula on a table, and refuses what R would refuse.

    Parameters
    ----------
    data
        One row per cell or sample.
    formula
        The text of the formula, for messages.
    """

    def __init__(self, data: pd.DataFrame, formula: str) -> None:
        self.data = data
        self.formula = formula

    def variable(self, node: Node) -> Variable:
        """A column, or a function of columns, coded for the design matrix.

        Raises
        ------
        DataError
            Missing or non-finite values, a factor with one level, an unknown function or argument.
        """
        label = str(node)
        if node.kind == "name":
            column = self.column(node.text)
            if isinstance(column.dtype, pd.CategoricalDtype):
                return self._factor(label, column)
            return Variable(label, None, self._finite(label, column.to_numpy())[:, None])
        if node.text in ("factor", "as.factor", "relevel"):
            return self._factor(label, self._releveled(node))
        if node.text == "poly":
            return self._poly(label, node)
        return Variable(label, None, self._finite(label, self.numbers(node))[:, None])

    def column(self, name: str) -> pd.Series:
        """A column without missing values; what is not numeric as a factor."""
        column = self.data[name]
        if isinstance(column, pd.DataFrame):
            raise DataError(
                f"The table has {column.shape[1]} columns named {name!r}. Rename them, so that the formula "
                f"{self.formula!r} names one."
            )
        missing = int(column.isna().sum())
        if missing:
            raise DataError(
                f"{name!r} is missing for {missing:,} of {len(column):,} cells. The model needs a value for "
                "every cell: fill them in, or leave those cells out."
            )
        if pd.api.types.is_numeric_dtype(column) and column.dtype != bool:
            return column.astype(np.float64)
        return factor(column)

    def numbers(self, node: Node) -> np.ndarray:
        """The values of an arithmetic expression (rows,)."""
        if node.kind == "number":
            return np.full(len(self.data), float(node.text))
        if node.kind == "name":
            column = self.column(node.text)
            if self.data[node.text].dtype == bool:
                return self.data[node.text].to_numpy(dtype=np.float64)
            if isinstance(column.dtype, pd.CategoricalDtype):
                raise DataError(
                    f"{node.text!r} in the formula {self.formula!r} is not numeric, so nothing can be computed of it."
                )
            return np.asarray(column, dtype=np.float64)
        if node.kind == "parentheses":
            return self.numbers(node.parts[0])
        if node.kind == "minus":
            return -self.numbers(node.parts[0])
        if node.kind == "operator" and node.text in "+-*/^":
            left, right = (self.numbers(part) for part in node.parts)
            with np.errstate(all="ignore"):
                return {
                    "+": np.add,
                    "-": np.subtract,
                    "*": np.multiply,
                    "/": np.divide,
                    "^": np.power,
                }[node.text](left, right)
        if node.kind == "call":
            return self._function(node)
        raise DataError(
            f"{node} in the formula {self.formula!r} is no arithmetic of numeric columns."
        )

    def _function(self, node: Node) -> np.ndarray:
        name = node.text
        if name not in FUNCTIONS or name in ("factor", "as.factor", "relevel", "poly"):
            raise DataError(
                f"{node} in the formula {self.formula!r}: the function {name} is not available here. Available: "
                f"{', '.join(FUNCTIONS)}. Compute anything else as a column of the table first."
            )
        if name == "as.numeric" and node.parts and node.parts[0].kind == "name":
            own = self.data[node.parts[0].text]
            if isinstance(own.dtype, pd.CategoricalDtype):  # as R, the number of the level
                column = self.column(node.parts[0].text)
                return column.cat.codes.to_numpy().astype(np.float64) + 1
        if name == "scale":
            return self._scale(node)
        if name == "log":
            x, base = self._arguments(node, "x", "base")
            with np.errstate(all="ignore"):
                return np.log(x) if base is None else np.log(x) / np.log(self.numbers(base))
        (x,) = self._arguments(node, "x")
        with np.errstate(all="ignore"):
            return _ELEMENTWISE[name](x) if name in _ELEMENTWISE else x

    def _named(self, node: Node, *names: str) -> dict[str, Node]:
        """Arguments of a call by name, matched as R matches them."""
        found: dict[str, Node] = {}
        for key, part in zip(node.keys, node.parts):
            if key and key not in names:
                raise DataError(
                    f"{node} in the formula {self.formula!r}: {node.text}() takes {', '.join(names)}, not {key!r}."
                )
            if key:
                found[key] = part
        rest = [n for n in names if n not in found]
        free = [part for key, part in zip(node.keys, node.parts) if not key]
        if len(free) > len(rest) or (names[0] not in found and not free):
            raise DataError(
                f"{node} in the formula {self.formula!r}: {node.text}() takes {', '.join(names)}."
            )
        return found | dict(zip(rest, free))

    def _arguments(self, node: Node, *names: str) -> list[Any]:
        found = self._named(node, *names)
        return [self.numbers(found[names[0]]), *(found.get(n) for n in names[1:])]

    def _flag(self, node: Node | None, default: bool) -> bool:
        if node is None:
            return default
        if str(node) not in ("TRUE", "FALSE"):
            raise DataError(f"{node} in the formula {self.formula!r} must be TRUE or FALSE.")
        return str(node) == "TRUE"

    def _scale(self, node: Node) -> np.ndarray:
        """R's ``scale``: centered, and divided by the sample standard deviation (n - 1)."""
        x, center, scale = self._arguments(node, "x", "center", "scale")
        if self._flag(center, True):
            x = x - x.mean()
        if self._flag(scale, True):
            # Without centering R divides by the root mean square, also with n - 1.
            x = x / np.sqrt((x**2).sum() / (len(x) - 1))
        return x

    def _releveled(self, node: Node) -> pd.Series:
        """``factor(x)``, ``factor(x, levels = c(...))`` and ``relevel(x, ref = ...)``."""
        found = self._named(node, "x", "ref" if node.text == "relevel" else "levels")
        inner = found["x"]
        if inner.kind == "name":
            column = self.column(inner.text)
        elif inner.kind == "call" and inner.text in ("factor", "as.factor", "relevel"):
            column = self._releveled(inner)
        else:
            column = pd.Series(self.numbers(inner), index=self.data.index)
        if not isinstance(column.dtype, pd.CategoricalDtype):
            values = np.unique(column.to_numpy())
            column = pd.Series(
                pd.Categorical.from_codes(
                    np.searchsorted(values, column.to_numpy()), [_text(v) for v in values]
                ),
                index=column.index,
            )
        order = found.get("levels", found.get("ref"))
        if order is None:
            return column
        first = [p.text for p in order.parts] if order.kind == "call" else [order.text]
        present = list(column.cat.categories)
        if unknown := [x for x in first if x not in present]:
            raise DataError(
                f"{node} in the formula {self.formula!r}: there is no level {unknown[0]!r}. Levels: {', '.join(present[:20])}."
            )
        rest = [x for x in present if x not in first]
        if node.text != "relevel" and rest:
            raise DataError(
                f"{node} in the formula {self.formula!r} names no level {rest[0]!r}, which cells have; their value would be missing."
            )
        return column.cat.reorder_categories(first + rest)

    def _poly(self, label: str, node: Node) -> Variable:
        """Orthogonal polynomials as R's ``poly`` (Kennedy and Gentle 1980, by QR), or raw powers."""
        x, degree, raw = self._arguments(node, "x", "degree", "raw")
        power = 1 if degree is None else int(float(degree.text)) if degree.kind == "number" else 0
        if not 1 <= power < len(np.unique(x)):
            raise DataError(
                f"{node} in the formula {self.formula!r}: the degree must be a whole number from 1 to "
                f"{len(np.unique(x)) - 1}, one less than the number of different values."
            )
        x = self._finite(label, x)
        if self._flag(raw, False):
            columns = np.power.outer(x, np.arange(1, power + 1))
        else:
            q, r = np.linalg.qr(np.power.outer(x - x.mean(), np.arange(power + 1)))
            columns = (q * np.sign(np.diag(r)))[:, 1:]
        suffixes = ("",) if power == 1 else tuple(str(i + 1) for i in range(power))
        return Variable(label, None, columns, suffixes)

    def _finite(self, label: str, values: np.ndarray) -> np.ndarray:
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise DataError(
                f"{label} in the formula {self.formula!r} is not a finite number for {bad:,} of {len(values):,} "
                "cells. Correct those values, or leave those cells out."
            )
        return values

    def _factor(self, label: str, column: pd.Series) -> Variable:
        levels = column.cat.categories
        if len(levels) < 2:
            raise DataError(
                f"{label.strip('`')!r} has the same value ({levels[0] if len(levels) else 'none'}) in every cell: a "
                "factor needs two levels or more. Remove it from the formula, or check how the cells were "
                "chosen."
            )
        return Variable(label, column)
