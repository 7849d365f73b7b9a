"""Every error that kvi raises.

::

    KviError
    ├── InvalidArgument (ValueError)      the call itself is wrong; nothing was sent
    │   ├── InvalidKey
    │   ├── InvalidOption                 in the URI or an option of ``open``
    │   └── ValueTooLarge
    ├── UnknownBackend                    no plugin for this scheme is installed
    ├── AmbiguousBackend                  two distributions claim the scheme
    ├── BackendLoadError                  the plugin is there and cannot be used
    ├── NotSupported                      the store's capabilities deny it
    ├── AuthenticationFailed              who you are was refused
    ├── PermissionDenied                  what you asked was refused
    ├── Unavailable                       surely not applied: no answer could be had
    ├── Timeout                           surely not applied: no answer in time
    ├── OutcomeUnknown                    a write that may have applied, or may still apply
    ├── Contention                        others kept changing what was read; nothing applied
    ├── Conflict                          others changed what a change was based on; nothing applied
    ├── BadRecord                         what is stored is no record of the expected kind
    ├── NotFound (LookupError)            the entity is not there
    ├── Compacted                         the revision is gone from the store's history
    ├── LockTimeout                       others held the lock until the time was up
    ├── BrokenBarrier                     a party of the barrier was lost while others waited
    ├── AlreadyHeld                       who asks holds the lock already, or waits for it
    ├── NotHeld                           this `Lock` or `Handle` does not hold the lock
    │   └── LeaseLost                     the lease is gone, and what was bound to it
    └── Closed
        └── UsedAfterFork                 a parent process's handle, used in the child

The question that a caller asks after a failed write is *may it have happened?*  Only
:class:`OutcomeUnknown`, and :class:`Closed` when the handle was closed while the write was under
way, leave that open; every other error says that the store is as it was.

Whether the same call may succeed in a moment is ``passing``: true for :class:`Timeout`,
:class:`Contention` and an :class:`Unavailable` whose cause may go by itself. What `kvi.RetryPolicy`
does follows from both answers.

Native exceptions never leak: each plugin translates them in one place and chains the original as
``__cause__``.
"""

from __future__ import annotations

from typing import Any, Self, TypeGuard

__all__ = [
    "AlreadyHeld",
    "AmbiguousBackend",
    "AuthenticationFailed",
    "BackendLoadError",
    "BadRecord",
    "BrokenBarrier",
    "Closed",
    "Compacted",
    "Conflict",
    "Contention",
    "InvalidArgument",
    "InvalidKey",
    "InvalidOption",
    "KviError",
    "LeaseLost",
    "LockTimeout",
    "NotFound",
    "NotHeld",
    "NotSupported",
    "OutcomeUnknown",
    "PermissionDenied",
    "Timeout",
    "Unavailable",
    "UnknownBackend",
    "UsedAfterFork",
    "ValueTooLarge",
    "WrongLoop",
]

_SHOWN_KEY = (
    80  # characters of a key in a message: enough to recognise, short enough for a log line
)


class KviError(Exception):
    """The root of all errors of kvi.

    Attributes:
        message: what went wrong and how to mend it, without the context below.
        operation: the method that was called (``"get"``), or ``None`` outside of one.
        key: the key concerned, as the caller wrote it, or ``None``.
        uri: the store, with secrets replaced by ``***``, or ``None``.
        passing: whether the cause may go by itself, so that the same call may succeed soon.

    Errors pickle, so that they cross process pools; the chained native error does not travel.

    """

    passing: bool = False

    def __init__(
        self,
        message: str,
        *,
        operation: str | None = None,
        key: str | None = None,
        uri: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.operation = operation
        self.key = key if isinstance(key, str) else None
        self.uri = uri

    def located(self, operation: str, key: object, uri: str) -> Self:
        """Fill in where the error happened, unless a layer nearer to the fault already did."""
        if self.operation is None:
            self.operation = operation
        if self.key is None and isinstance(key, str):
            self.key = key
        if self.uri is None:
            self.uri = uri
        return self

    def __str__(self) -> str:
        where = [part for part in (self.operation, _shorten(self.key), self.uri) if part]
        return f"{self.message} [{' '.join(where)}]" if where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.operation, self.key, self.uri)


def shown(given: object) -> str:
    """``given`` as text for a message: its repr, cut short, whatever it is."""
    try:
        text = repr(given)
    except Exception:  # noqa: BLE001  (a caller's object, or an integer too long to print)
        text = f"this {type(given).__name__}"
    return text if len(text) <= _SHOWN_KEY else text[:_SHOWN_KEY] + "…"


def is_whole(given: object) -> TypeGuard[int]:
    """Whether ``given`` is a whole number; Python's truth values are none."""
    return isinstance(given, int) and not isinstance(given, bool)


def is_number(given: object) -> TypeGuard[float]:
    """Whether ``given`` is a number, whole or not; it may be infinite, or NaN."""
    return isinstance(given, (int, float)) and not isinstance(given, bool)


def _shorten(key: str | None) -> str:
    if key is None:
        return ""
    return repr(key if len(key) <= _SHOWN_KEY else key[:_SHOWN_KEY] + "…")


def _rebuild(
    cls: type[KviError], message: str, operation: str | None, key: str | None, uri: str | None
) -> KviError:
    return cls(message, operation=operation, key=key, uri=uri)


class InvalidArgument(KviError, ValueError):
    """An argument is outside of what the call takes; nothing was sent."""


class InvalidKey(InvalidArgument):
    """A key is empty, not text, not encodable as UTF-8, or longer than the store takes."""


class InvalidOption(InvalidArgument):
    """A URI or an option of ``open`` is unknown, malformed or out of range."""


class ValueTooLarge(InvalidArgument):
    """A value, or a whole transaction, is larger than the store takes; nothing was sent."""


class UnknownBackend(KviError):
    """No installed plugin answers to the scheme of the URI."""


class AmbiguousBackend(KviError):
    """Two installed distributions claim the same scheme."""


class BackendLoadError(KviError):
    """The plugin of the scheme failed to import, or was built for another kvi."""


class NotSupported(KviError):
    """The store cannot do this, as its ``capabilities`` say; nothing was sent."""


class AuthenticationFailed(KviError):
    """The store refused the user, the password, the token or the certificate."""


class PermissionDenied(KviError):
    """The store knows who asks and refuses this operation."""


class Unavailable(KviError):
    """The store could not be reached or cannot serve; the operation surely did not apply.

    ``passing`` is false where somebody has to mend it first: a damaged file, a full disk, an
    address where something else answers.
    """

    passing = True

    def __init__(
        self,
        message: str,
        *,
        passing: bool = True,
        operation: str | None = None,
        key: str | None = None,
        uri: str | None = None,
    ) -> None:
        super().__init__(message, operation=operation, key=key, uri=uri)
        if not passing:
            self.passing = False

    def __reduce__(self) -> tuple[Any, ...]:
        made = super().__reduce__()
        return made if self.passing else (*made, {"passing": False})


class Timeout(KviError):
    """No answer within the time-out; the operation surely did not apply."""

    passing = True


class OutcomeUnknown(KviError):
    """A write was sent and its fate is unknown: it may have applied, or may still apply.

    Reading the old value back proves nothing, the write may still be on its way.
    """


class Contention(KviError):
    """Others kept changing what the transaction had read until its time was up; nothing applied."""

    passing = True


class Conflict(KviError):
    """Somebody else changed an entity since it was read; nothing was applied.

    What was read is read anew already: look at it again, and change that.

    Attributes:
        keys: of the entities that are not as they were.

    """

    def __init__(
        self,
        message: str,
        *,
        keys: tuple[str, ...] = (),
        operation: str | None = None,
        key: str | None = None,
        uri: str | None = None,
    ) -> None:
        super().__init__(message, operation=operation, key=key, uri=uri)
        self.keys = keys

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), {"keys": self.keys})


class BadRecord(KviError):
    """What is stored under the key is no record of the expected kind; its cause is chained."""


class NotFound(KviError, LookupError):
    """The entity is not there, or no longer."""


class Compacted(KviError):
    """The revision asked for is no longer in the store's history."""


class LockTimeout(KviError):
    """Others held the lock until the time was up; nothing of the attempt is left behind."""


class BrokenBarrier(KviError):
    """A party of the barrier was lost while others waited; nobody of them has passed."""


class AlreadyHeld(KviError):
    """The `Lock` object, or for an entity the thread, holds the lock already, or waits for it.

    Locks are not re-entrant.
    """


class NotHeld(KviError):
    """The `Lock` object or the `Handle` does not hold the lock; nothing was touched."""


class LeaseLost(NotHeld):
    """The lease is gone, and with it the keys and the lock that it held.

    A write that names a lost lease has written nothing.
    """


class Closed(KviError):
    """The handle was closed. A write that was under way at that moment may have applied."""


class UsedAfterFork(Closed):
    """The handle belongs to the parent process; open a new one in the child."""


class WrongLoop(KviError):
    """An asyncio handle belongs to the event loop of its first use, and this is another one."""
