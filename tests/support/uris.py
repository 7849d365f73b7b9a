"""The fixture ``uri``: every test of it once on each store."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

_ETCD = [pytest.mark.etcd, pytest.mark.xdist_group("etcd")]
_CONSUL = [pytest.mark.consul, pytest.mark.xdist_group("consul")]


@pytest.fixture(
    params=[
        "mem",
        "sqlite",
        pytest.param("etcd", marks=_ETCD),
        pytest.param("consul", marks=_CONSUL),
    ]
)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that this test has for itself."""
    name = f"test-{secrets.token_hex(6)}"
    match request.param:
        case "mem":
            return f"mem:{name}"
        case "sqlite":
            return f"sqlite:{tmp_path}/store.db"
    return f"{request.getfixturevalue(f'{request.param}_uri')}?namespace={name}"
