"""Which deleted keys stand for a deleted tree, for those who watch prefixes within it. Pure."""

from __future__ import annotations

from kvi_consul import wire

GRAVES_AT_ONCE = wire.MAX_OPS // 3  # each takes a check, a write and a deletion
MOST = 3 * GRAVES_AT_ONCE


class Graves:
    """Collects the keys of a tree that is deleted, in bounded memory.

    Few keys stand for themselves, so that every prefix of one is marked. Of many, the first key of
    each folder stands for it: who watches folders is served, who watches half a name may wait.
    """

    def __init__(self) -> None:
        self.count = 0
        self._keys: list[str] = []
        self._folders: dict[str, str] = {}

    def add(self, key: str) -> None:
        """One more key is deleted."""
        self.count += 1
        if len(self._keys) < MOST:
            self._keys.append(key)
        folder = key.rpartition("/")[0]
        if len(self._folders) < MOST:
            self._folders.setdefault(folder, key)

    @property
    def keys(self) -> list[str]:
        """The keys to mark."""
        return self._keys if self.count <= MOST else list(self._folders.values())
