"""What has left a device: every record that the other one was given, to be held against what the first still knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from p2psync.index.index import Index
from p2psync.index.reader import Reader
from p2psync.index.writer import Writer
from p2psync.model.ids import replica_device_prefix
from p2psync.model.paths import PathKey, display
from p2psync.model.records import FileRecord, SignedBatch
from p2psync.model.versions import Dot
from p2psync.reconcile.conflicts import parse_conflict_name
from p2psync.testing import SimDevice, Violation


class Ledger:
    """Records by the event that made them, as the devices showed them to each other."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._heard: dict[Dot, tuple[FileRecord, bytes]] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of everything that any device merges from another."""
        merge = Writer.merge

        def heard(
            writer: Writer, batch: SignedBatch, items: Sequence[tuple[FileRecord, bytes]], origin: bytes = b""
        ) -> list[PathKey]:
            if origin:
                for record, encoded in items:
                    self._hear(record, encoded)
            return merge(writer, batch, items, origin)

        Writer.merge = heard  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            Writer.merge = merge  # type: ignore[method-assign]

    def _hear(self, record: FileRecord, encoded: bytes) -> None:
        known = self._heard.setdefault(record.dot, (record, encoded))
        if known[1] != encoded:
            text = f"one event made two records: {display(known[0].path)} and {display(record.path)}"
            self.violations.append(Violation("I7", text))

    def forgotten(self, reader: Reader, device: bytes) -> list[Violation]:
        """I9: what others heard from a device of its own events, and its index does not know (any more)."""
        mine = [record for record, _ in self._heard.values() if replica_device_prefix(record.dot.replica) == device[:8]]
        return [
            Violation("I9", f"announced and not durable: {display(record.path)} as of {record.dot.counter}")
            for record in mine
            if not any(known.version.dominates(record.version) for known in reader.siblings(record.key))
        ]

    def compare(self, reader: Reader) -> None:
        """I7: what an index holds at the end is what was heard."""
        after = b""
        while keys := reader.keys(after):
            after = keys[-1]
            for key in keys:
                for stored in reader.stored(key):
                    self._hear(stored.record, stored.encoded)


@contextmanager
def index_of(device: SimDevice, folder: bytes, author: bytes) -> Iterator[Reader]:
    """The index that a device, on which no node runs, has of a folder; `author` is its device ID."""
    (path,) = (path for path in device.database.paths() if path.endswith(b"/index"))
    index = Index.open(
        device.database,
        path,
        folder,
        author,
        bytes(16),
        1,
        is_conflict=lambda name: parse_conflict_name(name) is not None,
    )
    try:
        with index.read() as reader:
            yield reader
    finally:
        index.close()
