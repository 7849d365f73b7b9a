"""Stores that processes share, and that are wrong in one of them only."""

from __future__ import annotations

import itertools
from importlib.metadata import distribution
from urllib.parse import quote

import kvi
from kvi.model import Claim

from tests.conformance.broken.correct import Planted, broken
from tests.support.backends import Over

_fences = itertools.count(1)


class Shared(Planted, Over):
    """The SQLite store, in a file beside the installed plugin of these tests."""

    scheme = "shared"

    def __init__(self, uri: str, name: str, *, timeout: float) -> None:
        path = distribution("kvi-broken").locate_file(f"{name}.db")
        super().__init__(kvi.open(f"sqlite:{quote(str(path))}"))
        self.uri, self.timeout = uri, timeout


@broken("lock.fence")
class FencePerProcess(Shared):
    """Each process counts its own fences."""

    def _lock_claim(self, name: str, lease: int, timeout: float) -> Claim:
        return super()._lock_claim(name, lease, timeout)._replace(fence=next(_fences))
