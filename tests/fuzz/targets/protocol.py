"""What an authenticated peer can send: messages, frames in any state, content nobody asked for, groups of records."""

from __future__ import annotations

import contextlib
import zlib

import msgspec

from p2psync.errors import InputError, ProtocolError
from p2psync.membership.batches import check_shape
from p2psync.model.cutting import Leaf, decode_leaves, encode_leaves, leaves
from p2psync.model.records import decode_record
from p2psync.protocol import codec
from p2psync.protocol.batcher import Outgoing, pack, unpack
from p2psync.protocol.bulk import KIND_BULK, KIND_CONTROL, Absent, Item, Reply, decode_bulk, reply_frames
from p2psync.protocol.limits import BULK_PAYLOAD, MAX_RANGES
from p2psync.protocol.messages import Hello, Message, Records, Welcome
from p2psync.protocol.session import (
    TRANSITIONS,
    LocalProtocolError,
    RemoteProtocolError,
    Session,
    State,
    Terminated,
    Transmit,
)
from p2psync.transfer.delta import Spot, assemble, plan
from tests.fuzz.rules import Target
from tests.fuzz.targets.signed import BATCH, RECORDS
from tests.protocol.helpers import hello
from tests.protocol.test_codec import EXAMPLES, I16, F, H

_PLAIN = msgspec.msgpack.Decoder(tuple[bytes, bytes, bytes, bytes, bytes])
_SESSION_STEPS = msgspec.msgpack.Decoder(list[tuple[int, bytes]])
_RECEIVE, _SEND, _WAIT, _PING, _END = range(5)
_CONTROL = bytes((KIND_CONTROL,))


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_message(data: bytes) -> None:
    """A control message, alone."""
    message = codec.decode(data)
    assert codec.decode(memoryview(data)) == message
    if not isinstance(message, codec.Unrecognised):
        encoded = codec.encode(message)
        again = codec.decode(encoded)
        assert again == message
        assert not isinstance(again, codec.Unrecognised)
        assert codec.encode(again) == encoded


def feed_group(data: bytes) -> None:
    """A Records message, down to its batches: what is unpacked packs again."""
    message = codec.decode(data)
    if not isinstance(message, Records):
        raise InputError("another message")
    for incoming in unpack(message):
        check_shape(incoming.batch)
        assert incoming.held <= incoming.records.keys()
        for record in incoming.records.values():
            decode_record(record)
        outgoing = Outgoing(incoming.batch, incoming.records, incoming.held)
        packed = [part for m in pack(message.folder, b"", [outgoing]) for part in unpack(m)]
        assert all(part.batch == incoming.batch for part in packed)
        assert {i: r for part in packed for i, r in part.records.items()} == incoming.records


def feed_columns(data: bytes) -> None:
    """As `records-message`, with the columns not yet compressed, so that they are reached."""
    try:
        *hashes, plain = _PLAIN.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InputError("another structure") from None
    body = msgspec.msgpack.encode([*hashes, len(plain), zlib.compress(plain, 1)])
    feed_group(codec.encode(Records(F, body, I16, 0, True)))


# ── a connection ────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_session(data: bytes) -> None:
    """A connection's life: frames that come, messages sent, time passing, in any order, as either side."""
    try:
        steps = _SESSION_STEPS.decode(data[1:])
    except (msgspec.MsgspecError, ValueError):
        steps = [(_RECEIVE, data[1:])]
    now = 0.0
    session = Session(hello(1), now, arbiter=bool(data[:1] > b"\x7f"))
    session.start(now)
    for kind, body in steps[:64]:
        before = session.state
        try:
            events = []
            match kind:
                case 0:
                    events = session.receive(body, now)
                case 1:
                    message = _message(body)
                    if message is not None:
                        session.send(message, now)
                case 2:
                    now += len(body)
                    events = session.handle_timer(now)
                case 3:
                    session.ping(now)
                case _:
                    events = session.end_of_stream()
        except LocalProtocolError:
            assert kind in (_SEND, _PING)
            assert session.state is before
        except RemoteProtocolError as error:
            assert kind == _RECEIVE
            assert session.state is State.CLOSED
            codec.decode(error.goodbye[1:])
        assert session.state is before or session.state in TRANSITIONS[before].values()
        assert len(events) <= 1
        for event in events:
            assert not isinstance(event, Terminated) or session.state is State.CLOSED
            assert not isinstance(event, Transmit) or codec.decode(event.frame[1:])
        deadline = session.next_deadline()
        assert (deadline is None) == (session.state is State.CLOSED)


def _message(data: bytes) -> Message | None:
    with contextlib.suppress(InputError):
        message = codec.decode(data)
        return None if isinstance(message, codec.Unrecognised) else message
    return None


def _session_seeds() -> list[bytes]:
    def script(*steps: tuple[int, bytes]) -> list[bytes]:
        body = msgspec.msgpack.encode(list(steps))
        return [b"\x00" + body, b"\xff" + body]

    def come(message: Message) -> tuple[int, bytes]:
        return _RECEIVE, _CONTROL + codec.encode(message)

    def go(message: Message) -> tuple[int, bytes]:
        return _SEND, codec.encode(message)

    greeted = come(hello(2))
    others = [m for m in EXAMPLES if not isinstance(m, Hello | Welcome)]
    bulk = b"".join(next(reply_frames(1, [b"content"])))
    return [
        *script(greeted, come(Welcome()), *map(come, others[2:])),
        *script(greeted, go(Welcome()), *map(come, others[2:])),
        *(seed for message in others for seed in script(greeted, come(Welcome()), go(Welcome()), come(message))),
        *script(greeted, go(Welcome()), (_RECEIVE, bulk), (_PING, b""), (_WAIT, b"w" * 40), (_END, b"")),
        *script((_WAIT, b"w" * 11)),
        *script(*map(come, EXAMPLES[-2:]), greeted, *map(come, EXAMPLES[-2:])),
        *script(greeted, go(Welcome()), *map(go, others[2:8])),
    ]


# ── deltas ──────────────────────────────────────────────────────────────────────────────────────────────────────────
_OLD = bytes(range(256)) * 157
"""What is here of a chunk of which a peer names the leaves."""
_NEW = _OLD[:20_000] + b"inserted" + _OLD[20_000:]


def feed_leaves(data: bytes) -> None:
    """The leaves of a chunk, as a peer names them, true or not: the plan covers the chunk and can be carried out."""
    known: dict[Leaf, Spot] = {}
    at = 0
    for leaf in leaves(memoryview(_OLD)):
        known.setdefault(leaf, Spot(0, at))
        at += leaf.length
    wanted = decode_leaves(data, len(_NEW))
    assert encode_leaves(wanted) == data
    found = plan(wanted, known, MAX_RANGES)
    assert found.copied + found.fetched == found.length == len(_NEW)
    assert len(found.ranges) <= MAX_RANGES

    def read(spot: Spot, view: memoryview) -> bool:
        view[:] = _OLD[spot.offset : spot.offset + len(view)]
        return True

    assert len(assemble(found, read, bytes(found.fetched))) == len(_NEW)


def _leaves_seeds() -> list[bytes]:
    true = leaves(memoryview(_NEW))
    return [encode_leaves(true), encode_leaves(true[::-1]), encode_leaves([Leaf(b"x" * 8, len(_NEW))])]


# ── content ─────────────────────────────────────────────────────────────────────────────────────────────────────────
_REPLY = msgspec.msgpack.Decoder(tuple[list[int], bool, list[bytes]])


def feed_reply(data: bytes) -> None:
    """Frames of a reply to a request of ours, as they come from a peer that lies about lengths and places."""
    try:
        lengths, manifests, frames = _REPLY.decode(data)
    except (msgspec.MsgspecError, ValueError):
        decode_bulk(data)
        return
    reply = Reply([length % 5000 for length in lengths[:64]], at_most=manifests)
    for frame in frames:
        reply.feed(decode_bulk(frame))
    if reply.done:
        items = reply.items()
        assert len(items) == len(lengths[:64])
        for item, length in zip(items, lengths, strict=False):
            assert isinstance(item, Absent) or len(item) == length % 5000 or manifests


def _reply_seeds() -> list[bytes]:
    items: list[Item] = [b"one", Absent.GONE, b"t" * 100, Absent.LATER]
    asked = [3, 50, 100, 7]
    return [
        msgspec.msgpack.encode(
            (asked, manifests, [b"".join(parts) for parts in reply_frames(9, items, lambda size=payload: size)])
        )
        for payload in (BULK_PAYLOAD, 20, 64)
        for manifests in (False, True)
    ] + [bytes((KIND_BULK,)) + bytes(14)]


def _record_messages() -> list[bytes]:
    outgoing = Outgoing(BATCH, dict(enumerate(RECORDS)), frozenset((0, 2)))
    some = Outgoing(BATCH, {1: RECORDS[1]}, frozenset())
    return [codec.encode(m) for sent in ([outgoing], [some, outgoing]) for m in pack(F, I16, sent, upto=7)]


def _column_seeds() -> list[bytes]:
    seeds = []
    for encoded in _record_messages():
        message = codec.decode(encoded)
        assert isinstance(message, Records)
        *hashes, _, packed = msgspec.msgpack.decode(message.body)
        seeds.append(msgspec.msgpack.encode([*hashes, zlib.decompress(packed)]))
    return seeds


TARGETS = (
    Target("message", feed_message, (InputError,), lambda: [codec.encode(m) for m in EXAMPLES], "msgpack"),
    Target("records-message", feed_group, (InputError,), _record_messages, "msgpack"),
    Target("records-columns", feed_columns, (InputError,), _column_seeds, "msgpack"),
    Target("session", feed_session, (), _session_seeds, "msgpack case"),
    Target("leaves", feed_leaves, (InputError,), _leaves_seeds, "bytes"),
    Target("reply", feed_reply, (ProtocolError,), _reply_seeds, "msgpack"),
)
assert H
