"""What the routes share: settings, queue, users, supervisor and files of one running server."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, HTTPException, Request

from .access import Access
from .events import Streams
from .jobs import Queue
from .postgres import open_queue
from .references import References
from .settings import Settings
from .supervisor import Supervisor
from .tokens import Tokens
from .uploads import Places, Upload, Uploads, received


@dataclass
class Services:
    """The parts of one server."""

    settings: Settings
    queue: Queue
    access: Access
    supervisor: Supervisor
    references: References
    uploads: Uploads
    streams: Streams
    places: Places = field(default_factory=Places)
    #: One map of cells is drawn at a time.
    drawing: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: The names of the genes of one map are read at a time; they may take much memory.
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


def make_services(settings: Settings) -> Services:
    """Everything a server of these settings needs; nothing is started."""
    queue = open_queue(settings.data)
    return Services(
        settings,
        queue,
        Access(settings, Tokens(settings.data)),
        Supervisor(settings, queue),
        References(settings.data),
        Uploads(settings),
        Streams(settings, queue),
    )


def services(request: Request) -> Services:
    """The parts of the server that answers this request."""
    found: Services = request.app.state.services
    return found


def user(request: Request) -> str:
    """Name of the user who sent this request; refuses anybody else."""
    return services(request).access.user(request)


def address(request: Request) -> str | None:
    """Address the request came from."""
    return request.client.host if request.client else None


Shared = Annotated[Services, Depends(services)]
User = Annotated[str, Depends(user)]


def known_model(name: str) -> str:
    """The name of a model that is here; 404 otherwise."""
    from ..model import list_models

    if name not in list_models():
        raise HTTPException(
            404, f"There is no model '{name[:60]}' here; available: {', '.join(list_models())}."
        )
    return name


def sent_file(
    shared: Services, request: Request, who: str, upload: str | None
) -> AbstractAsyncContextManager[Upload]:
    """The file of a request: its body, or an upload that was sent before.

    Parameters
    ----------
    shared, request, who
        The server, the request and its user.
    upload
        Name of the upload, if the body is not the file.
    """
    if upload is None:
        return received(request, shared.settings, who)
    return shared.uploads.taken(upload, who)
