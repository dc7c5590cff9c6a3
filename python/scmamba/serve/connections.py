"""Connections of the server: how many, how long a request may take to be sent, and how long an answer may wait to be read."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from asyncio import constants
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_RESERVED = 200  # files of the process itself: queue, uploads, results, pipes
#: Connections that have not sent a whole head, oldest first (a dictionary keeps the order).
Waiting = dict["LimitedProtocol", None]


def raise_file_limit(connections: int) -> int:
    """Allow this process as many open files as it needs; returns the connections that fit.

    Parameters
    ----------
    connections
        Connections that the operator allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _RESERVED  # a connection may have a file open, too
    top = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < top:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:  # a negative number on Linux
        return connections
    return max(16, min(connections, (soft - _RESERVED) // 2))


def limited_protocol(connections: int, head_seconds: float, patience: float) -> type[H11Protocol]:
    """The protocol class of a server with these limits, to be given to uvicorn as ``http``.

    Parameters
    ----------
    connections
        Open connections. Beyond it the oldest one without a whole request is closed; if there is none, the new one.
    head_seconds
        Seconds the head of a request may take.
    patience
        Seconds a client may read nothing of its answer.
    """
    waiting: Waiting = {}

    class Protocol(LimitedProtocol):
        limits = (connections, head_seconds, patience)
        half_open = waiting

    return Protocol


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with limits (h11 refuses heads beyond 64 kB by itself)."""

    limits: tuple[int, float, float] = (1000, 20.0, 60.0)
    half_open: Waiting = {}

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, if necessary in place of one that sends nothing."""
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self.limits[0]:
            oldest = next(iter(self.half_open), self)
            oldest.transport.abort()
            oldest._forget()

    def data_received(self, data: bytes) -> None:
        """Pass data on; a head that is not whole keeps its time limit, and so does a body that is no longer read."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE or self._is_answered():
            self._await_head()
        else:
            self._end_head()

    def on_response_complete(self) -> None:
        """A connection that is kept alive may be closed for another one; the rest of a body that was answered has a time limit."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:
            self.half_open[self] = None
        elif self._is_answered():
            self._await_head()

    def _is_answered(self) -> bool:
        """Whether the answer was sent before the whole request had come."""
        return self.conn.our_state is h11.DONE

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits[2], self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _await_head(self) -> None:
        self.half_open[self] = None
        if self._head is None:
            self._head = self.loop.call_later(self.limits[1], self._head_late)

    def _end_head(self) -> None:
        self.half_open.pop(self, None)
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _head_late(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            if not self._is_answered():
                self.transport.write(
                    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
                )
            self.transport.close()

    def _forget(self) -> None:
        self._end_head()
        self.connections.discard(self)
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def limit_handshakes(seconds: float) -> None:
    """Close connections whose TLS handshake takes longer: they come before the limits of :class:`LimitedProtocol`.

    Parameters
    ----------
    seconds
        Seconds a handshake may take; asyncio's own limit is a minute.
    """
    setattr(constants, "SSL_HANDSHAKE_TIMEOUT", seconds)  # noqa: B010
