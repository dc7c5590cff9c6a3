"""The queue alone, in SQLite and in PostgreSQL: order, ownership and end of jobs."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
import time
from pathlib import Path

import pytest

from scmamba.serve import jobs
from scmamba.serve.jobs import Queue, Unavailable
from scmamba.serve.postgres import open_queue


def send(queue: Queue, user: str, n: int) -> list[str]:
    return [queue.add(user, "embed", "brain-mini", {}, Path("upload")) for _ in range(n)]


def put(queue: Queue, job: str, **columns: object) -> None:
    """Change a row directly: the only way to make a worker appear silent for a minute."""
    with queue._open() as db:
        for name, value in columns.items():
            db.execute(f"UPDATE jobs SET {name}=? WHERE id=?", (value, job))


def work(queue: Queue) -> str | None:
    """One job from start to end; its owner."""
    job = queue.claim("w")
    if job is None:
        return None
    assert queue.finish(job["id"], "w", "done")
    return str(job["user"])


# -- order ---------------------------------------------------------------------------------------------


def test_users_take_turns_whatever_their_number_of_jobs(queue):
    send(queue, "ann", 6)
    send(queue, "bob", 2)
    send(queue, "cem", 2)
    order = [work(queue) for _ in range(10)]
    assert order == ["ann", "bob", "cem", "ann", "bob", "cem", "ann", "ann", "ann", "ann"]
    assert work(queue) is None


def test_jobs_of_one_user_keep_their_order(queue):
    sent = send(queue, "ann", 5)
    assert [queue.claim(f"w{i}")["id"] for i in range(5)] == sent


def test_turns_do_not_depend_on_the_clock(queue, monkeypatch):
    """The clock is set back by two hours between two turns."""
    clock = [time.time()]
    monkeypatch.setattr(jobs.time, "time", lambda: clock[0])
    for user in ("ann", "bob"):
        send(queue, user, 1)
        work(queue)
    clock[0] -= 7200
    send(queue, "bob", 4)
    send(queue, "ann", 4)
    assert [work(queue) for _ in range(8)] == ["ann", "bob"] * 4


def test_jobs_of_one_user_keep_their_order_when_the_clock_is_set_back(queue, monkeypatch):
    clock = [time.time()]
    monkeypatch.setattr(jobs.time, "time", lambda: clock[0])
    sent = []
    for _ in range(4):
        sent += send(queue, "ann", 1)
        clock[0] -= 3600
    assert [queue.claim(f"w{i}")["id"] for i in range(4)] == sent


def test_deleting_jobs_does_not_change_the_turn(queue):
    send(queue, "ann", 4)
    order = []
    for _ in range(4):
        job = send(queue, "bob", 1)[0]  # one at a time, fetched and deleted, as the clients do
        order += [work(queue), work(queue)]
        queue.remove(job)
    assert (
        sorted(order[:2]) == ["ann", "bob"] and order.count("ann") == 4 and order.count("bob") == 4
    )
    assert all(set(order[i : i + 2]) == {"ann", "bob"} for i in range(0, 8, 2))


def test_users_without_a_running_job_are_served_first(queue):
    send(queue, "ann", 3)
    assert queue.claim("w1")["user"] == "ann"  # a long job, still running
    send(queue, "bob", 2)
    assert queue.claim("w2")["user"] == "bob"
    assert {queue.claim("w3")["user"], queue.claim("w4")["user"]} == {"ann", "bob"}


def test_users_without_a_running_job_are_served_first_even_after_a_later_turn(queue):
    send(queue, "ann", 2)
    send(queue, "bob", 2)
    assert queue.claim("w1")["user"] == "ann"  # still running; her turn is the older one
    assert work(queue) == "bob"
    assert queue.claim("w2")["user"] == "bob"


def _claim_all(folder: Path, name: str, out) -> None:
    queue, got = open_queue(folder), []
    while (job := queue.claim(name)) is not None:
        got.append(job["id"])
    out.put(got)


def test_many_processes_claim_every_job_once(queue, tmp_path):
    sent = [j for user in ("ann", "bob", "cem") for j in send(queue, user, 8)]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_claim_all, args=(tmp_path, f"w{i}", out)) for i in range(2)]
    for worker in workers:
        worker.start()
    claimed = [job for _ in workers for job in out.get(timeout=300)]
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(sent)
    assert queue.counts() == {"running": 24} and queue.unfinished("ann") == 8


# -- the description of a job ---------------------------------------------------------------------------


def test_a_job_is_stored_as_it_was_sent(queue):
    before = time.time()
    job = queue.add(
        "ann", "impute", "brain-base", {"seed": 3, "batch": "é"}, Path("/data/uploads/x")
    )
    found = queue.get(job)
    assert len(job) == 16 and job != queue.add("ann", "impute", "brain-base", {}, Path("y"))
    assert json.loads(found.pop("options")) == {"seed": 3, "batch": "é"}
    assert before <= found.pop("created") <= time.time()
    assert found == dict(
        id=job,
        user="ann",
        task="impute",
        model="brain-base",
        upload="/data/uploads/x",
        state="queued",
        done=0,
        message="",
        attempts=0,
        worker=None,
        started=None,
        beat=None,
        finished=None,
        deaths=0,
        warnings="[]",
        messages="[]",
        digest="",
    )


def test_a_job_is_visible_to_its_owner_only(queue):
    (job,) = send(queue, "ann", 1)
    assert queue.get(job, "ann")["id"] == job and queue.get(job)["id"] == job
    assert (
        queue.get(job, "bob") is None
        and queue.get("another", "ann") is None
        and queue.get(job, "") is None
    )


def test_a_file_sent_twice_is_one_job(queue):
    name = queue.name_of("ann", "k" * 20)
    assert len(name) == 16 and name == queue.name_of("ann", "k" * 20)
    assert name not in (queue.name_of("bob", "k" * 20), queue.name_of("ann", "k" * 19 + "l"))
    assert queue.add("ann", "embed", "brain-mini", {}, Path("first"), name) == name
    assert queue.add("ann", "embed", "brain-mini", {}, Path("second"), name) is None
    assert queue.counts() == {"queued": 1} and queue.get(name)["upload"] == "first"


def test_jobs_of_a_user_are_listed_newest_first(queue):
    sent = send(queue, "ann", 3)
    send(queue, "bob", 1)
    assert [j["id"] for j in queue.of_user("ann")] == sent[::-1]
    assert queue.of_user("nobody") == []


def test_at_most_two_hundred_jobs_are_listed(queue):
    with queue._open() as db:
        db.execute("BEGIN")
        for k in range(203):
            db.execute(
                "INSERT INTO jobs (id, user, task, model, options, upload, state, created) VALUES (?,?,?,?,?,?,?,?)",
                (f"job{k}", "ann", "embed", "m", "{}", "u", "queued", 1000.0 + k),
            )
        db.execute("COMMIT")
    assert [j["id"] for j in queue.of_user("ann")] == [f"job{k}" for k in range(202, 2, -1)]


def test_waiting_and_running_jobs_are_unfinished(queue):
    send(queue, "bob", 1)
    sent = send(queue, "ann", 5)
    for job, state in zip(sent, ("queued", "running", "done", "failed", "cancelled"), strict=True):
        put(queue, job, state=state)
    assert (
        queue.unfinished("ann") == 2
        and queue.unfinished("bob") == 1
        and queue.unfinished("cem") == 0
    )
    assert queue.counts() == {"queued": 2, "running": 1, "done": 1, "failed": 1, "cancelled": 1}


# -- running -------------------------------------------------------------------------------------------


def test_a_claimed_job_belongs_to_its_worker(queue):
    (job,) = send(queue, "ann", 1)
    put(queue, job, done=0.7)
    before = time.time()
    taken = queue.claim("w1")
    assert (taken["id"], taken["state"], taken["worker"], taken["attempts"]) == (
        job,
        "running",
        "w1",
        1,
    )
    assert before <= taken["started"] <= time.time() and taken["beat"] == taken["done"] == 0
    assert taken["finished"] is None and queue.get(job) == taken and queue.claim("w2") is None


def test_only_the_worker_of_a_job_reports_progress(queue):
    (job,) = send(queue, "ann", 1)
    assert not queue.beat(job, "w1", 0.5, "too early")
    queue.claim("w1")
    put(queue, job, beat=5.0)
    assert queue.beat(job, "w1", 0.25, "reading") and queue.get(job)["beat"] == 6
    assert queue.beat(job, "w1") and (queue.get(job)["done"], queue.get(job)["message"]) == (
        0.25,
        "reading",
    )
    assert queue.beat(job, "w1", 0.5) and queue.get(job)["message"] == "reading"
    assert not queue.beat(job, "w2", 0.9, "mine") and queue.get(job)["done"] == 0.5
    queue.finish(job, "w1", "done")
    assert not queue.beat(job, "w1", 0.1, "still here") and queue.get(job)["done"] == 1


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_job_is_ended_once_by_its_worker(queue, state):
    job, other = send(queue, "ann", 2)
    assert not queue.finish(job, "w1", state)  # it is queued
    queue.claim("w1")
    queue.claim("w1")
    assert not queue.finish(job, "w2", state)
    before = time.time()
    assert queue.finish(job, "w1", state, "a reason")
    ended = queue.get(job)
    assert (ended["state"], ended["message"], ended["done"]) == (state, "a reason", 1)
    assert before <= ended["finished"] <= time.time() and ended["started"] <= before
    assert not queue.finish(job, "w1", "failed", "again") and queue.get(job) == ended
    assert queue.get(other)["state"] == "running" and queue.get(other)["finished"] is None


def test_only_queued_and_running_jobs_can_be_cancelled(queue):
    running, waiting, other = send(queue, "ann", 3)
    queue.claim("w1")
    for job in (waiting, running):
        before = time.time()
        assert queue.cancel(job)
        now = queue.get(job)
        assert (now["state"], now["message"]) == ("cancelled", "cancelled") and before <= now[
            "finished"
        ] <= time.time()
        assert not queue.cancel(job)
    assert (
        not queue.beat(running, "w1")
        and not queue.finish(running, "w1", "done")
        and queue.claim("w2")["id"] == other
    )
    queue.finish(other, "w2", "failed", "why")
    assert (
        not queue.cancel(other)
        and queue.get(other)["message"] == "why"
        and not queue.cancel("nothing")
    )


# -- dead workers --------------------------------------------------------------------------------------


def test_a_returned_job_keeps_its_place_and_counts_no_death(queue):
    first, second, third = send(queue, "ann", 3)
    assert queue.claim("gone")["id"] == first and queue.claim("alive")["id"] == second
    put(queue, first, done=0.8)
    assert queue.give_back("gone") == 1 and queue.give_back("gone") == 0
    waits = queue.get(first)
    assert [waits[k] for k in ("state", "worker", "done", "attempts", "deaths")] == [
        "queued",
        None,
        0,
        1,
        0,
    ]
    assert queue.get(second)["worker"] == "alive"
    again = queue.claim("alive")
    assert again["id"] == first and again["attempts"] == 2
    assert not queue.finish(first, "gone", "done") and queue.finish(first, "alive", "done")
    assert queue.give_back("alive") == 1  # the second job; ended ones stay
    assert queue.get(first)["state"] == "done" and queue.get(third)["state"] == "queued"


def test_a_worker_with_a_new_beat_keeps_its_job(queue):
    (job,) = send(queue, "ann", 1)
    queue.claim("w")
    (seen,) = queue.running()
    assert seen == {"id": job, "worker": "w", "beat": 0}
    queue.beat(job, "w")
    assert queue.give_back("w", seen["beat"]) == 0 and queue.get(job)["state"] == "running"
    assert queue.give_back("w", 1) == 1 and queue.running() == []


def test_a_job_fails_after_three_deaths_of_its_worker(queue):
    (job,) = send(queue, "ann", 1)
    for attempt in range(1, 7):
        assert queue.claim("w")["attempts"] == attempt
        before = time.time()
        # Every other time its server is stopped, which is not an attempt.
        assert (queue.give_back if attempt % 2 else queue.bury)("w") == 1
        assert queue.get(job)["state"] == ("queued" if attempt < 6 else "failed")
    ended = queue.get(job)
    assert "died 3 times" in ended["message"] and before <= ended["finished"] <= time.time()
    assert queue.claim("w") is None and jobs.DEATHS == 3
    assert jobs.FINAL == ("done", "failed", "cancelled")


def test_the_number_of_starts_of_a_job_is_limited(queue, monkeypatch):
    monkeypatch.setattr(jobs, "STARTS", 4)
    (job,) = send(queue, "ann", 1)
    for _ in range(4):
        queue.claim("w")
        queue.give_back("w")
    assert queue.get(job)["state"] == "failed" and "4 times" in queue.get(job)["message"]


def test_several_jobs_are_read_at_once(queue):
    sent = send(queue, "ann", 2) + send(queue, "bob", 1)
    found = queue.get_many([*sent, "another"])
    assert set(found) == set(sent) and found[sent[2]] == queue.get(sent[2])
    assert {f["id"] for f in queue.files_of("ann")} == set(sent[:2])
    assert queue.uploads() == {"upload"}


def test_an_old_queue_gets_the_current_columns(tmp_path, monkeypatch):
    monkeypatch.delenv("SCMAMBA_QUEUE", raising=False)
    with sqlite3.connect(tmp_path / "queue.sqlite") as db:
        db.executescript(jobs._TABLE)
        db.execute(
            "INSERT INTO jobs (id, user, task, model, options, upload, state, created) "
            "VALUES ('a','ann','embed','m','{}','u','queued',1)"
        )
    db.close()
    for _ in range(2):
        found = open_queue(tmp_path).get("a")
        assert found["deaths"] == 0 and jobs.public_view(found)["warnings"] == []


def test_two_servers_may_add_the_current_columns_at_once(tmp_path):
    """A column that the other server has just added is not added again; any other failure is one."""

    class Slow(Queue):
        times = (
            2  # that a column is looked for before the other server has added it: once, or for good
        )

        def _has(self, column: str) -> bool:
            looks[column] = looks.get(column, 0) + 1
            return super()._has(column) and looks[column] >= self.times

    looks: dict[str, int] = {}
    Queue(tmp_path)
    assert Slow(tmp_path).check() and looks == dict.fromkeys(jobs._LATER, 2)
    Slow.times = 1000
    with pytest.raises(Unavailable, match="duplicate column"):
        Slow(tmp_path)


def test_a_damaged_queue_is_set_aside_and_its_backup_restored(tmp_path, monkeypatch):
    monkeypatch.delenv("SCMAMBA_QUEUE", raising=False)
    queue = open_queue(tmp_path)
    kept = send(queue, "ann", 2)
    queue.backup()
    for file in tmp_path.glob("queue.sqlite*"):
        file.write_bytes(b"not a database at all" * 1000)
    assert not queue.check()
    with pytest.raises(jobs.Damaged, match="set aside"):
        queue.counts()
    queue.backup()  # a damaged file is not a backup
    queue.recover()
    assert queue.check() and {j["id"] for j in queue.of_user("ann")} == set(kept)
    assert next(tmp_path.glob("queue.damaged-*.sqlite")).read_bytes().startswith(b"not a database")


# -- deletion ------------------------------------------------------------------------------------------


def test_jobs_are_deleted_by_the_time_they_ended(queue):
    old, new, long, waiting = send(queue, "ann", 4)
    put(queue, old, state="done", created=100.0, finished=200.0)
    put(queue, new, state="failed", created=400.0, finished=500.0)
    put(queue, long, state="done", created=100.0, finished=900.0)  # sent early, ended late
    put(queue, waiting, created=100.0)
    gone = queue.forget(500.0)
    assert [j["id"] for j in gone] == [old] and gone[0]["upload"] == "upload"
    assert queue.get(old) is None and {j["id"] for j in queue.of_user("ann")} == {
        new,
        long,
        waiting,
    }
    assert {j["id"] for j in queue.forget(1000.0)} == {new, long} and queue.forget(1e12) == []
    assert queue.counts() == {"queued": 1}


def test_a_single_job_is_removed(queue):
    first, second = send(queue, "ann", 2)
    queue.remove(first)
    assert [j["id"] for j in queue.of_user("ann")] == [second]


def test_a_queue_that_cannot_be_opened_is_unavailable(tmp_path, monkeypatch):
    monkeypatch.delenv("SCMAMBA_QUEUE", raising=False)
    queue = open_queue(tmp_path / "deep" / "data")
    for file in queue.folder.glob("queue.sqlite*"):
        file.unlink()
    (queue.folder / "queue.sqlite").mkdir()
    with pytest.raises(Unavailable, match="unavailable"):
        queue.counts()


def test_messages_of_a_verb_stay_with_its_job_and_begin_anew_with_a_new_start(queue, tmp_path):
    job = queue.add("u", "impute", "m", {}, tmp_path / "x")
    queue.claim("w1")
    assert jobs.public_view(queue.get(job))["messages"] == []
    assert queue.beat(job, "w1", messages=["a", "b"])
    assert jobs.public_view(queue.get(job))["messages"] == ["a", "b"]
    assert queue.beat(job, "w1", 0.5)  # nothing new was reported
    assert jobs.public_view(queue.get(job))["messages"] == ["a", "b"]
    queue.give_back("w1")
    queue.claim("w2")
    assert jobs.public_view(queue.get(job))["messages"] == []
    assert queue.finish(job, "w2", "done", "done", ["a", "b", "c"])
    assert jobs.public_view(queue.get(job))["messages"] == ["a", "b", "c"]
    assert "messages" not in jobs.public_view(queue.get(job), messages=False)


def test_half_a_character_of_a_job_of_an_earlier_version_is_shown_as_a_question_mark(
    queue, tmp_path
):
    job = queue.add("u", "impute", "m", {"layer": "a\ud800"}, tmp_path / "x", warnings=["\udfff"])
    shown = jobs.public_view(queue.get(job))
    assert shown["options"] == {"layer": "a?"} and shown["warnings"] == ["?"]
    json.dumps(shown, ensure_ascii=False).encode()
