"""The numbers in the tables of docs/stores.md are those that the plugins declare and use."""

from __future__ import annotations

import re
from pathlib import Path

import kvi.policy.cursor
import kvi_consul.diff
import kvi_consul.sessions
import kvi_consul.store
import kvi_consul.transport
import kvi_consul.wire
import kvi_etcd.store
import kvi_etcd.wire
import kvi_memory.state
import kvi_sqlite.plugin
import kvi_sqlite.schema
import kvi_sqlite.snapshot
import kvi_sqlite.store
import kvi_sqlite.upkeep
import pytest

MIB = 1024 * 1024
ETCD, CONSUL = kvi_etcd.store.CAPABILITIES, kvi_consul.store.CAPABILITIES

NUMBERS = {
    "Memory": [
        f"{kvi_memory.state.HISTORY:,} commits",
        f"{kvi_memory.state.HISTORY_BYTES // MIB} MiB",
    ],
    "SQLite": [
        f"keys | {kvi_sqlite.store.MAX_KEY // MIB} MiB",
        f"more than {1 << kvi_sqlite.schema.SEQ_BITS:,} changes",
        f"last {kvi_sqlite.plugin.HISTORY.default:,} commits",
        f"{kvi.policy.cursor.LATEST * 1000:.0f} ms later",
        f"{kvi_sqlite.snapshot.PAGE_ROWS} entries, or {kvi_sqlite.snapshot.PAGE_BYTES // MIB} MiB",
        f"portions of at most {kvi_sqlite.upkeep.LONGEST * 1000:.0f} ms",
    ],
    "etcd": [
        f"{ETCD.max_key:,} and {ETCD.max_value:,} bytes",
        f"{ETCD.max_txn_ops} compares and operations",
        f"{kvi_etcd.wire.MAX_REQUEST / MIB} MiB",
        f"at least {ETCD.lease_min_ttl}, at most",
    ],
    "Consul": [
        f"{CONSUL.max_key:,} and {CONSUL.max_value:,} bytes",
        f"{CONSUL.max_txn_ops} operations",
        f"{kvi_consul.wire.MAX_BODY // 1024} KiB of JSON",
        f"{CONSUL.lease_min_ttl} s to a day",
        f"more than {kvi_consul.diff.MOST_PENDING // MIB} MiB are unread",
        f"default {kvi_consul.transport.CONNECTIONS}",
        f"at most {kvi_consul.sessions.MOST_DELAY:.0f} s",
    ],
}


@pytest.mark.parametrize("store", NUMBERS)
def test_limits_are_told(store: str) -> None:
    """Each stands in the section of its store."""
    page = (Path(__file__).parents[2] / "docs" / "stores.md").read_text()
    section = re.search(rf"^## {store}:.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section is not None
    text = " ".join(section[0].split())
    assert [number for number in NUMBERS[store] if number not in text] == []
