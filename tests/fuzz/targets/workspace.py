"""Small files beside a folder's files, which anything may have happened to: marker, members, names in the history."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import msgspec

from p2psync.errors import InputError, IntegrityError
from p2psync.model.ids import format_folder_id
from p2psync.ports import Kind, Stat
from p2psync.sync import members_file
from p2psync.sync.founding import Place, load_place
from p2psync.workspace import marker
from p2psync.workspace.history import stamp, stamp_ns
from p2psync.workspace.layout import MARKER
from tests.fuzz.rules import Target
from tests.fuzz.targets.signed import FOLDER, LINKS

_STAT = Stat(Kind.DIRECTORY, 0, 0o700, 0, 0, 1, 2)


class File:
    """An open file that holds some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(buffer)]
        buffer[: len(piece)] = piece
        return len(piece)

    def stat(self) -> Stat:
        return Stat(Kind.FILE, len(self._data), 0o600, 0, 0, 1, 3)

    def close(self) -> None:
        pass


class Root:
    """A directory with these files in it."""

    def __init__(self, files: dict[bytes, bytes]) -> None:
        self._files = files

    def open(self, path: bytes) -> File:
        return File(self._files[path])

    def stat(self, _path: bytes) -> Stat:
        return _STAT

    def identity(self) -> Stat:
        return _STAT

    def close(self) -> None:
        pass


def _root(files: dict[bytes, bytes]) -> Any:
    return Root(files)


def feed_marker(data: bytes) -> None:
    """The marker: read, or reported as damaged."""
    root = _root({MARKER: data})
    expected = marker.Marker(FOLDER, b"m" * 16, 5)
    assert marker.check(root, expected, None).text or marker.read(root) is not None
    found = marker.read(root)
    assert found is not None
    assert len(found.marker_id) == 16
    Place(found.marker_id, found.created_ns, 1)


def feed_members(data: bytes) -> None:
    """The members file, where an index has been lost."""
    root = _root({MARKER: _MARKER, members_file.MEMBERS: data})
    world: Any = SimpleNamespace(storage=SimpleNamespace(open_root=lambda _path: root))
    assert members_file.membership_of(world, _index(), FOLDER, b"/folder").folder == FOLDER


def _index(setting: bytes | None = None) -> Any:
    return _NewIndex(setting)


class _NewIndex:
    """An index that holds nothing, or a single setting, and forgets what it is given."""

    def __init__(self, setting: bytes | None = None) -> None:
        self._setting = setting

    @contextmanager
    def read(self) -> Iterator[Any]:
        yield SimpleNamespace(links=list, setting=lambda _name: self._setting)

    def write(self, _work: object) -> None:
        pass


def feed_place(data: bytes) -> None:
    """Where a folder was found last, as its index says."""
    load_place(_index(data))


def feed_stamp(data: bytes) -> None:
    """A directory's name in the history store."""
    found = stamp_ns(data)
    if found is not None and found >= 0:
        with suppress(OverflowError):
            assert stamp_ns(stamp(found)) == found


_MARKER = msgspec.json.encode(
    {"advice": "a", "folder": format_folder_id(FOLDER), "marker": (b"m" * 16).hex(), "created_ns": 5}
)

TARGETS = (
    Target("marker", feed_marker, (InputError,), lambda: [_MARKER], "json"),
    Target("place", feed_place, (IntegrityError,), lambda: [msgspec.msgpack.encode(Place(b"m" * 16, 5, 6))], "msgpack"),
    Target("stamp", feed_stamp, (), lambda: [stamp(1_700_000_000_123_456_000), stamp(0) + b"-1"], "text"),
    Target(
        "members",
        feed_members,
        (IntegrityError,),
        lambda: [msgspec.msgpack.encode(LINKS), msgspec.msgpack.encode(LINKS[:1])],
        "msgpack",
    ),
)
