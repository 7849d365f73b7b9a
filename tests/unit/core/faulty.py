"""A store that fails as a test tells it, over a memory store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import kvi
from kvi.backend.forwarding import Forwarding
from kvi.feed import Feed, Wake, WatchSpec
from kvi.model import Claim, Grant

R = TypeVar("R")
Fault = Callable[[], object]


class Faulty(Forwarding):
    """Forwards to ``inner``; ``before`` and ``after`` hold what happens around a primitive.

    Attributes:
        before: by name of the primitive; what raises here was not applied.
        after: the same; what raises here was applied, and its answer is lost.
        calls: how often each primitive was called.

    """

    def __init__(self, inner: kvi.Kvi) -> None:
        super().__init__(inner, owns=True)
        self.before: dict[str, Fault] = {}
        self.after: dict[str, Fault] = {}
        self.calls: Counter[str] = Counter()

    def _around(self, name: str, call: Callable[[], R]) -> R:
        self.calls[name] += 1
        if name in self.before:
            self.before[name]()
        result = call()
        if name in self.after:
            self.after[name]()
        return result

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        return self._around("put", lambda: super(Faulty, self)._put(key, value, lease, timeout))

    def _watch(self, spec: WatchSpec, wake: Wake, timeout: float) -> Feed:
        return self._around("watch", lambda: super(Faulty, self)._watch(spec, wake, timeout))

    def _lease_grant(self, ttl: float, timeout: float) -> Grant:
        return self._around("grant", lambda: super(Faulty, self)._lease_grant(ttl, timeout))

    def _lease_renew(self, lease: int, timeout: float) -> float:
        return self._around("renew", lambda: super(Faulty, self)._lease_renew(lease, timeout))

    def _lease_revoke(self, lease: int, timeout: float) -> None:
        self._around("revoke", lambda: super(Faulty, self)._lease_revoke(lease, timeout))

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return self._around("claim", lambda: super(Faulty, self)._lock_claim(name, lease, timeout))

    def _lock_release(self, claim: Claim, timeout: float) -> bool:
        return self._around("release", lambda: super(Faulty, self)._lock_release(claim, timeout))

    @contextmanager
    def out_of_reach(self, *names: str) -> Iterator[None]:
        """For the block, nothing reaches the store."""
        failing = names or ("put", "watch", "grant", "renew", "revoke", "claim", "release")
        self.before |= dict.fromkeys(failing, fails(kvi.Unavailable))
        try:
            yield
        finally:
            for name in failing:
                del self.before[name]


def fails(error: type[BaseException], *, times: int | None = None) -> Fault:
    """A fault that raises ``error``, always or only the first ``times`` times."""
    left = [times]

    def fault() -> None:
        if left[0] != 0:
            left[0] = None if left[0] is None else left[0] - 1
            raise error("as the test wants it")

    return fault
