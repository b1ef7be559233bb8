"""Mailbox entries: one canonical form, every bit signed, everything from outside bounded."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import AuthenticationError, InputError
from p2psync.protocol import mailbox
from p2psync.protocol.mailbox import (
    MAX_BODY,
    NO_ENTRY,
    ChainKey,
    Entry,
    EntryKind,
    Head,
    Header,
    Snapshot,
    decode_entry,
    decode_head,
    decode_header,
    decode_snapshot,
    next_slot,
)

KEYS = DeviceKeys(b"\x01" * 64)
FOLDER = b"f" * 16
CHAIN = ChainKey(KEYS.card.signing_key, b"c" * 8)


def first(body: bytes = b"sealed", kind: int = EntryKind.RECORDS) -> Entry:
    return next_slot(FOLDER, CHAIN, None, kind, b"k" * 16).sign(KEYS, body)


def second(body: bytes = b"more") -> Entry:
    return next_slot(FOLDER, CHAIN, first().header, EntryKind.HEAD, b"k" * 16).sign(KEYS, body)


def hashed(label: bytes, *parts: bytes) -> bytes:
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return blake3(bytes([len(label)]) + label + framed).digest()


def test_an_entry_as_a_second_implementation_writes_it() -> None:
    entry = second()
    body_hash = hashed(b"p2psync mailbox body", b"more")
    place = [1, FOLDER, KEYS.card.signing_key, b"c" * 8, 2, first().header.hash, 3, b"k" * 16]
    assert entry.header.context == msgpack.packb(place)
    signed = msgpack.packb([*place, body_hash])
    assert entry.header.hash == hashed(b"p2psync mailbox header", signed)
    assert KEYS.sign(b"p2psync mailbox entry", signed) == entry.header.signature
    assert entry.encoded == msgpack.packb([*place, b"more", entry.header.signature])
    assert entry.header.encoded == msgpack.packb([*place, body_hash, entry.header.signature])


def test_golden_values() -> None:
    assert first().header.hash.hex() == "c78a7a952a782e9472e55f4d45ee2c25362bac5f431182d488e6d1651bac5d57"
    assert second().header.hash.hex() == "c060625f394aa132200acca7b38afeac9ea12506e2131ad0fd36b1e97f39720d"
    assert (
        second().encoded.hex()
        == "9a01c41066666666666666666666666666666666c4208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801"
        "b40f6f5cc408636363636363636302c420c78a7a952a782e9472e55f4d45ee2c25362bac5f431182d488e6d1651bac5d5703"
        "c4106b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6bc4046d6f7265c44030ee72ddcfed65662c4895bc9de61b4b991a7f46453e13dd"
        "4c38eed98ca16db93a7a4523de0e45937c01b873e078feb836f1e474d9efe9b476ccd0eff47cb108"
    )


@given(st.binary(min_size=1, max_size=300), st.integers(1, 255))
def test_what_was_signed_is_read_and_verified(body: bytes, kind: int) -> None:
    entry = first(body, kind)
    assert decode_entry(entry.encoded) == entry
    assert decode_header(entry.header.encoded) == entry.header
    decode_header(entry.header.encoded).verify()
    assert entry.header.author == KEYS.device_id


@pytest.mark.parametrize("encoded", [second().encoded, second().header.encoded], ids=["entry", "header"])
def test_every_flipped_bit_is_refused(encoded: bytes) -> None:
    entry = second()
    decode = decode_header if encoded == entry.header.encoded else lambda data: decode_entry(data).header
    for bit in range(8 * len(encoded)):
        changed = bytearray(encoded)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((InputError, AuthenticationError)):
            decode(bytes(changed)).verify()


@given(st.binary(max_size=400))
def test_only_input_errors_leave_the_decoders(data: bytes) -> None:
    for decode in (decode_entry, decode_header, lambda d: decode_head(d, FOLDER), lambda d: decode_snapshot(d, FOLDER)):
        with pytest.raises(InputError):
            decode(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"folder": b"f" * 15},
        {"signer": b"s" * 31},
        {"chain": b"c" * 9},
        {"seq": 0},
        {"seq": 1},
        {"seq": 2**62 + 1},
        {"prev": NO_ENTRY},
        {"prev": b"p" * 31},
        {"kind": 0},
        {"kind": 256},
        {"key_id": b""},
        {"signature": b"s" * 63},
    ],
    ids=str,
)
def test_fields_out_of_bounds(changes: dict[str, object]) -> None:
    header = replace(second().header, **changes)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        decode_entry(Entry(header, b"more").encoded)
    with pytest.raises(InputError):
        decode_header(header.encoded)


def test_other_encodings_of_the_same_entry_are_refused() -> None:
    fields = msgpack.unpackb(second().encoded)
    longer = msgpack.packb(fields)[:-66] + b"\xc5\x00\x40" + fields[-1]  # the signature's length in three bytes
    assert msgpack.unpackb(longer) == fields
    for other in (longer, msgpack.packb([*fields, 0]), msgpack.packb([2, *fields[1:]]), second().encoded + b"\0"):
        with pytest.raises(InputError):
            decode_entry(other)


def test_bodies_have_bounds() -> None:
    first(b"b" * MAX_BODY)
    for body in (b"", b"b" * (MAX_BODY + 1)):
        with pytest.raises(InputError):
            first(body)


def test_a_length_is_not_believed() -> None:
    with pytest.raises(InputError):
        decode_head(msgpack.packb([1, 1, 0])[:-1] + b"\0\xdd\xff\xff\xff\xff", FOLDER)


def test_statements_and_snapshots() -> None:
    header = second().header
    head = Head(3, 1_700_000_000, (header,))
    assert decode_head(head.encode(), FOLDER) == head
    assert head.encode() == msgpack.packb([1, 3, 1_700_000_000, [msgpack.unpackb(header.encoded)]])
    snapshot = Snapshot(9, b"m" * 32, ((b"h" * 32, 4096),), (header,))
    assert decode_snapshot(snapshot.encode(), FOLDER) == snapshot
    assert snapshot.encode() == msgpack.packb([1, 9, b"m" * 32, [[b"h" * 32, 4096]], [msgpack.unpackb(header.encoded)]])


def test_statements_that_do_not_make_sense() -> None:
    header, other = second().header, next_slot(b"g" * 16, CHAIN, None, 1, b"k" * 16).sign(KEYS, b"x").header
    lower = replace(header, chain=b"a" * 8)
    for heads in ((header, header), (header, lower), (other,)):
        with pytest.raises(InputError):
            decode_head(Head(1, 0, heads).encode(), FOLDER)
    for head in (Head(0, 0, ()), Head(1, -1, ()), Head(1, 2**41, ())):
        with pytest.raises(InputError):
            decode_head(head.encode(), FOLDER)
    for snapshot in (
        Snapshot(-1, b"m" * 32, (), ()),
        Snapshot(1, b"m" * 31, (), ()),
        Snapshot(1, b"m" * 32, ((b"h" * 31, 5),), ()),
        Snapshot(1, b"m" * 32, ((b"h" * 32, 0),), ()),
    ):
        with pytest.raises(InputError):
            decode_snapshot(snapshot.encode(), FOLDER)


def test_a_statement_of_all_chains_fits_a_body() -> None:
    widest = replace(second().header, seq=2**62)
    heads: list[Header] = [replace(widest, chain=n.to_bytes(8, "big")) for n in range(mailbox.MAX_HEADS)]
    head = Head(2**62, 2**40, tuple(heads))
    assert len(head.encode()) * 1.2 < MAX_BODY
    assert decode_head(head.encode(), FOLDER) == head
    with pytest.raises(InputError):
        decode_head(Head(1, 0, (*heads, replace(widest, chain=b"\xff" * 8))).encode(), FOLDER)
