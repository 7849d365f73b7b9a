"""Waiting: for a condition with a deadline, and for slow stores side by side.

Some rules can only be seen by waiting: a lease must run out, a crashed holder's lock be freed. On a
store whose shortest lease is ten seconds each of them takes twenty. So tests that are marked
`side_by_side` wait at once: the first of them that runs starts all of the file's, each in a thread
of its own, in a namespace of its own, with two handles; and every one then reports its own outcome.

A store may end a lease that its holder was too slow to renew, and a disk that pauses for a second
makes every holder slow. That is no fault of the store, and a test cannot ask for more time than the
rule gives. So beside the tests runs a control, which writes a key again and again. A test that asks
for a `brief` time and fails while the control was slow beside that time has shown nothing, and is
run again with a longer one; a failure while the control was prompt is the store's, at once.
"""

from __future__ import annotations

import functools
import inspect
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
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


def untimed(uri: str) -> str:
    """A store's URI without the time-out that it may name, for a handle that has another one."""
    where, mark, options = uri.partition("?")
    left = [one for one in options.split("&") if not one.startswith("timeout=")]
    return type(uri)(f"{where}{mark}{'&'.join(left)}" if any(left) else where)


def no_answer(error: object) -> bool:
    """Whether a call ended so because the store was slow or away: that breaks no rule.

    What will not pass is no such end, nor is a watch that told nothing.
    """
    return (
        isinstance(error, kvi.Timeout | kvi.Unavailable | kvi.OutcomeUnknown)
        and not (isinstance(error, kvi.Unavailable) and not error.passing)
        and error.operation != "next"
    )


BRIEF, LONGER, LIMIT = 0.5, 4, 16.0
"""Seconds that a brief time lasts at first, by how much it grows, and up to what length."""

PROMPT = 0.2
"""The part of a brief time within which the control must write for a failure to count."""

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

    The test may take `store` and `peer`, two handles on one namespace that is its own, `reopen`, a
    `Reopen` for a third (`with reopen(timeout=1) as store`), `looped`, the same for `kvi.aio`
    (`async with looped() as store`), and `brief`: seconds which the store grants a lease for, and
    in which a few calls fit.
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


class _Control:
    """Writes a key again and again, to know how promptly the store answers at that time."""

    def __init__(self, uri: str) -> None:
        self.shortest = 0.0
        """The shortest lease that the store grants."""
        self._uri = uri
        self._slow: list[tuple[float, float]] = []  # when it ended, and how long it took
        self._asked = time.monotonic()
        self._over = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._write, name="control", daemon=True)

    def __enter__(self) -> _Control:
        self._thread.start()
        self._ready.wait(WITHIN)
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(WITHIN)

    def slowest(self, since: float) -> float:
        """Seconds that the slowest write took that ended since then, or has not ended."""
        return max([time.monotonic() - self._asked, *(s for end, s in self._slow if end >= since)])

    def _write(self) -> None:
        pause = BRIEF * PROMPT / 2
        with kvi.open(self._uri) as handle:
            self.shortest = handle.capabilities.lease_min_ttl
            store = handle.namespace("control")
            while not self._over.is_set():
                self._asked = time.monotonic()
                self._ready.set()
                with suppress(kvi.KviError):  # how the store fails is for the tests to tell
                    store.store("beat", b"")
                self._over.wait(pause)
                end = time.monotonic()
                self._slow.append((end, end - self._asked - pause))


def _run(tests: dict[str, Callable[..., None]], uri: str) -> dict[str, _Outcome]:
    outcomes: dict[str, _Outcome] = {}

    def run(node: str, test: Callable[..., None]) -> None:
        outcomes[node] = _patiently(test, uri, re.sub(r"\W+", "-", node), control)

    threads = [
        threading.Thread(target=run, args=pair, name="waits", daemon=True) for pair in tests.items()
    ]
    with _Control(uri) as control:
        for thread in threads:
            thread.start()
        end = time.monotonic() + LONGEST
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))
    late = AssertionError(f"did not end within {LONGEST:g} s")
    return {node: _Outcome(late, Trace()) for node in tests} | outcomes


def _patiently(test: Callable[..., None], uri: str, namespace: str, control: _Control) -> _Outcome:
    """Run a test; again with a longer `brief` where the machine was too slow to show anything."""
    brief = max(BRIEF, control.shortest)
    while True:
        began, trace = time.monotonic(), Trace()
        try:
            _call(test, uri, f"{namespace}-{brief:g}", brief, trace)
        except BaseException as error:  # noqa: BLE001  (raised again by the test itself)
            longest = "brief" not in inspect.signature(test).parameters or brief * LONGER > LIMIT
            if longest or control.slowest(began) < brief * PROMPT:
                return _Outcome(error, trace)
            brief *= LONGER
        else:
            return _Outcome(None, trace)


def _call(test: Callable[..., None], uri: str, namespace: str, brief: float, trace: Trace) -> None:
    @contextmanager
    def opened(name: str, **options: Any) -> Iterator[kvi.Kvi]:
        with kvi.open(untimed(uri) if "timeout" in options else uri, **options) as handle:
            yield trace.handle(handle.namespace(namespace), name)

    with ExitStack() as stack:
        wanted = inspect.signature(test).parameters
        given: dict[str, Any] = {
            name: stack.enter_context(opened(name)) for name in ("store", "peer") if name in wanted
        }
        if "looped" in wanted:
            given["looped"] = functools.partial(_looped, uri, namespace)
        if "reopen" in wanted:
            given["reopen"] = functools.partial(opened, "reopened")
        if "brief" in wanted:
            given["brief"] = brief
        test(**given)


@asynccontextmanager
async def _looped(uri: str, namespace: str, **options: Any) -> AsyncIterator[kvi.aio.AsyncKvi]:
    async with kvi.aio.open(untimed(uri) if "timeout" in options else uri, **options) as handle:
        yield handle.namespace(namespace)
