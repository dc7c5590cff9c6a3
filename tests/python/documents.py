"""Pages for readers and the code in them: helpers of the tests of documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def listed(*patterns: str) -> list[str]:
    """Paths below the root that match, sorted."""
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern))


#: README, pages of the site, and what contributors read.
PAGES = listed("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/**/*.md")
CARDS = listed("python/scmamba/model/pretrained/*/*.md")
VIGNETTES = listed("vignettes/*.Rmd", "vignettes/python/*.md")


@lru_cache
def text_of(page: str) -> str:
    """A page with continued lines joined."""
    return (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block, and of indented ones (language '')."""
    lines = text_of(page).splitlines()
    at = 0
    while at < len(lines):
        opened = re.match(r"( *)```(\w*|\{r\b.*\})$", lines[at])
        if opened:
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            depth = len(opened[1])
            language = "r" if opened[2].startswith("{r") else opened[2]
            yield language, "\n".join(line[depth:] for line in lines[at + 1 : end])
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            end = at + 1
            while (
                end < len(lines)
                and (lines[end].startswith("    ") or not lines[end].strip())
                and not lines[end].lstrip().startswith("```")
            ):
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


def r_blocks(page: str) -> list[str]:
    """Blocks of R."""
    return [code for language, code in blocks(page) if language == "r"]


def shell_blocks(page: str) -> list[str]:
    """Blocks for a shell, and fenced ones without a language that begin with a command."""
    commands = r"(scmamba|pip|python|torchrun|make|curl|RPY2_CFFI_MODE\S*) "
    return [
        code
        for language, code in blocks(page)
        if language in ("sh", "bash") or (not language and re.match(commands, code))
    ]


def spans(page: str) -> list[str]:
    """Code within sentences and tables, outside fenced blocks."""
    prose = re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.S | re.M)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
