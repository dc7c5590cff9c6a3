"""The page for browsers: a few files, nothing from elsewhere; and simulated cells for a first try."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from importlib import resources

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse

from ..environment import clean_environment
from ..services import Shared, User

router = APIRouter(include_in_schema=False)
_SECONDS = 120.0  # the simulation may take


def _file(name: str) -> str:
    return (resources.files("scmamba.serve") / name).read_text(encoding="utf-8")


@router.get("/", response_class=HTMLResponse)
def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_file("page.html"))


@router.get("/page.js")
def script() -> PlainTextResponse:
    """Its script: the form, uploads and jobs."""
    return PlainTextResponse(_file("page.js"), media_type="text/javascript")


@router.get("/page_result.js")
def script_of_results() -> PlainTextResponse:
    """Its script: results, plots and downloads."""
    return PlainTextResponse(_file("page_result.js"), media_type="text/javascript")


@router.get("/page_files.js")
def script_of_files() -> PlainTextResponse:
    """Its script: what is read and written, and the lines that repeat a job."""
    return PlainTextResponse(_file("page_files.js"), media_type="text/javascript")


@router.get("/page.css")
def style() -> PlainTextResponse:
    """Its style sheet."""
    return PlainTextResponse(_file("page.css"), media_type="text/css")


@router.get("/v2/demo")
async def demo(shared: Shared, who: User) -> FileResponse:
    """Simulated nuclei, an .h5ad file; simulated when they are first requested."""
    file = shared.settings.data / "demo.h5ad"
    async with shared.drawing:
        if not file.is_file():
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "scmamba.serve.demo",
                str(file),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=clean_environment(),
            )
            try:
                await asyncio.wait_for(process.wait(), _SECONDS)
            except (TimeoutError, asyncio.TimeoutError):  # two kinds in Python 3.10
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
    if not file.is_file():
        raise HTTPException(503, "The demo cells could not be simulated; choose a file of yours.")
    return FileResponse(file, media_type="application/octet-stream", filename="demo.h5ad")
