"""Threads that go through many rows take turns with an index."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from p2psync.index import Writer
from p2psync.index import index as index_module
from p2psync.index.lmdb_store import LmdbDatabase
from tests.index.factories import open_index


@pytest.mark.parametrize("patience", [60.0, 0.01])
def test_who_reads_much_waits_for_the_transaction_at_work_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(index_module, "_PATIENCE", patience)
    opened = open_index(LmdbDatabase(), bytes(tmp_path / "index"))
    began, go, seen = threading.Event(), threading.Event(), list[str]()

    def work(_: Writer) -> None:
        began.set()
        assert go.wait(10)
        seen.append("written")

    def look() -> None:
        with opened.read_much():
            seen.append("read")

    writer, reader = threading.Thread(target=opened.write, args=(work,)), threading.Thread(target=look)
    writer.start()
    assert began.wait(10)
    with opened.read() as view:  # any other view begins at once
        assert view.sequence() == 0
    reader.start()
    reader.join(0.1 if patience > 10 else 10)
    go.set()
    writer.join()
    reader.join()
    assert seen == (["written", "read"] if patience > 10 else ["read", "written"])
    opened.close()
