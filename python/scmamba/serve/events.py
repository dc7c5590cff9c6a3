"""Progress of jobs as server-sent events: one reader of the queue for all streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from fastapi import HTTPException
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .jobs import FINAL, Queue, Unavailable, public_view
from .settings import Settings

_EACH = 0.3  # seconds between two looks at the queue
_QUIET = 15.0  # seconds after which a comment shows whether the reader is still there


class Streams:
    """All open event streams. The queue is read in a thread, once for all of them."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.settings, self.queue = settings, queue
        self._watched: dict[str, set[asyncio.Queue[dict[str, Any] | None]]] = {}
        self._open: Counter[str] = Counter()
        self._reader: asyncio.Task[None] | None = None

    def take(self, user: str) -> None:
        """A place for one stream of a user; 429 if there is none."""
        if self._open[user] >= self.settings.streams_per_user:
            raise HTTPException(
                429, f"You have {self._open[user]} event streams open; close some of them."
            )
        if self._open.total() >= self.settings.max_streams:
            raise HTTPException(
                503, "Too many event streams are open; poll the job's state instead."
            )
        self._open[user] += 1

    def give(self, user: str) -> None:
        """Give the place back."""
        self._open[user] -= 1

    async def follow(self, job: dict[str, Any]) -> AsyncIterator[str]:
        """The job's states until it ends, for :class:`EventResponse`."""
        name, box = str(job["id"]), asyncio.Queue[dict[str, Any] | None](maxsize=100)
        self._watched.setdefault(name, set()).add(box)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._read())
        last = ""
        now: dict[str, Any] | None = job
        try:
            while True:
                text = json.dumps(
                    public_view(now) if now is not None else {"id": name, "state": "deleted"}
                )
                if text != last:
                    last = text
                    yield f"data: {text}\n\n"
                if now is None or now["state"] in FINAL:
                    return
                try:
                    now = await asyncio.wait_for(box.get(), _QUIET)
                except (TimeoutError, asyncio.TimeoutError):
                    yield ": still here\n\n"
        finally:
            self._watched[name].discard(box)
            if not self._watched[name]:
                del self._watched[name]

    async def _read(self) -> None:
        """Look at all watched jobs, until none is watched."""
        while self._watched:
            names = list(self._watched)
            with contextlib.suppress(Unavailable):  # for a moment; the streams wait
                found = await asyncio.to_thread(self.queue.get_many, names)
                for name in names:
                    for box in self._watched.get(name, ()):
                        with contextlib.suppress(asyncio.QueueFull):
                            box.put_nowait(found.get(name))
            await asyncio.sleep(_EACH)


class EventResponse(StreamingResponse):
    """A stream of events; its place (:meth:`Streams.take`) is given back however it ends, also if the client has gone before it began."""

    def __init__(self, streams: Streams, job: dict[str, Any], user: str) -> None:
        super().__init__(streams.follow(job), media_type="text/event-stream")
        self._streams, self._user = streams, user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.give(self._user)
