"""What the service starts with, and the keys that it lies under.

::

    settings/http/timeout_ms        text, read by every worker
    quota/eu-central                requests per minute of a region; the sum never changes
    hits                            requests counted by all workers together
    worker/3                        what one worker did, in its own words (JSON)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import kvi

SETTINGS, QUOTA, HITS, WORKER = "settings/", "quota/", "hits", "worker/"


@dataclass(frozen=True, slots=True)
class Service:
    """The service's first settings."""

    name: str
    settings: dict[str, str]
    quotas: dict[str, int]

    @classmethod
    def load(cls) -> Service:
        """Read them from the JSON file beside this module."""
        data = json.loads(Path(__file__).with_name("settings.json").read_text())
        return cls(data["service"], data["settings"], data["requests_per_minute"])

    @property
    def regions(self) -> tuple[str, ...]:
        """Where there is quota."""
        return tuple(self.quotas)

    @property
    def total_quota(self) -> int:
        """What all regions have together, at any time."""
        return sum(self.quotas.values())

    def publish(self, store: kvi.Kvi) -> None:
        """Put everything into the store at once: no worker can see half of it."""
        settings = [kvi.Put(SETTINGS + name, value) for name, value in self.settings.items()]
        quotas = [kvi.Put(QUOTA + region, str(quota)) for region, quota in self.quotas.items()]
        store.txn(then=[*settings, *quotas])
