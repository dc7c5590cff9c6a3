"""The page for browsers: three files, nothing from elsewhere."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, PlainTextResponse

router = APIRouter(include_in_schema=False)


def _file(name: str) -> str:
    return (resources.files("scmamba.serve") / name).read_text(encoding="utf-8")


@router.get("/", response_class=HTMLResponse)
def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_file("page.html"))


@router.get("/page.js")
def script() -> PlainTextResponse:
    """Its script."""
    return PlainTextResponse(_file("page.js"), media_type="text/javascript")


@router.get("/page.css")
def style() -> PlainTextResponse:
    """Its style sheet."""
    return PlainTextResponse(_file("page.css"), media_type="text/css")
