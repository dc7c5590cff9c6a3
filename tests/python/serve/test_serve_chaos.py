"""The benchmark with many users and a killed server, in small: the same guarantees with a few users and two kills."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("psutil")


@pytest.fixture(scope="module")
def chaos():
    from benchmarks import serve_chaos

    return serve_chaos


@pytest.mark.slow
def test_every_accepted_job_ends_once_and_is_visible_to_its_owner_only(chaos, tmp_path):
    answer = chaos.run(clients=4, seconds=8, kills=2, workers=2, source=None, folder=tmp_path)
    assert [k["what"] for k in answer["kills"]] == ["worker", "server"]
    assert answer["accepted"] >= 4 and answer["failures"] == []
    assert chaos.verdict(answer) == []
    assert "not kept: nothing" in chaos.report(answer)


def test_the_benchmark_detects_faults(chaos):
    fine = dict(
        accepted=3,
        lost=0,
        of_another_user=0,
        not_ended=0,
        ended_once=3,
        ended_more_than_once=0,
        clients_stuck=0,
        wrong=[],
        refused=[],
        in_the_queue_unknown_to_any_client=0,
    )
    assert chaos.verdict(fine) == []
    for change in (
        dict(lost=1),
        dict(not_ended=1),
        dict(ended_once=2),
        dict(of_another_user=1),
        dict(wrong=["x"]),
        dict(refused=["x"]),
        dict(in_the_queue_unknown_to_any_client=1),
        dict(ended_more_than_once=1),
        dict(clients_stuck=1),
    ):
        assert len(chaos.verdict(fine | change)) == 1
