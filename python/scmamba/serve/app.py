"""The application: its routes, its errors, and what starts and stops with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from .._version import __version__
from .gate import HEADERS, Gate
from .jobs import Unavailable
from .routes import health, jobs, models, page, references, uploads
from .services import make_services
from .settings import Settings

_log = logging.getLogger("scmamba.serve")
_WATCH = 5.0  # seconds between two looks at the supervisor


def create_app(settings: Settings) -> FastAPI:
    """The application; workers start and stop with it.

    Parameters
    ----------
    settings
        Addresses, limits and folders.

    Returns
    -------
    An ASGI application for uvicorn.
    """
    shared = make_services(settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(_log_loop_error)
        await asyncio.to_thread(shared.uploads.forget_strays, shared.queue)
        shared.supervisor.start()
        watch = asyncio.create_task(_watch(shared.supervisor.ensure))
        yield
        watch.cancel()
        await asyncio.to_thread(shared.supervisor.stop)
        shared.access.close()

    app = FastAPI(
        title="scMamba",
        version=__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # the address of a redirect would be the Host header
    )
    app.state.services = shared
    app.add_middleware(Gate, settings=settings, limiter=shared.access.limiter)
    app.add_exception_handler(Unavailable, service_unavailable)
    app.add_exception_handler(Exception, server_error)
    for routes in (health, models, jobs, references, uploads, page):
        app.include_router(routes.router)
    return app


async def service_unavailable(request: Request, error: Exception) -> JSONResponse:
    """The queue or the tokens cannot be read: 503, and no word about where they are."""
    _log.warning("%s", error)
    return JSONResponse(
        {"detail": "The server is temporarily unavailable; please retry."},
        503,
        headers={"Retry-After": "5"},
    )


async def server_error(request: Request, error: Exception) -> JSONResponse:
    """Whatever was not foreseen: 500 with the headers of every answer; the traceback goes to the log."""
    return JSONResponse({"detail": "The server failed; its log has the reason."}, 500, HEADERS)


async def _watch(look: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_WATCH)
        with contextlib.suppress(Exception):
            look()


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """One line for what goes wrong beside the requests, such as a connection that cannot be accepted."""
    _log.warning("%s: %s", context.get("message"), context.get("exception"))
