"""Calls in R code, parsed as text: function names and arguments. R is not needed."""

from __future__ import annotations

import re
from functools import lru_cache

from documents import ROOT

_TOKEN = re.compile(
    r"""(?P<skip>\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
    r"|(?P<name>`[^`]*`|[A-Za-z.][\w.]*)"
    r"|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<comma>,)|(?P<equal>(?<![<>=!])=(?!=))|(?P<other>\S)",
    re.S,
)
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def calls(code: str) -> list[tuple[str, set[str]]]:
    """Name and named (or, in a definition, all) arguments of every call.

    Raises
    ------
    ValueError
        A bracket is missing or of the wrong kind.
    """
    found: list[tuple[str, set[str]]] = []
    stack: list[tuple[str, str | None, set[str]]] = []
    word: str | None = None
    first = False  # the word is the first one of an argument
    at_start = False
    for token in _TOKEN.finditer(code):
        kind, text = token.lastgroup, token.group()
        if kind == "open":
            stack.append((_PAIRS[text], word if text == "(" else None, set()))
            word, at_start = None, True
            continue
        if kind == "close":
            if not stack or stack[-1][0] != text:
                raise ValueError(f"unexpected {text!r} in {code[: token.end()][-60:]!r}")
            _, name, arguments = stack.pop()
            if name is not None:
                found.append((name, arguments))
            word = None
        elif kind == "comma":
            word, at_start = None, True
            continue
        elif kind == "equal" and word is not None and first and stack:
            stack[-1][2].add(word.strip("`"))
            word = None
        elif kind == "name":
            first, word = at_start, text
        elif kind != "skip":
            word = None
        at_start = False
    if stack:
        raise ValueError(f"{stack[-1][0]!r} is missing at the end of {code[-60:]!r}")
    return found


@lru_cache
def formals() -> dict[str, set[str]]:
    """Arguments of every exported function, with those of all its methods, from the usage of its help page."""
    exported = set(re.findall(r"^export\((\w+)\)", (ROOT / "NAMESPACE").read_text(), re.M))
    out: dict[str, set[str]] = {name: set() for name in exported}
    for page in (ROOT / "man").glob("*.Rd"):
        usage = re.search(r"\\usage\{(.*?)\n\}", page.read_text(encoding="utf-8"), re.S)
        if usage is None:
            continue
        plain = re.sub(r"\\method\{(\w+)\}\{\w+\}", r"\1", usage[1]).replace("\\dots", "...")
        for name, inside in re.findall(r"^(\w+)\((.*?)\)$", plain, re.S | re.M):
            if name in exported:
                every = re.sub(r"(^|,)(\s*[\w.]+)(?=\s*(,|$))", r"\1\2 = 0", f"{inside.strip()}")
                out[name] |= calls(f"f({every})")[-1][1] - {"..."}
    out["ScMambaFindAllMarkers"] |= out["ScMambaFindMarkers"]  # passed on by its `...`
    return out


def unknown_arguments(code: str) -> list[str]:
    """Functions of scMamba that are not exported, and arguments that no method has."""
    known, problems = formals(), []
    for name, arguments in calls(code):
        if name in known:
            problems += [f"{name}({a} =)" for a in sorted(arguments - known[name])]
        elif re.match(r"ScMamba[A-Z]|scmamba_\w|install_scmamba", name):
            problems.append(f"{name}()")
    return problems
