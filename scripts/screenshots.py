"""Screenshots of the main pages of the built site, for a desktop and for a telephone.

python scripts/screenshots.py dist/site dist/screenshots
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

from playwright.sync_api import sync_playwright

#: Name of the picture -> page.
PAGES = {
    "start": "index.html",
    "tutorial": "tutorials/annotate_brain.html",
    "guide": "deg.html",
    "reference": "api/plots.html",
    "r-start": "r/index.html",
    "r-vignette": "r/articles/getting-started.html",
}
SIZES = {"desktop": (1280, 900), "mobile": (375, 812)}


def main() -> None:
    """Draw every page at every size, and print pages that are wider than the screen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="whole pages, not one screen")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(options.site.resolve())
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = os.environ.get("SCMAMBA_CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for size, (width, height) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            for name, address in PAGES.items():
                page.goto(f"http://127.0.0.1:{server.server_address[1]}/{address}")
                page.wait_for_timeout(500)
                page.screenshot(path=options.folder / f"{name}-{size}.png", full_page=options.full)
                wide = page.evaluate("document.documentElement.scrollWidth")
                print(f"{name}-{size}.png{f': {wide} pixels wide' if wide > width else ''}")
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
