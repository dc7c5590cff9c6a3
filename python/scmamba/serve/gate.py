"""What every request passes first: the host it names, the page it comes from, the proxy it came through; and the headers of every answer."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

from .access import HELD, Limiter, network_of
from .audit import audit
from .settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Headers of every answer.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
#: Paths whose HEAD is not that of their GET.
_OWN_HEAD = re.compile(r"/v2/uploads/[^/]+")
#: Bytes and seconds that the rest of a refused body may take, and how many are read at once.
_REST, _REST_SECONDS, _RESTS = 256 << 20, 30.0, 50
_LONGEST = 200  # characters of a path in the audit log


class Gate:
    """Refuses DNS rebinding, cross-site requests and unknown proxies; answers HEAD as GET without a body."""

    def __init__(self, app: Any, settings: Settings, limiter: Limiter) -> None:
        self.app, self.settings, self.limiter = app, settings, limiter

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive)
        answer = _Answer(scope, send, body)
        problem = self._forwarded(scope) or self._refusal(scope)
        if scope["method"] == "HEAD" and not _OWN_HEAD.fullmatch(scope["path"]):
            scope = {**scope, "method": "GET"}
        held: list[Callable[[], None]] = []
        try:
            if problem is not None:
                await self._refuse(scope, problem)(scope, body, answer)
            else:
                await self.app({**scope, HELD: held}, body, answer)
        except Exception:
            if not answer.ended:  # the rest of an answer to HEAD is not sent
                raise
        finally:
            for give_back in held:
                give_back()

    def _refuse(self, scope: Message, problem: str) -> JSONResponse:
        """The answer to a request that may not pass; it counts against the limit of its address, and so does its line in the log."""
        address = scope["client"][0] if scope.get("client") else "unknown"
        if not self.limiter.allow(f"refused {network_of(address)}"):
            return JSONResponse({"detail": "Too many requests; wait a minute."}, 429)
        audit("refused", address=address, reason=problem, path=scope["path"][:_LONGEST])
        return JSONResponse({"detail": problem}, 403)

    def _forwarded(self, scope: Message) -> str | None:
        """Trust the headers of the proxy only."""
        headers, client = Headers(scope=scope), scope.get("client")
        peer = client[0] if client else ""
        health = scope["path"].startswith("/v2/health/")
        if self.settings.proxy is None:
            if self.settings.tokens == "none" and any(name in headers for name in _FORWARDED):
                return "The request came through a proxy; start the server with --proxy ADDRESS and with tokens."
            return None
        if not self.settings.is_proxy(peer):
            return None if health else "This server answers to its proxy only."
        # A proxy may append its line to those of the client instead of merging them.
        lines = ",".join(headers.getlist("x-forwarded-for"))
        chain = [part.strip() for part in lines.split(",") if part.strip()]
        for address in reversed(chain):
            if not self.settings.is_proxy(address):
                scope["client"] = (address[:64], 0)
                break
        if headers.get("x-forwarded-proto", "") in ("http", "https"):
            scope["scheme"] = headers["x-forwarded-proto"]
        return None

    def _refusal(self, scope: Message) -> str | None:
        """Why a browser must not be answered, or ``None``."""
        headers = Headers(scope=scope)
        host = headers.get("host")
        if (
            host is not None
            and self.settings.on_loopback
            and self.settings.proxy is None
            and not _is_local(host, self.settings.host)
        ):
            return "This server answers to requests for localhost only; its address does not belong to the name in the Host header."
        named = {host, headers.get("x-forwarded-host") if self.settings.proxy else host}
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if scope["path"].startswith("/v2") and site not in (None, "same-origin", "none"):
            return "A page of another site may not use this server (Sec-Fetch-Site)."
        # Without its host name, the proxy leaves the browser's own judgement.
        trusted = self.settings.proxy is not None and site == "same-origin"
        if origin is not None and _site_of(origin) not in named and not trusted:
            return "A page of another site may not use this server (Origin)."
        return None


def _is_local(host: str, own: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in ("localhost", own):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _site_of(origin: str) -> str:
    """Host and port of an ``Origin`` header; no name at all if it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return "invalid origin"


class _Body:
    """The body of a request, with a flag for its end."""

    discarding = 0  # bodies whose rest is being read

    def __init__(self, receive: Receive) -> None:
        self._receive, self.ended = receive, False

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.ended = True
        return message

    async def discard(self) -> None:
        """Read the rest: otherwise a client that is still sending gets a broken connection instead of the reason.

        Strangers could hold connections in this way, so only some are waited for at once.
        """
        if _Body.discarding >= _RESTS:
            return
        _Body.discarding += 1
        size, end = 0, time.monotonic() + _REST_SECONDS
        try:
            with contextlib.suppress(Exception):
                while not self.ended and size < _REST and time.monotonic() < end:
                    message = await asyncio.wait_for(self(), 1.0)
                    size += len(message.get("body", b""))
        finally:
            _Body.discarding -= 1


class _Ended(Exception):
    """The answer is complete; what would follow is not needed."""


class _Answer:
    """The answer on its way: its headers, nothing else for HEAD, and the rest of a refused upload."""

    def __init__(self, scope: Message, send: Send, body: _Body) -> None:
        self._send, self._body, self.ended = send, body, False
        self._head = scope["method"] == "HEAD"
        self._sending = scope["method"] in ("POST", "PATCH")

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            if self._sending and status >= 400 and status != 408:
                await self._body.discard()
            there = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(
                    (k.lower().encode(), v.encode())
                    for k, v in HEADERS.items()
                    if k.lower().encode() not in there
                ),
            ]
        await self._send(message)
        if self._head:  # a stream of events or a large file would go on
            self.ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            raise _Ended
