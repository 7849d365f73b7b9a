"""An ASGI app with which an orchestrator or a load balancer asks whether a program is well.

``/livez`` says that the process can answer, and never asks the store: a store that is away is no
reason to kill every program that uses it. ``/readyz`` asks the store whether it answers now.

=======================  =====  ===================================================================
request                  code   body
=======================  =====  ===================================================================
``/livez``               200    ``{"status": "ok"}``
``/readyz``, it answers  200    ``{"status": "ok", "store": …, "age": …, "took": …}``
``/readyz``, it fails    503    the same with ``"status": "unavailable"``, ``"error"`` (a class) and
                                ``"message"``
another path             404
another method           405    for ``GET`` and ``HEAD`` are all that there is
=======================  =====  ===================================================================

*Any number of probes are one question.* At most one ping is under way; who asks meanwhile waits for
its answer, and who asks within ``keep`` seconds after it began gets the same. So a storm of probes
is no load on the store.

*The loop never waits.* A handle of `kvi` is asked on a thread, one of `kvi.aio` in the loop. A ping
has a time-out; one that does not come back even so is waited for no longer, and said so, and no
other is sent until it does. A probe that is cancelled leaves the ping to the others.

*No secrets.* The store's URI and kvi's errors have none; of any other error only the class is told.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from kvi.clock import now
from kvi.errors import InvalidArgument, KviError, is_number, shown
from kvi.options import check_timeout
from kvi.sync.kvi import Kvi

if TYPE_CHECKING:
    from kvi.aio.kvi import AsyncKvi

__all__ = ["Health", "health"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_GRACE = 0.5  # seconds that an answer may come after the ping's time-out
_PATHS = ("/livez", "/readyz")


class _Answer(NamedTuple):
    """What a ping has shown: when it began, how long it took, and how it failed."""

    began: float
    took: float
    error: BaseException | None


class Health:
    """The app; made by `health`. It belongs to no loop: each loop that serves it has its own ping.

    Safe for any number of requests, of tasks and threads.
    """

    def __init__(self, store: Kvi | AsyncKvi, timeout: float, keep: float) -> None:
        self._store = store
        self._timeout = timeout
        self._keep = keep
        self._asking: tuple[asyncio.AbstractEventLoop, float, asyncio.Future[_Answer]] | None = None
        self._answer: _Answer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI 3 has it."""
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, send)
        elif kind == "lifespan":
            await _live(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise NotImplementedError(f"no health app serves {kind!r}")

    async def _serve(self, scope: Scope, send: Send) -> None:
        method, path = scope["method"], _path_of(scope)
        headers = {}
        if path not in _PATHS:
            status, body = 404, {"status": "not found", "paths": list(_PATHS)}
        elif method not in ("GET", "HEAD"):
            status, body = 405, {"status": "method not allowed"}
            headers["allow"] = "GET, HEAD"
        elif path == "/livez":
            status, body = 200, {"status": "ok"}
        else:
            status, body = await self._ready()
        data = json.dumps(body).encode() + b"\n"
        headers |= {
            "content-type": "application/json",
            "content-length": str(len(data)),
            "cache-control": "no-store",
        }
        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else data})

    async def _ready(self) -> tuple[int, dict[str, Any]]:
        found = await self._ask()
        told: dict[str, Any] = {"status": "ok", "store": self._store.uri}
        if isinstance(found, _Answer):
            error = found.error
            told["age"], told["took"] = round(now() - found.began, 3), round(found.took, 3)
            if error is None:
                return 200, told
            told["error"] = type(error).__name__
            if isinstance(error, KviError):
                told["message"] = error.message
        else:
            told["age"], told["error"] = round(found, 3), "Timeout"
            told["message"] = "the ping has not come back, long after its time-out"
        return 503, told | {"status": "unavailable"}

    async def _ask(self) -> _Answer | float:
        """The last answer if it is fresh, else the next; or for how long it has not come."""
        answer = self._answer
        if answer is not None and now() - answer.began < self._keep:
            return answer
        loop = asyncio.get_running_loop()
        asking = self._asking
        if asking is None or asking[0] is not loop or asking[2].done():
            ping: asyncio.Future[_Answer] = loop.create_task(self._ping())
            asking = self._asking = (loop, now(), ping)
        _, began, ping = asking
        left = began + self._timeout + _GRACE - now()
        if left > 0:
            await asyncio.wait([ping], timeout=left)  # which cancels nothing
        return ping.result() if ping.done() else now() - began

    async def _ping(self) -> _Answer:
        began, error = now(), None
        store, timeout = self._store, self._timeout
        try:
            if isinstance(store, Kvi):
                await _on_a_thread(lambda: store.ping(timeout=timeout))
            else:
                await store.ping(timeout=timeout)
        except Exception as failure:  # noqa: BLE001  (whatever it is, the probe has to be told)
            error = failure.with_traceback(None)
        self._answer = answer = _Answer(began, now() - began, error)
        return answer


def health(store: Kvi | AsyncKvi, *, timeout: float = 1.0, keep: float = 1.0) -> Health:
    """An ASGI app with ``/livez`` and ``/readyz`` for a program that uses ``store``.

    ``store`` is a handle, a view or a backend, of `kvi` or `kvi.aio`; it stays yours, and one of
    `kvi.aio` has to belong to the loop that serves the app. ``timeout`` (seconds) bounds the
    question to the store; let it be shorter than the probe's own. ``keep`` (seconds, 0 or more) is
    how long an answer serves other probes. Serve it on its own, or mount it in another app: below
    ``/health``, its paths are ``/health/livez`` and ``/health/readyz``.

    Raises `InvalidArgument` for what is no handle, and values out of range.
    """
    if not isinstance(store, Kvi):
        from kvi.aio.kvi import AsyncKvi  # whoever has one has imported it

        if not isinstance(store, AsyncKvi):
            raise InvalidArgument(f"health() takes a handle of kvi or kvi.aio, not {shown(store)}")
    if not is_number(keep) or not 0 <= keep < inf:
        raise InvalidArgument(f"keep= is a number of seconds, 0 or more, not {shown(keep)}")
    return Health(store, check_timeout(timeout), float(keep))


def _path_of(scope: Scope) -> str:
    """The path below where the app is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


async def _live(receive: Receive, send: Send) -> None:
    """The lifespan protocol: there is nothing to begin, and nothing to end."""
    while True:
        asked = (await receive())["type"]
        await send({"type": f"{asked}.complete"})
        if asked == "lifespan.shutdown":
            return


async def _on_a_thread(call: Callable[[], None]) -> None:
    """Run it on a thread of its own: the loop's pool may be full of what waits for the store."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():  # the loop is ending
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as failure:  # noqa: BLE001  (it belongs to whoever waits)
            error = failure
        try:
            loop.call_soon_threadsafe(tell, error)
        except RuntimeError:  # the loop is closed: nobody waits
            return

    threading.Thread(target=run, name="kvi-health", daemon=True).start()
    await done
