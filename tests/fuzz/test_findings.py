"""What fuzzing has found, each input again. The comment says what it did."""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import pytest

from p2psync.errors import P2PSyncError
from p2psync.membership.links import decode_link
from p2psync.model import descent
from p2psync.model.descent import MerkleDriver, answer
from p2psync.model.ignore import IgnoreMatcher
from p2psync.model.manifest import MAX_MANIFEST, MAX_SIZE, decode_manifest
from p2psync.model.records import MAX_RECORD, decode_record
from p2psync.protocol import codec
from p2psync.protocol.limits import MAX_CONTROL
from tests.fuzz.rules import Judge
from tests.fuzz.targets import TARGETS
from tests.fuzz.targets.index import _index_seeds
from tests.fuzz.targets.signed import RECORDS
from tests.fuzz.targets.workspace import feed_members
from tests.model.test_merkle import filled

DEEP = b"\x91" * 3000 + b"\xc0"
INTENT = b"\x9c\xa5place\xc4\x01a\xc4\x00\xc4\x00\x00\xc4\x00\x00\x00\x00\xc4\x00\xc4\x00"


def _sized(size: int) -> bytes:
    """Signed records of files so large that no total over them fits a message."""
    fields = msgspec.msgpack.decode(RECORDS[4])
    fields[3] = size
    return msgspec.msgpack.encode((0, 0, [msgspec.msgpack.encode(fields)]))


def _index_row(prefix: bytes, change: Callable[[list[object]], None]) -> bytes:
    """The first row of the index that begins with `prefix`, changed under a right seal."""
    seed = next(s for s in _index_seeds() if s[1:].startswith(prefix))
    row = msgspec.msgpack.decode(seed[1:])
    change(row)
    return seed[:1] + msgspec.msgpack.encode(row)


def _no_records(row: list[object]) -> None:
    row[0] = []


def _no_batch(row: list[object]) -> None:
    row[0] = [(encoded, b"") for encoded, _ in cast("list[tuple[bytes, bytes]]", row[0])]


def _long_batch(row: list[object]) -> None:
    row[0] = [(encoded, bytes(600)) for encoded, _ in cast("list[tuple[bytes, bytes]]", row[0])]


def _long_content(row: list[object]) -> None:
    row[5] = bytes(600)


def _is_the_root(row: list[object]) -> None:
    row[0] = b""


def _negative(row: list[object]) -> None:
    row[1] = -5


FINDINGS: list[tuple[str, bytes]] = [
    # Elements beyond those known are skipped, one stack frame for each level: RecursionError out of the index.
    ("row", b"\x02\x96\x90\x00\x00\xc4\x00\x00" + DEEP),
    ("synced", RECORDS[1][:1] + DEEP),
    ("journal", INTENT + DEEP),
    # Text in an intent that is no UTF-8: UnicodeDecodeError is no MsgspecError.
    ("journal", INTENT.replace(b"place", b"\xff\xff\xff\xff\xff")),
    # The same two, in every small JSON file and in the control API.
    ("marker", b'{"x":' + b"[" * 3000),
    ("state", b'{"version":1,"x":' + b"[" * 3000),
    ("control-file", b'{"x":' + b"[" * 3000),
    ("control-file", b'{"url":"\xa0"}'),
    ("control-answer", b'{"error":"\xa0","exit_code":1,"kind":"x"}'),
    ("control-answer", b"data: {" + b'"x":' + b"[" * 3000 + b"\n\n"),
    ("control", b'{"path":"L2E=","version":"\xff"}'),
    # The folder's place in the index: errors of the decoder came out as they were.
    ("place", b"\x90"),
    # A key that is no hexadecimal number was found when the node started, as a ValueError.
    ("state", b'{"version":1,"devices":[{"id":"x","agreement_key":"xyz"}]}'),
    # More decimal digits than Python converts: ValueError from the TOML reader; in hexadecimal, from showing them.
    ("config", b"log.level = " + b"9" * 4400),
    ("config", b"[log]\nlevel = 0x" + b"f" * 4000),
    # A line of blanks took time with the cube of its length.
    ("config", b"x = 1\n" + b" " * 4000),
    ("config", b'[log]\nx = """\n[' + b" " * 4000 + b'"""\n'),
    # Totals over files of 2^63 bytes fit neither a message nor a row: no announcement was understood any more.
    ("merge-believed", _sized(2**63)),
    ("merge-believed", _sized(2**64 - 1)),
    # Rows that are wrong under a right seal ended the check instead of being reported.
    ("index", _index_row(b"\x95\x91\x92", _no_records)),
    ("index", _index_row(b"\x95\x91\x92", _negative)),
    # A directory of the synced tree that says it is the folder itself: who walked the tree never came to an end.
    ("index", _index_row(b"\x9f\xc4\x01a", _is_the_root)),
    # Names of other rows that are no key of any length: the store's own error out of `check`.
    ("index", _index_row(b"\x95\x91\x92", _no_batch)),
    ("index", _index_row(b"\x95\x91\x92", _long_batch)),
    ("index", _index_row(b"\x9f\xc4\x05large", _long_content)),
    # Sets in brackets that Python means to read otherwise one day: a warning for each scan.
    ("ignore", b"[[:alpha:]]\n[a--b]\n[a&&b]\n[a||b]\n"),
    # Three stars in a row, and more in the next component: all places for each of them.
    ("ignore", b"***/**//**J\t\xb0n\xaa\x7f\x92i*/"),
]


@pytest.mark.parametrize(("name", "data"), FINDINGS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(FINDINGS)])
def test_what_was_found_stays_mended(name: str, data: bytes) -> None:
    target = TARGETS[name]
    with target.setting():
        Judge(target).feed(data)


def test_sizes_are_bounded() -> None:
    with pytest.raises(P2PSyncError):
        decode_record(msgspec.msgpack.decode(_sized(MAX_SIZE + 1))[2][0])
    assert decode_record(msgspec.msgpack.decode(_sized(MAX_SIZE))[2][0]).size == MAX_SIZE


def test_sets_without_an_agreed_meaning_are_reported() -> None:
    assert [bad.line for bad in IgnoreMatcher(b"[a-z]\n[[:alpha:]]\n[a--b]\n[]x]\n[!a]\n").errors] == [2, 3]


# ── inputs as long as they may be ───────────────────────────────────────────────────────────────────────────────────
def _array(count: int, *parts: bytes) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + b"".join(parts)


_REST = MAX_CONTROL - 6
_RUNS = (MAX_MANIFEST - 16) // 3
BOMBS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    # 100 ms and 128 MiB on the event loop, as often as a peer liked: each element became an object.
    "message of a later version": (codec.decode, _array(_REST, b"\x63", b"\xc0" * (_REST - 1))),
    "message with more fields": (codec.decode, _array(_REST, b"\x02", b"\xc0" * (_REST - 1))),
    "message of records": (codec.decode, b"\x96\x14\xc4\x10" + bytes(16) + _array(_REST - 24, b"\x90" * (_REST - 24))),
    "message of keys": (
        codec.decode,
        b"\x95\x15\xc4\x10" + bytes(16) + b"\xc6" + (_REST).to_bytes(4, "big") + bytes(99),
    ),
    # 123 ms and 86 MiB: every run was read before they were counted.
    "manifest of runs": (decode_manifest, b"\x95\x01\x01\x00\xc4\x00" + _array(_RUNS, b"\x92\x01\x01" * _RUNS)),
    # 64 MiB of a file beside the files could become a gigabyte of objects.
    "members file": (feed_members, _array(4 << 20, b"\xc4\x00" * (4 << 20))),
    "record of versions": (decode_record, RECORDS[1][:40] + b"\x92\xc4\x00\x01" * ((MAX_RECORD - 40) // 4)),
    "link of nothing": (decode_link, b"\x96\x01\xc4\x00\xdc\x3f\x00" + b"\xc4\x00" * 8000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_long_inputs_are_cheap(name: str) -> None:
    decode, data = BOMBS[name]

    def attempt() -> float:
        began = time.process_time()
        with contextlib.suppress(P2PSyncError):
            decode(data)
        return time.process_time() - began

    assert min(attempt() for _ in range(3)) < 0.1
    tracemalloc.start()
    try:
        attempt()
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_liar_cannot_fill_our_memory_with_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descent, "MAX_FOUND", 500)
    theirs = filled(range(5000))

    def compare() -> Sequence[bytes]:
        driver = MerkleDriver(filled(range(3)))
        while query := driver.next_queries():
            driver.feed(answer(theirs, query))
        return driver.theirs_to_fetch

    assert 500 <= len(compare()) <= 500 + descent.MAX_QUERY * 32
