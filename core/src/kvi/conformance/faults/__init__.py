"""The contract under faults: servers killed, stopped, paused, cut off, and programs killed.

Offered to every backend whose author gives a fixture `kvi_server`; see `Server` for how.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            "away",
            "calls",
            "counting",
            "endured",
            "history",
            "holders",
            "ordeal",
            "record",
        )
    )
)

from kvi.conformance.faults.calls import CallsWhileAway  # noqa: E402
from kvi.conformance.faults.endured import Endured  # noqa: E402
from kvi.conformance.faults.history import ForgottenHistory  # noqa: E402
from kvi.conformance.faults.holders import Holders  # noqa: E402
from kvi.conformance.server import Server  # noqa: E402

__all__ = ["Server", "TestFaults"]


class TestFaults(CallsWhileAway, Endured, ForgottenHistory, Holders):
    """What holds while the server, or a program, is away, and afterwards."""
