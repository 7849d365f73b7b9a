"""Waiting: for a condition with a deadline, and for slow stores side by side.

Some rules can only be seen by waiting: a lease must run out, a crashed holder's lock be freed. On a
store whose shortest lease is ten seconds each of them takes twenty. So tests that are marked
`side_by_side` wait at once: the first of them that runs starts all of the file's, each in a thread
of its own, in a namespace of its own, with two handles; and every one then reports its own outcome.
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import pytest

import kvi
from kvi.conformance.trace import TRACE, Trace

WITHIN = 20.0
"""Seconds within which what must happen happens, on a machine that is busy with something else."""


def until(condition: Callable[..., object], *, within: float = WITHIN) -> None:
    """Return as soon as `condition()` is true; fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {within:g} s"
        time.sleep(0.005)


BRIEF = 2.0
"""Seconds that a lease is granted for which is to end, or must be renewed soon.

Long beside the slowest call of a store on a busy disk: what a test does with a lease before it ends
must fit.
"""

LONGEST = 100.0
"""Seconds after which the tests that wait side by side have failed."""


class Reopen(Protocol):
    """Opens another handle, with options."""

    def __call__(self, **options: Any) -> AbstractContextManager[kvi.Kvi]:
        """A handle on the namespace of the test, as a context manager."""


class _Outcome(NamedTuple):
    error: BaseException | None
    trace: Trace


_OUTCOMES = pytest.StashKey[dict[str, _Outcome]]()


def side_by_side(test: Callable[..., None]) -> Callable[..., None]:
    """Let a test wait at once with the others of its file that are marked so.

    The test may take `store` and `peer`, two handles on one namespace that is its own, and
    `reopen`, a `Reopen` for a third: `with reopen(timeout=1) as store`.
    """

    @functools.wraps(test)
    def waits(self: Any, request: pytest.FixtureRequest, kvi_uri: str) -> None:
        outcomes = request.session.stash.setdefault(_OUTCOMES, {})
        if request.node.nodeid not in outcomes:
            with kvi.open(kvi_uri) as handle:
                handle.delete_range(prefix="")
            outcomes.update(_run(_companions(request), kvi_uri))
        error, trace = outcomes.pop(request.node.nodeid)
        request.node.stash[TRACE] = trace
        if error is not None:
            raise error

    del waits.__dict__["__wrapped__"]  # else pytest would look for the fixtures of the test itself
    waits.kvi_waiting = test  # type: ignore[attr-defined]
    return waits


def _companions(request: pytest.FixtureRequest) -> dict[str, Callable[..., None]]:
    """All tests of the same file that wait side by side, bound to their classes, by node."""
    return {
        item.nodeid: functools.partial(item.function.kvi_waiting, item.instance)
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and hasattr(item.function, "kvi_waiting")
    }


def _run(tests: dict[str, Callable[..., None]], uri: str) -> dict[str, _Outcome]:
    outcomes: dict[str, _Outcome] = {}

    def run(node: str, test: Callable[..., None]) -> None:
        trace = Trace()
        try:
            _call(test, uri, re.sub(r"\W+", "-", node), trace)
        except BaseException as error:  # noqa: BLE001  (raised again by the test itself)
            outcomes[node] = _Outcome(error, trace)
        else:
            outcomes[node] = _Outcome(None, trace)

    threads = [
        threading.Thread(target=run, args=pair, name="waits", daemon=True) for pair in tests.items()
    ]
    for thread in threads:
        thread.start()
    end = time.monotonic() + LONGEST
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    late = AssertionError(f"did not end within {LONGEST:g} s")
    return {node: _Outcome(late, Trace()) for node in tests} | outcomes


def _call(test: Callable[..., None], uri: str, namespace: str, trace: Trace) -> None:
    @contextmanager
    def opened(name: str, **options: Any) -> Iterator[kvi.Kvi]:
        with kvi.open(uri, **options) as handle:
            yield trace.handle(handle.namespace(namespace), name)

    with ExitStack() as stack:
        wanted = inspect.signature(test).parameters
        given: dict[str, Any] = {
            name: stack.enter_context(opened(name)) for name in ("store", "peer") if name in wanted
        }
        if "reopen" in wanted:
            given["reopen"] = functools.partial(opened, "reopened")
        test(**given)
