"""The types of settings, faults and probes, as `make types` checks them; and they are true."""

from __future__ import annotations

import asyncio
from typing import assert_type

import kvi
import kvi.settings.aio
from kvi.health import Health, health
from kvi.settings import LiveSettings, SettingsChange
from kvi.testing import Fault, Faults
from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A model of its own kind."""

    model_config = ConfigDict(frozen=True)
    name: str = "none"


def _told(change: SettingsChange[Settings]) -> None:
    assert_type(change.current, Settings)
    assert_type(change.error, kvi.BadRecord | None)


def test_types() -> None:
    """What a type checker believes is what programs get."""
    with kvi.open("mem:typing-extras") as store, Faults() as faults:
        assert_type(faults, Faults)
        assert_type(faults.unknown("store", applied=True), Fault)
        faults.clear()
        assert_type(health(store), Health)
        with LiveSettings(Settings, store, "app") as live:
            assert_type(live, LiveSettings[Settings])
            assert_type(live.current, Settings)
            assert_type(live.error, kvi.KviError | None)
            assert_type(live.age, float)
            live.on_change(_told)
        lease = store.lease(10)
        faults.lose(lease)


def test_awaited_types() -> None:
    """Those of the twin too."""

    async def main() -> None:
        async with (
            kvi.aio.open("mem:typing-extras") as store,
            kvi.settings.aio.LiveSettings(Settings, store, "app") as live,
        ):
            assert_type(live.current, Settings)
            assert_type(health(store), Health)

    asyncio.run(main())
