"""Write ``benchmarks/results/site.md``: seconds of the parts of a build of the site, its pages, links and blocks of code.

    SCMAMBA_SITE_RECORD=yes make site

``scripts/site.sh`` calls it with the seconds of its parts and the folder of the site.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import documents
from benchmarks.machine import machine
from check_links import broken_links
from test_document_code import NOT_RUN

TARGET = documents.ROOT / "benchmarks" / "results" / "site.md"
#: Language, pages -> what runs or checks their blocks.
CHECKS = {
    ("Python", "tutorials"): "run by the build (`scripts/tutorials.py`); a cell that fails ends it",
    (
        "Python",
        "other pages",
    ): "run by `tests/python/test_document_code.py` and `test_documents.py`",
    ("R", "vignettes"): "run by the build (pkgdown) and by `make vignettes5`",
    (
        "R",
        "other pages",
    ): "parsed, names and arguments compared with the package (`test_documents.py`); "
    "those of README and start page are run (`tests/testthat/test-readme.R`)",
    ("shell", "all pages"): "commands and options parsed (`test_documents.py`)",
}


def counts() -> Counter[tuple[str, str]]:
    """Blocks of each language on the pages of each kind."""
    found: Counter[tuple[str, str]] = Counter()
    for page in (*documents.PAGES, *documents.VIGNETTES):
        kind = "tutorials" if page.startswith("docs/tutorials") else "other pages"
        found["Python", kind] += len(documents.python_blocks(page))
        kind = "vignettes" if page.endswith(".Rmd") else "other pages"
        found["R", kind] += len(documents.r_blocks(page))
        found["shell", "all pages"] += len(documents.shell_blocks(page))
    return found


def report(seconds: dict[str, int], site: Path) -> str:
    """The text of the file."""
    broken, links = broken_links(site)
    parts = [f"| {part} | {value} |" for part, value in seconds.items()]
    blocks = [
        f"| {language} | {kind} | {counts()[language, kind]} | {how} |"
        for (language, kind), how in CHECKS.items()
    ]
    return "\n".join(
        [
            "# The site",
            "",
            f"Written by `SCMAMBA_SITE_RECORD=yes make site`; packages were installed before. Machine: {machine()}.",
            "",
            "| part | seconds |",
            "|---|---|",
            *parts,
            f"| all | {sum(seconds.values())} |",
            "",
            f"{links['pages']:,} pages, {links['links']:,} links within the site, {links['elsewhere']:,} to other sites "
            f"(not fetched), {len(broken)} broken.",
            "",
            "| blocks of code | where | number | run or checked by |",
            "|---|---|---|---|",
            *blocks,
            "",
            f"{len(NOT_RUN)} of the blocks of Python are not run:",
            "",
            *(f"* `{start.splitlines()[0]} ...`: {reason}" for start, reason in NOT_RUN.items()),
            "",
        ]
    )


def main() -> None:
    """Write the file from the arguments: seconds of the parts, folder of the site."""
    rows = (line.split("\t") for line in Path(sys.argv[1]).read_text().splitlines())
    TARGET.write_text(
        report({part: int(value) for part, value in rows}, Path(sys.argv[2])), encoding="utf-8"
    )
    print(f"wrote {TARGET.relative_to(documents.ROOT)}")


if __name__ == "__main__":
    main()
