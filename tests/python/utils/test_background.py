"""A call in a thread of its own, for a host that shows what it reports."""

from __future__ import annotations

import sys
import threading
import time
import warnings

import pytest

from scmamba.utils import progress
from scmamba.utils.background import Job


def followed(job: Job) -> list[tuple]:
    job.begin()
    events = []
    while not job.finished:
        events += job.wait(10)
    return events


def test_messages_and_progress_arrive_in_order_and_hooks_are_put_back():
    def work(n: int, *, last: str) -> int:
        progress.say("first", True)
        with progress.progress("Counting", n) as advance:
            for _ in range(n):
                advance(1)
        progress.say(last, True)
        return n + 1

    before = (progress.listener, progress.speaker, sys.stdout, sys.stderr)
    job = Job(work, True, 3, last="second")
    events = followed(job)
    assert [event for event in events if event[0] == "message"] == [
        ("message", "first"),
        ("message", "second"),
    ]
    assert events[0] == ("message", "first") and events[-1] == ("message", "second")
    assert [event for event in events if event[0] == "progress"][-1] == (
        "progress",
        "Counting",
        3,
        3,
    )
    assert job.result() == 4
    job.stop()
    assert (progress.listener, progress.speaker, sys.stdout, sys.stderr) == before


def test_an_error_is_raised_where_the_result_is_asked_for():
    def fail() -> None:
        raise ValueError("as it was")

    job = Job(fail, False)
    assert followed(job) == []
    with pytest.raises(ValueError, match="as it was"):
        job.result()
    job.stop()


def test_text_for_the_streams_is_written_by_the_thread_of_the_host(monkeypatch):
    writers = []

    class Stream:
        def write(self, text: str) -> int:
            writers.append((threading.current_thread().name, text))
            return len(text)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stderr", Stream())
    job = Job(lambda: sys.stderr.write("seen"), False)
    assert followed(job) == []
    job.stop()
    assert writers == [("MainThread", "seen")]


def test_a_stopped_call_ends_and_the_next_one_waits_for_its_end():
    cleaned = []

    def endless() -> None:
        progress.say("started", True)
        try:
            while True:
                time.sleep(0.01)
        finally:
            time.sleep(0.3)
            cleaned.append(True)

    job = Job(endless, True)
    job.begin()
    assert job.wait(60) == [("message", "started")]
    job.stop()
    assert progress.speaker is None
    after = Job(lambda: list(cleaned), False)
    followed(after)
    assert after.result() == [True]
    after.stop()
    with pytest.raises(KeyboardInterrupt):
        job.result()


@pytest.mark.parametrize(("report", "kind"), [(True, "message"), (False, "warning")])
def test_warnings_for_users_are_events_each_time_and_others_are_shown_as_before(report, kind):
    """The events have the text alone; the filters and the function that shows warnings are put back."""

    def call() -> int:
        warnings.warn("two spellings of one value", stacklevel=2)
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        return 7

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        before = warnings.showwarning, list(warnings.filters)
        for _ in range(2):
            job, events = Job(call, report), []
            job.begin()
            while not job.finished:
                events += job.wait(1)
            assert job.result() == 7
            job.stop()
            assert events == [(kind, "two spellings of one value")]
        assert (warnings.showwarning, list(warnings.filters)) == before
    assert [str(w.message) for w in shown] == ["an old name"] * 2
