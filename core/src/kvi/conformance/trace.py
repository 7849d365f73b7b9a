"""The history of a test: every call that it made on its handles, and what came back.

A failed test shows it, so that the reader sees the sequence that broke the rule, and not only the
two values that differ. `Trace.handle` wraps a handle; the leases, locks, temporary keys, watches,
views and ranges that come out of it are wrapped too. A wrapped object passes for what it wraps
(`isinstance` included), and any number of threads may use it. A call is written down when it
begins, in its place among the others, and completed when it returns; one that never did says so.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, cast
from weakref import WeakSet

import pytest

import kvi

FIRST, LAST = 20, 60
"""How many calls of a long history are shown: the first ones and the last ones."""

_TEXT = 60
"""How much of a long key, value or other argument is shown."""

_RECORDED = (kvi.Kvi, kvi.Lease, kvi.TempKey, kvi.Lock, kvi.Watch)
_STATES = {"alive", "held", "fence", "guard", "active"}
"""Properties whose value at that moment belongs to the history."""


TRACE = pytest.StashKey["Trace"]()
"""Where a test keeps its history."""


class _Line:
    __slots__ = ("began", "call", "ended", "result", "thread", "times")

    def __init__(self, call: str, began: float) -> None:
        self.call = call
        self.began = began
        self.ended: float | None = None
        self.result = "(had not returned)"
        self.thread = threading.current_thread()
        self.times = 1

    def repeats(self, other: _Line) -> bool:
        """Whether it is the same call once more, as one makes to wait for something."""
        return other.ended is not None and (self.call, self.result, self.thread) == (
            other.call,
            other.result,
            other.thread,
        )


_traces: WeakSet[Trace] = WeakSet()


def _after_fork_in_child() -> None:
    for trace in list(_traces):
        trace.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class Trace:
    """What was called, in the order in which the calls began."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._owner = threading.current_thread()
        self._first: list[_Line] = []
        self._last: deque[_Line] = deque(maxlen=LAST)
        self._left_out = 0
        self._names: Counter[str] = Counter()
        self._lock = threading.Lock()
        _traces.add(self)

    def forked(self) -> None:
        """In a child: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def handle(self, handle: kvi.Kvi, name: str) -> kvi.Kvi:
        """The handle, with every call on it written down under this name."""
        return cast("kvi.Kvi", _Traced(handle, name, self))

    def note(self, text: str, result: str = "") -> None:
        """Write down something else that happened."""
        line = self._begin(text)
        line.result, line.ended = result, line.began

    def __len__(self) -> int:
        return len(self._first) + self._left_out + len(self._last)

    def __str__(self) -> str:
        lines = [*self._first, *self._last]
        others = dict.fromkeys(line.thread for line in lines if line.thread is not self._owner)
        names = {thread: f"[{number}] " for number, thread in enumerate(others, 1)}
        shown = []
        for number, line in enumerate(lines):
            if number == len(self._first) and self._left_out:
                shown.append(f"          … {self._left_out} calls left out …")
            at = f"{line.began - self._began:8.3f}  "
            took = line.ended - line.began if line.ended is not None else 0
            result = f"  -> {line.result}" if line.result else ""
            late = f"  (after {took:.3f} s)" if took >= 0.05 else ""
            times = f"  ({line.times} times)" if line.times > 1 else ""
            shown.append(f"{at}{names.get(line.thread, '')}{line.call}{result}{late}{times}")
        return "\n".join(shown)

    def _begin(self, call: str) -> _Line:
        line = _Line(call, time.monotonic())
        with self._lock:
            if len(self._first) < FIRST:
                self._first.append(line)
            else:
                self._left_out += len(self._last) == LAST
                self._last.append(line)
        return line

    def _end(self, line: _Line, result: str) -> None:
        line.result, line.ended = result, time.monotonic()
        with self._lock:
            lines: list[_Line] | deque[_Line] = self._last or self._first
            if len(lines) > 1 and lines[-1] is line and line.repeats(lines[-2]):
                lines.pop()
                lines[-1].times += 1
                lines[-1].ended = lines[-1].began  # how long each took is not told

    def _name(self, kind: str) -> str:
        with self._lock:
            self._names[kind] += 1
            return f"{kind}{self._names[kind]}"


def plain(handle: kvi.Kvi) -> kvi.Kvi:
    """The handle itself, without a trace."""
    return cast("kvi.Kvi", _plain(handle))


class _Traced:
    """Passes for its target, and writes down what is called."""

    def __init__(self, target: Any, name: str, trace: Trace) -> None:
        self._traced_target = target
        self._traced_name = name
        self._traced_trace = trace

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._traced_target)

    def __getattr__(self, attribute: str) -> Any:
        call = f"{self._traced_name}.{attribute}"
        trace = self._traced_trace
        if attribute in _STATES:
            line = trace._begin(call)
            try:
                value = getattr(self._traced_target, attribute)
            except BaseException as error:
                trace._end(line, _error(error))
                raise
            trace._end(line, _text(value))
            return value
        value = getattr(self._traced_target, attribute)
        return _Recording(value, call, trace) if callable(value) else value

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute.startswith("_traced_"):
            object.__setattr__(self, attribute, value)
        else:
            setattr(self._traced_target, attribute, value)

    def __repr__(self) -> str:
        return repr(self._traced_target)

    def __enter__(self) -> Any:
        entered = _called(
            self._traced_target.__enter__, (), {}, f"with {self._traced_name}", self._traced_trace
        )
        return self if entered is self._traced_target or isinstance(entered, _Traced) else entered

    def __exit__(self, *error: Any) -> Any:
        call = f"end of with {self._traced_name}"
        return _called(self._traced_target.__exit__, error, {}, call, self._traced_trace, shown=())

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._traced_target, kvi.RangeResult):
            return self._entries()
        return self

    def __next__(self) -> Any:
        return _called(
            self._traced_target.__next__, (), {}, f"next({self._traced_name})", self._traced_trace
        )

    def _entries(self) -> Iterator[Any]:
        line = self._traced_trace._begin(f"iterate {self._traced_name}")
        seen: list[Any] = []
        count = 0
        try:
            for entry in self._traced_target:
                count += 1
                if len(seen) < 9:
                    seen.append((entry.key, entry.value))
                yield entry
        except BaseException as error:
            self._traced_trace._end(line, f"{_text(seen)} ({count}), then {_error(error)}")
            raise
        self._traced_trace._end(line, f"{_text(seen)} ({count})")


class _Recording:
    """A method that writes down its calls, and is shown by its name where pytest explains."""

    __slots__ = ("_call", "_method", "_trace")

    def __init__(self, method: Callable[..., Any], call: str, trace: Trace) -> None:
        self._method = method
        self._call = call
        self._trace = trace

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _called(self._method, args, options, self._call, self._trace)

    def __repr__(self) -> str:
        return self._call


def _called(
    method: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
    call: str,
    trace: Trace,
    shown: tuple[Any, ...] | None = None,
) -> Any:
    parts = [_text(arg) for arg in (args if shown is None else shown)]
    parts += [f"{name}={_text(value)}" for name, value in options.items()]
    line = trace._begin(f"{call}({', '.join(parts)})" if parts or "." in call else call)
    if callable(callback := options.get("callback")):
        options = {**options, "callback": _callback(callback, trace)}
    try:
        result = method(
            *map(_plain, args), **{name: _plain(value) for name, value in options.items()}
        )
    except BaseException as error:
        trace._end(line, _error(error))
        raise
    if result is getattr(method, "__self__", None):  # entered by with
        trace._end(line, "")
        return result
    if isinstance(result, kvi.RangeResult):
        name = trace._name("range")
    elif isinstance(result, _RECORDED) and not isinstance(result, _Traced):
        view = isinstance(result, kvi.Kvi)
        name = trace._name("view" if view else type(result).__name__.lower())
    else:
        trace._end(line, _text(result) if result is not None or "get(" in line.call else "")
        return result
    trace._end(line, name)
    return _Traced(result, name, trace)


def _callback(function: Callable[..., Any], trace: Trace) -> Callable[..., Any]:
    def called(event: Any, data: Any) -> Any:
        return _called(function, (event, data), {}, "callback", trace)

    return called


def _plain(value: Any) -> Any:
    return value._traced_target if type(value) is _Traced else value


def _text(value: Any) -> str:
    if type(value) is _Traced:
        return str(value._traced_name)
    if isinstance(value, kvi.KeyValue):
        lease = f", lease {value.lease}" if value.lease else ""
        pair = f"{_brief(value.key)}: {_brief(value.value)}"
        return f"{pair} (revision {value.revision}{lease})"
    if isinstance(value, kvi.Event):
        initial = ", initial" if value.initial else ""
        shown = "" if value.value is None else f" {_brief(value.value)}"
        return f"{value.type} {_brief(value.key)}{shown} (revision {value.revision}{initial})"
    if isinstance(value, kvi.Put | kvi.Get | kvi.Delete | kvi.Compare):
        return repr(value)[:120]
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        parts = [_text(part) for part in value[:8]]
        parts += [f"… {len(value)} in all"] if len(value) > 8 else []
        return f"[{', '.join(parts)}]"
    if isinstance(value, kvi.TxnResult):
        return f"{value.succeeded}, revision {value.revision}, {_text(value.results)}"
    return _brief(value)


def _brief(value: Any) -> str:
    if isinstance(value, str | bytes) and len(value) > _TEXT:
        return f"{value[: _TEXT - 20]!r}… ({len(value)} in all)"
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 2 * _TEXT else f"{text[:_TEXT]}…{text[-_TEXT // 2 :]}"


def _error(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")
