"""Uploads that can be continued (tus 1.0.0)."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

from ..audit import audit
from ..services import Shared, User, address
from ..uploads import KEPT, inspect_upload

router = APIRouter(prefix="/v2/uploads")
_TUS = {"Tus-Resumable": "1.0.0"}


def _expires() -> str:
    return formatdate(time.time() + KEPT, usegmt=True)


@router.options("", status_code=204)
def tus_options(shared: Shared) -> Response:
    """Extensions of tus that the server has."""
    return Response(
        status_code=204,
        headers={
            **_TUS,
            "Tus-Version": "1.0.0",
            "Tus-Extension": "creation,termination,expiration",
            "Tus-Max-Size": str(shared.settings.max_upload),
        },
    )


@router.post("", status_code=201, responses={c: {} for c in (400, 401, 403, 413, 429, 507)})
def begin_upload(request: Request, shared: Shared, who: User) -> Response:
    """Begin an upload of ``Upload-Length`` bytes, which PATCH requests send."""
    name = shared.uploads.create(who, request.headers.get("upload-length"))
    return Response(
        status_code=201,
        headers={**_TUS, "Location": f"/v2/uploads/{name}", "Upload-Expires": _expires()},
    )


@router.head("/{name}", responses={404: {}, 401: {}, 429: {}})
async def upload_offset(name: str, shared: Shared, who: User) -> Response:
    """Bytes that have arrived; a connection that still sends the same upload is cut off."""
    offset, length = shared.uploads.look(name, who)
    return Response(headers={**_TUS, "Upload-Offset": str(offset), "Upload-Length": str(length)})


@router.patch(
    "/{name}",
    status_code=204,
    responses={c: {} for c in (400, 401, 403, 404, 408, 409, 413, 415, 429, 507)},
)
async def continue_upload(name: str, request: Request, shared: Shared, who: User) -> Response:
    """Send the bytes from ``Upload-Offset`` on."""
    if request.headers.get("content-type") != "application/offset+octet-stream":
        raise HTTPException(415, "Content-Type must be application/offset+octet-stream.")
    offset = await shared.uploads.append(name, who, request.headers.get("upload-offset"), request)
    return Response(
        status_code=204,
        headers={**_TUS, "Upload-Offset": str(offset), "Upload-Expires": _expires()},
    )


@router.get("/{name}/columns", responses={c: {} for c in (401, 404, 409, 422, 429)})
async def columns(name: str, shared: Shared, who: User) -> dict[str, Any]:
    """Number of cells and genes of a whole upload, and the columns of its cells with their values."""
    path, offset, length = shared.uploads.find(name, who)
    if offset != length:
        raise HTTPException(
            409, f"{offset} of {length} bytes of the upload have arrived; send the rest first."
        )
    return {"columns": [], **await inspect_upload(path, shared.settings, "columns")}


@router.delete("/{name}", status_code=204, responses={404: {}, 401: {}, 429: {}})
def end_upload(name: str, request: Request, shared: Shared, who: User) -> Response:
    """Delete an upload."""
    shared.uploads.find(name, who)
    shared.uploads.remove(name, who)
    audit("upload deleted", who, address(request), upload=name)
    return Response(status_code=204, headers=_TUS)
