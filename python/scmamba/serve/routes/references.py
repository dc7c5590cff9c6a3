"""Labelled cells that users keep on the server, to annotate others by."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, HTTPException, Request

from ..audit import audit
from ..services import Shared, User, address, sent_file
from ..uploads import inspect_upload

router = APIRouter(prefix="/v2/references")
_FULL = "You have {} references here; delete some."


@router.post(
    "",
    status_code=201,
    responses={c: {} for c in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 507)},
)
async def add_reference(
    request: Request, shared: Shared, who: User, upload: str | None = None
) -> dict[str, Any]:
    """Send labeled cells: the id is the option ``reference`` of later jobs, ``label_key`` their column with the cell types."""
    limit = shared.settings.jobs_per_user
    with shared.places.hold(f"{who} references", shared.references.number(who), limit, _FULL):
        async with (
            shared.uploads.alone(upload, who),
            sent_file(shared, request, who, upload) as sent,
        ):
            found = await inspect_upload(sent.path, shared.settings, who=who)
            name = shared.references.add(who, sent.path)
    audit("reference added", who, address(request), reference=name, bytes=sent.size)
    return {"id": name, **found}


@router.get("", responses={c: {} for c in (401, 429)})
def list_references(shared: Shared, who: User) -> dict[str, list[dict[str, Any]]]:
    """Your labeled cells here: id, bytes, and when they were sent (seconds since 1970)."""
    found = []
    for file in shared.references.files(who):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            found.append((file.name, file.stat()))
    found.sort(key=lambda one: one[1].st_mtime)
    return {
        "references": [
            {"id": name, "bytes": about.st_size, "sent": about.st_mtime} for name, about in found
        ]
    }


@router.delete("/{name}", responses={404: {}, 401: {}, 429: {}})
def remove_reference(name: str, request: Request, shared: Shared, who: User) -> dict[str, str]:
    """Delete labeled cells."""
    if not shared.references.remove(name, who):
        raise HTTPException(404, "There is no such reference of yours.")
    audit("reference deleted", who, address(request), reference=name)
    return {"id": name, "state": "deleted"}
