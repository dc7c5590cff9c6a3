"""The queue alone: whose turn it is."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from scmamba.serve.jobs import Queue


def send(queue: Queue, user: str, n: int) -> list[str]:
    return [queue.add(user, "embed", "brain-mini", {}, Path("upload")) for _ in range(n)]


def work(queue: Queue) -> str | None:
    """One job from start to end; whose it was."""
    job = queue.claim("w")
    if job is None:
        return None
    assert queue.finish(job["id"], "w", "done")
    return str(job["user"])


def test_users_take_turns_whatever_they_sent_before(tmp_path):
    queue = Queue(tmp_path)
    send(queue, "ann", 6)
    send(queue, "bob", 2)
    send(queue, "cem", 2)
    order = [work(queue) for _ in range(10)]
    assert order == ["ann", "bob", "cem", "ann", "bob", "cem", "ann", "ann", "ann", "ann"]
    assert work(queue) is None


def test_one_users_jobs_keep_their_order(tmp_path):
    queue = Queue(tmp_path)
    jobs = send(queue, "ann", 5)
    assert [queue.claim(f"w{i}")["id"] for i in range(5)] == jobs


def test_deleting_ones_jobs_brings_nobody_to_the_front(tmp_path):
    queue = Queue(tmp_path)
    send(queue, "ann", 4)
    order = []
    for _ in range(4):
        job = send(queue, "bob", 1)[0]  # one at a time, fetched and deleted, as the clients do
        order += [work(queue), work(queue)]
        queue.remove(job)
    assert sorted(order[:2]) == ["ann", "bob"] and order.count("ann") == 4 and order.count("bob") == 4
    assert all(set(order[i : i + 2]) == {"ann", "bob"} for i in range(0, 8, 2))


def test_who_holds_a_worker_waits_for_who_holds_none(tmp_path):
    queue = Queue(tmp_path)
    send(queue, "ann", 3)
    assert queue.claim("w1")["user"] == "ann"  # long, goes on running
    send(queue, "bob", 2)
    assert queue.claim("w2")["user"] == "bob"
    assert {queue.claim("w3")["user"], queue.claim("w4")["user"]} == {"ann", "bob"}


def test_a_rescued_job_goes_on_in_its_place(tmp_path):
    queue = Queue(tmp_path)
    first, second = send(queue, "ann", 2)
    assert queue.claim("dead")["id"] == first
    assert queue.rescue(dead="dead") == 1
    again = queue.claim("alive")
    assert again["id"] == first and again["attempts"] == 2
    assert not queue.finish(first, "dead", "done") and queue.finish(first, "alive", "done")


def _claim_all(folder: Path, name: str, out) -> None:
    queue, got = Queue(folder), []
    while (job := queue.claim(name)) is not None:
        got.append(job["id"])
    out.put(got)


def test_many_processes_claim_every_job_once(tmp_path):
    queue = Queue(tmp_path)
    jobs = [j for user in ("ann", "bob", "cem") for j in send(queue, user, 20)]
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_claim_all, args=(tmp_path, f"w{i}", out)) for i in range(3)]
    for worker in workers:
        worker.start()
    claimed = [job for _ in workers for job in out.get(timeout=60)]
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(jobs)


def test_a_file_sent_twice_is_one_job(tmp_path):
    queue = Queue(tmp_path)
    name = queue.name_of("ann", "k" * 20)
    assert name != queue.name_of("bob", "k" * 20)
    assert queue.add("ann", "embed", "brain-mini", {}, Path("first"), name) == name
    assert queue.add("ann", "embed", "brain-mini", {}, Path("second"), name) is None
    assert queue.counts() == {"queued": 1} and queue.get(name)["upload"] == "first"
