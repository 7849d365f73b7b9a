"""`Backend`: a store as a service uses it, with a prefix, retries, liveness and observation.

`kvi.flow.supervision` says what it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvi.clock import now
from kvi.driver.threads import ThreadSignal, is_main
from kvi.errors import Closed, KviError
from kvi.flow.scope import Scope
from kvi.flow.supervision import News, Supervision, below, deadline_of
from kvi.model import RangeResult
from kvi.ops import PingOp
from kvi.policy.lease import check_ttl
from kvi.policy.lock import check_wait
from kvi.policy.retry import RetryPolicy
from kvi.sync.kvi import Kvi
from kvi.sync.opening import open as open_store
from kvi.text import check_key, check_value


class LivenessChannel:
    """Whether a store is alive: its present state first, then every change, and now and then both.

    Holds the last 10 items; while it is full, the oldest goes for the newest, so that nobody who
    posts ever waits for who reads. Safe for threads; each item goes to one reader.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._news = News(scope)

    def get(self, timeout: float | None = None) -> bool:
        """Take the next item; waits for it, at most ``timeout`` seconds (``None``: without end).

        Raises `Timeout` if none came, `Closed` once the store is closed and all items are taken,
        `InvalidArgument` for a negative time-out.
        """
        main, lending = is_main(), self._news.lending
        try:
            wait = check_wait(timeout)
            if self._scope.primitives.forked:  # its lock may be held for ever
                raise self._scope.refusal()
            if main:
                lending.asked = True
            item = self._news.take(main=main)
            if item is None:
                item = self._await(wait, main)
            if main:
                lending.item = None
            return item
        except KviError as error:
            raise self._scope.placed(error, "liveness", None)
        finally:
            if main:
                lending.asked = False
                if lending.item is not None:  # who waits may have it
                    self._news.rouse()

    def __iter__(self) -> Iterator[bool]:
        """Items as they come, until the store is closed."""
        while True:
            try:
                yield self.get()
            except Closed:
                return

    def __len__(self) -> int:
        """How many items are waiting, at most 10."""
        return len(self._news)

    def _await(self, wait: float | None, main: bool) -> bool:
        news, deadline, signal = self._news, deadline_of(wait, now()), ThreadSignal()
        news.want(signal)
        try:
            return _found(news, deadline, signal, main)
        finally:
            news.unwant(signal)


def _found(news: News, deadline: float, signal: ThreadSignal, main: bool) -> bool:
    """Wait for the item. Apart, as in `kvi.sync.watch`."""
    while not isinstance(found := news.look(deadline, now(), main=main), bool):
        signal.wait_here(found)
    return found


class Backend(Kvi):
    """A store below a prefix, that tries again, knows whether it is alive, and can be observed.

    It is a `kvi.Kvi` over ``store``, with all that one can do. Safe for threads.

    ``store`` is a handle, which stays its owner's to close, or a URI, whose store is closed
    together with this one. ``path_prefix`` is put before every key, with a slash. ``timeout``
    (seconds) bounds every call that does not give its own. ``retry`` is the policy in force, and
    the only one: that of ``store`` does not count; ``None`` tries once. ``liveness_interval``
    (seconds) is how long an unchanged state goes unposted; see `enable_liveness_channel`.

    Raises what `kvi.open` does for a URI; `InvalidOption` for a prefix that is empty between its
    slashes or begins or ends with one; `InvalidArgument` for other values out of range.
    """

    def __init__(
        self,
        store: Kvi | str,
        path_prefix: str = "",
        timeout: float = 5,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008  (immutable)
        liveness_interval: float = 30.0,
    ) -> None:
        supervision = Supervision(path_prefix, timeout, retry, liveness_interval)
        inner = store if isinstance(store, Kvi) else open_store(store)
        self._owned = None if isinstance(store, Kvi) else inner
        try:
            scope, self._monitored, self._reservations = supervision.over(inner._scope)
        except KviError:
            if self._owned is not None:
                self._owned.close()
            raise
        self._channel = LivenessChannel(scope)
        super().__init__(scope)

    def close(self) -> None:
        """End the handle; see `Kvi.close`. Nothing is tried again from now on."""
        if self._owned is not None:
            self._owned.close()  # ends this one, too, and goes on to its end if it is interrupted
        else:
            super().close()

    # -- liveness ---------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the last operation found the store alive; false before the first.

        `Unavailable`, `Timeout` and `OutcomeUnknown` say that it is not; a result, or a refusal
        such as `PermissionDenied`, that it is. Calls that were refused here, such as `InvalidKey`,
        say nothing, nor does watching, but a watch that loses its connection does.
        """
        return self._monitored.alive

    def perform_liveness_check(self, timeout: float | None = None) -> bool:
        """Ask the store now, once and read-only, within ``timeout`` seconds; returns `alive`.

        Raises `Closed`, and `InvalidArgument` for a time-out out of range; else nothing.
        """
        try:
            self._ensure_open()
            self._seconds(timeout)
            try:
                self._do(PingOp(), timeout)
            except KviError:  # the answer is what it proves
                self._ensure_open()
            return self.alive
        except KviError as error:
            raise self._placed(error, "perform_liveness_check", None)

    def enable_liveness_channel(self) -> LivenessChannel:
        """Return the channel that tells whether the store is alive; the same one at each call.

        Its first item is the present state. A change is posted at once, the same state again when
        an operation finds it more than ``liveness_interval`` seconds after the last post. It holds
        10 items; when it is full the oldest goes, and no operation ever waits for its reader.
        """
        try:
            self._ensure_open()
            self._monitored.start(self._channel._news.post)
            return self._channel
        except KviError as error:
            raise self._placed(error, "enable_liveness_channel", None)

    # -- reading ----------------------------------------------------------------------------------

    def list(self, path: str = "", *, timeout: float | None = None) -> RangeResult:
        """Read the entries below ``path/``, in key order; without a path, all of them.

        The key ``path`` itself is not among them. Otherwise as `range`.
        """
        return self.range(prefix=below(path), timeout=timeout)

    # -- reservations -----------------------------------------------------------------------------

    def reserve(
        self, key: str, value: bytes | str, ttl: float, *, timeout: float | None = None
    ) -> bytes:
        """Reserve a key: store ``value`` under it for ``ttl`` seconds, if it is not there.

        Returns the value of whoever holds the key: ``value`` if that is this backend now, else what
        was found. Reserving what this backend holds already replaces value and ttl. Until the
        reservation ends (`renew_reservation`, `release_reservation`, `close`), what this backend
        stores under the key without a lease of its own vanishes with it; a `store` after it has
        ended raises `LeaseLost`, once.

        Raises `InvalidArgument` for a ttl out of range, as `lease` does. After `OutcomeUnknown` the
        key is not reserved; it may be there until the ttl has passed.
        """
        try:
            self._ensure_open()
            capabilities = self.capabilities
            key = check_key(key, capabilities.max_key)
            data = check_value(value, capabilities.max_value)
            seconds = self._seconds(timeout)
            asked, held = check_ttl(ttl, capabilities), self._reservations
            return self._drive(
                lambda port: held.reserve(port, key, data, asked, seconds),
                undo=lambda _: held.give_up(key),
                away=True,
            )
        except KviError as error:
            raise self._placed(error, "reserve", key)

    def renew_reservation(self, key: str, *, timeout: float | None = None) -> None:
        """Let the time of a reservation begin anew.

        Raises `NotHeld` if this backend has not reserved the key, `LeaseLost` (a `NotHeld`) if the
        reservation has ended meanwhile.
        """
        try:
            self._ensure_open()
            name, seconds, held = check_key(key, None), self._seconds(timeout), self._reservations
            self._drive(lambda port: held.renew(port, name, seconds))
        except KviError as error:
            raise self._placed(error, "renew_reservation", key)

    def release_reservation(self, key: str, *, timeout: float | None = None) -> None:
        """End a reservation, and delete its key. One that is not held is no error.

        If this raises, the key may be there until the ttl has passed.
        """
        try:
            self._ensure_open()
            name, seconds, held = check_key(key, None), self._seconds(timeout), self._reservations
            self._drive(lambda port: held.release(port, name, seconds), lasting=True)
        except KviError as error:
            raise self._placed(error, "release_reservation", key)

    def release_all_reservations(self, *, timeout: float | None = None) -> None:
        """End every reservation of this backend, as `release_reservation` does.

        All are tried; then the first error is raised.
        """
        try:
            self._ensure_open()
            seconds, held = self._seconds(timeout), self._reservations
            self._drive(lambda port: held.release_all(port, seconds), lasting=True)
        except KviError as error:
            raise self._placed(error, "release_all_reservations", None)
