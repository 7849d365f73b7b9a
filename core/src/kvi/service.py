"""`Backend`: a store as a service uses it, with a prefix, retries, liveness and observation.

It is a chain of wrappers, each of which stands alone and can be had alone::

    Backend          reservations; arguments, errors and the caller's own keys
      Monitored      is the store alive?         (kvi.backend.liveness)
        Observed     metrics and traces          (kvi.backend.observe)
          Retrying   what failed is tried again  (kvi.backend.retry)
            Namespace    the path prefix         (kvi.backend.namespace)
              the store

Liveness is outermost, so that a fault that a retry bridges is none; observation sees how many tries
it took.
"""

from __future__ import annotations

from kvi.backend.forwarding import Forwarding
from kvi.backend.liveness import LivenessChannel, Monitored
from kvi.backend.namespace import Namespace, check_name
from kvi.backend.observe import Observed
from kvi.backend.retry import Retrying
from kvi.errors import InvalidArgument, KviError, LeaseLost, shown
from kvi.interface import Kvi
from kvi.model import Operation, Put, RangeResult, Txn, TxnResult
from kvi.options import check_timeout
from kvi.policy.lease import check_ttl
from kvi.policy.retry import RetryPolicy
from kvi.policy.text import check_key, check_value
from kvi.recipes.reservation import Reservations
from kvi.registry import open as open_store

__all__ = ["Backend"]

_ONCE = RetryPolicy(max_attempts=1)


class Backend(Forwarding):
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
        seconds, interval = check_timeout(timeout), _check_interval(liveness_interval)
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise InvalidArgument(f"retry= is a RetryPolicy or None, not {shown(retry)}")
        if not isinstance(path_prefix, str):
            raise InvalidArgument(f"path_prefix= is text, not {shown(path_prefix)}")
        if path_prefix:
            check_name(path_prefix)
        owns = not isinstance(store, Kvi)
        chain = store if isinstance(store, Kvi) else open_store(store)
        try:
            if path_prefix:
                chain, owns = Namespace(chain, path_prefix, owns=owns), True
            retrying = Retrying(chain, _ONCE if retry is None else retry, owns=owns)
            monitored = Monitored(Observed(retrying, owns=True), interval, owns=True)
        except KviError:
            if owns:
                chain.close()
            raise
        super().__init__(monitored, owns=True)
        self._timeout = seconds
        self._monitored = monitored
        self._retrying = retrying
        self._reservations = Reservations(self)

    def close(self) -> None:
        """End the handle; see `Kvi.close`. Nothing is tried again from now on."""
        self._retrying.stop()
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
            seconds = self._seconds(timeout)
            try:
                self._ping(seconds)
            except InvalidArgument:
                raise
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
            return self._monitored.enable_channel()
        except KviError as error:
            raise self._placed(error, "enable_liveness_channel", None)

    # -- reading ----------------------------------------------------------------------------------

    def list(self, path: str = "", *, timeout: float | None = None) -> RangeResult:
        """Read the entries below ``path/``, in key order; without a path, all of them.

        The key ``path`` itself is not among them. Otherwise as `range`.
        """
        below = path if not isinstance(path, str) or not path or path[-1] == "/" else path + "/"
        return self.range(prefix=below, timeout=timeout)

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
            return self._reservations.reserve(key, data, check_ttl(ttl, capabilities), seconds)
        except KviError as error:
            raise self._placed(error, "reserve", key)

    def renew_reservation(self, key: str, *, timeout: float | None = None) -> None:
        """Let the time of a reservation begin anew.

        Raises `NotHeld` if this backend has not reserved the key, `LeaseLost` (a `NotHeld`) if the
        reservation has ended meanwhile.
        """
        try:
            self._ensure_open()
            self._reservations.renew(check_key(key, None), self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "renew_reservation", key)

    def release_reservation(self, key: str, *, timeout: float | None = None) -> None:
        """End a reservation, and delete its key. One that is not held is no error.

        If this raises, the key may be there until the ttl has passed.
        """
        try:
            self._ensure_open()
            self._reservations.release(check_key(key, None), self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "release_reservation", key)

    def release_all_reservations(self, *, timeout: float | None = None) -> None:
        """End every reservation of this backend, as `release_reservation` does.

        All are tried; then the first error is raised.
        """
        try:
            self._ensure_open()
            self._reservations.release_all(self._seconds(timeout))
        except KviError as error:
            raise self._placed(error, "release_all_reservations", None)

    def _put(self, key: str, value: bytes, lease: int | None, timeout: float) -> int:
        if lease is not None or not self._reservations:
            return self._inner._put(key, value, lease, timeout)
        kept = self._reservations.lease_of(key)
        try:
            return self._inner._put(key, value, kept, timeout)
        except LeaseLost:
            self._reservations.lost(key)
            raise

    def _txn(self, txn: Txn, timeout: float) -> TxnResult:
        if not self._reservations:
            return self._inner._txn(txn, timeout)
        kept = Txn(
            txn.when,
            tuple(map(self._reserved, txn.then)),
            tuple(map(self._reserved, txn.otherwise)),
            txn.operation,
        )
        try:
            return self._inner._txn(kept, timeout)
        except LeaseLost:
            put = {op.key for op in (*kept.then, *kept.otherwise) if isinstance(op, Put)}
            self._reservations.check(put, timeout)
            raise

    def _reserved(self, operation: Operation) -> Operation:
        if isinstance(operation, Put) and operation.lease is None:
            return Put(operation.key, operation.value, self._reservations.lease_of(operation.key))
        return operation


def _check_interval(interval: object) -> float:
    try:
        return check_timeout(interval)
    except InvalidArgument:
        raise InvalidArgument(
            "liveness_interval= is a number of seconds above 0, at most a year, "
            f"not {shown(interval)}"
        ) from None
