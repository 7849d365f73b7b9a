"""Where a call goes on that failed at one of several endpoints: decided without I/O or clock.

*Theory.* What happened at an endpoint is a verdict about that endpoint, until the store itself has
spoken. So a call goes round the endpoints, once, and only when all are through is it the store that
could not be had. What is never done is to send twice what may have been done.

======================  ==========================================  ==============================
what happened           next, while there is another endpoint       next, at the last one
======================  ==========================================  ==============================
``UNREACHED``           the next endpoint                           raise: not applied
``REFUSED``             the next endpoint                           raise: not applied
``SILENT``, not sent    the next endpoint, on a new channel here    raise: not applied; new channel
``SILENT``, a read      the next endpoint, on a new channel here    raise: not applied; new channel
``SILENT``, a write     raise: unknown; the next call begins at     raise: unknown; new channel
                        the next endpoint
``LOST``, not sent      the next endpoint                           raise: not applied
``LOST``, sent          raise: unknown                              raise: unknown
``LOGIN_ENDED``         log in, here, `LOGINS` times an endpoint;   the same, then raise: final
                        then the next endpoint
``LOGIN_OLD``           log in, here, until the time is up          the same
``LOGIN_REFUSED``       the next endpoint                           raise: final
``LOGIN_WAITING``       raise: not applied; the next call waits on  the same
``FINAL``               raise: final                                raise: final
======================  ==========================================  ==============================

*Sent* is what the channel knows: a request that went to an endpoint which had not answered anything
on its connection is asked about first, with a question that changes nothing (`Failover.sent`).

*Time.* A question, and a read, wait at each endpoint for their share of what is left; a write, and
a login, at an endpoint that has answered, have all of it. Callers of little patience (`PATIENCE`)
are no proof against an endpoint: for them silence is silence, and nothing is left or replaced.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

SILENCE = 2.0  # seconds that one endpoint may be silent, if there is another
PATIENCE = 0.5  # seconds; calls that have less never leave an endpoint for its silence
LOGINS = 2  # for one endpoint: a second one, for the first may have met its restart


class Happened(enum.Enum):
    """What became of a try; see the module's table."""

    UNREACHED = enum.auto()  # no connection: nothing left this process
    REFUSED = enum.auto()  # this endpoint said no before it did anything
    SILENT = enum.auto()  # the time was up without an answer
    LOST = enum.auto()  # the connection, or the answer
    LOGIN_ENDED = enum.auto()  # the login is not known any more; nothing was done
    LOGIN_OLD = enum.auto()  # the users were changed since the login; nothing was done
    LOGIN_REFUSED = enum.auto()  # the endpoint does not take the credentials
    LOGIN_WAITING = enum.auto()  # the login goes on, and the caller's time is up
    FINAL = enum.auto()  # the store said no


class Step(enum.Enum):
    """What to do next."""

    NEXT = enum.auto()  # send it to the next endpoint
    LOGIN = enum.auto()  # log in anew, and send it here
    UNSENT = enum.auto()  # raise: surely not applied
    UNKNOWN = enum.auto()  # raise: it may have applied
    FINAL = enum.auto()  # raise what was said


class Decision(NamedTuple):
    """What to do next, and with the endpoint that was tried.

    Attributes:
        step: what to do.
        replace: close the channel of the endpoint, and make a new one.
        leave: later calls begin at the next endpoint.

    """

    step: Step
    replace: bool = False
    leave: bool = False


class Failover:
    """The way of one call round the endpoints.

    Attributes:
        sent: the request may have left on a connection that stands; set by who sends it.

    """

    __slots__ = ("_deadline", "_login", "_logins", "_others", "_patient", "_write", "sent")

    def __init__(
        self,
        endpoints: int,
        *,
        write: bool,
        login: bool,
        timeout: float,
        deadline: float,
        sent: bool = False,
    ) -> None:
        """``login``: there are credentials; ``sent``: a first try was sent already."""
        self._others = endpoints - 1
        self._write = write
        self._login = login
        self._logins = LOGINS
        self._patient = timeout >= PATIENCE
        self._deadline = deadline
        self.sent = sent

    def rest(self, now: float) -> float:
        """The seconds that are left."""
        return self._deadline - now

    def share(self, now: float) -> float:
        """The seconds that a question may wait at this endpoint."""
        return share(self.rest(now), self._others if self._patient else 0)

    def time(self, now: float) -> float:
        """The seconds that the request may wait at this endpoint."""
        return self.rest(now) if self._write else self.share(now)

    def decide(self, happened: Happened, now: float) -> Decision:
        """What to do after ``happened``."""
        sent, self.sent = self.sent, False
        if happened is Happened.FINAL:
            return Decision(Step.FINAL)
        if happened in (Happened.LOGIN_ENDED, Happened.LOGIN_OLD):
            return self._log_in(happened, now)
        silent = happened is Happened.SILENT and self._patient
        if sent and self._write and happened in (Happened.SILENT, Happened.LOST):
            return Decision(Step.UNKNOWN, replace=silent, leave=silent)
        lost = happened is Happened.LOST and sent  # a read: the layer above decides
        if lost or happened is Happened.LOGIN_WAITING:
            return Decision(Step.UNSENT)
        last = Step.FINAL if happened is Happened.LOGIN_REFUSED else Step.UNSENT
        if happened is Happened.SILENT and not self._patient:
            return Decision(last)
        return self._next(last, now, replace=silent)

    def _log_in(self, happened: Happened, now: float) -> Decision:
        if not self._login:
            return Decision(Step.FINAL)
        if happened is Happened.LOGIN_ENDED:
            if not self._logins:
                return self._next(Step.FINAL, now)
            self._logins -= 1
        return Decision(Step.LOGIN if self.rest(now) > 0 else Step.UNSENT)

    def _next(self, last: Step, now: float, *, replace: bool = False) -> Decision:
        if not self._others or self.rest(now) <= 0:
            return Decision(last, replace=replace, leave=True)
        self._others -= 1
        self._logins = LOGINS
        return Decision(Step.NEXT, replace=replace, leave=True)


def share(rest: float, others: int) -> float:
    """The seconds, of ``rest``, for one endpoint while there are ``others``."""
    return min(rest / (others + 1), SILENCE) if others else rest
