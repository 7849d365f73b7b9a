"""Leaders killed again and again under load, for `make soak`."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from tests.faults.test_clusters import KEYS, cluster, lose_the_leader, opened
from tests.servers import Cluster

__all__ = ["cluster"]  # the fixture

ROUNDS = int(os.environ.get("KVI_SOAK_LEADERS", "10"))

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def test_leader_after_leader(
    cluster: Cluster[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each history is linearizable, with the same handles from the first leader to the last."""
    handles = opened(cluster)
    for number in range(ROUNDS):
        # Keys of their own: a write of unknown fate may come as late as it likes.
        told = lose_the_leader(cluster, handles, [f"{number}/{key}" for key in KEYS])
        with capsys.disabled():
            print(f"\nleader {number + 1}, {told}", file=sys.stderr)
    for handle in handles:
        handle.close()
