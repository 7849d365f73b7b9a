"""An empty part of each store, for what must hold on all of them."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

STORES = [
    "mem",
    "sqlite",
    pytest.param("etcd", marks=[pytest.mark.etcd, pytest.mark.xdist_group("etcd")]),
    pytest.param("consul", marks=[pytest.mark.consul, pytest.mark.xdist_group("consul")]),
]


@pytest.fixture(params=STORES)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI of this test's own."""
    own = f"origins-{secrets.token_hex(8)}"
    match request.param:
        case "mem":
            return f"mem:{own}"
        case "sqlite":
            return f"sqlite:{tmp_path}/store.db"
        case name:
            return f"{request.getfixturevalue(f'{name}_uri')}/{own}"
