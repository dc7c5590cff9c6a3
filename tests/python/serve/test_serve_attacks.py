"""What nobody had listed: requests that strangers and neighbors made against a running server, each of which once did harm."""

from __future__ import annotations

import http.client
import json
import logging
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from fastapi import HTTPException
from serving import App, free_port, plain_bytes

from scmamba.serve import gate, uploads
from scmamba.serve.access import Limiter, network_of
from scmamba.serve.jobs import Queue
from scmamba.serve.routes import jobs as job_routes
from scmamba.serve.settings import Settings
from scmamba.serve.tokens import Tokens
from scmamba.serve.uploads import Uploads

CELLS = plain_bytes()
KEY = "a-key-drawn-at-random"


@pytest.fixture
def start(tmp_path):
    """Start servers of this test with these settings."""
    running = []

    def begin(**settings) -> App:
        running.append(App(tmp_path / f"data{len(running)}", **settings))
        return running[-1]

    yield begin
    for app in running:
        app.stop()


class Raw:
    """A request byte by byte."""

    def __init__(self, app: App, method: str, path: str, *lines: str, body: bytes = b"") -> None:
        self.line = socket.create_connection(("127.0.0.1", app.port), timeout=30)
        head = [f"{method} {path} HTTP/1.1", "Host: localhost", *lines]
        self.line.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    def send(self, body: bytes) -> None:
        self.line.sendall(body)

    def answer(self) -> tuple[int, bytes]:
        """Status and body, once the connection ends or its length has come."""
        got = http.client.HTTPResponse(self.line)
        got.begin()
        return got.status, got.read()

    def is_closed(self, seconds: float) -> bool:
        """Whether the server closes it in time."""
        self.line.settimeout(seconds)
        try:
            return self.line.recv(1000) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self.line.close()

    def reset(self) -> None:
        """Close it at once, as a browser does when its page is left."""
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.line.close()


def submission(app: App, body: bytes, *lines: str) -> Raw:
    """A job whose file has not come yet."""
    return Raw(app, "POST", "/v2/models/brain-mini/embed", f"Content-Length: {len(body)}", *lines)


# -- connections ------------------------------------------------------------------------------------------


def test_a_body_after_its_answer_does_not_hold_the_connection(start):
    app = start(head_seconds=1.0)
    raw = Raw(app, "GET", "/v2/health/live", "Content-Length: 1000000")
    assert raw.answer()[0] == 200
    until = time.monotonic() + 20
    try:
        while time.monotonic() < until:
            raw.send(b"x")
            time.sleep(0.1)
    except ConnectionError:
        pass
    assert time.monotonic() < until
    raw.close()


def test_answered_connections_give_way_to_new_ones(start):
    app = start(max_connections=20, head_seconds=60.0)
    held = [Raw(app, "GET", "/v2/health/live", "Content-Length: 1000000") for _ in range(20)]
    for raw in held:
        assert raw.answer()[0] == 200
        raw.send(b"x")
    time.sleep(0.2)
    for _ in range(5):
        assert app.ask("GET", "/v2/health/live").status == 200
    for raw in held:
        raw.close()


def test_refused_bodies_are_read_for_some_connections_only(start, monkeypatch):
    monkeypatch.setattr(gate, "_RESTS", 3)
    app = start(tokens="required")
    held = [submission(app, bytes(1000)) for _ in range(3)]
    for _ in range(10):  # they send a little, again and again, and are waited for
        for raw in held:
            raw.send(b"x")
        time.sleep(0.05)
    refused = submission(app, CELLS)
    answered: list[socket.socket] = []
    for _ in range(100):
        for raw in held:
            raw.send(b"x")
        answered = select.select([raw.line for raw in (*held, refused)], [], [], 0.05)[0]
        if answered:
            break
    assert answered == [refused.line] and refused.answer()[0] == 401
    assert [raw.answer()[0] for raw in held] == [401] * 3
    for raw in (*held, refused):
        raw.close()


def test_open_requests_of_one_user_are_limited(start):
    app = start(requests_at_once=2, host="0.0.0.0")
    ann, bob = (Tokens(app.data).add(name, 1) for name in ("ann", "bob"))
    held = [submission(app, CELLS, f"Authorization: Bearer {ann}") for _ in range(2)]
    time.sleep(0.5)
    refused = app.ask("GET", "/v2/jobs", token=ann)
    assert refused.status == 429 and "open" in refused.detail
    assert app.ask("GET", "/v2/jobs", token=bob).status == 200
    for raw in held:
        raw.send(CELLS)
        assert raw.answer()[0] == 202
        raw.close()
    assert app.ask("GET", "/v2/jobs", token=ann).status == 200


def test_a_stalled_copy_of_a_request_is_ended(start):
    app = start(patience=1.0)
    assert app.submit(CELLS, idempotency_key=KEY).status == 202
    again = Raw(
        app,
        "POST",
        "/v2/models/brain-mini/impute",
        f"Content-Length: {len(CELLS)}",
        f"Idempotency-Key: {KEY}",
    )
    again.send(CELLS[:10])
    assert again.answer()[0] == 408
    again.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="nginx or openssl is not installed")
def test_a_handshake_that_is_not_made_is_ended(tmp_path):
    data, port = tmp_path / "data", free_port()
    Tokens(data).add("ann", 1)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=box",
         "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "scmamba.serve", "--data", data, "--port", str(port), "--head-seconds", "1",
         "--tls-cert", tmp_path / "cert", "--tls-key", tmp_path / "key"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 180
        while time.monotonic() < until:
            try:
                line = socket.create_connection(("127.0.0.1", port), timeout=20)
                break
            except OSError:
                time.sleep(0.2)
        assert line.recv(10) == b""  # a timeout would be an error
        line.close()
    finally:
        process.terminate()
        process.wait(60)


# -- who is asking -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "https://[x]", "http://]", "//"])
def test_an_origin_that_is_none_is_refused(start, origin):
    app = start()
    for path in ("/", "/v2/jobs"):
        assert app.ask("GET", path, origin=origin).status == 403


def test_a_line_of_the_proxy_counts_more_than_those_of_the_client(start):
    app = start(proxy="127.0.0.1", tokens="required", requests_per_minute=5)
    statuses = []
    for k in range(12):
        lines = [f"X-Forwarded-For: 198.51.100.{k}", "X-Forwarded-For: 203.0.113.9"]
        raw = Raw(app, "GET", "/v2/jobs", "Authorization: Bearer guess", *lines)
        statuses.append(raw.answer()[0])
        raw.close()
    assert statuses == [401] * 5 + [429] * 7


def test_addresses_of_one_network_are_counted_together():
    assert (
        network_of("2001:db8:0:1::5") == network_of("2001:db8:0:1:ffff::1") == "2001:db8:0:1::/64"
    )
    assert network_of("2001:db8:0:2::5") != network_of("2001:db8:0:1::5")
    for address in ("203.0.113.9", "::ffff:203.0.113.9", "unknown", ""):
        assert network_of(address) == address
    assert network_of("fe80::1%eth0") == "fe80::/64"


def test_the_limiter_forgets_addresses_without_walking_through_all_each_time(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("scmamba.serve.access.time", SimpleNamespace(monotonic=lambda: clock[0]))
    limiter = Limiter(2)
    for k in range(10_001):
        limiter.allow(str(k))
    before = limiter.seen
    limiter.allow("one more")
    assert limiter.seen is before  # a second has not passed
    clock[0] += 100
    limiter.allow("later")
    assert set(limiter.seen) == {"later"}


def test_refused_requests_do_not_drive_the_audit_log_out(start, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("scmamba.audit"), "propagate", True)
    app = start(requests_per_minute=20)
    with caplog.at_level("INFO", logger="scmamba.audit"):
        statuses = [
            app.ask("GET", "/v2/" + "x" * 5000, origin="https://evil.example").status
            for _ in range(50)
        ]
    # pytest may keep a record of a propagating logger twice.
    own = {id(r): r for r in caplog.records if r.name == "scmamba.audit"}
    lines = [r.getMessage() for r in own.values()]
    assert statuses == [403] * 20 + [429] * 30
    assert len(lines) == 20 and max(map(len, lines)) < 1000


def test_no_redirect_names_the_host_of_the_request(start):
    answer = start().ask("GET", "/v2/jobs/", host="localhost")
    assert answer.status == 404 and "location" not in answer.headers


def test_damaged_tokens_let_nobody_in_and_are_named(start, caplog):
    app = start(host="0.0.0.0")
    token = Tokens(app.data).add("ann", 1)
    file = app.data / "tokens.json"
    good = file.read_text()
    for bad in ("[", '[{"user": "ann"}]', "7", good.replace('"ends": ', '"ends": "x", "e": ')):
        file.write_text(bad)
        answer = app.ask("GET", "/v2/jobs", token=token)
        assert answer.status == 503 and "retry" in answer.detail, bad
    assert "tokens.json is damaged" in caplog.text
    file.write_text(good)
    assert app.ask("GET", "/v2/jobs", token=token).status == 200


# -- HEAD and streams ----------------------------------------------------------------------------------------


def test_head_of_a_stream_or_a_large_file_ends_at_once(start):
    app = start()
    job = app.submit(CELLS).json["id"]
    raw = Raw(app, "HEAD", f"/v2/jobs/{job}/events", "Connection: close")
    assert raw.line.recv(1000).startswith(b"HTTP/1.1 200") and raw.is_closed(20)
    raw.close()
    app.end(job, h5ad=bytes(3_000_000))
    head = app.ask("HEAD", f"/v2/jobs/{job}/result")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "3000000")
    place = app.ask("POST", "/v2/uploads", b"", upload_length=str(len(CELLS))).headers["location"]
    kind = "application/offset+octet-stream"
    app.ask("PATCH", place, CELLS, upload_offset="0", content_type=kind)
    assert app.ask("HEAD", f"{place}/columns").status == 200
    assert app.ask("HEAD", place).headers["upload-offset"] == str(len(CELLS))
    assert app.uvicorn.config.app.state.services.streams._open.total() == 0


def test_streams_whose_reader_has_gone_before_they_began_are_given_back(start, monkeypatch):
    app = start(streams_per_user=2)
    job = app.submit(CELLS).json["id"]
    own = job_routes._own

    def slowly(*arguments):
        time.sleep(0.3)
        return own(*arguments)

    monkeypatch.setattr(job_routes, "_own", slowly)
    for _ in range(4):
        raw = Raw(app, "GET", f"/v2/jobs/{job}/events")
        time.sleep(0.1)
        raw.reset()
    time.sleep(1.0)
    monkeypatch.undo()
    raw = Raw(app, "GET", f"/v2/jobs/{job}/events")
    assert raw.line.recv(1000).startswith(b"HTTP/1.1 200")
    raw.close()


# -- races -----------------------------------------------------------------------------------------------


def test_two_files_under_one_key_at_once_are_one_job_and_one_refusal(start):
    app = start()
    files = [plain_bytes(2), plain_bytes(3)]
    lines = [submission(app, body, f"Idempotency-Key: {KEY}") for body in files]
    time.sleep(0.5)  # no job has this key yet
    for raw, body in zip(lines, files, strict=True):
        raw.send(body)
    answers = [raw.answer() for raw in lines]
    assert sorted(status for status, _ in answers) == [202, 422]
    accepted = [json.loads(text) for status, text in answers if status == 202][0]
    (kept,) = app.uploads()
    assert kept == files[accepted["cells"] - 2]
    for raw in lines:
        raw.close()


def whole_upload(app: App) -> str:
    """An upload in one part; its name."""
    place = app.ask("POST", "/v2/uploads", b"", upload_length=str(len(CELLS))).headers["location"]
    kind = "application/offset+octet-stream"
    assert app.ask("PATCH", place, CELLS, upload_offset="0", content_type=kind).status == 204
    return place.rsplit("/", 1)[1]


def test_a_request_that_is_repeated_while_its_file_is_inspected_is_the_same_job(start, monkeypatch):
    """The answer was lost, as behind a proxy that waits for a minute; the file was sent in parts."""
    app, inspect = start(), job_routes.inspect_upload

    async def slowly(*arguments, **more):
        import asyncio

        await asyncio.sleep(0.5)
        return await inspect(*arguments, **more)

    monkeypatch.setattr(job_routes, "inspect_upload", slowly)
    task, answers = f"embed?upload={whole_upload(app)}", []

    def send() -> None:
        answers.append(app.submit(b"", task=task, idempotency_key=KEY))

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert [a.status for a in answers] == [202] * 3
    assert len({a.json["id"] for a in answers}) == 1 and len(app.uploads()) == 1
    assert list((app.data / "parts").glob("*/*")) == []


def test_an_upload_in_parts_stays_until_its_job_is_in_the_queue(start, monkeypatch):
    app = start()
    task = f"embed?upload={whole_upload(app)}"
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "add", lambda *a, **k: (_ for _ in ()).throw(OSError("killed")))
        assert app.submit(b"", task=task).status == 500
    assert app.uploads() == []
    assert app.submit(b"", task=task).status == 202
    assert app.uploads() == [CELLS]


def test_files_that_arrive_at_once_share_the_quota(start):
    app = start(user_bytes=len(CELLS) + len(CELLS) // 2)
    chunk = b"%x\r\n" % len(CELLS) + CELLS + b"\r\n0\r\n\r\n"
    lines = [
        Raw(app, "POST", "/v2/models/brain-mini/embed", "Transfer-Encoding: chunked")
        for _ in range(3)
    ]
    time.sleep(0.5)  # for each of them there is room at this moment
    for raw in lines:
        raw.send(chunk[:20])
    time.sleep(0.2)
    for raw in lines:
        raw.send(chunk[20:])
    statuses = sorted(raw.answer()[0] for raw in lines)
    assert statuses.count(202) <= 1 and set(statuses) <= {202, 507}
    assert sum(map(len, app.uploads())) <= app.settings.user_bytes
    for raw in lines:
        raw.close()
    if 202 not in statuses:
        assert app.submit(CELLS).status == 202  # the room was given back


def together(number: int, act) -> list[int]:
    """The statuses of requests that are sent at once."""
    statuses: list[int] = []
    barrier = threading.Barrier(number)

    def one() -> None:
        barrier.wait()
        statuses.append(act().status)

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)


def test_uploads_and_references_that_begin_at_once_keep_their_limit(start, monkeypatch):
    app, used = start(jobs_per_user=2), uploads.used_bytes

    def slowly(*arguments):
        time.sleep(0.2)
        return used(*arguments)

    monkeypatch.setattr(uploads, "used_bytes", slowly)
    begun = together(6, lambda: app.ask("POST", "/v2/uploads", b"", upload_length="5"))
    assert begun == [201] * 2 + [429] * 4
    kept = together(6, lambda: app.ask("POST", "/v2/references", CELLS))
    assert kept == [201] * 2 + [429] * 4
    assert len(list((app.data / "references").glob("*/*"))) == 2


def test_one_user_cannot_occupy_all_inspections(start, monkeypatch):
    """Four processes inspect uploads; here each takes as long as the test allows."""
    import asyncio

    app = start(host="0.0.0.0")
    ann, bob = (Tokens(app.data).add(name, 1) for name in ("ann", "bob"))
    begin, may_end = asyncio.create_subprocess_exec, threading.Event()

    async def slowly(*command, **options):
        while not may_end.is_set():
            await asyncio.sleep(0.05)
        return await begin(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slowly)
    held = [submission(app, CELLS, f"Authorization: Bearer {ann}") for _ in range(6)]
    for raw in held:
        raw.send(CELLS)
    time.sleep(0.5)
    monkeypatch.undo()
    assert app.submit(CELLS, bob).status == 202
    may_end.set()
    assert [raw.answer()[0] for raw in held] == [202] * 6
    for raw in held:
        raw.close()


def test_an_upload_that_is_deleted_at_this_moment_is_not_found(tmp_path):
    kept = Uploads(Settings(tmp_path))
    name = kept.create("ann", "5")
    (length,) = (tmp_path / "parts").glob("*/*.length")
    length.unlink()
    with pytest.raises(HTTPException) as missing:
        kept.find(name, "ann")
    assert missing.value.status_code == 404


def test_a_result_that_is_deleted_at_this_moment_is_not_found(start, monkeypatch):
    app = start()
    job = app.submit(CELLS).json["id"]
    app.end(job, h5ad=b"whole")
    folder = app.data / "jobs" / job / "result"
    (folder / "picture.json").write_text("{}")
    monkeypatch.setattr(job_routes, "audit", lambda *a, **k: shutil.rmtree(folder, True))
    for path in ("result", "picture", "genes/APOE"):
        folder.mkdir(exist_ok=True)
        (folder / "result.h5ad").write_bytes(b"damaged")
        for name in ("picture.json", "genes.json"):
            (folder / name).write_text(
                '{"genes": ["APOE"], "cells": 1, "places": {"measured": [0, 6]}}'
            )
        answer = app.ask("GET", f"/v2/jobs/{job}/{path}")
        assert answer.status == 404, (path, answer.body)


def test_an_old_upload_is_no_stray_while_it_is_inspected(tmp_path):
    kept, queue = Uploads(Settings(tmp_path)), Queue(tmp_path)
    name = kept.create("ann", "5")
    path, _, _ = kept.find(name, "ann")
    path.write_bytes(b"12345")
    os.utime(path, (100, 100))  # it came long ago
    sent = kept.take(name, "ann")
    kept.forget_strays(queue)
    assert sent.path.read_bytes() == b"12345"


# -- the start -------------------------------------------------------------------------------------------


def test_a_queue_that_was_damaged_while_no_server_ran_is_restored(tmp_path):
    first = Queue(tmp_path)
    job = first.add("local", "embed", "brain-mini", {}, Path("x"))
    first.backup()
    for file in tmp_path.glob("queue.sqlite*"):
        file.write_bytes(b"not a database" * 1000)
    app = App(tmp_path)
    try:
        assert [j["id"] for j in app.ask("GET", "/v2/jobs").json["jobs"]] == [job]
        assert len(list(tmp_path.glob("queue.damaged-*.sqlite"))) == 1
    finally:
        app.stop()
