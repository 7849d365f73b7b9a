"""`elect semaphore once every queue locks`, as processes, on every store."""

from __future__ import annotations

import json
import shlex
import signal
import sys

import kvi
import pytest
from kvi.recipes import Election, Once, Queue, Semaphore

from tests.cli.conftest import Command
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def test_elect(cli: Command, store: kvi.Kvi) -> None:
    """One leads, with its value and fence; others wait, or end with 75."""
    with cli.start("elect", "boss", "--value", "me", "--", "sleep", "1000") as leading:
        election = Election(store, "boss", "other")
        until(lambda: election.leader(), within=60)
        leader = election.leader()
        assert leader is not None
        assert leader.value == b"me"
        cli("elect", "boss", "--wait", "0", "--", "true", code=75)
        cli("elect", "boss", "--wait", "0", "--conflict-exit-code", "9", "--", "true", code=9)
        leading.send_signal(signal.SIGTERM)
        leading.wait(60)
    assert election.leader() is None
    assert cli("elect", "boss", "--", "sh", "-c", 'echo "$KVI_LOCK_NAME"') == "boss\n"
    cli("elect", "boss", "--", "sh", "-c", "exit 7", code=7)


def test_semaphore(cli: Command, store: kvi.Kvi) -> None:
    """At most so many run at once."""
    with Semaphore(store, "s", 1):
        cli("semaphore", "s", "--limit", "1", "--wait", "0", "--", "true", code=75)
    assert cli("semaphore", "s", "--limit", "1", "--", "echo", "one") == "one\n"
    cli("semaphore", "s", "--limit", "2", "--", "true", code=2)
    assert "limit=1, not 2" in cli.errors


def test_once(cli: Command, store: kvi.Kvi) -> None:
    """It runs until it has succeeded one time."""
    cli("once", "m", "--", "sh", "-c", "exit 5", code=5)
    assert cli("once", "m", "--", "echo", "done") == "done\n"
    assert cli("once", "m", "--", "echo", "done") == ""
    assert Once(store, "m").result() is not None
    cli("once", "m", "--reset")
    assert cli("once", "m", "--", "echo", "done") == "done\n"
    cli("once", "m", code=2)
    cli("once", "m", "--reset", "--", "true", code=2)


def test_every(cli: Command) -> None:
    """It runs at its times, until it has run so often, or is ended."""
    told = cli("every", "t", "0.2", "--times", "2", "--", "sh", "-c", "echo $KVI_TIME")
    first, second = told.split()
    assert first < second
    cli("every", "t", "7", "--times", "1", "--", "true", code=2)
    cli("every", "u", "no cron line", "--", "true", code=2)
    cli("every", "w", "0.2", "--times", "2", "--", "no-such-program")
    assert cli.errors.count("cannot run 'no-such-program'") == 2
    with cli.start("every", "v", "0.2", "--", "echo", "ran") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ran\n"
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 128 + signal.SIGTERM


def test_queue(cli: Command, store: kvi.Kvi) -> None:
    """Jobs are done by commands, given back if they fail, and dead when they fail too often."""
    first = cli("queue", "put", "q", "a b", "--max-attempts", "2").strip()
    urgent = cli.json("queue", "put", "q", "urgent", "--priority", "3", "--max-attempts", "2")
    assert urgent["id"] < first
    assert cli("queue", "count", "q", "--max-attempts", "2") == "2\n"
    words = ("queue", "get", "q", "--max-attempts", "2", "--wait", "0", "--")
    assert cli(*words, "cat") == "urgent"
    cli(*words, "false", code=1)
    assert cli(*words, "sh", "-c", 'cat; echo " $KVI_JOB_ATTEMPT"; exit 6', code=6) == "a b 2\n"
    cli(*words, "cat", code=1)
    (dead,) = cli.lines("queue", "dead", "q", "--max-attempts", "2")
    assert dead == {"id": first, "attempts": 2, "value": "a b"}
    assert cli("queue", "dead", "q", "--max-attempts", "2") == f"{first}\t2\ta b\n"
    most = ("--max-attempts", "2")
    assert cli("queue", "retry", "q", first, *most) == ""
    cli("queue", "retry", "q", first, *most, code=1)
    cli(*words, "true")
    assert cli("queue", "count", "q", *most) == "0\n"
    cli("queue", "discard", "q", first, *most, code=1)
    cli("queue", "discard", "q", *most, code=2)
    assert Queue(store, "q", max_attempts=2).count() == 0
    cli("queue", "put", "q", code=2)
    cli("queue", "get", "q", code=2)


def test_job_that_was_done_in_vain(local: Command) -> None:
    """What cannot be told to be done is not done, whatever its command says."""
    local("queue", "put", "q", "job")
    delete = f"exec {shlex.quote(sys.executable)} -m kvi del --prefix q/"
    local("queue", "get", "q", "--", "sh", "-c", delete, code=3)
    assert "LeaseLost" in local.errors


def test_job_that_is_held(cli: Command, store: kvi.Kvi) -> None:
    """A job that nobody runs a command for is done, or given back, by who has its claim."""
    queue = Queue(store, "q")
    queue.put("a b\n")
    assert cli("queue", "get", "q", "--hold", "1000", "--as", "hex").split("\t")[1:] == [
        "1", "6120620a\n"
    ]  # fmt: skip
    assert (queue.get(0), queue.count()) == (None, 1), "it outlives the process that took it"
    cli("queue", "get", "q", "--hold", "1000", "--wait", "0", code=1)
    queue.put(b"\xff")
    held = cli.json("queue", "get", "q", "--hold", "1000")
    assert held == {"claim": held["claim"], "attempt": 1, "value_base64": "/w=="}
    cli("queue", "nack", "q", held["claim"])
    cli("queue", "ack", "q", held["claim"], code=3)
    assert "done or given back already" in cli.errors
    again = cli.json("queue", "get", "q", "--hold", "1000")
    assert again == {"claim": again["claim"], "attempt": 2, "value_base64": "/w=="}
    cli("queue", "ack", "q", held["claim"], code=3)
    assert queue.count() == 2
    cli("queue", "ack", "q", again["claim"])
    cli("queue", "nack", "q", again["claim"], code=3)
    assert queue.count() == 1


def test_job_with_tabs(local: Command) -> None:
    """Those of its value are escapes, so that its line has three fields."""
    with kvi.open(local.uri) as store:
        Queue(store, "q", max_attempts=1).put("a\tb\nc")
    words = ("q", "--max-attempts", "1")
    claim, *told = local("queue", "get", *words, "--hold", "600").split("\t")
    assert told == ["1", "a\\tb\\nc\n"]
    local("queue", "nack", "q", claim, "--max-attempts", "1")
    assert local("queue", "dead", *words).split("\t")[1:] == told


def test_job_that_is_held_too_long(cli: Command, store: kvi.Kvi) -> None:
    """Once the time is up another gets it, and the claim is nobody's."""
    queue = Queue(store, "q")
    queue.put("a")
    held = cli.json("queue", "get", "q", "--hold", "0.1")
    job = queue.get(60)
    assert job is not None
    assert job.attempt == 2
    cli("queue", "ack", "q", held["claim"], code=3)
    cli("queue", "nack", "q", held["claim"], code=3)
    assert job.held
    job.ack()
    assert queue.count() == 0


def test_words_of_a_queue(local: Command) -> None:
    """What makes no sense together is refused, and changes nothing."""
    for words in (
        ("ack", "q"),
        ("ack", "q", "7fffffff-000000000001"),
        ("get", "q"),
        ("get", "q", "--hold", "0"),
        ("get", "q", "--hold", "5", "--", "true"),
        ("put", "q", "a", "--hold", "5"),
        ("count", "q", "--", "true"),
    ):
        local("queue", *words, code=2)
    with kvi.open(local.uri) as store:
        assert list(store.range()) == []


def test_locks(cli: Command, store: kvi.Kvi) -> None:
    """What is held is shown with its kind, holders, waiters and fence."""
    with (
        store.lock("jobs/a") as lock,
        Semaphore(store, "jobs/s", 2) as semaphore,
        Election(store, "jobs/e", "x") as election,
    ):
        found = {one["name"]: one for one in cli.lines("locks", "jobs/")}
        assert {name: one["kind"] for name, one in found.items()} == {
            "jobs/a": "lock",
            "jobs/s": "semaphore",
            "jobs/e": "election",
        }
        assert found["jobs/s"]["fence"] == semaphore.fence
        assert [one["id"] for one in found["jobs/s"]["holders"]] == semaphore.holders()
        if store.capabilities.lock_fair:
            assert found["jobs/a"]["fence"] == lock.fence
            assert found["jobs/e"]["fence"] == election.fence
        assert all(one["waiters"] == [] for one in found.values())
        left = [holder["left"] for one in found.values() for holder in one["holders"]]
        if store.uri.startswith("consul"):  # it does not tell
            assert left == [None] * 3
        else:
            assert all(0 < seconds <= 10 for seconds in left)
        told = cli("locks")
        assert "semaphore jobs/s: " in told
        assert (" s left)" in told) is (None not in left)
    assert cli("locks") == ""
    assert json.loads(json.dumps(found)) == found
