"""Packing records into messages loses none and keeps every bound."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.model.records import MAX_BATCH, MAX_RECORD, SignedBatch, record_id
from p2psync.protocol import codec
from p2psync.protocol.batcher import Incoming, Outgoing, expand, pack
from p2psync.protocol.limits import MAX_CONTROL
from p2psync.protocol.messages import Records

F = b"f" * 16


def make(number: int, sizes: list[int], kept: list[bool], held: list[bool], upto: int) -> Outgoing:
    records = [bytes([number % 256, i]) + bytes(size) for i, size in enumerate(sizes)]
    batch = SignedBatch(F, b"a" * 32, number, b"".join(map(record_id, records)), b"s" * 64)
    sent = {i: record for i, record in enumerate(records) if kept[i]}
    return Outgoing(batch, sent, frozenset(i for i in sent if held[i]), upto)


@st.composite
def outgoings(draw: st.DrawFn) -> list[Outgoing]:
    result = []
    for number in range(draw(st.integers(0, 6))):
        count = draw(st.sampled_from([1, 2, 9, MAX_BATCH]))
        size = draw(st.sampled_from([40, 500, 9_000, MAX_RECORD - 2]))
        kept = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        held = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        result.append(make(number, [size] * count, kept, held, number + 1))
    return result


@settings(max_examples=60, deadline=None)
@given(outgoings())
def test_expand_is_the_inverse_of_pack_within_the_limits(outgoing: list[Outgoing]) -> None:
    messages = list(pack(F, b"i" * 16, outgoing, upto=99, request=3))
    assert [m.final for m in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1].upto_sequence == 99
    got: dict[int, Incoming] = {}
    for message in messages:
        data = codec.encode(message)
        assert len(data) <= MAX_CONTROL
        decoded = codec.decode(data)
        assert isinstance(decoded, Records)
        for group in decoded.groups:
            part = expand(F, group)
            whole = got.setdefault(group.epoch, Incoming(part.batch, {}, frozenset()))
            assert part.batch == whole.batch
            got[group.epoch] = Incoming(part.batch, whole.records | part.records, whole.held | part.held)
        if not message.final:
            complete = [o for o in outgoing if o.upto <= message.upto_sequence]
            assert all(got[o.batch.epoch].records == o.records for o in complete if o.records)
    wanted = {o.batch.epoch: Incoming(o.batch, dict(o.records), o.held) for o in outgoing if o.records}
    assert got == wanted


def test_nothing_to_send_still_says_how_far_the_feed_is() -> None:
    (message,) = pack(F, b"i" * 16, [], upto=5)
    assert (message.groups, message.upto_sequence, message.final) == ([], 5, True)
