"""What makes a `Backend` of a store: its middleware, and the channel that tells of its liveness.

The middleware in this order, each of which stands alone::

    the face         arguments, errors and the caller's own keys
      Reservations   what is stored under a reserved key keeps its lease
      Monitored      is the store alive?         (kvi.middleware.liveness)
      Observed       metrics and traces          (kvi.middleware.observe)
      Retrying       what failed is tried again  (kvi.middleware.retry)
      Prefixed       the path prefix             (kvi.middleware.namespace)
        the store

Liveness is outermost, so that a fault that a retry bridges is none; observation sees how many tries
it took.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from math import inf

from kvi.errors import Closed, InvalidArgument, Timeout, shown
from kvi.flow.lending import Lending
from kvi.flow.reservation import Reservations
from kvi.flow.scope import Scope
from kvi.middleware.liveness import Monitored
from kvi.middleware.namespace import check_name
from kvi.middleware.observe import Observed
from kvi.middleware.read_only import ReadOnly
from kvi.middleware.retry import Retrying
from kvi.mutex import Mutex
from kvi.options import check_timeout
from kvi.policy.retry import RetryPolicy
from kvi.port import Signal

SIZE = 10  # items of a channel
_ONCE = RetryPolicy(max_attempts=1)


class Supervision:
    """How a store is supervised: checked arguments of a `Backend`.

    Raises `InvalidArgument`, or `InvalidOption` for the prefix.
    """

    def __init__(
        self, path_prefix: str, timeout: float, retry: RetryPolicy | None, interval: float
    ) -> None:
        self.timeout, self.interval = check_timeout(timeout), _check_interval(interval)
        if retry is not None and not isinstance(retry, RetryPolicy):
            raise InvalidArgument(f"retry= is a RetryPolicy or None, not {shown(retry)}")
        self.policy = _ONCE if retry is None else retry
        if not isinstance(path_prefix, str):
            raise InvalidArgument(f"path_prefix= is text, not {shown(path_prefix)}")
        if path_prefix:
            check_name(path_prefix)
        self.prefix = path_prefix or None

    def over(self, outer: Scope) -> tuple[Scope, Monitored, Reservations]:
        """A scope within ``outer``, and who knows of its liveness and reservations."""
        scope = outer.view(self.prefix)
        scope.timeout = self.timeout
        executor = Retrying(scope.executor, self.policy, scope.uri, lambda: scope.closed)
        observed = Observed(executor, scope.uri)
        monitored = Monitored(observed, self.interval, lambda: scope.closed)
        scope.executor = monitored
        if scope.read_only:
            scope.executor = ReadOnly(monitored)  # a refusal proves nothing of the store
        scope.executor = reservations = Reservations(scope)
        scope.reserving = reservations.lease_of
        scope.primitives._listen(monitored.failed)
        return scope, monitored, reservations


class News:
    """What a liveness channel holds: the last `SIZE` items, and who waits. Safe for threads.

    It hangs on its scope while somebody waits, so that closing the store below wakes them.

    Attributes:
        scope: that of the `Backend`.
        lending: the item on its way to the main thread.

    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._lock = Mutex()
        self._items: deque[bool] = deque(maxlen=SIZE)
        self._readers: list[Signal] = []
        self.lending: Lending[bool] = Lending()

    def __len__(self) -> int:
        return len(self._items)

    def post(self, alive: bool) -> None:
        """Tell; the oldest item goes if it is full. Never waits."""
        with self._lock:
            self._items.append(alive)
        self.rouse()

    def take(self, *, main: bool) -> bool | None:
        """The next item, if there is one; lent to the main thread."""
        with self._lock:
            item = self.lending.left(main=main)
            if item is None and self._items:
                item = self._items[0]
                del self._items[0]
            if main:
                self.lending.item = item
            return item

    def look(self, deadline: float, moment: float, *, main: bool) -> bool | float:
        """The next item, or how many seconds to wait; raises `Closed` or `Timeout`."""
        item = self.take(main=main)
        if item is not None:
            return item
        left = deadline - moment
        if self.scope.closed:
            raise Closed("the store of this channel is closed")
        if left <= 0:
            raise Timeout("no news of the store's liveness in time")
        return left

    def want(self, signal: Signal) -> None:
        """Set ``signal`` when it is time to look; `unwant` undoes it."""
        self._readers.append(signal)
        self._hang()

    def unwant(self, signal: Signal) -> None:
        """Undo `want`."""
        self._readers.remove(signal)
        if not self._readers:
            self.scope.ledger.discard(self)
            if self._readers:  # somebody came meanwhile
                self._hang()
        self.rouse()  # an item may have come for this one

    def shut(self) -> None:
        """The store is closed: let all who wait look."""
        self.rouse()

    def _hang(self) -> None:
        with suppress(Closed):  # which the next look tells
            self.scope.ledger.add(self)

    def rouse(self) -> None:
        """Let all who wait look."""
        for signal in list(self._readers):
            signal.set()


def below(path: str) -> str:
    """The prefix of the keys below ``path/``; of all, without a path."""
    return path if not isinstance(path, str) or not path or path[-1] == "/" else path + "/"


def deadline_of(wait: float | None, moment: float) -> float:
    """When a wait that begins now is over."""
    return inf if wait is None else moment + wait


def _check_interval(interval: object) -> float:
    try:
        return check_timeout(interval)
    except InvalidArgument:
        raise InvalidArgument(
            "liveness_interval= is a number of seconds above 0, at most a year, "
            f"not {shown(interval)}"
        ) from None
