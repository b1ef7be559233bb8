"""Records, batches and links that are validly signed, and a world in which every signature is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from p2psync.membership import Role, Unknown, open_batch, sign_batch
from p2psync.membership.links import Epoch, Rename, sign_link
from p2psync.model.hashing import Algorithm, digest
from p2psync.model.ids import replica
from p2psync.model.manifest import Chunker, Manifest
from p2psync.model.records import FileRecord
from p2psync.model.versions import Dot
from tests.index.factories import directory_record, file_record, symlink_record, tombstone
from tests.membership.helpers import act, add, demote, device, found, promote, remove

AUTHOR = device(0)


@contextmanager
def believing() -> Iterator[None]:
    """Every signature is valid, so that what stands behind the check is reached by what was never signed.

    The check itself is attacked without this, by the same bytes.
    """

    def believe(*_: bytes) -> None:
        pass

    with (
        mock.patch("p2psync.crypto.identity.verify_signature", believe),
        mock.patch("p2psync.membership.links.verify_signature", believe),
        mock.patch("p2psync.membership.batches.verify_signature", believe),
    ):
        yield


def _dot(counter: int) -> Dot:
    return Dot(counter, replica(AUTHOR.device_id, 1))


def _records() -> list[FileRecord]:
    file = file_record(b"a/file", [b"one", b"two"], _dot(1))
    return [
        file,
        directory_record(b"a", _dot(2)),
        symlink_record("a/link é".encode(), b"../target", _dot(3)),
        tombstone(file, _dot(4)),
        file_record(b"large", [bytes([n]) for n in range(9)], _dot(5)),
        file_record(b"empty", [], _dot(6)),
    ]


RECORDS = [record.encode() for record in _records()]
TEAM = act(act(act(found(), 0, add(1, Role.EDITOR)), 0, add(2, Role.VIEWER, 5)), 1, add(3, Role.EDITOR))
FOLDER = TEAM.folder
BATCH = sign_batch(AUTHOR, FOLDER, 0, RECORDS)
assert len(open_batch(BATCH, TEAM, dict(enumerate(RECORDS)))) == len(RECORDS)

HISTORY = act(act(act(TEAM, 0, demote(1, Role.VIEWER, (1, 9))), 0, promote(1, Role.OWNER, 10)), 1, remove(3, (0, 3)))
LINKS = [
    *act(act(HISTORY, 0, Rename("pictures")), 0, Epoch(1, b"k" * 16, [(b"o" * 16, b"s" * 48)])).encoded_links(),
    sign_link(AUTHOR, FOLDER, HISTORY.heads, Unknown(9, b"\x92\x09\xa5later")).encoded,
]
LONG_MANIFEST = Manifest(
    Algorithm.BLAKE3,
    Chunker.FIXED,
    9 * 100 + 7,
    b"".join(digest(Algorithm.BLAKE3, bytes([n])) for n in range(10)),
    (*[100] * 9, 7),
)
