"""Jobs: sent, watched, fetched, cancelled and deleted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import secrets
import sys
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from ..audit import audit
from ..environment import clean_environment
from ..events import EventResponse
from ..job_files import discard
from ..jobs import Queue, public_view
from ..map_values import gene_values
from ..memory import job_memory
from ..services import Services, Shared, User, address, known_model, sent_file
from ..settings import Settings
from ..uploads import Upload, digest_body, inspect_upload
from ..validation import plain
from ..verbs import TASKS, check_options, has_own_reference, renamed_options

router = APIRouter()
_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_DRAWING = 300.0  # seconds a map of cells may take
_UNKNOWN = "There is no such job of yours; it may have been deleted."
#: Tasks whose results are not about single cells.
_TABLES = ("markers", "robustness", "finetune")


def _job_name(who: str, request: Request) -> str:
    """The job's name: from the sender's Idempotency-Key if there is one, so that a file sent twice is one job."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise HTTPException(
            422, "The Idempotency-Key must be 16 to 64 letters, digits, - or _, drawn at random."
        )
    return Queue.name_of(who, key or secrets.token_urlsafe(24))


def _read_options(task: str, text: str) -> tuple[dict[str, Any], list[str]]:
    """The options of a request under today's names, and warnings about old ones."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(
            422, 'options is not JSON; send an object such as {"seed": 0}.'
        ) from error
    warnings: list[str] = []
    problem: str | None = "options must be one JSON object"
    if isinstance(options, dict):
        options, warnings, problem = renamed_options(task, options)
        problem = problem or check_options(task, options)
    if problem:
        raise HTTPException(422, plain(problem, 500) + ".")
    if isinstance(options.get("markers"), dict):  # R writes a list of one gene as a string
        options["markers"] = {
            k: [v] if isinstance(v, str) else v for k, v in options["markers"].items()
        }
    return {k: v for k, v in options.items() if v is not None}, warnings


@router.post(
    "/v2/models/{name}/{task}",
    status_code=202,
    responses={c: {} for c in (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 507)},
)
async def submit(
    name: str,
    task: str,
    request: Request,
    shared: Shared,
    who: User,
    options: str = "{}",
    upload: str | None = None,
) -> dict[str, Any]:
    """Send a file as the body: .h5ad, 10x .h5, a zipped 10x folder or scMamba's plain form.

    ``options`` is a JSON object of the verb's arguments.
    A file that was sent to ``/v2/uploads`` before is named by ``upload`` instead.
    """
    known_model(name)
    if task not in TASKS:
        raise HTTPException(404, f"There is no task '{task[:60]}'; available: {', '.join(TASKS)}.")
    wanted, warnings = _read_options(task, options)
    job = _job_name(who, request)
    sheet = hashlib.sha256(json.dumps([name, task, wanted], sort_keys=True).encode()).hexdigest()
    async with shared.uploads.alone(upload, who):
        if there := await asyncio.to_thread(shared.queue.get, job, who):
            content = upload if upload is not None else await digest_body(request, shared.settings)
            return _sent_again(there, f"{sheet}:{content}")
        if has_own_reference(wanted) and shared.references.path(wanted["reference"], who) is None:
            raise HTTPException(
                422, "There is no such reference of yours; send it to /v2/references first."
            )
        unfinished = await asyncio.to_thread(shared.queue.unfinished, who)
        with shared.places.hold(who, unfinished, shared.settings.jobs_per_user):
            async with sent_file(shared, request, who, upload) as sent:
                order = (job, task, name, wanted, warnings)
                return await _accept(shared, who, order, sent, sheet, address(request))


def _sent_again(there: dict[str, Any], digest: str) -> dict[str, Any]:
    """The answer was lost and the request comes again: the same job, if it is the same request."""
    if there["digest"] and there["digest"] != digest:
        raise HTTPException(
            422, "This Idempotency-Key was used for another request; draw a new one for each job."
        )
    return {"id": there["id"], "state": there["state"]}


async def _accept(
    shared: Services,
    who: str,
    order: tuple[str, str, str, dict[str, Any], list[str]],
    sent: Upload,
    sheet: str,
    place: str | None = None,
) -> dict[str, Any]:
    """Look at the upload and put its job into the queue."""
    job, task, name, wanted, warnings = order
    found = await inspect_upload(sent.path, shared.settings, who=who)
    # The folder is there before the job: a worker may take it at once.
    (shared.settings.data / "jobs" / job).mkdir(parents=True, exist_ok=True)
    added = await asyncio.to_thread(
        shared.queue.add,
        who,
        task,
        name,
        wanted,
        sent.path,
        job,
        warnings=warnings,
        digest=f"{sheet}:{sent.digest}",
    )
    if not added:  # two requests with one key came at once
        sent.path.unlink(missing_ok=True)
        there = await asyncio.to_thread(shared.queue.get, job, who)
        if there is None:
            raise HTTPException(404, _UNKNOWN)
        return _sent_again(there, f"{sheet}:{sent.digest}")
    audit(
        "accepted",
        who,
        place,
        job=job,
        task=task,
        cells=found["cells"],
        genes=found["genes"],
        bytes=sent.size,
    )
    return {"id": job, "state": "queued", **found, **({"warnings": warnings} if warnings else {})}


@router.get("/v2/jobs")
def jobs(shared: Shared, who: User) -> dict[str, Any]:
    """The user's jobs, newest first."""
    return {"jobs": [public_view(j, messages=False) for j in shared.queue.of_user(who)]}


def _own(shared: Services, job: str, who: str) -> dict[str, Any]:
    found = shared.queue.get(job, who) if _ID.fullmatch(job) else None
    if found is None:
        raise HTTPException(404, _UNKNOWN)
    return found


@router.get("/v2/jobs/{job}", responses={404: {}, 401: {}, 429: {}})
def state(job: str, shared: Shared, who: User) -> dict[str, Any]:
    """State, share done and messages of a job: what it reads, and what it found, as the verb reports it."""
    return public_view(_own(shared, job, who))


@router.get("/v2/jobs/{job}/events", responses={404: {}, 401: {}, 429: {}})
async def events(job: str, shared: Shared, who: User) -> EventResponse:
    """Progress as server-sent events until the job ends."""
    found = await asyncio.to_thread(_own, shared, job, who)
    shared.streams.take(who)
    return EventResponse(shared.streams, found, who)


@router.get("/v2/jobs/{job}/result", responses={c: {} for c in (404, 401, 409, 422, 429)})
def result(
    job: str, request: Request, shared: Shared, who: User, format: str = "h5ad"
) -> FileResponse:
    """The result: ``h5ad`` (the whole object), ``scmb`` (what was added, in the plain form) or ``zip`` (a model)."""
    found = _own(shared, job, who)
    formats = ("zip",) if found["task"] == "finetune" else ("h5ad", "scmb")
    if format not in formats:
        cells = "'h5ad' (the whole object) or 'scmb' (what was added, in plain form)"
        raise HTTPException(
            422, f"format is {cells if len(formats) > 1 else 'zip, a model to unpack'}."
        )
    if found["state"] != "done":
        reason = f": {found['message']}" if found["message"] else ""
        raise HTTPException(409, f"The job is {found['state']}{reason}.")
    path = shared.settings.data / "jobs" / found["id"] / "result" / f"result.{format}"
    if not path.is_file():
        raise HTTPException(404, _UNKNOWN)
    audit("result read", who, address(request), job=job, format=format)
    return _ResultFile(
        path,
        media_type="application/octet-stream",
        filename=f"scmamba-{found['task']}.{format}",
    )


@router.get("/v2/jobs/{job}/picture", responses={c: {} for c in (404, 401, 409, 429, 503)})
async def picture(job: str, request: Request, shared: Shared, who: User) -> FileResponse:
    """A map of the cells as JSON: ``cells``, ``x``, ``y``, ``columns``, ``method``; made when it is first requested."""
    folder = await _drawn(job, shared, who, "picture.json")
    audit("map read", who, address(request), job=job)
    return _ResultFile(folder / "picture.json", media_type="application/json")


@router.get(
    "/v2/jobs/{job}/genes/{gene}", responses={c: {} for c in (404, 401, 409, 422, 429, 503)}
)
async def gene(job: str, gene: str, request: Request, shared: Shared, who: User) -> dict[str, Any]:
    """Values of a gene in the cells of the map, log1p(CP10k): ``measured`` and, after imputation, ``imputed``."""
    folder = await _drawn(job, shared, who, "genes.json")
    try:
        async with shared.reading:
            found = await asyncio.to_thread(gene_values, folder, gene)
    except FileNotFoundError as error:  # deleted at this moment
        raise HTTPException(404, _UNKNOWN) from error
    if isinstance(found, list):
        similar = f"; similar names: {', '.join(found)}" if found else ""
        raise HTTPException(404, plain(f"The file has no gene '{gene[:60]}'{similar}.", 300))
    audit("gene read", who, address(request), job=job, gene=found["gene"])
    return found


class _ResultFile(FileResponse):
    """A file of a result, which may be deleted at any moment."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except RuntimeError:
            if Path(self.path).exists():
                raise
            await JSONResponse({"detail": _UNKNOWN}, 404)(scope, receive, send)


async def _drawn(job: str, shared: Services, who: str, file: str) -> Path:
    """The folder of a result with its map, which is made if it is missing."""
    found = await asyncio.to_thread(_own, shared, job, who)
    if found["state"] != "done":
        raise HTTPException(409, f"The job is {found['state']}; there is nothing to draw.")
    if found["task"] in _TABLES:
        raise HTTPException(
            409, "The results of this task are not about single cells; there is nothing to draw."
        )
    folder = shared.settings.data / "jobs" / found["id"] / "result"
    async with shared.drawing:
        if not (folder / file).is_file():
            await draw(folder, shared.settings)
    return folder


@router.delete("/v2/jobs/{job}", responses={404: {}, 401: {}, 429: {}})
def cancel(job: str, request: Request, shared: Shared, who: User) -> dict[str, str]:
    """Cancel a job that has not ended; delete one that has, with its files."""
    found = _own(shared, job, who)
    if shared.queue.cancel(job):
        audit("cancelled", who, address(request), job=job)
        return {"id": job, "state": "cancelled"}
    shared.queue.remove(job)
    discard(shared.settings, found)
    audit("deleted", who, address(request), job=job)
    return {"id": job, "state": "deleted"}


async def draw(folder: Path, settings: Settings) -> None:
    """Make the map of a result in a separate process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scmamba.serve.cell_map",
        str(folder),
        str(job_memory(settings)),
        *([] if settings.confine else ["unconfined"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=clean_environment(),
    )
    try:
        status = await asyncio.wait_for(process.wait(), timeout=_DRAWING)
    except (TimeoutError, asyncio.TimeoutError):  # two kinds in Python 3.10
        status = -1
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if status != 0 and not folder.is_dir():  # deleted meanwhile
        raise HTTPException(404, _UNKNOWN)
    if status != 0:
        raise HTTPException(503, "The map could not be made; the result can still be downloaded.")
