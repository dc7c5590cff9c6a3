"""Who is let in: tokens of users, the random token of a local server, and the limit of requests."""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import ipaddress
import os
import secrets
import threading
import time
from collections import Counter, deque
from pathlib import Path

from fastapi import HTTPException, Request

from .audit import audit
from .settings import Settings
from .tokens import Tokens

#: File of the data folder that holds the random token of a local server; only its owner can read it.
LOCAL_TOKEN = "local-token"
#: User of a local server without users.
LOCAL = "local"
#: What a request gives back at its end, in its scope.
HELD = "scmamba.held"
_AWAY = 3600.0  # seconds without a request after which a user signs in again
_MOST = 10_000  # users and addresses that are remembered


def network_of(address: str) -> str:
    """The address whose requests are counted together: of IPv6 the network (/64), whose addresses one machine draws at will.

    Parameters
    ----------
    address
        Address of a client.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, ipaddress.IPv6Address) or found.ipv4_mapped is not None:
        return address
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


class Limiter:
    """A number of requests per minute for each key."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute, self.seen = per_minute, dict[str, deque[float]]()
        self._lock, self._pruned = threading.Lock(), 0.0

    def allow(self, key: str) -> bool:
        """Count a request; False if there were too many."""
        with self._lock:
            now, times = time.monotonic(), self.seen.setdefault(key, deque())
            while times and times[0] < now - 60:
                times.popleft()
            if len(times) >= self.per_minute:
                return False
            times.append(now)
            if len(self.seen) > _MOST and now - self._pruned > 1:
                self._pruned = now
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
        self._open, self._lock = Counter[str](), threading.Lock()
        self._last: dict[tuple[str, str], float] = {}
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
            401 without a valid token, 429 after too many requests, or with too many at once.
        """
        address = request.client.host if request.client else "unknown"
        name, problem = self._named(request.headers.get("authorization", ""))
        if name is None:
            if not self.limiter.allow(f"refused {network_of(address)}"):
                raise HTTPException(429, "Too many requests; wait a minute.")
            audit("refused", address=address, reason=problem)
            raise HTTPException(401, problem)
        if not self.limiter.allow(f"{name} {network_of(address)}"):
            raise HTTPException(429, "Too many requests; wait a minute.")
        self._hold(name, request)
        self._record(name, address)
        return name

    def _hold(self, name: str, request: Request) -> None:
        """Count the request among the user's open ones until it ends; event streams have a limit of their own."""
        held = request.scope.get(HELD)
        if held is None or request.scope["path"].endswith("/events"):
            return
        with self._lock:
            if self._open[name] >= self.settings.requests_at_once:
                raise HTTPException(
                    429,
                    f"{self._open[name]} requests of yours are open; wait until some have ended.",
                )
            self._open[name] += 1
        held.append(lambda: self._give_back(name))

    def _give_back(self, name: str) -> None:
        with self._lock:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]

    def _record(self, name: str, address: str) -> None:
        """A line in the audit log when a user comes from an address, and again after an hour without a request."""
        with self._lock:
            now = time.monotonic()
            last = self._last.get((name, address))
            self._last[name, address] = now
            if len(self._last) > _MOST:
                self._last = {who: t for who, t in self._last.items() if now - t < 60}
        if last is None or now - last > _AWAY:
            audit("signed in", name, address)

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
