"""Settings in a store: a source for pydantic-settings, and models that follow the store live.

Needs the extra ``kvi-core[settings]``. The twin for asyncio is `kvi.settings.aio`.
"""

from kvi.settings.core import SettingsChange
from kvi.settings.live import LiveSettings
from kvi.settings.source import KviSettingsSource

__all__ = ["KviSettingsSource", "LiveSettings", "SettingsChange"]
