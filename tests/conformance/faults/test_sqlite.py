"""The SQLite store keeps the contract while another program holds the file, or is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvi.conformance.faults import *  # noqa: F403
from kvi.conformance.server import Server

from tests.support.faulty_servers import SqliteFile

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("sqlite-suite-faults")]


@pytest.fixture(scope="module")
def kvi_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A file of these tests alone."""
    return SqliteFile(Path(tmp_path_factory.mktemp("faults"), "store.db"))
