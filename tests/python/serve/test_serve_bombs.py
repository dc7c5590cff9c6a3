"""The benchmark with files that are small to send and large to open, in small: some kinds in one size."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def bombs():
    from benchmarks import serve_bombs

    return serve_bombs


def test_the_benchmark_has_a_hundred_files(bombs):
    assert len(bombs.KINDS) * len(bombs.PARTS) == 100


@pytest.mark.slow
def test_no_job_uses_more_memory_than_it_may(bombs, tmp_path):
    kinds = [
        "X of single bytes, packed",  # four bytes each where the job computes
        "10x folder: one entry millions of times",
        "uns: records with one text",
        "plain form: lists of nothing",
    ]
    answer = bombs.run(tmp_path, kinds, parts=(0.9,)) | {"machine": "here"}
    assert bombs.verdict(answer) == [], answer
    assert "not kept: nothing" in bombs.report(answer)
    ends = {f["kind"]: bombs.ended(f) for f in answer["files"]}
    assert ends["uns: records with one text"] == "refused when sent"
    assert max(f["bytes"] for f in answer["files"]) < 30e6


def test_the_benchmark_detects_faults(bombs):
    file = {"kind": "x", "part": 1.0, "bytes": 1, "state": "done", "message": "done"}
    fine = {
        "files": [file],
        "limit_mib": 10,
        "inspection_mib": 10,
        "most_of_a_job_mib": 10,
        "most_of_an_inspection_mib": 10,
        "jobs_watched": 1,
        "ready": True,
        "worker_restarts": 0,
    }
    assert bombs.verdict(fine) == []
    for change in (
        {"most_of_a_job_mib": 11},
        {"most_of_an_inspection_mib": 11},
        {"jobs_watched": 0},
        {"ready": False},
        {"worker_restarts": 1},
        {"files": [{**file, "state": "failed", "message": "its worker died 3 times"}]},
        {"files": [{**file, "state": "failed", "message": "The job failed inside the server: X"}]},
    ):
        assert len(bombs.verdict(fine | change)) == 1
    sentence = {**file, "state": "failed", "message": "The job needs more memory."}
    assert bombs.verdict(fine | {"files": [sentence, {**file, "state": "refused (422)"}]}) == []
