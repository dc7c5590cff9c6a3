"""Uploads: whole, in parts that are continued, too large, too slow, too many, and their limits to the byte."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import http.client
import json
import os
import socket
import time
from collections import namedtuple
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from fastapi import HTTPException
from serving import App, plain_bytes

from scmamba.serve import access as face
from scmamba.serve import uploads
from scmamba.serve.references import References
from scmamba.serve.settings import Settings
from scmamba.serve.tokens import Tokens
from scmamba.serve.uploads import Places, Uploads

CELLS = plain_bytes()
TUS = {"content_type": "application/offset+octet-stream"}


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    data = tmp_path_factory.mktemp("transfers")
    running = App(
        data,
        host="0.0.0.0",
        max_upload=1000,
        jobs_per_user=50,
        requests_per_minute=10**6,
        patience=1.0,
    )
    running.ann, running.bob = (Tokens(data).add(name, 1) for name in ("ann", "bob"))
    yield running
    running.stop()


def begin(app: App, length: int, token: str | None = None) -> str:
    return app.ask("POST", "/v2/uploads", b"", token or app.ann, upload_length=str(length)).headers[
        "location"
    ]


def at(app: App, place: str) -> int:
    answer = app.ask("HEAD", place, token=app.ann)
    assert answer.status == 200 and answer.headers["tus-resumable"] == "1.0.0"
    return int(answer.headers["upload-offset"])


# -- in parts ------------------------------------------------------------------------------------------


def test_the_server_reports_the_state_of_parts(app):
    answer = app.ask("OPTIONS", "/v2/uploads")
    assert answer.status == 204 and {
        k: v for k, v in answer.headers.items() if k.startswith("tus-")
    } == {
        "tus-resumable": "1.0.0",
        "tus-version": "1.0.0",
        "tus-extension": "creation,termination,expiration",
        "tus-max-size": "1000",
    }


def test_parts_in_order_give_the_file(app):
    place = begin(app, len(CELLS))
    assert place.startswith("/v2/uploads/") and at(app, place) == 0
    for start, end in ((0, 7), (7, 8), (8, len(CELLS))):
        answer = app.ask("PATCH", place, CELLS[start:end], app.ann, upload_offset=str(start), **TUS)
        assert (
            answer.status,
            answer.headers["upload-offset"],
            answer.headers["tus-resumable"],
        ) == (204, str(end), "1.0.0")
        assert "upload-expires" in answer.headers and at(app, place) == end
    assert app.ask("HEAD", place, token=app.ann).headers["upload-length"] == str(len(CELLS))
    name = place.rsplit("/", 1)[1]
    sent = app.ask("POST", f"/v2/models/brain-mini/impute?upload={name}", b"", app.ann)
    assert sent.status == 202 and sent.json["cells"] == 2
    with open(app.queue.get(sent.json["id"])["upload"], "rb") as file:
        assert file.read() == CELLS
    assert (
        app.ask("HEAD", place, token=app.ann).status == 404
        and list((app.data / "parts").glob(f"*/{name}*")) == []
    )


def test_a_part_with_a_wrong_offset_changes_nothing(app):
    place = begin(app, 10)
    assert app.ask("PATCH", place, b"abcd", app.ann, upload_offset="0", **TUS).status == 204
    for offset in ("0", "3", "5", "04", "-4", "x"):
        answer = app.ask("PATCH", place, b"ef", app.ann, upload_offset=offset, **TUS)
        assert answer.status == 409 and "must be 4" in answer.detail
    assert app.ask("PATCH", place, b"ef", app.ann, **TUS).status == 409
    assert app.ask("PATCH", place, b"ef", app.ann, upload_offset="4").status == 415
    assert app.ask("PATCH", place, b"ef", app.bob, upload_offset="4", **TUS).status == 404
    assert (
        at(app, place) == 4
        and next((app.data / "parts").glob("*/" + place.rsplit("/", 1)[1])).read_bytes() == b"abcd"
    )


def test_not_more_than_the_declared_length_is_accepted(app):
    place = begin(app, 5)
    assert (
        app.ask("PATCH", place, b"abcdef", app.ann, upload_offset="0", **TUS).status == 413
        and at(app, place) == 0
    )
    assert app.ask("PATCH", place, b"abcde", app.ann, upload_offset="0", **TUS).status == 204
    assert (
        app.ask("PATCH", place, b"f", app.ann, upload_offset="5", **TUS).status == 413
        and at(app, place) == 5
    )


def test_an_upload_is_used_only_by_its_owner_and_when_complete(app):
    place = begin(app, 6)
    app.ask("PATCH", place, b"abc", app.ann, upload_offset="0", **TUS)
    name = place.rsplit("/", 1)[1]
    for target in ("models/brain-mini/impute", "references"):
        early = app.ask("POST", f"/v2/{target}?upload={name}", b"", app.ann)
        assert early.status == 409 and "3 of 6" in early.detail
        assert app.ask("POST", f"/v2/{target}?upload={name}", b"", app.bob).status == 404
    assert (
        app.ask("HEAD", place, token=app.bob).status == 404
        and app.ask("DELETE", place, token=app.bob).status == 404
    )
    assert at(app, place) == 3
    gone = app.ask("DELETE", place, token=app.ann)
    assert gone.status == 204 and gone.headers["tus-resumable"] == "1.0.0"
    assert (
        app.ask("HEAD", place, token=app.ann).status == 404
        and app.ask("DELETE", place, token=app.ann).status == 404
    )


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("0", 400),
        ("-1", 400),
        ("1.5", 400),
        ("", 400),
        ("9" * 19, 400),
        ("1", 201),
        ("1000", 201),
        ("1001", 413),
    ],
)
def test_accepted_lengths(app, length, status):
    assert app.ask("POST", "/v2/uploads", b"", app.ann, upload_length=length).status == status
    assert app.ask("POST", "/v2/uploads", b"", app.ann).status == 400


def test_the_audit_log_names_the_upload_that_was_deleted(server):
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    line.request("POST", "/v2/uploads", headers={"Upload-Length": "5"})
    answer = line.getresponse()
    answer.read()
    place = answer.getheader("location")
    line.request("DELETE", place)
    assert line.getresponse().status == 204
    line.close()
    events = [json.loads(line) for line in (server.data / "audit.log").read_text().splitlines()]
    deleted = [e["upload"] for e in events if e["event"] == "upload deleted"]
    assert deleted[-1] == place.rsplit("/", 1)[1]


@pytest.mark.parametrize("confined", [True, False])
def test_uploads_are_inspected_confined_unless_the_operator_says_otherwise(
    tmp_path, monkeypatch, confined
):
    (tmp_path / "upload").write_bytes(CELLS)
    started = []
    start = asyncio.create_subprocess_exec

    async def listed(*command, **options):
        started.append(command)
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", listed)
    settings = Settings(tmp_path, confine=confined)
    found = asyncio.run(uploads.inspect_upload(tmp_path / "upload", settings))
    assert found["cells"] == 2 and ("unconfined" not in started[0]) == confined


def test_the_number_of_uploads_is_limited(tmp_path):
    kept = Uploads(Settings(tmp_path, jobs_per_user=2))
    first = kept.create("ann", "5")
    kept.create("ann", "5")
    with pytest.raises(HTTPException) as refused:
        kept.create("ann", "5")
    assert refused.value.status_code == 429
    assert kept.create("bob", "5")
    kept.remove(first, "ann")
    assert len(kept.create("ann", "5")) == 16


def test_abandoned_uploads_are_deleted(tmp_path):
    kept = Uploads(Settings(tmp_path))
    names = {
        what: kept.create("ann", "5") for what in ("old", "begun long ago, continued now", "new")
    }
    own = next((tmp_path / "parts").iterdir())
    for what, (begun, continued) in {
        "old": (100, 150),
        "begun long ago, continued now": (100, 900),
        "new": (900, 900),
    }.items():
        os.utime(own / f"{names[what]}.length", (begun, begun))
        os.utime(own / names[what], (continued, continued))
    kept.forget(500)
    assert {f.name for f in own.iterdir()} == {
        n + e for w, n in names.items() if w != "old" for e in ("", ".length")
    }


def test_a_stalled_connection_writes_nothing_after_the_offset_was_read(app):
    place = begin(app, 8)
    head = (
        f"PATCH {place} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {app.ann}\r\nUpload-Offset: 0\r\n"
        "Content-Type: application/offset+octet-stream\r\nContent-Length: 8\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as line:
        line.sendall(head + b"abcd")
        file = next((app.data / "parts").glob("*/" + place.rsplit("/", 1)[1]))
        until = time.monotonic() + 20
        while file.stat().st_size < 4 and time.monotonic() < until:
            time.sleep(0.02)
        assert at(app, place) == 4
        line.sendall(b"efgh")
        assert line.recv(4096).split()[1] == b"409"
    assert at(app, place) == 4 and file.read_bytes() == b"abcd"


# -- whole ---------------------------------------------------------------------------------------------


def test_the_limit_is_exact_to_the_byte(app):
    before = app.uploads()
    for size, status in (
        (1000, 422),
        (1001, 413),
    ):  # 1,000 bytes of zeros are inspected and are not a file of cells
        assert app.submit(bytes(size), app.ann).status == status
        pieces = app.ask(
            "POST", "/v2/models/brain-mini/impute", iter([bytes(500), bytes(size - 500)]), app.ann
        )
        assert pieces.status == status
    assert app.uploads() == before


def test_a_body_that_stalls_is_an_error(app):
    before = app.uploads()
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as line:
        line.sendall(
            f"POST /v2/models/brain-mini/impute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {app.ann}\r\n"
            "Content-Length: 100\r\n\r\nabc".encode()
        )
        answer = line.recv(4096)
    assert answer.split()[1] == b"408" and app.uploads() == before


class Sender:
    """A request whose body arrives in pieces, each the given number of seconds after the one before."""

    def __init__(self, *pieces: bytes, clock: list[float] | None = None, each: float = 0.0) -> None:
        self.pieces, self.clock, self.each = pieces, clock if clock is not None else [0.0], each

    async def stream(self):
        for piece in self.pieces:
            self.clock[0] += self.each
            yield piece


def test_slow_uploads_fail_after_the_time_limit(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(uploads, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    settings = Settings(tmp_path, patience=10.0)

    async def size(*pieces: bytes) -> int:
        clock[0] = 0.0
        return sum(
            [
                len(c)
                async for c in uploads.chunks(Sender(*pieces, clock=clock, each=10.0), settings)
            ]
        )

    assert asyncio.run(size(b"a")) == 1  # ten seconds: still within the limit
    assert (
        asyncio.run(size(bytes(20480), bytes(20480))) == 40960
    )  # 4,096 bytes for each of the ten seconds beyond the limit
    with pytest.raises(HTTPException) as late:
        asyncio.run(size(bytes(20480), bytes(20479)))
    assert late.value.status_code == 408 and "4096 bytes" in late.value.detail


@pytest.mark.parametrize(
    ("free", "length", "status"),
    [
        (3 * 600 + (256 << 20), "600", None),
        (3 * 600 + (256 << 20) - 1, "600", 507),
        (256 << 20, None, None),
        ((256 << 20) - 1, None, 507),
        (1 << 40, "1000", None),
        (1 << 40, "1001", 413),
        (1 << 40, "1e2", 413),
        (1 << 40, "1" * 19, 413),
    ],
)
def test_free_disk_space_is_required(monkeypatch, tmp_path, free, length, status):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda folder: usage(1 << 50, 0, free))

    def claim():
        return uploads.check_claim(length, Settings(tmp_path, max_upload=1000), tmp_path / "new")

    if status is None:
        assert claim() == int(length or 0) and (tmp_path / "new").is_dir()
    else:
        with pytest.raises(HTTPException) as refused:
            claim()
        assert refused.value.status_code == status


def test_error_when_the_disk_is_full():
    for number, status in ((errno.ENOSPC, 507), (errno.EDQUOT, 507)):
        with pytest.raises(HTTPException) as full, uploads._disk():
            raise OSError(number, "full")
        assert full.value.status_code == status
    with pytest.raises(PermissionError), uploads._disk():
        raise PermissionError(errno.EACCES, "no")


def test_partial_writes_are_completed():
    class Bits:
        got = b""

        def write(self, view):
            self.got += bytes(view[:3])
            return min(3, len(view))

    uploads._write(file := Bits(), b"abcdefgh")
    assert file.got == b"abcdefgh"


def test_places_count_running_uploads():
    places = Places()
    with places.hold("ann", 0, 2), places.hold("ann", 0, 2):
        for others, limit in ((0, 2), (1, 3)):
            with pytest.raises(HTTPException) as full, places.hold("ann", others, limit):
                pass
            assert full.value.status_code == 429
        with places.hold("bob", 0, 1), places.hold("ann", 0, 3):
            pass
    with pytest.raises(ValueError), places.hold("ann", 1, 2):
        raise ValueError
    with places.hold("ann", 1, 2):
        pass
    with pytest.raises(HTTPException), places.hold("ann", 2, 2):
        pass


def test_a_refused_body_is_read_to_its_end(app):
    with socket.create_connection(("127.0.0.1", app.port), timeout=30) as line:
        line.sendall(
            f"POST /v2/models/none/impute HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {app.ann}\r\n"
            "Content-Length: 600000\r\n\r\n".encode()
        )
        for _ in range(6):  # closing the connection too early would break it here
            line.sendall(bytes(100_000))
            time.sleep(0.02)
        assert line.recv(4096).split()[1] == b"404"


# -- rate limits ---------------------------------------------------------------------------------------


def test_requests_per_minute(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(face, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    limiter = face.Limiter(2)
    assert (
        limiter.allow("ann")
        and limiter.allow("ann")
        and not limiter.allow("ann")
        and limiter.allow("bob")
    )
    clock[0] = 1059.0
    assert not limiter.allow("ann")
    clock[0] = 1061.0
    assert limiter.allow("ann") and limiter.allow("ann") and not limiter.allow("ann")
    limiter.seen.update({f"a{k}": face.deque([1000.0]) for k in range(10_001)})
    assert limiter.allow("cem") and set(limiter.seen) == {
        "ann",
        "cem",
    }  # the others' last request is over a minute old


def test_too_many_requests_are_refused_for_that_user_only(tmp_path):
    app = App(tmp_path, host="0.0.0.0", requests_per_minute=3)
    ann, bob = (Tokens(tmp_path).add(name, 1) for name in ("ann", "bob"))
    try:
        assert [app.ask("GET", "/v2/jobs", token=ann).status for _ in range(4)] == [
            200,
            200,
            200,
            429,
        ]
        assert app.ask("GET", "/v2/jobs", token=bob).status == 200
        assert [app.ask("GET", "/v2/jobs", token="guess").status for _ in range(4)] == [
            401,
            401,
            401,
            429,
        ]
        assert app.ask("GET", "/v2/health/live").status == 200
    finally:
        app.stop()


def test_error_503_with_retry_after_when_the_queue_is_unavailable(tmp_path):
    app = App(tmp_path)
    try:
        for file in tmp_path.glob("queue.sqlite*"):
            file.unlink()
        (tmp_path / "queue.sqlite").mkdir()
        answer = app.ask("GET", "/v2/jobs")
        assert (
            answer.status == 503
            and answer.headers["retry-after"] == "5"
            and str(tmp_path) not in answer.detail
        )
    finally:
        app.stop()


# -- references on disk --------------------------------------------------------------------------------


def test_references_are_stored_in_folders_of_their_owners(tmp_path):
    kept, names = References(tmp_path), []
    for user in ("ann", "ann", "bob"):
        (tmp_path / "upload").write_bytes(user.encode())
        names.append(kept.add(user, tmp_path / "upload"))
        assert not (tmp_path / "upload").exists() and len(names[-1]) == 16
    folder = tmp_path / "references" / hashlib.sha256(b"ann").hexdigest()[:32]
    assert {f.name for f in folder.iterdir()} == set(names[:2]) and kept.path(
        names[0], "ann"
    ) == folder / names[0]
    assert (kept.number("ann"), kept.number("bob"), kept.number("cem")) == (2, 1, 0)
    assert (
        kept.path(names[2], "ann") is None
        and kept.path("../" + names[2], "bob") is None
        and kept.path(names[2][:15], "bob") is None
    )
    assert not kept.remove(names[2], "ann") and kept.number("bob") == 1
    os.utime(folder / names[0], (100, 100))
    os.utime(folder / names[1], (900, 900))
    kept.forget(500)
    assert kept.path(names[0], "ann") is None and kept.path(names[1], "ann") is not None
    assert kept.remove(names[1], "ann") and kept.number("ann") == 0
