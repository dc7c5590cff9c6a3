"""Whether the server lives and works, for probes and operators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

from ..._version import __version__
from ..services import Shared

router = APIRouter()


@router.get("/v2")
async def about() -> dict[str, Any]:
    """Name and version of the server."""
    return {"name": "scmamba", "version": __version__, "extensions": ["jobs"]}


@router.get("/v2/health")
async def health(shared: Shared) -> dict[str, Any]:
    """Version, workers, who is let in and how jobs are confined."""
    return {
        "version": __version__,
        "workers": shared.supervisor.alive(),
        "tokens": shared.access.mode,
        "confinement": shared.supervisor.confinement(),
    }


@router.get("/v2/health/live")
async def live() -> dict[str, bool]:
    """The server answers."""
    return {"live": True}


@router.get("/v2/health/ready")
def ready(shared: Shared) -> JSONResponse:
    """The server can take jobs: workers run and the queue can be reached."""
    workers = shared.supervisor.alive()
    fine = workers > 0 and shared.supervisor.healthy()
    return JSONResponse({"ready": fine, "workers": workers}, 200 if fine else 503)


@router.get("/metrics")
def metrics(shared: Shared) -> PlainTextResponse:
    """Numbers for Prometheus."""
    lines = [
        "# TYPE scmamba_jobs gauge",
        *(f'scmamba_jobs{{state="{s}"}} {n}' for s, n in sorted(shared.queue.counts().items())),
        "# TYPE scmamba_workers gauge",
        f"scmamba_workers {shared.supervisor.alive()}",
        "# TYPE scmamba_worker_restarts_total counter",
        f"scmamba_worker_restarts_total {shared.supervisor.restarts}",
    ]
    return PlainTextResponse("\n".join(lines) + "\n")
