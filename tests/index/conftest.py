"""An open index on each store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2psync.index import Index
from p2psync.index.lmdb_store import LmdbDatabase
from p2psync.ports import Database
from p2psync.testing.kv import MemoryDatabase
from tests.index.factories import open_index


@pytest.fixture(params=["lmdb", "memory"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Index]]:
    """Opens the same index again; what was opened before is closed first."""
    database: Database = LmdbDatabase() if request.param == "lmdb" else MemoryDatabase()
    opened: list[Index] = []

    def open_again() -> Index:
        while opened:
            opened.pop().close()
        opened.append(open_index(database, bytes(tmp_path / "index")))
        return opened[0]

    open_again.database = database  # type: ignore[attr-defined]
    open_again.path = bytes(tmp_path / "index")  # type: ignore[attr-defined]
    yield open_again
    while opened:
        opened.pop().close()


@pytest.fixture
def index(reopen: Callable[[], Index]) -> Iterator[Index]:
    """A new index; whatever a test did to it, it must hold together afterwards."""
    opened = reopen()
    yield opened
    with opened.read() as reader:
        assert reader.sequence() >= 0
    assert opened.check() == []
