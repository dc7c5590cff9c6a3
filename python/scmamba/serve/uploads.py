"""Uploads: streamed to disk, whole or in parts that may be continued (tus 1.0.0), and inspected by a confined process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

from .audit import audit
from .disk import sync_folder
from .environment import clean_environment
from .memory import job_memory
from .quota import used_bytes
from .settings import Settings
from .validation import plain, whole_text

if TYPE_CHECKING:
    from .jobs import Queue

_NAME = re.compile(r"[A-Za-z0-9_-]{16}")
#: Bytes a second an upload must bring once it has taken ``settings.patience`` seconds.
SLOWEST = 4096
#: Seconds after which an interrupted upload is deleted.
KEPT = 86_400
_LOOKS, _OWN_LOOKS = 4, 2  # confined processes at once, of all users and of one
_STRAY = 3600.0  # seconds after which a file without a job is one that a killed server left behind

Found = dict[str, Any]


@dataclass(frozen=True)
class Upload:
    """A whole file that was sent.

    Attributes
    ----------
    path
        Where it is.
    size
        Bytes.
    digest
        SHA-256 of its bytes, or the name of the upload in parts it was.
    """

    path: Path
    size: int
    digest: str


_WAIT = "You have {} unfinished jobs and uploads; wait until some are done."


class Places:
    """Running uploads count as jobs, so that the limit of waiting jobs includes them."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, who: str, others: int, limit: int, full: str = _WAIT) -> Iterator[None]:
        """A place for one upload; 429 if there is none."""
        if others + self.taken[who] >= limit:
            raise HTTPException(429, full.format(others + self.taken[who]))
        self.taken[who] += 1
        try:
            yield
        finally:
            self.taken[who] -= 1


async def digest_body(request: Request, settings: Settings) -> str:
    """SHA-256 of a body that is not kept; refuses what :func:`received` would refuse."""
    check_kind(request)
    found, size = hashlib.sha256(), 0
    async for chunk in chunks(request, settings):
        found.update(chunk)
        size += len(chunk)
        if size > settings.max_upload:
            raise too_large(settings)
    return found.hexdigest()


async def chunks(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """The body as it comes; 408 if nothing comes or too little, 400 if it breaks off."""
    stream, began, size = request.stream().__aiter__(), time.monotonic(), 0
    while True:
        try:
            chunk = await asyncio.wait_for(stream.__anext__(), settings.patience)
        except StopAsyncIteration:
            return
        except (TimeoutError, asyncio.TimeoutError) as error:
            raise HTTPException(
                408, f"Nothing was received for {settings.patience:g} seconds; send the file again."
            ) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The upload broke off; send the file again.") from error
        size += len(chunk)
        late = time.monotonic() - began - settings.patience
        if late > 0 and size < SLOWEST * late:
            raise HTTPException(
                408,
                f"Less than {SLOWEST} bytes per second were received; send the file over a faster connection.",
            )
        yield chunk


def check_claim(length: str | None, settings: Settings, folder: Path) -> int:
    """The length an upload claims (0: none), if there is room for it."""
    if length is not None and (
        not re.fullmatch(r"[0-9]{1,18}", length) or int(length) > settings.max_upload
    ):
        raise too_large(settings)
    folder.mkdir(parents=True, exist_ok=True)
    claimed = int(length or 0)
    if shutil.disk_usage(folder).free < claimed * 3 + (256 << 20):
        raise HTTPException(507, "The disk of this server is full; please inform its operator.")
    return claimed


def too_large(settings: Settings) -> HTTPException:
    """The refusal of too large an upload."""
    return HTTPException(
        413, f"The upload is larger than this server's {settings.max_upload / 2**30:.1f} GiB."
    )


def check_kind(request: Request) -> None:
    """The body is the file itself; what wraps it is refused before it comes."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise HTTPException(
            415, "Send the file itself as the body (curl --data-binary @file), not a form."
        )
    if request.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise HTTPException(
            415,
            "Send the file itself as the body, without a Content-Encoding; .h5ad files are packed inside.",
        )


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HTTPException(
                507, "The disk of this server is full; please inform its operator."
            ) from error
        raise


def over_quota(settings: Settings) -> HTTPException:
    """The refusal of more bytes than a user may keep."""
    return HTTPException(
        507,
        f"Your files on this server may have {settings.user_bytes / 2**30:.1f} GiB together (uploads, references and "
        "results, also those of cancelled jobs). Delete some jobs or references.",
    )


#: Bytes of the files of each user that are on their way: received or inspected, and not yet in the queue.
_arriving: Counter[str] = Counter()


class _Room:
    """Room within a user's quota for a file, from its first byte until its job is in the queue."""

    def __init__(self, who: str, settings: Settings) -> None:
        self._who, self._settings = who, settings
        self._key, self._size, self._used = f"{settings.data} {who}", 0, 0

    async def look(self) -> None:
        """Read what the user's other files take; files that arrived meanwhile are among them."""
        self._used = await asyncio.to_thread(used_bytes, self._who, self._settings)
        self.need(0)

    def need(self, size: int) -> None:
        """Take room for so many bytes in all; 507 if there is none."""
        _arriving[self._key] += max(0, size - self._size)
        self._size = max(size, self._size)
        if self._used + _arriving[self._key] > self._settings.user_bytes:
            raise over_quota(self._settings)

    def close(self) -> None:
        """Give the room back."""
        _arriving[self._key] -= self._size
        self._size = 0


@asynccontextmanager
async def received(request: Request, settings: Settings, who: str) -> AsyncIterator[Upload]:
    """The body, streamed to disk and never held; refuses what is too large before and while it is received.

    It counts as the user's until the block has ended, and is deleted if the block fails.
    """
    check_kind(request)
    folder = settings.data / "uploads"
    claimed = check_claim(request.headers.get("content-length"), settings, folder)
    path, room = folder / secrets.token_hex(16), _Room(who, settings)
    try:
        room.need(claimed)
        await room.look()
        size, digest = await _keep(request, settings, path, room)
        await room.look()
        yield Upload(path, size, digest)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        room.close()


async def _keep(request: Request, settings: Settings, path: Path, room: _Room) -> tuple[int, str]:
    """Write the body to a new file; its size and SHA-256."""
    size, digest = 0, hashlib.sha256()
    with _disk(), open(path, "xb") as file:
        async for chunk in chunks(request, settings):
            size += len(chunk)
            if size > settings.max_upload:
                raise too_large(settings)
            room.need(size)
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        await asyncio.to_thread(sync, file.fileno(), path.parent)
    if size == 0:
        raise HTTPException(400, "Nothing was sent; the file is the body of the request.")
    return size, digest.hexdigest()


def sync(handle: int, folder: Path) -> None:
    """Bring a file and the entry of its folder to the disk."""
    os.fsync(handle)
    sync_folder(folder)


_looking: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
_own_looking: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()


async def inspect_upload(path: Path, settings: Settings, *wanted: str, who: str = "") -> Found:
    """Inspect the upload in a confined process; 422 with a sentence if it is refused.

    Parameters
    ----------
    path, settings
        The file, and the limits it must keep to.
    *wanted
        ``"columns"``: the columns of its cells as well.
    who
        Its user, who cannot occupy all of these processes.
    """
    loop = asyncio.get_running_loop()
    own = _own_looking.setdefault(f"{id(loop)} {who}", asyncio.Semaphore(_OWN_LOOKS))
    async with own, _looking.setdefault(loop, asyncio.Semaphore(_LOOKS)):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "scmamba.serve.validation",
            str(path),
            str(settings.max_cells),
            str(settings.max_genes),
            str(job_memory(settings) // 3),
            *([] if settings.confine else ["unconfined"]),
            *wanted,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=clean_environment(),
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(), timeout=90)
            found = whole_text(json.loads(out))
        except (TimeoutError, asyncio.TimeoutError, ValueError) as error:
            raise HTTPException(
                422, "The upload could not be inspected within this server's limits; it is refused."
            ) from error
        finally:
            if process.returncode is None:  # its sender has gone, or it takes too long
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
    if "error" in found:
        if who:
            audit("upload refused", who, reason=plain(found["error"], 300))
        raise HTTPException(422, found["error"])
    return dict(found)


class Uploads:
    """Uploads in parts (tus 1.0.0): what arrived before a connection broke stays, and the sender continues from there.

    The file's size on disk is the offset, so nothing is lost when the server is killed. Each is in its owner's folder.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.folder = settings, settings.data / "parts"
        self.turns: Counter[Path] = Counter()
        self._creating = threading.Lock()
        self._used = weakref.WeakValueDictionary[str, asyncio.Lock]()

    def _own(self, who: str) -> Path:
        return self.folder / hashlib.sha256(who.encode()).hexdigest()[:32]

    def create(self, who: str, length: str | None) -> str:
        """Begin one of so many bytes."""
        if length is None or not re.fullmatch(r"[0-9]{1,18}", length) or int(length) == 0:
            raise HTTPException(400, "Upload-Length must be the number of bytes that will be sent.")
        own = self._own(who)
        claimed = check_claim(length, self.settings, own)
        name = secrets.token_urlsafe(12)
        with self._creating, _disk():  # requests that come at once must not find the same room
            used = used_bytes(who, self.settings) + _arriving[f"{self.settings.data} {who}"]
            if used + claimed > self.settings.user_bytes:
                raise over_quota(self.settings)
            if len(list(own.glob("*.length"))) >= self.settings.jobs_per_user:
                raise HTTPException(
                    429, f"You have {self.settings.jobs_per_user} uploads here; use or delete some."
                )
            (own / name).touch()
            (own / f"{name}.length").write_text(length)  # from here on it counts
        return name

    def alone(self, name: str | None, who: str) -> AbstractAsyncContextManager[Any]:
        """Requests for the same upload wait for each other here; without one nothing waits."""
        if name is None:
            return contextlib.nullcontext()
        return self._used.setdefault(f"{who}/{name}", asyncio.Lock())

    @asynccontextmanager
    async def taken(self, name: str, who: str) -> AsyncIterator[Upload]:
        """The whole file, where jobs have theirs. If the block fails, the upload stays, unless the file was refused."""
        sent = await asyncio.to_thread(self.take, name, who)
        try:
            yield sent
        except BaseException as error:
            sent.path.unlink(missing_ok=True)
            if isinstance(error, HTTPException) and error.status_code == 422:
                self.remove(name, who)
            raise
        self.remove(name, who)

    def find(self, name: str, who: str) -> tuple[Path, int, int]:
        """Its file, the bytes received and the bytes expected; 404 if the user has no such upload."""
        path = self._own(who) / name
        if _NAME.fullmatch(name):
            with contextlib.suppress(FileNotFoundError):  # deleted at this moment
                length = int((path.parent / f"{name}.length").read_text() or 0)
                return path, path.stat().st_size, length
        raise HTTPException(404, "There is no such upload of yours; it may have been deleted.")

    def look(self, name: str, who: str) -> tuple[int, int]:
        """Offset and length. A connection that still hangs may not write from here on."""
        path, offset, length = self.find(name, who)
        self.turns[path] += 1
        return offset, length

    async def append(self, name: str, who: str, offset: str | None, request: Request) -> int:
        """Write what is sent from the offset on; returns the new offset. What arrived before a break stays."""
        path, here, length = self.find(name, who)
        if offset is None or offset != str(here):
            raise HTTPException(409, f"Upload-Offset must be {here}, the bytes received so far.")
        self.turns[path] += 1
        turn = self.turns[path]
        with _disk(), open(path, "r+b", buffering=0) as file:
            file.seek(here)
            async for chunk in chunks(request, self.settings):
                # Another server of the folder may have continued it: then the file is longer than what was written here.
                if self.turns[path] != turn or _size_of(path) != here:
                    raise HTTPException(409, "The upload is being continued elsewhere.")
                if here + len(chunk) > length:
                    raise HTTPException(
                        413, f"More was sent than the {length} bytes of Upload-Length."
                    )
                _write(file, chunk)
                here += len(chunk)
        return here

    def take(self, name: str, who: str) -> Upload:
        """The whole file under a second name, where jobs have theirs; its own it keeps until it is removed."""
        path, offset, length = self.find(name, who)
        if offset != length:
            raise HTTPException(
                409, f"{offset} of {length} bytes of the upload have arrived; send the rest first."
            )
        target = self.settings.data / "uploads" / secrets.token_hex(16)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, target)
        except FileNotFoundError as error:
            raise HTTPException(404, "There is no such upload of yours.") from error
        except OSError:  # a disk without second names
            path.rename(target)
        os.utime(target)  # or it would seem to be left behind, if it came long ago
        with open(target, "rb") as file:
            sync(file.fileno(), target.parent)
        return Upload(target, length, name)

    def remove(self, name: str, who: str) -> None:
        """Delete one."""
        path = self._own(who) / name
        path.unlink(missing_ok=True)
        (path.parent / f"{name}.length").unlink(missing_ok=True)
        self.turns.pop(path, None)

    def forget(self, older_than: float) -> None:
        """Delete interrupted uploads."""
        for file in self.folder.glob("*/*.length"):
            path = file.with_suffix("")
            if max(f.stat().st_mtime for f in (file, path) if f.is_file()) < older_than:
                path.unlink(missing_ok=True)
                file.unlink(missing_ok=True)

    def forget_strays(self, queue: Queue) -> None:
        """Delete whole files that belong to no job: a server was killed while it received or inspected them."""
        known, before = queue.uploads(), time.time() - _STRAY
        for file in (self.settings.data / "uploads").glob("*"):
            with contextlib.suppress(OSError):
                if (
                    file.is_file()
                    and str(file) not in known
                    and file.stat().st_mtime < before
                    # A job may have been added since the list was read.
                    and str(file) not in queue.uploads()
                ):
                    file.unlink()


def _write(file: BinaryIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while len(view):
        view = view[file.write(view) :]


def _size_of(path: Path) -> int:
    """Bytes of a file; -1 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
