"""Unauthorized clients and failures: a real server behind a real TLS proxy, DNS rebinding, cross-site pages, held connections, quotas."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import Answer, App, Server, free_port, plain_bytes

from scmamba.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve.access import LocalToken
from scmamba.serve.jobs import Queue
from scmamba.serve.tokens import Tokens

CELLS = plain_bytes()
KEY = "a-key-drawn-at-random"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


# -- behind a TLS proxy -----------------------------------------------------------------------------------


class Proxy:
    """nginx with a self-signed certificate, configured as an operator would, and a server behind it."""

    def __init__(self, folder: Path) -> None:
        data = folder / "data"
        self.ann = Tokens(data).add("ann", 1)
        self.server = Server(
            data, "--proxy", "127.0.0.1", "--requests-per-minute", "40",
            "--max-connections", "150", "--head-seconds", "3",
        )  # fmt: skip
        self.port = free_port()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=box",
             "-keyout", folder / "key", "-out", folder / "cert"],
            check=True, capture_output=True,
        )  # fmt: skip
        (folder / "conf").write_text(f"""
            daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/errors;
            events {{ worker_connections 256; }}
            http {{
              access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
              fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
              server {{
                listen 127.0.0.1:{self.port} ssl; ssl_certificate {folder}/cert; ssl_certificate_key {folder}/key;
                location / {{
                  proxy_pass http://127.0.0.1:{self.server.port}; proxy_set_header Host $http_host;
                  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto https;
                }}
              }}
            }}""")
        self.nginx = subprocess.Popen([str(NGINX), "-c", folder / "conf", "-e", folder / "errors"])
        for _ in range(200):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            time.sleep(0.05)

    def ask(self, method: str, path: str, token: str | None = None, **headers: str) -> Answer:
        """One request by TLS, from an address other than the proxy's."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        line = http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=60, context=context, source_address=("127.0.0.9", 0)
        )
        try:
            line.request(method, path, None, sent)
            answer = line.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            line.close()

    def stop(self) -> None:
        self.nginx.terminate()
        self.nginx.wait(20)
        self.server.kill()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    if NGINX is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is not installed")
    running = Proxy(tmp_path_factory.mktemp("proxy"))
    yield running
    running.stop()


def test_behind_a_proxy_every_request_needs_a_token(proxy):
    assert proxy.ask("GET", "/v2/jobs").status == 401
    assert proxy.ask("GET", "/v2/jobs", "wrong").status == 401
    assert proxy.ask("GET", "/v2/jobs", proxy.ann).json == {"jobs": []}
    assert proxy.ask("GET", "/v2/health").json["tokens"] == "required"
    head = proxy.ask("HEAD", "/")
    assert head.status == 200 and head.body == b""


def test_pages_of_other_sites_are_refused_behind_a_proxy(proxy):
    own = f"https://box:{proxy.port}"
    assert (
        proxy.ask("GET", "/v2/jobs", proxy.ann, host=f"box:{proxy.port}", origin=own).status == 200
    )
    for header in ({"origin": "https://evil.example"}, {"sec_fetch_site": "cross-site"}):
        assert proxy.ask("GET", "/v2/jobs", proxy.ann, **header).status == 403


def test_only_requests_of_the_proxy_are_accepted(proxy):
    line = http.client.HTTPConnection(
        "127.0.0.1", proxy.server.port, timeout=60, source_address=("127.0.0.9", 0)
    )
    line.request("GET", "/v2/jobs", headers={"Authorization": f"Bearer {proxy.ann}"})
    answer = line.getresponse()
    assert answer.status == 403 and b"proxy only" in answer.read()
    line.request("GET", "/v2/health/live")  # health probes are accepted from every address
    assert line.getresponse().status == 200
    line.close()
    # Guesses under many forged addresses are counted together.
    guesses = [
        proxy.ask("GET", "/v2/jobs", "guess", x_forwarded_for=f"203.0.113.{k}").status
        for k in range(60)
    ]
    assert set(guesses) == {401, 429} and guesses.count(401) <= 40
    assert proxy.ask("GET", "/v2/jobs").status == 429  # without any token too
    assert (
        proxy.ask("GET", "/v2/jobs", proxy.ann).status == 200
    )  # a user with a valid token is not locked out


def test_the_audit_log_has_all_events_and_no_token(proxy):
    text = (proxy.server.data / "audit.log").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    refused = [e for e in events if e["event"] == "refused"]
    assert len(refused) > 5 and {e["address"] for e in refused} >= {"127.0.0.9"}
    assert proxy.ann not in text and "guess" not in text
    for file in proxy.server.data.rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_held_connections_are_closed_and_others_are_served(proxy):
    """Twice as many connections as the server accepts, each with half a request header."""
    pid, before = proxy.server.process.pid, open_files(proxy.server.process.pid)
    held = []
    try:
        for _ in range(300):
            line = socket.create_connection(("127.0.0.1", proxy.server.port), timeout=60)
            line.sendall(b"GET / HTTP/1.1\r\nHo")
            held.append(line)
        until = (
            time.monotonic() + 60
        )  # those beyond the limit are closed when the server reaches them
        while open_files(pid) >= before + 200 and time.monotonic() < until:
            time.sleep(0.05)
        assert open_files(pid) < before + 200
        for _ in range(10):
            assert proxy.ask("GET", "/v2/health/live").status == 200
        held[-1].settimeout(60)
        assert held[-1].recv(100).startswith(b"HTTP/1.1 408")  # after --head-seconds
    finally:
        for line in held:
            line.close()
    until = time.monotonic() + 60
    while open_files(pid) > before + 5 and time.monotonic() < until:
        time.sleep(0.1)
    assert open_files(pid) <= before + 5 and proxy.server.process.poll() is None
    assert (proxy.server.data / "audit.log").stat().st_size < 1 << 20


# -- local servers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server for the user of this machine: no tokens of users, one random token."""
    running = App(tmp_path_factory.mktemp("own"), tokens="auto", streams_per_user=400)
    running.token = (running.data / "local-token").read_text().strip()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory):
    """The same with --tokens none."""
    running = App(tmp_path_factory.mktemp("none"), tokens="none")
    yield running
    running.stop()


def test_a_local_server_requires_its_random_token(own):
    refused = own.ask("GET", "/v2/jobs")
    assert refused.status == 401 and "local-token" in refused.detail
    assert own.ask("GET", "/v2/jobs", token=own.token).json == {"jobs": []}
    assert own.ask("GET", "/v2/jobs", token=own.token[:-1]).status == 401
    assert stat.S_IMODE((own.data / "local-token").stat().st_mode) == 0o600
    assert own.ask("GET", "/v2/health").json["tokens"] == "local"
    ann = Tokens(own.data).add("ann", 1)  # from now on users have tokens
    try:
        assert own.ask("GET", "/v2/jobs", token=ann).status == 200
        assert own.ask("GET", "/v2/health").json["tokens"] == "required"
    finally:
        (own.data / "tokens.json").unlink()


def test_each_start_has_a_new_token_and_servers_of_one_folder_share_it(tmp_path):
    first = LocalToken(tmp_path)
    second = LocalToken(tmp_path)
    assert first.value == second.value and len(first.value) == 43
    first.close()
    assert LocalToken(tmp_path).value == second.value  # one is still running
    second.close()


HOSTS = {"localhost:1": 200, "127.0.0.1": 200, "[::1]:8642": 200, "evil.example": 403,
         "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "10.0.0.1": 403}  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_name_rebound_to_this_machine_is_refused(own, unguarded, host):
    assert own.ask("GET", "/v2/jobs", token=own.token, host=host).status == HOSTS[host]
    assert unguarded.ask("GET", "/v2/jobs", host=host).status == HOSTS[host]
    assert unguarded.ask("GET", "/", host=host).status == HOSTS[host]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "content_type": "text/plain"},
        {"origin": "null"},
        {"origin": "http://localhost:9"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"x_forwarded_for": "203.0.113.9"},
        {"forwarded": "for=203.0.113.9"},
    ],
)
def test_pages_of_other_sites_and_unknown_proxies_are_refused(unguarded, headers):
    for method, path in (
        ("POST", "/v2/models/brain-mini/embed"),
        ("POST", "/v2/references"),
        ("GET", "/v2/jobs"),
    ):
        answer = unguarded.ask(method, path, CELLS if method == "POST" else None, **headers)
        assert answer.status == 403 and answer.headers["x-frame-options"] == "DENY"
    assert unguarded.uploads() == [] and unguarded.queue.counts() == {}


def test_the_page_itself_may_send_requests(unguarded):
    here = f"http://127.0.0.1:{unguarded.port}"
    answer = unguarded.submit(CELLS, origin=here, sec_fetch_site="same-origin")
    assert answer.status == 202
    assert unguarded.ask("GET", "/", sec_fetch_site="cross-site").status == 200  # a link to it


def test_behind_a_proxy_that_keeps_its_own_host_name_the_browser_decides(tmp_path):
    """The proxy does not pass the name on that the browser sees: Origin then never equals Host."""
    running = App(tmp_path, proxy="127.0.0.1", tokens="required")
    token = Tokens(tmp_path).add("ann", 1)
    try:
        sites = {"same-origin": 200, "none": 403, "same-site": 403, "cross-site": 403, None: 403}
        for site, status in sites.items():
            headers = {"origin": "https://box.example", "x_forwarded_for": "203.0.113.9"}
            if site is not None:
                headers["sec_fetch_site"] = site
            assert running.ask("GET", "/v2/jobs", token=token, **headers).status == status, site
    finally:
        running.stop()


@pytest.mark.parametrize(
    "path", ["/", "/v2", "/v2/health/live", "/v2/jobs", "/metrics", "/page.js"]
)
def test_head_is_get_without_a_body(unguarded, path):
    got, head = unguarded.ask("GET", path), unguarded.ask("HEAD", path)
    assert head.status == got.status == 200 and head.body == b""
    assert head.headers["content-type"] == got.headers["content-type"]


# -- users ----------------------------------------------------------------------------------------------


def test_a_key_reused_for_another_request_is_refused(unguarded):
    first = unguarded.submit(CELLS, idempotency_key=KEY)
    again = unguarded.submit(CELLS, idempotency_key=KEY)
    assert again.status == 202 and again.json["id"] == first.json["id"]
    for body, task in (
        (CELLS, "embed"),
        (plain_bytes(3), "impute"),
        (CELLS, 'impute?options={"seed":1}'),
    ):
        refused = unguarded.submit(body, task=task, idempotency_key=KEY)
        assert refused.status == 422 and "Idempotency-Key" in refused.detail
    unguarded.queue.cancel(first.json["id"])


def test_old_names_of_options_warn_in_the_job(unguarded):
    sent = unguarded.submit(CELLS, task='impute?options={"batch":"donor"}')
    job = unguarded.ask("GET", f"/v2/jobs/{sent.json['id']}").json
    assert "'batch' was renamed to 'batch_key'" in job["warnings"][0] == sent.json["warnings"][0]
    assert json.loads(unguarded.queue.get(job["id"])["options"]) == {"batch_key": "donor"}


def test_bytes_per_user_are_limited(tmp_path):
    size = len(CELLS)
    app = App(tmp_path, host="0.0.0.0", user_bytes=3 * size + 10)
    ann, bob = (Tokens(tmp_path).add(name, 1) for name in ("ann", "bob"))
    try:
        assert app.ask("POST", "/v2/references", CELLS, ann).status == 201
        job = app.submit(CELLS, ann).json["id"]
        assert app.ask("DELETE", f"/v2/jobs/{job}", token=ann).json["state"] == "cancelled"
        part = app.ask("POST", "/v2/uploads", b"", ann, upload_length=str(size))
        assert part.status == 201
        for refused in (  # whole, in pieces of unknown length, in parts
            app.submit(CELLS, ann),
            app.ask("POST", "/v2/models/brain-mini/impute", iter([CELLS]), ann),
            app.ask("POST", "/v2/uploads", b"", ann, upload_length=str(size)),
        ):
            assert refused.status == 507 and "together" in refused.detail
        assert app.submit(CELLS, bob).status == 202
        app.ask(
            "DELETE", f"/v2/jobs/{job}", token=ann
        )  # a cancelled job counts until it is deleted
        done = app.submit(CELLS, ann).json["id"]
        app.end(done, h5ad=bytes(size))
        app.ask("DELETE", part.headers["location"], token=ann)
        assert app.submit(CELLS, ann).status == 507  # a result counts too
        assert len(list((tmp_path / "uploads").iterdir())) == 2  # ann's and bob's
    finally:
        app.stop()


# -- streams and failures --------------------------------------------------------------------------------


def test_event_streams_do_not_slow_others_and_are_limited(own):
    job = own.submit(CELLS, own.token).json["id"]
    request = (
        f"GET /v2/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {own.token}\r\n\r\n"
    ).encode()

    async def live() -> float:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
        writer.write(
            b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        return time.monotonic() - began

    async def run() -> tuple[list[float], list[bytes], list[bytes]]:
        streams = []
        for _ in range(300):
            reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
            writer.write(request)
            streams.append((reader, writer))
        heads = [await reader.readline() for reader, _ in streams]
        times = sorted([await live() for _ in range(15)])
        await asyncio.to_thread(own.end, job, h5ad=b"x")
        ends = [await asyncio.wait_for(reader.read(), 60) for reader, _ in streams]
        for _, writer in streams:
            writer.close()
        return times, heads, ends

    times, heads, ends = asyncio.run(run())
    assert set(heads) == {b"HTTP/1.1 200 OK\r\n"}
    assert all(b'"state": "done"' in end for end in ends)
    assert times[len(times) // 2] < 0.5, (
        times
    )  # 300 streams: 7 s in an earlier version, in which each read the queue
    shared = own.uvicorn.config.app.state.services.streams
    until = time.monotonic() + 20
    while shared._watched and time.monotonic() < until:
        time.sleep(0.05)
    assert shared._watched == {} and shared._open.total() == 0


def test_the_number_of_streams_per_user_is_limited(tmp_path):
    app = App(tmp_path, streams_per_user=2)
    try:
        job = app.submit(CELLS).json["id"]
        held = []
        for _ in range(2):
            line = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
            line.request("GET", f"/v2/jobs/{job}/events")
            assert line.getresponse().status == 200
            held.append(line)
        refused = app.ask("GET", f"/v2/jobs/{job}/events")
        assert refused.status == 429 and "streams" in refused.detail
        for line in held:
            line.close()
    finally:
        app.stop()


def test_a_damaged_queue_is_restored_while_the_server_runs(tmp_path):
    app = App(tmp_path)
    try:
        job = app.submit(CELLS).json["id"]
        app.queue.backup()
        for file in tmp_path.glob("queue.sqlite*"):
            file.write_bytes(b"no database" * 10_000)
        until, status = time.monotonic() + 60, 503
        while status != 200 and time.monotonic() < until:
            status = app.ask("GET", "/v2/jobs").status
            assert status in (200, 503)
            time.sleep(0.1)
        assert [j["id"] for j in app.ask("GET", "/v2/jobs").json["jobs"]] == [job]
        assert app.submit(CELLS).status == 202
        assert list(tmp_path.glob("queue.damaged-*.sqlite"))
    finally:
        app.stop()


@pytest.mark.slow
def test_a_stopped_server_returns_its_job_uncounted(tmp_path):
    brain_cohort(20, n_donors=2, seed=5)[:, :3000].write_h5ad(tmp_path / "cells.h5ad")
    server = Server(tmp_path / "data")
    try:
        client = Client(server.url)
        job = client.submit(
            "impute",
            tmp_path / "cells.h5ad",
            method="masked",
            passes=1000,
            adapt_steps=0,
            force=True,
        )
        until = time.monotonic() + 240
        while client.state(job)["state"] != "running" and time.monotonic() < until:
            time.sleep(0.2)
        waiting = client.submit("embed", tmp_path / "cells.h5ad", force=True)
        group = server.process.pid
        os.kill(group, signal.SIGTERM)
        assert server.process.wait(60) in (0, -signal.SIGTERM)
        queue = Queue(tmp_path / "data")
        assert [(queue.get(j)["state"], queue.get(j)["deaths"]) for j in (job, waiting)] == [
            ("queued", 0)
        ] * 2
        with pytest.raises(ProcessLookupError):  # workers and their jobs have ended too
            for _ in range(100):
                os.killpg(group, 0)
                time.sleep(0.1)
    finally:
        server.kill()
