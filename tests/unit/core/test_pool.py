"""Connections are few, given back by whoever took one, and never used in an unknown state."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import kvi
import pytest
from kvi.backend import pool as module
from kvi.backend.pool import Places, Pool

from tests.support.waiting import until


class Connection:
    """One end of a pair of sockets; what it is sent it can read at the other.

    Attributes:
        number: they are counted from 1.
        closes: how often it was closed.
        users: threads that use it now.

    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.ours, self.theirs = socket.socketpair()
        self.closes = self.users = 0

    def wait(self) -> bytes:
        """Wait for what comes; empty once it is aborted."""
        return self.ours.recv(100)

    def abort(self) -> None:
        """End the wait of another thread."""
        self.ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self.closes += 1
        self.ours.close()
        self.theirs.close()


class Made:
    """What a pool has made.

    Attributes:
        connections: all, in order.
        refusing: raised in place of the next ones.
        stale: the numbers of those that cannot be used again.

    """

    def __init__(self, size: int = 2) -> None:
        self.connections: list[Connection] = []
        self.refusing: list[kvi.KviError] = []
        self.stale: set[int] = set()
        self.numbers = itertools.count(1)
        self.pool = Pool(
            self.connect,
            Connection.close,
            size=size,
            usable=lambda connection: connection.number not in self.stale,
            abort=Connection.abort,
        )

    def connect(self, timeout: float) -> Connection:
        """Make the next one."""
        assert timeout > 0
        if self.refusing:
            raise self.refusing.pop()
        connection = Connection(next(self.numbers))
        self.connections.append(connection)
        return connection

    @property
    def closed(self) -> list[int]:
        """The numbers of those that are closed."""
        return [one.number for one in self.connections if one.closes]


@pytest.fixture
def made() -> Iterator[Made]:
    """A pool of two connections, whose end closes each of them once."""
    made = Made()
    yield made
    made.pool.close()
    assert [one.closes for one in made.connections] == [1] * len(made.connections)


# -- places


def test_places_go_to_who_came_first() -> None:
    """First come, first served; who leaves is passed over, and no place is lost."""
    places, order = Places(1), list[int]()
    places.take(0)

    def come(number: int) -> None:
        places.take(20)
        order.append(number)
        places.give()

    threads = [threading.Thread(target=come, args=(number,)) for number in range(4)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda number=number: places.waiting == number + 1)  # type: ignore[misc]
        if number == 1:
            with pytest.raises(kvi.Timeout):
                places.take(0.01)
    places.give()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3]
    places.take(0)


# -- taking and giving back


def test_last_used_first(made: Made) -> None:
    """One at a time there is one connection; of several, the last one that was given back."""
    for _ in range(3):
        with made.pool.take(5) as connection:
            assert connection.number == 1
            assert (made.pool.busy, made.pool.idle) == (1, 0)
    with made.pool.take(5), made.pool.take(5) as second:
        assert second.number == 2
    with made.pool.take(5) as connection:
        assert connection.number == 1
    assert made.closed == []


def test_left_by_an_error(made: Made) -> None:
    """What was left in the middle is closed, and its place is free; so if connecting failed."""
    for number in range(1, 5):
        with pytest.raises(ZeroDivisionError), made.pool.take(5):
            raise ZeroDivisionError
        assert made.closed == list(range(1, number + 1))
    for _ in range(4):
        made.refusing.append(kvi.Unavailable("nobody there"))
        with pytest.raises(kvi.Unavailable):
            made.pool.take(5)
    with made.pool.take(5), made.pool.take(5):
        assert made.pool.busy == 2


def test_given_back_once(made: Made) -> None:
    """Giving it back again neither frees another place nor keeps it twice."""
    lent = made.pool.take(5)
    lent.end(whole=True)
    lent.end(whole=True)
    with lent:
        pass
    assert made.pool.idle == 1
    with made.pool.take(5), made.pool.take(5), pytest.raises(kvi.Timeout):
        made.pool.take(0.01)


def test_idle_ones_are_looked_at(made: Made) -> None:
    """One that cannot be used again is closed before anybody gets it; so are all on demand."""
    with made.pool.take(5), made.pool.take(5):
        pass
    made.stale |= {1, 2}
    with made.pool.take(5) as connection:
        assert connection.number == 3
    assert made.closed == [1, 2]
    made.pool.drop_idle()
    assert made.closed == [1, 2, 3]


def test_deadline(made: Made) -> None:
    """Who gets no connection until then has `Timeout`; who is not counted needs no place."""
    with made.pool.take(5), made.pool.take(5):
        began = time.monotonic()
        with pytest.raises(kvi.Timeout, match="all connections were in use"):
            made.pool.take(0.1)
        assert time.monotonic() - began >= 0.1
        with made.pool.take(0.1, counted=False) as third:
            assert third.number == 3
        with pytest.raises(kvi.Timeout):
            made.pool.take(0.01)
    assert made.pool.idle == 2, "no more are kept than there are places"


def test_many_threads(made: Made) -> None:
    """Never more connections than places, never one for two, whatever becomes of their users."""
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(60):
                with suppress(ZeroDivisionError), made.pool.take(20) as connection:
                    connection.users += 1
                    assert connection.users == 1
                    assert connection.closes == 0
                    assert made.pool.busy <= 2
                    if rng.random() < 0.2:
                        time.sleep(0.0005)
                    connection.users -= 1
                    if rng.random() < 0.2:
                        made.stale.add(connection.number)
                    if rng.random() < 0.1:
                        raise ZeroDivisionError
        except BaseException as problem:  # noqa: BLE001  (raised below)
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if problems:
        raise problems[0]
    assert made.pool.busy == 0
    assert made.pool.idle <= 2


# -- ending


def test_cancel(made: Made) -> None:
    """Only what that thread waits on is woken, and closed by it."""
    ended: list[bytes] = []

    def wait() -> None:
        with suppress(ConnectionResetError), made.pool.take(5) as connection:
            ended.append(connection.wait())
            raise ConnectionResetError

    with made.pool.take(5) as mine:
        thread = threading.Thread(target=wait)
        thread.start()
        until(lambda: made.pool.busy == 2)
        assert thread.ident is not None
        made.pool.cancel(thread.ident)
        thread.join(10)
        assert ended == [b""]
        mine.theirs.sendall(b"still there")
        assert mine.wait() == b"still there"
    assert made.closed == [2]


def test_abort_of_what_is_gone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is gone by itself cannot be aborted, and the others are all the same."""
    monkeypatch.setattr(module, "DRAIN", 0.01)
    with made.pool.take(5) as gone, made.pool.take(5) as other:
        gone.ours.close()
        made.pool.cancel(threading.get_ident())
        assert other.wait() == b""
        made.pool.close()


def test_close_wakes_everybody(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a place or on a connection ends at once; each connection is closed once."""
    monkeypatch.setattr(module, "DRAIN", 20.0)
    ends: list[str] = []

    def work() -> None:
        try:
            with made.pool.take(60) as connection:
                connection.wait()
                ends.append("woken")
        except kvi.Closed:
            ends.append("closed")

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: made.pool.busy == 2 and made.pool._places.waiting == 3)
    began = time.monotonic()
    made.pool.close()
    assert (made.pool.busy, made.pool.idle) == (0, 0), "it waited for them"
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 10
    assert sorted(ends) == ["closed", "closed", "closed", "woken", "woken"]
    with pytest.raises(kvi.Closed):
        made.pool.take(5)
    made.pool.close()


def test_closed_while_connecting() -> None:
    """What is made too late is closed by its maker."""
    begun, goes_on, made = threading.Event(), threading.Event(), Made()

    def connect(timeout: float) -> Connection:
        begun.set()
        goes_on.wait(20)
        return made.connect(timeout)

    pool = Pool(connect, Connection.close)
    ends: list[BaseException] = []

    def take() -> None:
        try:
            pool.take(20)
        except kvi.Closed as error:
            ends.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    assert begun.wait(20)
    pool.close()
    goes_on.set()
    thread.join(20)
    assert len(ends) == 1
    assert made.closed == [1]


def test_a_user_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither it nor its place is waited for any longer; it closes its connection itself."""
    monkeypatch.setattr(module, "DRAIN", 0.05)
    made, ends = Made(size=1), list[BaseException]()

    def wait() -> None:
        try:
            made.pool.take(60)
        except kvi.Closed as error:
            ends.append(error)

    thread = threading.Thread(target=wait)
    with made.pool.take(5) as connection:
        thread.start()
        until(lambda: made.pool._places.waiting == 1)
        made.pool.close()
        thread.join(10)
        assert len(ends) == 1
        assert connection.closes == 0
    assert made.closed == [1]


def test_forked(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child's copy is empty and works, whoever held the lock; its parent's are not closed."""
    given: list[Connection] = []
    pool = Pool(made.connect, Connection.close, size=2, let_go=given.append)
    with pool.take(5):
        pass
    busy, idle = pool.take(5), pool.take(5)
    idle.end(whole=True)
    pool._lock.acquire()
    pool.forked()
    assert sorted(one.number for one in given) == [1, 2]
    assert made.closed == []
    assert (pool.busy, pool.idle) == (0, 0)
    busy.end(whole=True)  # of the parent's: not the child's to keep
    assert pool.idle == 0
    with pool.take(5) as own, pool.take(5):
        assert own.number == 3
    pool.close()
    for one in given:
        one.close()
