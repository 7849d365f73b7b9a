"""Where things lie in the store, and what the processes tell each other.

::

    member/ada         here for as long as ada is: a temporary key
    count/a            how far crew a has counted
    ledger/a/0007      who counted 7, and with which fence
    lock/a             the lock of crew a; what lies below it is the business of kvi
    end                nothing more will come
"""

from __future__ import annotations

from dataclasses import dataclass

MEMBER, COUNT, LEDGER, LOCK, END = "member/", "count/", "ledger/", "lock/", "end"
CREWS = ("a", "b")
NAMES = ("ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hana")


def ledger_key(crew: str, number: int) -> str:
    """Where it is written who of the crew counted ``number``."""
    return f"{LEDGER}{crew}/{number:04}"


@dataclass(frozen=True, slots=True)
class Job:
    """What the workers are to do; the same for all of them."""

    uri: str
    namespace: str
    ttl: float
    target: int


@dataclass(frozen=True, slots=True)
class Note:
    """What a worker tells the program.

    Attributes:
        crew: the worker's.
        worker: its name.
        what: ``here``; ``inside`` the lock, in the middle of the job; a number was ``counted``, or
            its write ``refused``; ``done``.
        number: the number.
        fence: that of the lock.
        revision: that of the write.
        held: whether the lock was surely held, right before the write.

    """

    crew: str
    worker: str
    what: str
    number: int = 0
    fence: int = 0
    revision: int = 0
    held: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """A change, as the watcher saw it; ``value`` is ``None`` for a key that vanished."""

    key: str
    value: str | None
    revision: int
    time: float
