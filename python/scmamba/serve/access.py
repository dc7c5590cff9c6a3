"""Who is let in: tokens of users, the random token of a local server, and the limit of requests."""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import os
import secrets
import threading
import time
from collections import deque
from pathlib import Path

from fastapi import HTTPException, Request

from .audit import audit
from .settings import Settings
from .tokens import Tokens

#: File of the data folder that holds the random token of a local server; only its owner can read it.
LOCAL_TOKEN = "local-token"
#: User of a local server without users.
LOCAL = "local"


class Limiter:
    """A number of requests per minute for each key."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute, self.seen = per_minute, dict[str, deque[float]]()
        self._lock = threading.Lock()

    def allow(self, key: str) -> bool:
        """Count a request; False if there were too many."""
        with self._lock:
            now, times = time.monotonic(), self.seen.setdefault(key, deque())
            while times and times[0] < now - 60:
                times.popleft()
            if len(times) >= self.per_minute:
                return False
            times.append(now)
            if len(self.seen) > 10_000:
                self.seen = {k: t for k, t in self.seen.items() if t and t[-1] > now - 60}
            return True


class LocalToken:
    """One random token per start of a local server, in a file of the data folder.

    Servers that run on the same folder at the same time share it: each holds a shared lock, and whoever gets the lock alone draws a new
    token. The lock ends with the process, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCAL_TOKEN
        self._lock = os.open(folder / f"{LOCAL_TOKEN}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another server runs here
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        else:
            self._draw()
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        self.value = self.path.read_text().strip()

    def _draw(self) -> None:
        part = self.path.with_name(f".{LOCAL_TOKEN}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        os.replace(part, self.path)

    def close(self) -> None:
        """Give the lock back; the last server removes the token."""
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1


class Access:
    """The one place that decides whose request it is."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self.settings, self.tokens = settings, tokens
        self.limiter = Limiter(settings.requests_per_minute)
        self.local: LocalToken | None = None
        if not settings.needs_token and settings.tokens != "none":
            self.local = LocalToken(settings.data)

    @property
    def mode(self) -> str:
        """``"required"`` (tokens of users), ``"local"`` (the random token) or ``"none"``."""
        if self.settings.needs_token:
            return "required"
        return "none" if self.local is None else "local"

    def close(self) -> None:
        """Withdraw the random token."""
        if self.local is not None:
            self.local.close()

    def user(self, request: Request) -> str:
        """Name of the user.

        Raises
        ------
        HTTPException
            401 without a valid token, 429 after too many requests.
        """
        address = request.client.host if request.client else "unknown"
        name, problem = self._named(request.headers.get("authorization", ""))
        if name is None:
            if not self.limiter.allow(f"refused {address}"):
                raise HTTPException(429, "Too many requests; wait a minute.")
            audit("refused", address=address, reason=problem)
            raise HTTPException(401, problem)
        if not self.limiter.allow(f"{name} {address}"):
            raise HTTPException(429, "Too many requests; wait a minute.")
        return name

    def _named(self, header: str) -> tuple[str | None, str]:
        """The user of an ``Authorization`` header, or ``None`` and the reason."""
        if not header and self.mode == "none":
            return LOCAL, ""
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer" or not token:
            if self.mode == "local":
                return None, (
                    "This server needs the token that it printed when it started ('Authorization: Bearer ...'); "
                    f"the file {LOCAL_TOKEN} in its data folder holds it."
                )
            return None, (
                "This server needs a token: 'Authorization: Bearer ...'. The person who runs it can give you one."
            )
        if self.local is not None and hmac.compare_digest(
            token.encode(), self.local.value.encode()
        ):
            return LOCAL, ""
        found, reason = self.tokens.user_of(token)
        return found, "" if found else f"Access denied: {reason}."
