"""Check every link of a built site: pages, pictures, scripts and anchors that exist in it.

    python scripts/check_links.py dist/site

Prints each broken link and the numbers of pages and links; exit status 1 if one is broken. Addresses of other sites are counted, not
fetched: the check works offline.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

#: Tags and their attribute with an address.
_ADDRESSES = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src"}


class _Page(HTMLParser):
    """Addresses and anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.base = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what the tag refers to and what it names."""
        values = dict(attrs)
        self.anchors |= {str(values[key]) for key in ("id", "name") if values.get(key)}
        if tag == "base":
            self.base = values.get("href") or ""
        address = values.get(_ADDRESSES.get(tag, ""))
        if address and values.get("rel") not in ("canonical", "preconnect", "dns-prefetch"):
            self.addresses.append(address)


def broken_links(site: Path) -> tuple[list[str], dict[str, int]]:
    """Broken links, as ``page -> address``, and how many pages, links within the site and other addresses there are."""
    pages = {path.resolve(): _Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    counts = {"pages": len(pages), "links": 0, "elsewhere": 0}
    broken = []
    for path, page in sorted(pages.items()):
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                counts["elsewhere"] += 1
                continue
            counts["links"] += 1
            if why := _why_broken(site.resolve(), path, page, address, pages):
                broken.append(f"{path.relative_to(site.resolve())} -> {address}: {why}")
    return broken, counts


def _why_broken(
    site: Path, path: Path, page: _Page, address: str, pages: dict[Path, _Page]
) -> str | None:
    target, anchor = urldefrag(address)
    target = unquote(urlsplit(target).path)
    if not target:
        file = path
    elif target.startswith("/"):
        # The error page is shown at any address, so its links begin at the root.
        file = (site / target.lstrip("/")).resolve()
    else:
        file = (path.parent / page.base / target).resolve()
    if file.is_dir():
        file = file / "index.html"
    if not file.is_relative_to(site):
        return "outside of the site"
    if not file.exists():
        return "no such file"
    if anchor and file in pages and unquote(anchor) not in pages[file].anchors | {"", "top"}:
        return "no such anchor"
    return None


def lines(site: Path) -> Iterator[str]:
    """What the command prints."""
    broken, counts = broken_links(site)
    yield from broken
    numbers = ", ".join(f"{number:,} {name}" for name, number in counts.items())
    yield f"{numbers}; {len(broken)} broken"


def main() -> int:
    """Check the site that was named."""
    site = Path(sys.argv[1])
    if not (site / "index.html").is_file():
        print(f"{site} holds no site: it has no index.html", file=sys.stderr)
        return 1
    printed = list(lines(site))
    print("\n".join(printed))
    return 0 if printed[-1].endswith("; 0 broken") else 1


if __name__ == "__main__":
    sys.exit(main())
