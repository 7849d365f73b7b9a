"""The stores that the demo runs on: a new SQLite file, and the servers there are."""

from __future__ import annotations

import json
import os
import sqlite3
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

NAMES = ("sqlite", "etcd", "consul")
SERVERS = {"etcd": "KVI_TEST_ETCD", "consul": "KVI_TEST_CONSUL"}


@dataclass(frozen=True, slots=True)
class Store:
    """A store: its URI, its name and version as it tells them itself."""

    uri: str
    title: str


def found(folder: Path, console: Console) -> list[Store]:
    """All there are; what is missing is said. The file is made in ``folder``."""
    stores = [Store("sqlite:" + quote(str(folder / "demo.db")), f"SQLite {sqlite3.sqlite_version}")]
    for scheme, variable in SERVERS.items():
        if uri := os.environ.get(variable):
            stores.append(Store(uri, _title(scheme, uri.partition("://")[2])))
        else:
            console.print(f"{scheme} is left out: {variable} is not set")
    return stores


def names_a_store(text: str) -> bool:
    """Whether the name of a store stands in ``text``."""
    return any(name in text.lower() for name in NAMES)


def _title(scheme: str, address: str) -> str:
    if scheme == "etcd":
        return f"etcd {_ask(f'http://{address}/version')['etcdserver']}"
    return f"Consul {_ask(f'http://{address}/v1/agent/self')['Config']['Version']}"


def _ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)
