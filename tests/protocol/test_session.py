"""The session machine: every frame through two real sessions, every violation named."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.protocol import codec
from p2psync.protocol.bulk import reply_frames
from p2psync.protocol.messages import (
    ChunkCancel,
    Goodbye,
    GoodbyeCode,
    PairMessage,
    Ping,
    Pong,
    Rescan,
    Welcome,
)
from p2psync.protocol.session import (
    TRANSITIONS,
    Answered,
    Content,
    Greeted,
    LocalProtocolError,
    Ready,
    Received,
    RemoteProtocolError,
    Session,
    State,
    Step,
    Terminated,
    Timing,
    Transmit,
    transition_table,
)

from .helpers import SessionPair, control, hello

RESCAN = Rescan(1, b"f" * 16)


@pytest.mark.parametrize("carried", [False, True])
def test_greeting_agrees_on_version_features_and_skew(carried: bool) -> None:
    pair = SessionPair(hello(1, version=3), hello(2, version=2, wall_ns=1_007_000_000_000), carried=carried)
    (left,) = pair.taken(pair.left)
    (right,) = pair.taken(pair.right)
    assert isinstance(left, Greeted)
    assert isinstance(right, Greeted)
    assert (left.version, left.features, left.skew_ns) == (2, ("a",), 7_000_000_000)
    assert (right.version, right.features, right.skew_ns) == (2, ("a",), -7_000_000_000)
    assert pair.left.state is pair.right.state is State.GREETED


def test_no_common_version_is_said_to_both() -> None:
    session = Session(hello(1, version=1), 0.0, arbiter=True)
    session.start(0.0)
    with pytest.raises(RemoteProtocolError, match="update the older side") as caught:
        session.receive(control(hello(2, version=3, min_version=2)), 0.0)
    goodbye = codec.decode(caught.value.goodbye[1:])
    assert isinstance(goodbye, Goodbye)
    assert goodbye.reason is GoodbyeCode.INCOMPATIBLE
    assert session.state is State.CLOSED


def test_talking_to_oneself_is_noticed() -> None:
    session = Session(hello(1), 0.0, arbiter=True, heard=codec.encode(hello(1)))
    with pytest.raises(RemoteProtocolError, match="itself"):
        session.start(0.0)


def test_folders_wait_for_welcome_and_pairing_does_not() -> None:
    pair = SessionPair()
    for session in (pair.left, pair.right):
        with pytest.raises(LocalProtocolError):
            session.send(RESCAN, 0.0)
        with pytest.raises(LocalProtocolError):
            session.sent_bulk(0.0)
    pair.send(pair.right, PairMessage(b"x"))
    assert pair.taken(pair.left)[-1] == Received(PairMessage(b"x"))
    pair.ready()
    assert pair.taken(pair.right)[-1] == Ready()
    pair.send(pair.right, RESCAN)
    pair.send(pair.left, RESCAN)
    assert pair.taken(pair.left) == pair.taken(pair.right) == [Received(RESCAN)]


def test_only_the_arbiter_welcomes() -> None:
    pair = SessionPair()
    with pytest.raises(LocalProtocolError):
        pair.right.send(Welcome(), 0.0)
    with pytest.raises(RemoteProtocolError):
        pair.left.receive(control(Welcome()), 0.0)


def test_bulk_frames_come_through_and_later_messages_are_ignored() -> None:
    pair = SessionPair().ready()
    (frame,) = [b"".join(parts) for parts in reply_frames(5, [b"abc"])]
    (event,) = pair.left.receive(frame, 0.0)
    assert isinstance(event, Content)
    assert (event.frame.request, event.frame.offset, event.frame.last) == (5, 0, True)
    pair.left.sent_bulk(0.0)
    assert pair.left.receive(b"\x00\x92\x63\xa5hello", 0.0) == []


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x00", b"\x02abc", b"\x00\x93", b"\x01short", control(hello(2)), b"\x00" + b"\x91" * 5000],
    ids=["empty", "no body", "kind", "cut", "bulk header", "second hello", "nested"],
)
def test_violations_end_the_session_with_a_goodbye(frame: bytes) -> None:
    pair = SessionPair().ready()
    with pytest.raises(RemoteProtocolError) as caught:
        pair.left.receive(frame, 0.0)
    assert pair.left.state is State.CLOSED
    assert pair.left.receive(control(RESCAN), 0.0) == []
    assert pair.left.next_deadline() is None
    pair.taken(pair.right)
    pair.deliver(pair.right, caught.value.goodbye)
    (event,) = pair.taken(pair.right)
    assert isinstance(event, Terminated)
    assert (event.code, event.remote) == (GoodbyeCode.PROTOCOL_ERROR, True)


def test_orderly_goodbye_closes_both() -> None:
    pair = SessionPair().ready()
    pair.taken(pair.right)
    pair.send(pair.left, Goodbye(GoodbyeCode.SHUTTING_DOWN, "bye"))
    assert pair.taken(pair.right) == [Terminated(GoodbyeCode.SHUTTING_DOWN, "bye", True)]
    assert pair.left.state is pair.right.state is State.CLOSED
    with pytest.raises(LocalProtocolError):
        pair.left.send(RESCAN, 0.0)
    assert pair.left.end_of_stream() == []
    assert pair.left.handle_timer(1000.0) == []


def test_goodbye_with_an_unknown_code() -> None:
    pair = SessionPair()
    pair.taken(pair.left)
    pair.send(pair.right, Goodbye(999, "later version"))
    assert pair.taken(pair.left) == [Terminated(GoodbyeCode.PROTOCOL_ERROR, "later version", True)]


# ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def test_idle_sessions_live_on_pings() -> None:
    pair = SessionPair().ready()
    pair.pass_time(1000.0)
    assert pair.left.state is pair.right.state is State.READY
    answers = [e for e in pair.taken(pair.left) if isinstance(e, Answered)]
    assert answers
    assert all(e.seconds == 0.0 for e in answers)


def test_silence_is_death() -> None:
    pair = SessionPair().ready()
    session = pair.left
    assert session.next_deadline() == 30.0
    (ping,) = session.handle_timer(30.0)
    assert isinstance(ping, Transmit)
    assert isinstance(codec.decode(ping.frame[1:]), Ping)
    session.handle_timer(60.0)
    assert session.next_deadline() == 90.0
    (event,) = session.handle_timer(90.0)
    assert event == Terminated(None, "nothing was heard for 90 s", False)


@pytest.mark.parametrize(("greeted", "deadline"), [(False, 5.0), (True, 7.0)])
def test_a_connection_that_goes_nowhere_ends(greeted: bool, deadline: float) -> None:
    heard = codec.encode(hello(2)) if greeted else b""
    session = Session(hello(1), 0.0, arbiter=False, timing=Timing(hello=5.0, welcome=7.0), heard=heard)
    session.start(0.0)
    assert session.next_deadline() == deadline
    assert session.handle_timer(deadline - 1) == []
    assert isinstance(session.handle_timer(deadline)[0], Terminated)
    assert session.state is State.CLOSED


def test_end_of_stream() -> None:
    pair = SessionPair()
    (event,) = pair.left.end_of_stream()
    assert isinstance(event, Terminated)
    assert event.code is None


def test_pings_are_measured_and_bounded() -> None:
    pair = SessionPair().ready()
    session = pair.left
    tokens = [session.ping(1.0)[0] for _ in range(20)]
    assert session.receive(control(Pong(tokens[-1])), 3.0) == [Answered(tokens[-1], 2.0)]
    for token in (tokens[-1], tokens[0], 999):
        assert session.receive(control(Pong(token)), 3.0) == []


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_docs_show_the_table() -> None:
    docs = Path(__file__).parents[2] / "docs"
    assert transition_table() in (docs / "protocol.md").read_text()


def test_every_state_can_end_and_nothing_leaves_closed() -> None:
    assert TRANSITIONS[State.CLOSED] == {}
    for state in (State.OPENING, State.GREETED, State.READY):
        assert TRANSITIONS[state][Step.FAILED] is TRANSITIONS[state][Step.GOODBYE] is State.CLOSED


MESSAGES = [hello(1), hello(2), Welcome(), Goodbye(1), Ping(1), Pong(1), PairMessage(b""), RESCAN, ChunkCancel(1)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(MESSAGES)), max_size=12), st.booleans())
def test_whatever_comes_follows_the_table(steps: list[tuple[bool, object]], arbiter: bool) -> None:
    """Only protocol errors escape, each error on receipt closes, and no state is reached but along the table."""
    session = Session(hello(1), 0.0, arbiter=arbiter)
    session.start(0.0)
    for sending, message in steps:
        before = session.state
        try:
            if sending:
                session.send(message, 0.0)  # type: ignore[arg-type]
            else:
                session.receive(control(message), 0.0)  # type: ignore[arg-type]
        except LocalProtocolError:
            assert sending
            assert session.state is before
        except RemoteProtocolError:
            assert not sending
            assert session.state is State.CLOSED
        assert session.state is before or session.state in TRANSITIONS[before].values()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x00", b"\x00\x98\x01", b"\x00\x95\x14", b"\x01"]))
def test_fuzzed_frames_raise_nothing_else(data: bytes, prefix: bytes) -> None:
    pair = SessionPair().ready()
    with contextlib.suppress(RemoteProtocolError):
        pair.left.receive(prefix + data, 0.0)
    assert pair.left.state in {State.READY, State.CLOSED}
