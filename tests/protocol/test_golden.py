"""The documented bytes are the bytes: a second implementation can be checked against docs."""

from __future__ import annotations

import re
from pathlib import Path

from p2psync.crypto.epochs import KeyRing
from p2psync.crypto.identity import DeviceKeys
from p2psync.membership import Add, Role, create_folder, make_epoch, make_grant, make_link, sign_batch
from p2psync.model.hashing import Algorithm
from p2psync.model.ids import replica
from p2psync.model.manifest import Chunker, Manifest
from p2psync.model.paths import RelPath
from p2psync.model.records import FileRecord, target_content
from p2psync.model.versions import Dot, Replica, VersionVector
from p2psync.ports import Kind
from p2psync.protocol import codec
from p2psync.protocol.batcher import Outgoing, pack, unpack
from p2psync.protocol.bulk import Absent, reply_frames
from p2psync.protocol.messages import ChunkRequest, FolderAnnounce, Hello, Possession, Records

DOCS = Path(__file__).parents[2] / "docs"


def golden() -> dict[str, bytes]:
    first, second = DeviceKeys(b"\x01" * 64), DeviceKeys(b"\x02" * 64)
    folder = create_folder(first, "photos", Algorithm.BLAKE3, b"r" * 16, name="first")
    link = make_link(first, folder, Add(second.device_id, Role.EDITOR, "second", 7))
    invited = folder.extend([link])
    start, key = make_epoch(second, invited, KeyRing(folder.folder), b"k" * 32)
    grant = make_grant(second, invited.extend([start]), key, first.card, b"e" * 32)
    batch = sign_batch(second, folder.folder, 0, [b"any record", b"another"])
    announce = FolderAnnounce(
        b"f" * 16, "photos", [b"h" * 32], 2, b"x" * 16, 5, b"m" * 32, b"y" * 16, 4, 1, 1000, 2, 3, False
    )
    return {
        "card": first.card.encode(),
        "genesis": folder.encoded_links()[0],
        "folder id": folder.folder,
        "add": link,
        "head": invited.heads[0],
        "epoch": start,
        "grant": grant.encode(),
        "batch ids": batch.ids,
        "batch signature": batch.signature,
        "Hello": codec.encode(Hello(1, 1, ["a"], "first", b"n" * 16, 3, 1_700_000_000_000_000_000, "p2psync/0.1.0")),
        "FolderAnnounce": codec.encode(announce),
        "Possession": codec.encode(Possession(b"f" * 16, b"k" * 32, b"x" * 16, 9)),
        "ChunkRequest": codec.encode(ChunkRequest(300, b"f" * 16, b"c" * 64, [3, 70_000])),
        "bulk": b"".join(b"".join(parts) for parts in reply_frames(300, [b"abc", Absent.GONE])),
    }


def golden_records() -> Records:
    """A file, the tombstone of its earlier name, a directory and a symlink; the batch has one record more."""
    second = DeviceKeys(b"\x02" * 64)
    own = replica(second.device_id, 3)
    manifest = Manifest(Algorithm.BLAKE3, Chunker.FASTCDC, 10, b"h" * 32, (10,))
    content, target = manifest.root(), b"../t"
    past = VersionVector.of([(Replica(b"o" * 12), 200)])

    def record(counter: int, path: bytes, kind: Kind, deleted: bool, *fields: bytes) -> bytes:
        dot = Dot(counter, own)
        size = 10 if kind is Kind.FILE else 0
        return FileRecord(
            RelPath(path), kind, deleted, size, 10**18, 0o644, *fields, dot, past.advance(dot)
        ).encode()  # fmt: skip

    encoded = [
        record(301, b"new/a.txt", Kind.FILE, False, content, manifest.encode(), b""),
        record(302, b"old/a.txt", Kind.FILE, True, content, b"", b""),
        record(303, b"old", Kind.DIRECTORY, True, b"", b"", b""),
        record(304, b"new/link", Kind.SYMLINK, False, target_content(target), b"", target),
        record(305, b"new/other", Kind.DIRECTORY, False, b"", b"", b""),
    ]
    batch = sign_batch(second, b"f" * 16, 0, encoded)
    (message,) = pack(b"f" * 16, b"x" * 16, [Outgoing(batch, dict(enumerate(encoded[:4])), frozenset((0,)))], upto=9)
    return message


def table(values: dict[str, bytes]) -> str:
    return "\n".join(["```", *(f"{name}: {value.hex()}" for name, value in values.items()), "```"])


def test_golden_values() -> None:
    text = "".join(page.read_text() for page in sorted(DOCS.glob("protocol*.md")))
    shown = dict(re.findall(r"^([\w ]+): ([0-9a-f]{16,})$", text, re.MULTILINE))
    for name, value in golden().items():
        assert shown.get(name) == value.hex(), name
    # Another compressor may make other bytes of the same columns.
    message = codec.decode(bytes.fromhex(shown["Records"]))
    assert isinstance(message, Records)
    assert unpack(message) == unpack(golden_records())
    assert message.upto_sequence == 9
