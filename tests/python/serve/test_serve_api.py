"""The HTTP interface, one request at a time: permissions, limits, status and message; the test simulates the worker."""

from __future__ import annotations

import json
import re
import shutil
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import App, plain_bytes

import scmamba
from scmamba.serve.references import References
from scmamba.serve.tokens import Tokens

CELLS = plain_bytes()
KEY = "a-key-drawn-at-random"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A server for other machines, with low limits, and the tokens of its users."""
    data = tmp_path_factory.mktemp("api")
    kept = Tokens(data)
    app = App(
        data, host="0.0.0.0", jobs_per_user=3, max_cells=5, max_genes=9, requests_per_minute=10**6
    )
    app.ann, app.bob, app.old = kept.add("ann", 1), kept.add("bob", 1), kept.add("old", -1)
    yield app
    app.stop()


@pytest.fixture
def app(people):
    """The same server with empty storage."""
    yield people
    with people.queue._open() as db:
        db.execute("DELETE FROM jobs")
    for folder in ("uploads", "parts", "references", "jobs"):
        shutil.rmtree(people.data / folder, ignore_errors=True)


# -- permissions ---------------------------------------------------------------------------------------

CLOSED = [
    ("GET", "/v2/models"),
    ("GET", "/v2/models/brain-mini"),
    ("POST", "/v2/models/brain-mini/impute"),
    ("POST", "/v2/references"),
    ("DELETE", "/v2/references/0123456789abcdef"),
    ("POST", "/v2/uploads"),
    ("HEAD", "/v2/uploads/0123456789abcdef"),
    ("PATCH", "/v2/uploads/0123456789abcdef"),
    ("DELETE", "/v2/uploads/0123456789abcdef"),
    ("GET", "/v2/jobs"),
    ("GET", "/v2/jobs/0123456789abcdef"),
    ("GET", "/v2/jobs/0123456789abcdef/events"),
    ("GET", "/v2/jobs/0123456789abcdef/result"),
    ("GET", "/v2/jobs/0123456789abcdef/picture"),
    ("GET", "/v2/jobs/0123456789abcdef/genes/0123456789abcdef"),
    ("GET", "/v2/uploads/0123456789abcdef/columns"),
    ("GET", "/v2/demo"),
    ("DELETE", "/v2/jobs/0123456789abcdef"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_requests_without_a_token_are_refused(app, method, path):
    for header in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {app.ann}",
        f"Bearer {app.old}",
        f"Bearer {app.ann}x",
    ):
        sent = {"authorization": header} if header else {}
        assert (
            app.ask(method, path, b"" if method in ("POST", "PATCH") else None, **sent).status
            == 401
        )


def test_every_user_path_is_in_the_list_of_protected_paths(app):
    known = {
        ("GET", "/v2"),
        ("GET", "/v2/health"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/metrics"),
        ("OPTIONS", "/v2/uploads"),
    }
    places = {
        re.sub("brain-mini", "{}", re.sub("0123456789abcdef", "{}", re.sub("impute", "{}", path)))
        for _, path in CLOSED
    }
    response = app.ask("GET", "/openapi.json").json["paths"]
    for path, methods in response.items():
        for method in methods:
            assert (method.upper(), path) in known or re.sub(r"\{\w+\}", "{}", path) in places, (
                method,
                path,
            )


def test_paths_open_to_everyone(app):
    assert app.ask("GET", "/v2/health/live").json == {"live": True}
    ready = app.ask("GET", "/v2/health/ready")
    assert ready.status == 503 and ready.json == {"ready": False, "workers": 0}
    assert app.ask("GET", "/v2").json == {
        "name": "scmamba",
        "version": scmamba.__version__,
        "extensions": ["jobs"],
    }
    assert (
        app.ask("GET", "/docs").status == app.ask("GET", "/redoc").status == 404
    )  # they load scripts from other sites
    assert (
        app.ask("GET", "/v2/models", token=app.ann, authorization=f"bearer {app.ann}").status == 200
    )


def test_a_wrong_token_is_refused_even_by_a_local_server(tmp_path):
    app = App(tmp_path)
    try:
        assert app.ask("GET", "/v2/jobs").json == {"jobs": []}  # --tokens none
        assert app.ask("GET", "/v2/jobs", token="wrong").status == 401
        token = Tokens(tmp_path).add("ann", 1)
        app.queue.add("ann", "embed", "brain-mini", {}, tmp_path / "x", "a" * 16)
        assert [j["id"] for j in app.ask("GET", "/v2/jobs", token=token).json["jobs"]] == ["a" * 16]
        assert app.ask("GET", "/v2/jobs").json == {"jobs": []}
    finally:
        app.stop()


def test_security_headers_for_browsers(app):
    for path in ("/", "/v2", "/v2/jobs", "/page.js", "/page.css"):
        headers = app.ask("GET", path).headers
        assert (
            headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        )
        assert (
            headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
        )
        policy = dict(
            part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
        )
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
    kinds = {
        path: app.ask("GET", path).headers["content-type"].partition(";")[0]
        for path in ("/", "/page.js", "/page.css")
    }
    assert kinds == {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css"}


def test_metrics_for_the_operator(app):
    app.submit(CELLS, app.ann)
    job = app.submit(CELLS, app.bob).json["id"]
    app.end(job, "failed")
    lines = app.ask("GET", "/metrics").body.decode().splitlines()
    assert lines == [
        "# TYPE scmamba_jobs gauge",
        'scmamba_jobs{state="failed"} 1',
        'scmamba_jobs{state="queued"} 1',
        "# TYPE scmamba_workers gauge",
        "scmamba_workers 0",
        "# TYPE scmamba_worker_restarts_total counter",
        "scmamba_worker_restarts_total 0",
    ]


def test_models_and_tasks(app):
    response = app.ask("GET", "/v2/models", token=app.ann).json
    assert "brain-mini" in response["models"] and response["default"] == "brain-mini"
    assert set(response["tasks"]) == {
        "impute",
        "embed",
        "annotate",
        "doublets",
        "markers",
        "robustness",
        "finetune",
    }
    assert response["tasks"]["embed"] == [
        "batch_size",
        "force",
        "gene_column",
        "layer",
        "overwrite",
    ]
    one = app.ask("GET", "/v2/models/brain-mini", token=app.ann).json
    assert (
        one["name"] == "brain-mini"
        and one["tasks"] == list(response["tasks"])
        and one["card"].startswith("# brain-mini")
    )
    assert app.ask("GET", "/v2/models/none", token=app.ann).status == 404


# -- sending a job -------------------------------------------------------------------------------------


def test_a_job_is_stored_as_it_was_sent(app):
    answer = app.submit(
        CELLS,
        app.ann,
        "annotate?options=" + '{"markers":{"A":"X","B":["Y","Z"]},"seed":3,"layer":null}',
    )
    assert answer.status == 202
    job = answer.json["id"]
    assert answer.json == {"id": job, "state": "queued", "kind": "scmb", "cells": 2, "genes": 3}
    kept = app.queue.get(job)
    assert (kept["user"], kept["task"], kept["model"], kept["state"]) == (
        "ann",
        "annotate",
        "brain-mini",
        "queued",
    )
    assert json.loads(kept["options"]) == {"markers": {"A": ["X"], "B": ["Y", "Z"]}, "seed": 3}
    assert Path(kept["upload"]).read_bytes() == CELLS and (app.data / "jobs" / job).is_dir()
    assert kept["upload"].startswith(str(app.data / "uploads"))


def test_a_file_sent_again_under_its_key_is_the_same_job(app):
    first = app.submit(CELLS, app.ann, idempotency_key=KEY)
    app.end(first.json["id"])
    again = app.submit(CELLS, app.ann, idempotency_key=KEY)
    assert again.status == 202 and again.json == {"id": first.json["id"], "state": "done"}
    assert len(app.uploads()) == 1 and app.queue.counts() == {"done": 1}
    another = app.submit(
        CELLS, app.bob, idempotency_key=KEY
    )  # the same key of another user is another job
    assert (
        another.json["id"] != first.json["id"]
        and app.queue.get(another.json["id"])["user"] == "bob"
    )
    assert app.submit(CELLS, app.ann).json["id"] != app.submit(CELLS, app.ann).json["id"]


@pytest.mark.parametrize(
    ("key", "status"),
    [("k" * 15, 422), ("k" * 16, 202), ("k" * 64, 202), ("k" * 65, 422), ("k" * 16 + "/", 422)],
)
def test_invalid_keys(app, key, status):
    assert app.submit(CELLS, app.ann, idempotency_key=key).status == status


def test_the_number_of_unfinished_jobs_is_limited(app):
    jobs = [app.submit(CELLS, app.ann, idempotency_key=KEY + str(k)).json["id"] for k in range(3)]
    refused = app.submit(CELLS, app.ann)
    assert refused.status == 429 and "3 unfinished" in refused.detail
    assert app.submit(CELLS, app.ann, idempotency_key=KEY + "0").json == {
        "id": jobs[0],
        "state": "queued",
    }
    assert app.submit(CELLS, app.bob).status == 202
    app.end(jobs[0])
    assert app.submit(CELLS, app.ann).status == 202 and app.submit(CELLS, app.ann).status == 429
    assert len(app.uploads()) == 5


def test_refused_files_are_removed(app):
    bad = [
        (b"", 400, "Nothing was sent"),
        (b"gene,cell\n", 422, "neither"),
        (CELLS + b"x", 422, "promises"),
        (plain_bytes(6, 3), 422, "6 cells x 3 genes"),
        (plain_bytes(5, 10), 422, "5 cells x 10 genes"),
    ]
    for body, status, words in bad:
        answer = app.submit(body, app.ann)
        assert answer.status == status and words in answer.detail
    assert (
        app.uploads() == []
        and app.queue.counts() == {}
        and list((app.data / "jobs").glob("*")) == []
    )
    assert app.submit(plain_bytes(5, 9), app.ann).status == 202


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "multipart/form-data; boundary=x"}, 415),
        ({"content_type": "Multipart/Mixed"}, 415),
        ({"content_encoding": "gzip"}, 415),
        ({"content_encoding": "identity"}, 202),
        ({"content_encoding": ""}, 202),
        ({"content_type": "application/json"}, 202),
    ],
)
def test_the_body_is_the_file_itself(app, headers, status):
    assert app.submit(CELLS, app.ann, **headers).status == status


@pytest.mark.parametrize(
    ("place", "words"), [("none/impute", "brain-mini"), ("brain-mini/destroy", "finetune")]
)
def test_errors_list_the_available_names(app, place, words):
    answer = app.ask("POST", f"/v2/models/{place}", CELLS, app.ann)
    assert answer.status == 404 and words in answer.detail


def test_bad_options_and_a_missing_reference(app):
    for options, words in (
        ("{", "JSON"),
        ("[]", "object"),
        ('{"sed":1}', "no option 'sed'"),
        ('{"seed":-1}', "between 0 and"),
        ('{"layer":"%5Cud800"}', "half a character"),  # JSON allows it, and no answer can hold it
    ):
        answer = app.submit(CELLS, app.ann, f"impute?options={options}")
        assert answer.status == 422 and words in answer.detail
    own = app.ask("POST", "/v2/references", CELLS, app.ann).json["id"]
    ask = f'annotate?options={{"reference":"{own}","labels":"type"}}'
    assert (
        app.submit(CELLS, app.bob, ask).status == 422
        and app.submit(CELLS, app.ann, ask).status == 202
    )
    assert app.submit(CELLS, app.ann, 'annotate?options={"reference":null}').status == 202


def test_references_are_counted_and_deleted(app):
    names = [app.ask("POST", "/v2/references", CELLS, app.ann).json for _ in range(3)]
    assert {k: names[0][k] for k in ("kind", "cells", "genes")} == {
        "kind": "scmb",
        "cells": 2,
        "genes": 3,
    }
    kept = References(app.data)
    assert (
        kept.path(names[0]["id"], "ann").read_bytes() == CELLS
        and kept.path(names[0]["id"], "bob") is None
    )
    full = app.ask("POST", "/v2/references", CELLS, app.ann)
    assert full.status == 429 and app.ask("POST", "/v2/references", CELLS, app.bob).status == 201
    place = f"/v2/references/{names[0]['id']}"
    assert app.ask("DELETE", place, token=app.bob).status == 404 and kept.number("ann") == 3
    assert app.ask("DELETE", place, token=app.ann).json == {
        "id": names[0]["id"],
        "state": "deleted",
    }
    assert kept.number("ann") == 2 and app.ask("DELETE", place, token=app.ann).status == 404
    assert (
        app.ask("POST", "/v2/references", b"nonsense", app.ann).status == 422
        and app.uploads() == []
    )


# -- state and result ----------------------------------------------------------------------------------


def test_the_list_of_jobs_omits_internal_fields(app):
    first, second = (app.submit(CELLS, app.ann).json["id"] for _ in range(2))
    app.submit(CELLS, app.bob)
    listed = app.ask("GET", "/v2/jobs", token=app.ann).json["jobs"]
    assert [j["id"] for j in listed] == [second, first]
    assert set(listed[0]) == {
        "id",
        "task",
        "model",
        "state",
        "done",
        "message",
        "attempts",
        "created",
        "started",
        "finished",
        "options",
        "warnings",
    }
    alone = app.ask("GET", f"/v2/jobs/{first}", token=app.ann).json
    assert alone == {**listed[1], "messages": []}


def test_jobs_of_other_users_are_not_found(app):
    job = app.submit(CELLS, app.ann).json["id"]
    app.end(job, h5ad=b"her result")
    for method, end in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/result"),
        ("GET", "/picture"),
        ("DELETE", ""),
    ):
        answer = app.ask(method, f"/v2/jobs/{job}{end}", token=app.bob)
        assert answer.status == 404 and "no such job" in answer.detail
    assert app.ask("GET", f"/v2/jobs/{job}/result", token=app.ann).body == b"her result"


def test_a_result_is_fetched_once_it_exists(app):
    job = app.submit(CELLS, app.ann).json["id"]
    place = f"/v2/jobs/{job}/result"
    assert app.ask("GET", place, token=app.ann).status == 409
    app.queue.claim("w")
    assert "is running" in app.ask("GET", place, token=app.ann).detail
    app.end(job, h5ad=b"whole", scmb=b"added")
    for query, body, name in (
        ("", b"whole", "h5ad"),
        ("?format=h5ad", b"whole", "h5ad"),
        ("?format=scmb", b"added", "scmb"),
    ):
        answer = app.ask("GET", place + query, token=app.ann)
        assert (answer.status, answer.body, answer.headers["content-type"]) == (
            200,
            body,
            "application/octet-stream",
        )
        assert f'filename="scmamba-impute.{name}"' in answer.headers["content-disposition"]
        assert answer.headers["content-length"] == str(len(body))
    assert app.ask("GET", place + "?format=zip", token=app.ann).status == 422
    (app.data / "jobs" / job / "result" / "result.scmb").unlink()
    assert app.ask("GET", place + "?format=scmb", token=app.ann).status == 404
    failed = app.submit(CELLS, app.ann).json["id"]
    app.end(failed, "failed", "too few genes")
    answer = app.ask("GET", f"/v2/jobs/{failed}/result", token=app.ann)
    assert answer.status == 409 and answer.detail == "The job is failed: too few genes."


def test_a_model_is_returned_as_a_zip(app):
    job = app.submit(CELLS, app.ann, "finetune").json["id"]
    app.end(job, zip=b"a model")
    assert app.ask("GET", f"/v2/jobs/{job}/result", token=app.ann).status == 422
    answer = app.ask("GET", f"/v2/jobs/{job}/result?format=zip", token=app.ann)
    assert (
        answer.body == b"a model"
        and "scmamba-finetune.zip" in answer.headers["content-disposition"]
    )


def test_a_picture_requires_a_result_with_cells(app):
    job = app.submit(CELLS, app.ann).json["id"]
    place = f"/v2/jobs/{job}/picture"
    assert app.ask("GET", place, token=app.ann).status == 409
    app.end(job, h5ad=b"damaged")
    assert app.ask("GET", place, token=app.ann).status == 503
    (app.data / "jobs" / job / "result" / "picture.json").write_text('{"x": [1]}')
    answer = app.ask("GET", place, token=app.ann)
    assert answer.json == {"x": [1]} and answer.headers["content-type"] == "application/json"
    for task in (
        'markers?options={"groupby":"a","group1":"b"}',
        'robustness?options={"groupby":"a"}',
        "finetune",
    ):
        job = app.submit(CELLS, app.bob, task).json["id"]
        app.end(job)
        refused = app.ask("GET", f"/v2/jobs/{job}/picture", token=app.bob)
        assert refused.status == 409 and "not about single cells" in refused.detail


def test_a_picture_that_takes_too_long_is_an_error(app, monkeypatch):
    monkeypatch.setattr("scmamba.serve.routes.jobs._DRAWING", 0.001)
    job = app.submit(CELLS, app.ann).json["id"]
    app.end(job, h5ad=b"damaged")
    answer = app.ask("GET", f"/v2/jobs/{job}/picture", token=app.ann)
    assert answer.status == 503 and "could not be made" in answer.detail


def test_a_job_is_first_cancelled_and_then_deleted(app):
    job = app.submit(CELLS, app.ann).json["id"]
    upload = app.queue.get(job)["upload"]
    assert app.ask("DELETE", f"/v2/jobs/{job}", token=app.ann).json == {
        "id": job,
        "state": "cancelled",
    }
    assert app.queue.get(job)["state"] == "cancelled" and Path(upload).read_bytes() == CELLS
    assert app.ask("DELETE", f"/v2/jobs/{job}", token=app.ann).json == {
        "id": job,
        "state": "deleted",
    }
    assert (
        app.queue.get(job) is None
        and app.uploads() == []
        and not (app.data / "jobs" / job).exists()
    )
    assert app.ask("DELETE", f"/v2/jobs/{job}", token=app.ann).status == 404


def test_progress_events_end_with_the_job(app):
    import http.client

    job = app.submit(CELLS, app.ann).json["id"]
    line = http.client.HTTPConnection("127.0.0.1", app.port, timeout=60)
    line.request("GET", f"/v2/jobs/{job}/events", headers={"authorization": f"Bearer {app.ann}"})
    answer = line.getresponse()
    assert answer.getheader("content-type").startswith("text/event-stream")

    def event():
        text, blank = answer.readline(), answer.readline()
        assert text.startswith(b"data: ") and blank == b"\n"
        return json.loads(text[6:])

    first = event()
    assert (
        first["id"] == job
        and first["state"] == "queued"
        and "upload" not in first
        and "user" not in first
    )
    app.queue.claim("w")
    assert event()["state"] == "running"
    app.queue.beat(job, "w", 0.5, "reading")
    half = event()
    assert (half["done"], half["message"]) == (0.5, "reading")
    app.queue.finish(job, "w", "done")
    assert event()["state"] == "done" and answer.read() == b""
    waits = app.submit(CELLS, app.ann).json["id"]
    line.request("GET", f"/v2/jobs/{waits}/events", headers={"authorization": f"Bearer {app.ann}"})
    answer = line.getresponse()
    assert event()["state"] == "queued"
    app.queue.remove(waits)
    assert event() == {"id": waits, "state": "deleted"} and answer.read() == b""


@pytest.mark.parametrize("state", ["cancelled", "failed"])
def test_events_of_an_ended_job_stop(app, state):
    job = app.submit(CELLS, app.ann).json["id"]
    app.queue.cancel(job)
    with app.queue._open() as db:
        db.execute("UPDATE jobs SET state=? WHERE id=?", (state, job))
    events = app.ask(
        "GET", f"/v2/jobs/{job}/events", token=app.ann
    ).body  # read() returned, so the stream has ended
    assert events.count(b"data: ") == 1 and json.loads(events[6:])["state"] == state


def test_an_upload_in_parts_expires_a_day_later(app):
    answer = app.ask("POST", "/v2/uploads", b"", app.ann, upload_length="5")
    left = parsedate_to_datetime(answer.headers["upload-expires"]).timestamp() - time.time()
    assert abs(left - 86_400) < 120 and answer.headers["upload-expires"].endswith("GMT")
