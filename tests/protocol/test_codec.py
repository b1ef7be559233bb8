"""Messages survive the wire, and nothing unbounded gets past the decoder."""

from __future__ import annotations

import contextlib

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.membership import Role
from p2psync.protocol import codec, limits
from p2psync.protocol.messages import (
    AccountHead,
    ChunkCancel,
    ChunkRequest,
    FolderAnnounce,
    FolderOffer,
    FolderResume,
    FolderState,
    Goodbye,
    GoodbyeCode,
    Grants,
    Hello,
    LeavesRequest,
    Links,
    LinksRequest,
    MailboxHeads,
    MerkleAnswer,
    MerkleQuery,
    Message,
    PairAccount,
    PairHello,
    PairMessage,
    Ping,
    Pong,
    Possession,
    RangesRequest,
    Records,
    RecordsRequest,
    Rescan,
    RescanDone,
    Welcome,
)

F, H, I16 = b"f" * 16, b"h" * 32, b"i" * 16
EXAMPLES: list[Message] = [
    Hello(1, 1, ["a"], "name", I16, 2, -5, "agent"),
    Welcome(),
    Goodbye(GoodbyeCode.BUSY, "text"),
    Ping(1),
    Pong(2**63 - 1),
    FolderAnnounce(F, "label", [H], 3, I16, 4, H, b"", 0, 5, 6, 2, 7, False),
    FolderOffer(F, "label", Role.EDITOR, 1, [b"link"]),
    LinksRequest(F, [H]),
    Links(F, [b"link"], True),
    Records(F, b"columns", I16, 9, True, 4),
    Possession(F, I16 * 2, I16, 9),
    RecordsRequest(1, F, I16),
    MerkleQuery(1, F, [b"node"]),
    MerkleAnswer(1, F, H, [b"node"]),
    Rescan(1, F),
    RescanDone(1, F, 2),
    ChunkRequest(1, F, H * 2, [1, 2], True),
    ChunkCancel(1),
    PairHello(7, "name"),
    PairMessage(b"body"),
    PairAccount(b"a" * 16, ["https://relay.example:443/"], "me@example.org", 3, b"h" * 32),
    Grants(F, [b"grant"]),
    AccountHead(b"a" * 16, 3, H),
    MailboxHeads(F, H, [b"header"]),
    LeavesRequest(1, F, H * 2, [1, 70_000]),
    RangesRequest(1, F, H * 2, [9, 70_000], [[(0, 1), (1, 8)], [(69_999, 1)]]),
    FolderResume(F, I16, 5, 6, 2, False, True),
]


def raw(message: Message) -> list[object]:
    value = msgpack.unpackb(codec.encode(message), strict_map_key=False)
    assert isinstance(value, list)
    return value


def pack(value: object) -> bytes:
    packed = msgpack.packb(value)
    assert isinstance(packed, bytes)
    return packed


def test_there_is_an_example_of_every_message() -> None:
    assert {type(m) for m in EXAMPLES} == set(Message.__args__)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_round_trip_trailing_fields_and_truncation(message: Message) -> None:
    data = codec.encode(message)
    assert codec.decode(data) == codec.decode(memoryview(data)) == message
    assert codec.decode(pack([*raw(message), {"later": 1}, None])) == message
    for cut in range(len(data)):
        with pytest.raises(InputError):
            codec.decode(data[:cut])


def test_unknown_tags_are_named() -> None:
    assert codec.decode(pack([99, "anything", [1, 2]])) == codec.Unrecognised(99)
    for data in (b"", b"\x90", b"\x80", b"\xc0", pack(["x"]), pack([99])[:1], b"\x91" * 100_000):
        with pytest.raises(InputError):
            codec.decode(data)


def test_codes_of_later_versions() -> None:
    assert Goodbye(99).reason is GoodbyeCode.PROTOCOL_ERROR
    announce = EXAMPLES[5]
    assert isinstance(announce, FolderAnnounce)
    assert announce.activity is FolderState.SYNCING


def changed(message: Message, at: int, value: object) -> bytes:
    fields = raw(message)
    fields[at] = value
    return pack(fields)


@pytest.mark.parametrize(
    "data",
    [
        changed(EXAMPLES[0], 1, 2**16),
        changed(EXAMPLES[0], 3, ["f"] * (limits.MAX_FEATURES + 1)),
        changed(EXAMPLES[0], 4, "n" * (limits.MAX_TEXT + 1)),
        changed(EXAMPLES[0], 5, b"short"),
        changed(EXAMPLES[2], 2, "t" * (limits.MAX_GOODBYE_TEXT + 1)),
        changed(EXAMPLES[3], 1, -1),
        changed(EXAMPLES[5], 1, b"f" * 15),
        changed(EXAMPLES[5], 3, [H] * (limits.MAX_HEADS + 1)),
        changed(EXAMPLES[6], 5, [b""] * (limits.MAX_LINKS_PER_MESSAGE + 1)),
        changed(EXAMPLES[6], 3, 9),
        changed(EXAMPLES[8], 2, [b"l" * (16 * 1024 + 1)]),
        changed(EXAMPLES[9], 2, []),
        changed(EXAMPLES[10], 2, b"k" * 17),
        changed(EXAMPLES[11], 3, b"k" * 17),
        changed(EXAMPLES[11], 3, I16 * (limits.MAX_KEYS + 1)),
        changed(EXAMPLES[12], 3, [b""] * (limits.MAX_MERKLE_NODES + 1)),
        changed(EXAMPLES[13], 4, [b"n" * (limits.MAX_MERKLE_NODE + 1)]),
        changed(EXAMPLES[16], 3, H),
        changed(EXAMPLES[16], 4, [0, 1]),
        changed(EXAMPLES[16], 4, [limits.MAX_REQUEST_BYTES, 1]),
        pack([30, 1, F, b"", [], False]),
        pack([30, 1, F, H * 257, [1] * 257, False]),
        changed(EXAMPLES[19], 1, b"b" * (limits.MAX_PAIRING + 1)),
        changed(EXAMPLES[24], 4, [limits.MAX_REQUEST_BYTES, 1]),
        changed(EXAMPLES[24], 3, H),
        changed(EXAMPLES[25], 4, [limits.MAX_REQUEST_BYTES, 1]),
        changed(EXAMPLES[25], 5, [[(0, 1)]]),
        changed(EXAMPLES[25], 5, [[(0, 1)], []]),
        changed(EXAMPLES[25], 5, [[(0, 1)], [(0, 70_001)]]),
        changed(EXAMPLES[25], 5, [[(0, 1)], [(2**32 - 1, 2)]]),
        changed(EXAMPLES[25], 5, [[(0, 2), (1, 1)], [(0, 1)]]),
        changed(EXAMPLES[25], 5, [[(0, 0)], [(0, 1)]]),
        changed(EXAMPLES[25], 5, [[(0, 1)], [(n, 1) for n in range(limits.MAX_RANGES)]]),
    ],
)
def test_every_bound_is_kept(data: bytes) -> None:
    with pytest.raises(InputError):
        codec.decode(data)


def test_messages_are_bounded_both_ways() -> None:
    big = Records(F, bytes(limits.MAX_CONTROL), I16, 0, False)
    with pytest.raises(InputError, match="2097152"):
        codec.encode(big)
    with pytest.raises(InputError, match="2097152"):
        codec.decode(bytes(limits.MAX_CONTROL + 1))


def test_lengths_are_not_believed() -> None:
    for head in (
        b"\xdd\xff\xff\xff\xff",
        b"\x95\x14\xc4\x10" + F + b"\xdd\xff\xff\xff\xff",
        b"\x92\x29\xc6\xff\xff\xff\xff",
    ):
        with pytest.raises(InputError):
            codec.decode(head)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_only_our_errors_leave_the_decoder(message: Message, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        codec.decode(bytes(encoded))
