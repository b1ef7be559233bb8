"""Packing records into messages loses none and keeps every bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.model.paths import RelPath
from p2psync.model.records import MAX_BATCH, FileRecord, SignedBatch, record_id
from p2psync.model.versions import MAX_ENTRIES, Dot, Replica, VersionVector
from p2psync.ports import Kind
from p2psync.protocol import codec
from p2psync.protocol.batcher import Outgoing, pack, unpack
from p2psync.protocol.columns import Group
from p2psync.protocol.limits import MAX_CONTROL
from p2psync.protocol.messages import Records

F = b"f" * 16


def record(number: int, index: int, seen: int) -> bytes:
    """A record of some 100 bytes, and 13 more for each replica that it has seen."""
    dot = Dot(index + 1, Replica(b"\xff" * 12))
    past = VersionVector(tuple((Replica(n.to_bytes(12, "big")), 1) for n in range(seen)))
    path = RelPath(b"%d/%d" % (number, index))
    return FileRecord(path, Kind.DIRECTORY, False, 0, index, 0o755, b"", b"", b"", dot, past.advance(dot)).encode()


def make(number: int, seen: int, kept: list[bool], held: list[bool], upto: int) -> Outgoing:
    records = [record(number, i, seen) for i in range(len(kept))]
    batch = SignedBatch(F, b"a" * 32, number, b"".join(map(record_id, records)), b"s" * 64)
    sent = {i: record for i, record in enumerate(records) if kept[i]}
    return Outgoing(batch, sent, frozenset(i for i in sent if held[i]), upto)


@st.composite
def outgoings(draw: st.DrawFn) -> list[Outgoing]:
    result = []
    for number in range(draw(st.integers(0, 6))):
        count = draw(st.sampled_from([1, 2, 9, MAX_BATCH]))
        seen = draw(st.sampled_from([0, 30, 600, MAX_ENTRIES - 1]))
        kept = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        held = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        result.append(make(number, seen, kept, held, number + 1))
    return result


@settings(max_examples=60, deadline=None)
@given(outgoings())
def test_expand_is_the_inverse_of_pack_within_the_limits(outgoing: list[Outgoing]) -> None:
    messages = list(pack(F, b"i" * 16, outgoing, upto=99, request=3))
    assert [m.final for m in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1].upto_sequence == 99
    got: dict[int, Group] = {}
    for message in messages:
        data = codec.encode(message)
        assert len(data) <= MAX_CONTROL
        decoded = codec.decode(data)
        assert isinstance(decoded, Records)
        for part in unpack(decoded):
            whole = got.setdefault(part.batch.epoch, Group(part.batch, {}, frozenset()))
            assert part.batch == whole.batch
            got[part.batch.epoch] = Group(part.batch, whole.records | part.records, whole.held | part.held)
        if not message.final:
            complete = [o for o in outgoing if o.upto <= message.upto_sequence]
            assert all(got[o.batch.epoch].records == o.records for o in complete if o.records)
    wanted = {o.batch.epoch: Group(o.batch, dict(o.records), o.held) for o in outgoing if o.records}
    assert got == wanted


def test_nothing_to_send_still_says_how_far_the_feed_is() -> None:
    (message,) = pack(F, b"i" * 16, [], upto=5)
    assert (unpack(message), message.upto_sequence, message.final) == ([], 5, True)
