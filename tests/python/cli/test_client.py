"""The client, against a real server on this machine whose worker is simulated by the test, and against a server with scripted answers."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import App, plain_bytes

from scmamba.client import client
from scmamba.client import upload as _resume
from scmamba.client.client import Client, KeptReference, _only
from scmamba.serve import results
from scmamba.serve.references import References
from scmamba.serve.tokens import Tokens
from scmamba.serve.verbs import renamed_options
from scmamba.utils.errors import ScMambaError

TOKEN = "a token"


class Script:
    """A server that returns scripted answers in turn and records the requests."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes] | None] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        script = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append(
                    (self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                )
                response = script.answers.pop(0)
                self.close_connection = True
                if response is None:  # the connection breaks
                    return
                status, headers, body = response
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body if self.command != "HEAD" else b"")

            do_GET = do_POST = do_PATCH = do_HEAD = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def answer_with(self, *answers: object) -> None:
        self.requests.clear()
        self.answers[:] = [
            a if a is None or isinstance(a, tuple) else (200, {}, json.dumps(a).encode())
            for a in answers
        ]


@pytest.fixture
def script():
    running = Script()
    yield running
    running.http.shutdown()


@pytest.fixture
def pauses(monkeypatch):
    """Records the client's pauses, in seconds, without waiting for them."""
    taken: list[float] = []
    monkeypatch.setattr("scmamba.client.client.time.sleep", taken.append)
    return taken


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    data = tmp_path_factory.mktemp("client")
    running = App(data, host="0.0.0.0", jobs_per_user=100, requests_per_minute=10**6)
    running.ann = Tokens(data).add("ann", 1)
    yield running
    running.stop()


@pytest.fixture
def ann(app) -> Client:
    return Client(app.url + "/", app.ann)


def simulated_worker(app: App, act) -> threading.Thread:
    """A simulated worker: claims the next job and handles it."""

    def run() -> None:
        for _ in range(3000):
            if (job := app.queue.claim("w")) is not None:
                act(job)
                return
            threading.Event().wait(0.01)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


# -- requests ------------------------------------------------------------------------------------------


def test_headers_and_body_of_a_request(script, tmp_path):
    (tmp_path / "cells").write_bytes(b"abc")
    script.answer_with({"id": "j1"}, {"id": "j2"}, {"models": ["a", "b"]}, {"state": "cancelled"})
    far = Client(script.url + "/", TOKEN)
    assert far.submit("impute", tmp_path / "cells", model="m/1", seed=3, layer=None) == "j1"
    assert far.submit("impute", str(tmp_path / "cells")) == "j2" and far.models() == ["a", "b"]
    far.cancel("j1")
    (
        (post, path, headers, body),
        (_, second, more, _),
        (get, models, requests, _),
        (delete, gone, *_),
    ) = script.requests
    assert (post, body) == ("POST", b"abc")
    assert path == "/v2/models/m/1/impute?options=%7B%22seed%22%3A+3%2C+%22layer%22%3A+null%7D"
    assert second.startswith("/v2/models/brain-mini/impute?")
    assert (
        headers["authorization"] == "Bearer a token"
        and headers["content-type"] == "application/octet-stream"
    )
    assert headers["content-length"] == "3" and len(headers["idempotency-key"]) == 32
    assert (
        more["idempotency-key"] != headers["idempotency-key"] and "idempotency-key" not in requests
    )
    assert (get, models, delete, gone) == ("GET", "/v2/models", "DELETE", "/v2/jobs/j1")
    script.answer_with({"models": []})
    Client(script.url).models()
    assert "authorization" not in script.requests[0][2]


def test_a_request_is_sent_again_under_the_same_key(script, pauses, tmp_path):
    (tmp_path / "cells").write_bytes(b"abc")
    script.answer_with((503, {}, b"{}"), None, (502, {}, b""), (504, {}, b""), {"id": "j"})
    assert Client(script.url).submit("impute", tmp_path / "cells") == "j"
    assert (
        len({headers["idempotency-key"] for _, _, headers, _ in script.requests}) == 1
        and len(script.requests) == 5
    )
    assert {body for *_, body in script.requests} == {b"abc"} and pauses == [0.5, 1.0, 2.0, 4.0]


def test_how_many_times_a_request_is_repeated(script, pauses):
    script.answer_with(*[(503, {}, b'{"detail": "busy"}')] * 5)
    with pytest.raises(ScMambaError, match="answered 503: busy"):
        Client(script.url).models()
    script.answer_with(*[None] * 5)
    with pytest.raises(ScMambaError, match="cannot be reached"):
        Client(script.url).models()
    far = Client(script.url)
    script.answer_with({"models": []}, *[None] * 15)
    far.models()
    pauses.clear()
    with pytest.raises(ScMambaError, match="cannot be reached"):
        far.models()  # the server has answered before: a minute and a half
    assert pauses == [0.5, 1, 2, 4, *[8] * 10] and script.answers == []


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b'{"detail": "No entry"}', "401: No entry"),
        (422, b'{"detail": [{"a": 1}]}', r'422: \[\{"a": 1\}\]'),
        (404, b"<html>", "404: Not Found"),
        (500, b'{"other": 1}', "500: Internal Server Error"),
        (429, b'["x"]', "429: Too Many Requests"),
    ],
)
def test_a_refusal_is_final_and_gives_the_reason(script, pauses, status, body, words):
    script.answer_with((status, {}, body))
    with pytest.raises(ScMambaError, match=words):
        Client(script.url).models()
    assert pauses == []


def test_an_incomplete_result_is_fetched_again(script, pauses, tmp_path):
    target = tmp_path / "out"
    target.write_bytes(b"what was there before")
    script.answer_with((200, {"Content-Length": "6"}, b"abc"), (200, {}, b"abcdef"))
    assert (
        Client(script.url).fetch("j", target, format="scmb") == target
        and target.read_bytes() == b"abcdef"
    )
    assert [path for _, path, *_ in script.requests] == ["/v2/jobs/j/result?format=scmb"] * 2
    script.answer_with((409, {}, b'{"detail": "The job is running."}'))
    with pytest.raises(ScMambaError, match="409: The job is running"):
        Client(script.url).fetch("j", target)
    assert (
        script.requests[0][1].endswith("format=h5ad")
        and target.read_bytes() == b"abcdef"
        and list(tmp_path.iterdir()) == [target]
    )


def test_waiting_shows_progress_and_ends_with_the_job(script, pauses):
    from scmamba.utils import progress as _progress

    states = [
        {"state": "queued", "done": None},
        {"state": "running", "done": 0.25},
        {"state": "running", "done": 0.1},
        {"state": "running", "done": 0.5},
        {"state": "done", "done": 1, "message": "done"},
    ]
    seen: list[tuple[int, int]] = []
    _progress.listener = lambda text, done, total: seen.append((done, total))
    try:
        script.answer_with(*states)
        assert Client(script.url).wait("j", verbose=False) == states[-1]
    finally:
        _progress.listener = None
    assert seen == [(0, 100), (25, 100), (25, 100), (50, 100), (100, 100)]
    assert pauses[:2] == [0.2, pytest.approx(0.23)] and max(pauses) <= 0.5
    for state, words in (
        ("failed", "job failed: too few genes"),
        ("cancelled", "job was cancelled: too few genes"),
    ):
        script.answer_with({"state": state, "done": 1, "message": "too few genes"})
        with pytest.raises(ScMambaError, match=words):
            Client(script.url).wait("j", verbose=False)


def test_invalid_addresses_and_files(tmp_path):
    for url in ("ftp://x", "gpu-box:8642", "file:///etc/passwd"):
        with pytest.raises(ScMambaError, match="http"):
            Client(url)
    assert Client("http://x/").timeout == 60 and Client("http://x/").url == "http://x"
    with pytest.raises(ScMambaError, match="There is no file"):
        Client("https://127.0.0.1:9").submit("impute", tmp_path / "none")
    (tmp_path / "there").mkdir()
    with pytest.raises(ScMambaError, match="exists already"):
        Client("http://127.0.0.1:9").finetune("cells", tmp_path / "there")


# -- large files ---------------------------------------------------------------------------------------


def test_files_from_16_mib_are_sent_in_parts(ann, app, tmp_path, monkeypatch):
    assert client.WHOLE == 16 * 2**20 and _resume._PART == 64 * 2**20
    real = _resume._ask
    file = tmp_path / "cells"
    file.write_bytes(plain_bytes(cells=20))
    size = file.stat().st_size
    for whole, parts in ((size, False), (size - 1, True)):
        monkeypatch.setattr(client, "WHOLE", whole)
        monkeypatch.setattr(_resume, "_PART", 100)
        requests: list[str] = []
        monkeypatch.setattr(
            _resume, "_ask", lambda *request, a=requests: a.append(request[2]) or real(*request)
        )
        job = ann.submit("impute", file)
        assert Path(app.queue.get(job)["upload"]).read_bytes() == file.read_bytes()
        assert requests == (["POST", *["PATCH"] * -(-size // 100)] if parts else [])
        ann.cancel(job)


def test_parts_continue_at_the_offset_of_the_server(script, tmp_path, monkeypatch):
    monkeypatch.setattr(_resume, "_PART", 4)
    taken: list[float] = []
    monkeypatch.setattr("scmamba.client.upload.time.sleep", taken.append)
    (tmp_path / "f").write_bytes(b"0123456789")
    at = lambda n: (200, {"Upload-Offset": str(n)}, b"")  # noqa: E731
    begun = (201, {"Location": "/v2/uploads/name"}, b"")
    script.answer_with(
        (503, {}, b""),
        begun,
        at(4),
        None,
        (503, {}, b""),
        at(6),
        (409, {}, b""),
        at(5),
        at(9),
        at(10),
    )
    assert _resume.send_in_parts(script.url, TOKEN, tmp_path / "f", 5.0) == "name"
    assert [(m, h.get("upload-offset"), b) for m, _, h, b in script.requests] == [
        ("POST", None, b""),
        ("POST", None, b""),
        ("PATCH", "0", b"0123"),
        ("PATCH", "4", b"4567"),
        ("HEAD", None, b""),
        ("HEAD", None, b""),
        ("PATCH", "6", b"6789"),
        ("HEAD", None, b""),
        ("PATCH", "5", b"5678"),
        ("PATCH", "9", b"9"),
    ]
    assert {p for m, p, *_ in script.requests} == {
        "/v2/uploads",
        "/v2/uploads/name",
    } and script.requests[0][2]["upload-length"] == "10"
    assert all(
        h["authorization"] == "Bearer a token" and h["tus-resumable"] == "1.0.0"
        for _, _, h, _ in script.requests
    )
    assert {h["content-type"] for m, _, h, _ in script.requests if m == "PATCH"} == {
        "application/offset+octet-stream"
    }
    assert taken == [0.5, 0.5, 1.0, 2.0]


def test_an_upload_in_parts_fails_after_the_last_attempt(script, tmp_path, monkeypatch):
    taken: list[float] = []
    monkeypatch.setattr("scmamba.client.upload.time.sleep", taken.append)
    (tmp_path / "f").write_bytes(b"0123456789")
    for answer, words in (((503, {}, b"busy"), "answered 503: busy"), (None, "cannot be reached")):
        script.answer_with(*[answer] * 16)
        taken.clear()
        with pytest.raises(ScMambaError, match=words):
            _resume.send_in_parts(script.url, None, tmp_path / "f", 5.0)
        assert (
            taken == [0.5, 1, 2, 4, *[8] * 11]
            and script.answers == []
            and "authorization" not in script.requests[0][2]
        )
    for status in (401, 413, 507):
        script.answer_with((status, {}, b"no"))
        with pytest.raises(ScMambaError, match=f"answered {status}: no"):
            _resume.send_in_parts(script.url, None, tmp_path / "f", 5.0)


# -- verbs ---------------------------------------------------------------------------------------------


def cells(n: int = 3) -> ad.AnnData:
    obs = pd.DataFrame({"type": ["a"] * n, "donor": ["d"] * n}, index=list("abcdefgh")[:n])
    return ad.AnnData(np.arange(n * 2.0).reshape(n, 2), obs=obs)


def answered(app: App, monkeypatch, tmp_path, result) -> list[dict]:
    """Simulate a worker that returns ``result``; returns the jobs it received."""
    got: list[dict] = []

    def act(job) -> None:
        got.append(
            {**job, "options": json.loads(job["options"]), "n": ad.read_h5ad(job["upload"]).n_obs}
        )
        folder = app.data / "jobs" / job["id"] / "result"
        folder.mkdir(parents=True)
        result(folder)
        assert app.queue.finish(job["id"], "w", "done", "done")

    simulated_worker(app, act)
    return got


@pytest.mark.parametrize(
    ("verb", "task"), [("impute", "impute"), ("embed", "embed"), ("find_doublets", "doublets")]
)
def test_a_verb_sends_waits_fetches_and_deletes(app, ann, monkeypatch, tmp_path, verb, task):
    got = answered(
        app, monkeypatch, tmp_path, lambda folder: cells(5).write_h5ad(folder / "result.h5ad")
    )
    found = getattr(ann, verb)(cells(), layer="X", verbose=False)
    assert found.n_obs == 5 and (
        got[0]["task"],
        got[0]["model"],
        got[0]["options"],
        got[0]["n"],
    ) == (task, "brain-mini", {"layer": "X"}, 3)
    assert app.queue.get(got[0]["id"]) is None and not Path(got[0]["upload"]).exists()


def test_tables_are_returned(app, ann, monkeypatch, tmp_path):
    frame = pd.DataFrame({"p_val": [0.5, 1e-9]}, index=["G1", "G2"])
    got = answered(
        app,
        monkeypatch,
        tmp_path,
        lambda f: results.write_result(results.Tables({"markers": frame}), "markers", f),
    )
    found = ann.find_markers(cells(), "type", ["a"], "b", verbose=False, min_pct=0.1)
    assert found.equals(frame) and got[0]["options"] == {
        "groupby": "type",
        "group1": ["a"],
        "group2": "b",
        "min_pct": 0.1,
    }
    frames = {name: pd.DataFrame({name: [1.0]}) for name in ("runs", "nulls", "full")}
    about = {"settings": {"seed": 3}, "notes": ["n"], "warnings": ["w"]}
    got = answered(
        app,
        monkeypatch,
        tmp_path,
        lambda f: results.write_result(results.Tables(frames, about), "robustness", f),
    )
    far = ann.robustness(cells(), "type", "donor", "kind", verbose=False, seed=3)
    assert {n: list(getattr(far, n)) for n in frames} == {n: [n] for n in frames}
    assert (far.settings, far.notes, far.warnings) == ({"seed": 3}, ("n",), ("w",))
    assert got[0]["options"] == {
        "condition_key": "type",
        "donor_key": "donor",
        "label_key": "kind",
        "seed": 3,
    }


@pytest.mark.parametrize("donor", ["donor", None])
def test_a_reference_is_sent_used_and_deleted(app, ann, monkeypatch, tmp_path, donor):
    kept, sent = References(app.data), []

    def result(folder) -> None:
        (file,) = (app.data / "references").glob("*/*")
        sent.append(ad.read_h5ad(file))
        cells(5).write_h5ad(folder / "result.h5ad")

    got = answered(app, monkeypatch, tmp_path, result)
    known = cells(6)
    known.obs["secret"] = "x"
    found = ann.annotate(
        cells(), reference=known, label_key="type", donor_key=donor, seed=1, verbose=False
    )
    assert (
        found.n_obs == 5
        and kept.number("ann") == 0
        and list(sent[0].obs) == (["type", "donor"] if donor else ["type"])
    )
    options = got[0]["options"]
    assert len(options.pop("reference")) == 16
    sent_keys = {"label_key": ["type"], **({"donor_key": "donor"} if donor else {}), "seed": 1}
    assert options == renamed_options("annotate", sent_keys)[0]


def test_a_kept_reference_stays(app, ann, monkeypatch, tmp_path):
    cells(4).write_h5ad(tmp_path / "known.h5ad")
    reference = ann.keep_reference(tmp_path / "known.h5ad")
    assert (
        isinstance(reference, KeptReference)
        and References(app.data).path(reference.name, "ann") is not None
    )
    got = answered(
        app, monkeypatch, tmp_path, lambda folder: cells(5).write_h5ad(folder / "result.h5ad")
    )
    ann.annotate(cells(), reference=reference, label_key=["type"], verbose=False)
    assert (
        got[0]["options"]["reference"] == reference.name and References(app.data).number("ann") == 1
    )
    listed = ann.kept_references()
    assert listed.index.tolist() == [reference.name]
    assert listed["bytes"].item() == (tmp_path / "known.h5ad").stat().st_size
    ann.drop_reference(reference)
    assert References(app.data).number("ann") == 0
    assert ann.kept_references().shape == (0, 2)
    with pytest.raises(ScMambaError, match="label_key"):
        ann.annotate(cells(), reference=reference)
    got = answered(
        app, monkeypatch, tmp_path, lambda folder: cells(5).write_h5ad(folder / "result.h5ad")
    )
    ann.annotate(cells(), verbose=False)
    assert got[0]["options"] == {}


def test_an_interrupt_cancels_the_job(app, ann, monkeypatch):
    def wait(self, job, *, verbose):
        jobs.append(job)
        raise KeyboardInterrupt

    jobs: list[str] = []
    monkeypatch.setattr(Client, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        ann.impute(cells())
    assert app.queue.get(jobs[0])["state"] == "cancelled"


def test_which_parts_of_a_reference_are_sent():
    known = cells(4)
    known.layers["raw"] = known.X + 1
    sent = _only(known, ["type"], "raw")
    assert (
        list(sent.obs) == ["type"]
        and sent.layers["raw"].tolist() == sent.X.tolist() == (known.X + 1).tolist()
    )
    assert (
        not _only(known, ["type"], None).layers
        and _only(known, [], None).X.tolist() == known.X.tolist()
    )
    with pytest.raises(ScMambaError, match="no column 'kind'; it has type, donor"):
        _only(known, ["type", "kind"], None)


# -- the token ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_and_the_token_is_not_sent_on(script, status):
    other = Script()
    try:
        script.answer_with((status, {"Location": f"{other.url}/v2/models"}, b""))
        with pytest.raises(ScMambaError, match="redirects to 127.0.0.1"):
            Client(script.url, TOKEN).models()
        assert len(script.requests) == 1 and other.requests == []
    finally:
        other.http.shutdown()


def test_a_token_is_sent_to_another_machine_only_by_tls():
    for url in ("http://gpu-box:8642", "http://10.0.0.1", "http://127.0.0.1.example.org"):
        with pytest.raises(ScMambaError, match="insecure=True"):
            Client(url, TOKEN)
        assert Client(url).url == url and Client(url, TOKEN, insecure=True).url == url
    for url in ("https://gpu-box", "http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"):
        assert Client(url, TOKEN).url == url
