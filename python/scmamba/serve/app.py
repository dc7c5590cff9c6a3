"""The HTTP face: uploads in, jobs and their progress, results out. Paths follow the Open Inference protocol where it has one."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)

from .._version import __version__
from .job_files import discard
from .jobs import FINAL, Queue, Unavailable
from .postgres import open_queue
from .references import References
from .settings import Settings
from .supervisor import Supervisor
from .tokens import Tokens
from .uploads import KEPT, Places, Uploads, discard_body, inspect_upload, receive
from .validation import plain
from .verbs import TASKS, check_options

_log = logging.getLogger("scmamba.serve")
_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_TUS = {"Tus-Resumable": "1.0.0"}
_DRAWING = 300.0  # seconds a picture may take
_UNKNOWN = "There is no such job of yours; it may have been deleted."


class Limiter:
    """So many requests a minute for each key."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute, self.seen = per_minute, dict[str, deque[float]]()

    def allow(self, key: str) -> bool:
        """Count a request; False if there were too many."""
        now, times = time.monotonic(), self.seen.setdefault(key, deque())
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= self.per_minute:
            return False
        times.append(now)
        if len(self.seen) > 10_000:
            self.seen = {k: t for k, t in self.seen.items() if t and t[-1] > now - 60}
        return True


def create_app(settings: Settings) -> FastAPI:
    """The application; workers start and stop with it."""
    queue, tokens, limiter = (
        open_queue(settings.data),
        Tokens(settings.data),
        Limiter(settings.requests_per_minute),
    )
    supervisor, drawing, references = (
        Supervisor(settings, queue),
        asyncio.Lock(),
        References(settings.data),
    )
    uploads, places = Uploads(settings), Places()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        supervisor.start()
        yield
        supervisor.stop()

    app = FastAPI(
        title="scMamba", version=__version__, lifespan=life, docs_url=None, redoc_url=None
    )

    def user(request: Request) -> str:
        """Who asks; refuses whoever may not."""
        header = request.headers.get("authorization", "")
        address = request.client.host if request.client else "unknown"
        name = "local"
        if header or settings.needs_token:
            scheme, _, token = header.partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise HTTPException(
                    401,
                    "This server needs a token: 'Authorization: Bearer ...'. Ask whoever runs it.",
                )
            found, why = tokens.user_of(token)
            if found is None:
                if not limiter.allow(f"refused {address}"):
                    raise HTTPException(429, "Too many requests; wait a minute.")
                raise HTTPException(401, f"No entry: {why}.")
            name = found
        if not limiter.allow(f"{name} {address}"):
            raise HTTPException(429, "Too many requests; wait a minute.")
        return name

    @app.exception_handler(Unavailable)
    async def later(request: Request, error: Exception) -> JSONResponse:
        _log.warning("%s", error)  # it may name the database, which is no user's business
        return JSONResponse(
            {"detail": "The server's queue is not to be had at the moment; try again."},
            503,
            headers={"Retry-After": "5"},
        )

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Any:
        answer = await call_next(request)
        if (
            request.method in ("POST", "PATCH")
            and answer.status_code >= 400
            and answer.status_code != 408
        ):
            await discard_body(request)
        for key, value in _HEADERS.items():
            answer.headers.setdefault(key, value)
        return answer

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> JSONResponse:
        fine = supervisor.alive() > 0
        return JSONResponse({"ready": fine, "workers": supervisor.alive()}, 200 if fine else 503)

    @app.get("/v2")
    async def about() -> dict[str, Any]:
        return {"name": "scmamba", "version": __version__, "extensions": ["jobs"]}

    @app.get("/v2/models")
    def models(who: str = Depends(user)) -> dict[str, Any]:
        return {
            "models": _models(),
            "default": settings.model,
            "tasks": {t: sorted(o) for t, (_, o) in TASKS.items()},
        }

    @app.get("/v2/models/{name}", responses={404: {}, 401: {}, 429: {}})
    def model(name: str, who: str = Depends(user)) -> dict[str, Any]:
        return {"name": _known(name), "tasks": list(TASKS), "card": _models_card(name)}

    @app.post(
        "/v2/models/{name}/{task}",
        status_code=202,
        responses={c: {} for c in (400, 401, 404, 408, 409, 413, 415, 422, 429, 507)},
    )
    async def submit(
        name: str,
        task: str,
        request: Request,
        options: str = "{}",
        upload: str | None = None,
        who: str = Depends(user),
    ) -> dict[str, Any]:
        """Send a file as the body: .h5ad, 10x .h5, a zipped 10x folder or scMamba's plain form.

        ``options`` is a JSON object of the verb's arguments.
        Or name a file that was sent to ``/v2/uploads`` before: ``upload``.
        """
        _known(name)
        if task not in TASKS:
            raise HTTPException(
                404, f"There is no task '{task[:60]}'; there are {', '.join(TASKS)}."
            )
        wanted = _options(task, options)
        job = _name(who, request)
        if there := queue.get(job, who):  # sent again because our answer was lost
            await discard_body(request)
            return {"id": job, "state": there["state"]}
        if "reference" in wanted and references.path(wanted["reference"], who) is None:
            raise HTTPException(
                422, "There is no such reference of yours; send it to /v2/references first."
            )
        with places.hold(who, queue.unfinished(who), settings.jobs_per_user):
            return await accept(request, who, job, task, name, wanted, upload)

    async def accept(
        request: Request,
        who: str,
        job: str,
        task: str,
        name: str,
        wanted: dict[str, Any],
        upload: str | None,
    ) -> dict[str, Any]:
        path = await receive(request, settings) if upload is None else uploads.take(upload, who)
        try:
            found = await inspect_upload(path, settings)
            (settings.data / "jobs" / job).mkdir(
                parents=True, exist_ok=True
            )  # before the job: a worker may take it at once
            added = queue.add(who, task, name, wanted, path, job)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if not added:  # the same file came twice at once
            path.unlink(missing_ok=True)
            return {"id": job, "state": "queued", **found}
        _log.info(
            "accepted job=%s user=%s task=%s cells=%s genes=%s",
            job,
            who,
            task,
            found["cells"],
            found["genes"],
        )
        return {"id": job, "state": "queued", **found}

    @app.post(
        "/v2/references",
        status_code=201,
        responses={c: {} for c in (400, 401, 404, 408, 409, 413, 415, 422, 429, 507)},
    )
    async def add_reference(
        request: Request, upload: str | None = None, who: str = Depends(user)
    ) -> dict[str, Any]:
        """Send labelled cells to annotate others by: give the id as option ``reference``, their column as ``labels``."""
        if references.number(who) >= settings.jobs_per_user:
            raise HTTPException(
                429, f"You have {settings.jobs_per_user} references here; delete some."
            )
        path = await receive(request, settings) if upload is None else uploads.take(upload, who)
        try:
            found = await inspect_upload(path, settings)
            name = references.add(who, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return {"id": name, **found}

    @app.delete("/v2/references/{name}", responses={404: {}, 401: {}, 429: {}})
    def remove_reference(name: str, who: str = Depends(user)) -> dict[str, str]:
        """Delete labelled cells."""
        if not references.remove(name, who):
            raise HTTPException(404, "There is no such reference of yours.")
        return {"id": name, "state": "deleted"}

    @app.options("/v2/uploads", status_code=204)
    def abilities() -> Response:
        """What the server knows of tus."""
        return Response(
            status_code=204,
            headers={
                **_TUS,
                "Tus-Version": "1.0.0",
                "Tus-Extension": "creation,termination,expiration",
                "Tus-Max-Size": str(settings.max_upload),
            },
        )

    @app.post("/v2/uploads", status_code=201, responses={c: {} for c in (400, 401, 413, 429, 507)})
    def begin_upload(request: Request, who: str = Depends(user)) -> Response:
        """Begin an upload that can be continued (tus 1.0.0): ``Upload-Length`` bytes will come by PATCH."""
        name = uploads.create(who, request.headers.get("upload-length"))
        return Response(
            status_code=201,
            headers={**_TUS, "Location": f"/v2/uploads/{name}", "Upload-Expires": _expires()},
        )

    @app.head("/v2/uploads/{name}", responses={404: {}, 401: {}, 429: {}})
    async def upload_offset(name: str, who: str = Depends(user)) -> Response:
        """How much of an upload has come; a line that still brings the same upload is heard no more."""
        offset, length = uploads.look(name, who)
        return Response(
            headers={**_TUS, "Upload-Offset": str(offset), "Upload-Length": str(length)}
        )

    @app.patch(
        "/v2/uploads/{name}",
        status_code=204,
        responses={c: {} for c in (400, 401, 404, 408, 409, 413, 415, 429, 507)},
    )
    async def continue_upload(name: str, request: Request, who: str = Depends(user)) -> Response:
        """Send the bytes from ``Upload-Offset`` on."""
        if request.headers.get("content-type") != "application/offset+octet-stream":
            raise HTTPException(415, "Content-Type must be application/offset+octet-stream.")
        offset = await uploads.append(name, who, request.headers.get("upload-offset"), request)
        return Response(
            status_code=204,
            headers={**_TUS, "Upload-Offset": str(offset), "Upload-Expires": _expires()},
        )

    @app.delete("/v2/uploads/{name}", status_code=204, responses={404: {}, 401: {}, 429: {}})
    def end_upload(name: str, who: str = Depends(user)) -> Response:
        """Delete an upload."""
        uploads.find(name, who)
        uploads.remove(name, who)
        return Response(status_code=204, headers=_TUS)

    @app.get("/v2/jobs")
    def jobs(who: str = Depends(user)) -> dict[str, Any]:
        return {"jobs": [shown(j) for j in queue.of_user(who)]}

    def own(job: str, who: str) -> dict[str, Any]:
        found = queue.get(job, who) if _ID.fullmatch(job) else None
        if found is None:
            raise HTTPException(404, _UNKNOWN)
        return found

    @app.get("/v2/jobs/{job}", responses={404: {}, 401: {}, 429: {}})
    def state(job: str, who: str = Depends(user)) -> dict[str, Any]:
        return shown(own(job, who))

    @app.get("/v2/jobs/{job}/events", responses={404: {}, 401: {}, 429: {}})
    async def events(job: str, who: str = Depends(user)) -> StreamingResponse:
        """Progress as server-sent events until the job ends."""
        own(job, who)

        async def stream() -> AsyncIterator[str]:
            last = None
            while True:
                now = queue.get(job, who)
                text = (
                    json.dumps(shown(now)) if now else json.dumps({"id": job, "state": "deleted"})
                )
                if text != last:
                    yield f"data: {text}\n\n"
                    last = text
                if now is None or now["state"] in FINAL:
                    return
                await asyncio.sleep(0.3)

        return StreamingResponse(stream(), media_type="text/event-stream")

    @app.get("/v2/jobs/{job}/result", responses={c: {} for c in (404, 401, 409, 422, 429)})
    def result(job: str, format: str = "h5ad", who: str = Depends(user)) -> FileResponse:
        found = own(job, who)
        formats = ("zip",) if found["task"] == "finetune" else ("h5ad", "scmb")
        if format not in formats:
            cells = "'h5ad' (the whole object) or 'scmb' (what was added, in plain form)"
            raise HTTPException(
                422, f"format is {cells if len(formats) > 1 else 'zip, a model to unpack'}."
            )
        if found["state"] != "done":
            raise HTTPException(
                409,
                f"The job is {found['state']}{': ' + found['message'] if found['message'] else ''}.",
            )
        path = settings.data / "jobs" / found["id"] / "result" / f"result.{format}"
        if not path.is_file():
            raise HTTPException(404, _UNKNOWN)
        return FileResponse(
            path,
            media_type="application/octet-stream",
            filename=f"scmamba-{found['task']}.{format}",
        )

    @app.get("/v2/jobs/{job}/picture", responses={c: {} for c in (404, 401, 409, 429, 503)})
    async def picture(job: str, who: str = Depends(user)) -> FileResponse:
        """A map of the cells as JSON: ``cells``, ``x``, ``y``, ``method``; made at the first look."""
        found = own(job, who)
        if found["state"] != "done":
            raise HTTPException(409, f"The job is {found['state']}; there is nothing to draw.")
        if found["task"] in ("markers", "robustness", "finetune"):
            raise HTTPException(
                409, "This task says nothing about single cells; there is nothing to draw."
            )
        folder = settings.data / "jobs" / found["id"] / "result"
        async with drawing:
            if not (folder / "picture.json").is_file():
                await draw(folder)
        return FileResponse(folder / "picture.json", media_type="application/json")

    @app.delete("/v2/jobs/{job}", responses={404: {}, 401: {}, 429: {}})
    def cancel(job: str, who: str = Depends(user)) -> dict[str, str]:
        """Cancel a job that has not ended; delete one that has, with its files."""
        found = own(job, who)
        if queue.cancel(job):
            return {"id": job, "state": "cancelled"}
        queue.remove(job)
        discard(settings, found)
        return {"id": job, "state": "deleted"}

    @app.get("/metrics")
    def metrics() -> PlainTextResponse:
        lines = [
            "# TYPE scmamba_jobs gauge",
            *(f'scmamba_jobs{{state="{s}"}} {n}' for s, n in sorted(queue.counts().items())),
            "# TYPE scmamba_workers gauge",
            f"scmamba_workers {supervisor.alive()}",
            "# TYPE scmamba_worker_restarts_total counter",
            f"scmamba_worker_restarts_total {supervisor.restarts}",
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(_file("page.html"))

    @app.get("/page.js", include_in_schema=False)
    def script() -> PlainTextResponse:
        return PlainTextResponse(_file("page.js"), media_type="text/javascript")

    @app.get("/page.css", include_in_schema=False)
    def style() -> PlainTextResponse:
        return PlainTextResponse(_file("page.css"), media_type="text/css")

    def _known(name: str) -> str:
        if name not in _models():
            raise HTTPException(
                404, f"There is no model '{name[:60]}' here; there are {', '.join(_models())}."
            )
        return name

    return app


def _expires() -> str:
    return formatdate(time.time() + KEPT, usegmt=True)


def _name(who: str, request: Request) -> str:
    """The job's name: from the sender's Idempotency-Key if there is one, so that a file sent twice is one job."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise HTTPException(
            422, "The Idempotency-Key must be 16 to 64 letters, digits, - or _, drawn at random."
        )
    return Queue.name_of(who, key or secrets.token_urlsafe(24))


def _options(task: str, text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HTTPException(
            422, 'options is not JSON; send an object such as {"seed": 0}.'
        ) from error
    if problem := check_options(task, options):
        raise HTTPException(422, plain(problem, 500) + ".")
    if isinstance(options.get("markers"), dict):  # R writes a list of one gene as a string
        options["markers"] = {
            k: [v] if isinstance(v, str) else v for k, v in options["markers"].items()
        }
    return {k: v for k, v in options.items() if v is not None}


async def draw(folder: Path) -> None:
    """Make the picture of a result in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scmamba.serve.cell_map",
        str(folder),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        status = await asyncio.wait_for(process.wait(), timeout=_DRAWING)
    except (TimeoutError, asyncio.TimeoutError):  # two kinds in Python 3.10
        process.kill()
        status = -1
    if status != 0:
        raise HTTPException(
            503, "The picture could not be made; the result is there to be fetched."
        )


def shown(job: dict[str, Any]) -> dict[str, Any]:
    """What a user sees of a job."""
    return {
        k: job[k]
        for k in (
            "id",
            "task",
            "model",
            "state",
            "done",
            "message",
            "attempts",
            "created",
            "started",
            "finished",
        )
    }


def _models() -> list[str]:
    from ..model import list_models

    return list(list_models())


def _models_card(name: str) -> str:
    from ..model import list_models

    card = list_models()[name] / "model_card.md"
    return card.read_text() if card.is_file() else ""


def _file(name: str) -> str:
    return (resources.files("scmamba.serve") / name).read_text()
