"""Where two devices stand: what one can say in a hash the other one reads, if it stands there, and else nobody."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from p2psync.protocol import codec
from p2psync.protocol.messages import FolderAnnounce, FolderResume, FolderState, Message
from p2psync.sync.exchange import Exchange
from p2psync.sync.standing import Telling, abridged, gist, unabridged
from tests.sync.conftest import LABEL, contents, simulated, told

LEFT, RIGHT = b"l" * 16, b"r" * 16
OURS = FolderAnnounce(b"f" * 16, "photos", [b"h" * 32], 2, LEFT, 5, b"m" * 32, RIGHT, 9, 0, 0, 0, 0, False)
THEIRS = msgspec.structs.replace(
    OURS, index_id=RIGHT, sequence=9, cursor_index_id=LEFT, cursor_sequence=5, need_files=1, need_bytes=2, state=2
)
NUMBERS = st.integers(0, 2**63 - 1)


def test_who_stands_there_reads_all_of_it() -> None:
    assert unabridged(abridged(THEIRS, heard=True), [OURS]) == msgspec.structs.replace(
        THEIRS, scan_generation=0, fresh=True, heard=True
    )


def test_what_was_told_before_is_understood_after_a_change() -> None:
    now = msgspec.structs.replace(OURS, sequence=6, root=b"n" * 32)
    resume = abridged(THEIRS, heard=False)
    assert unabridged(resume, [now]) is None
    assert unabridged(resume, [now, OURS]) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"folder": b"g" * 16},
        {"heads": [b"i" * 32]},
        {"heads": [b"h" * 32, b"h" * 32]},
        {"heads": []},
        {"root": bytes(32)},
        {"index_id": b"other".ljust(16)},
        {"index_id": b""},
        {"sequence": 6},
        {"cursor_index_id": b""},
        {"cursor_sequence": 8},
    ],
)
def test_any_difference_is_noticed(change: dict[str, Any]) -> None:
    assert unabridged(abridged(THEIRS, heard=True), [msgspec.structs.replace(OURS, **change)]) is None


def test_what_we_say_ourselves_does_not_pass_for_the_other_sides_word() -> None:
    assert unabridged(abridged(OURS, heard=False), [OURS]) is None


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=4), NUMBERS, NUMBERS)
def test_it_is_short_however_large_the_folder(heads: list[bytes], sequence: int, cursor: int) -> None:
    announce = msgspec.structs.replace(OURS, heads=heads, sequence=sequence, cursor_sequence=cursor)
    assert len(codec.encode(abridged(announce, heard=False))) <= 44


def test_whether_one_who_lacks_nothing_is_scanning_is_no_news() -> None:
    def at(state: FolderState, need: int, generation: int = 0) -> FolderAnnounce:
        return gist(msgspec.structs.replace(OURS, state=state, need_files=need, scan_generation=generation))

    resting = at(FolderState.IDLE, 0)
    assert at(FolderState.SCANNING, 0, 1) == at(FolderState.SYNCING, 0, 2) == resting
    assert at(FolderState.PAUSED, 0) != resting
    assert at(FolderState.ERROR, 0) != resting
    assert len({at(state, 1).state for state in FolderState}) == len(FolderState)


class Side:
    """One end of a line on which both say where they stand; what comes while nobody listens is lost."""

    def __init__(self, announce: FolderAnnounce) -> None:
        self.announce = announce
        self.inbox: list[FolderAnnounce | FolderResume] = []
        self.heard: FolderAnnounce | None = None
        self.begun = self.said = 0
        self._telling: Telling | None = None
        self._has_news = False

    def begin(self) -> None:
        """Exchange the folder, perhaps once more."""
        self._telling, self.heard, self._has_news = Telling(), None, True
        self.begun += 1

    def receive(self) -> None:
        if self.inbox:
            message = self.inbox.pop(0)
            if self._telling is not None:
                self.heard = self._telling.hear(message, self.announce) or self.heard
                self._has_news = True

    def send(self, other: Side) -> None:
        if self._telling is not None and self._has_news:
            self._has_news = False
            if (news := self._telling.say(self.announce)) is not None:
                self.said += 1
                other.inbox.append(news)


@given(
    st.sampled_from([(), ("left",), ("right",), ("left", "right")]),
    st.booleans(),
    st.lists(st.tuples(st.booleans(), st.sampled_from(["begin", "receive", "send"])), max_size=30),
)
@example(("left",), True, [(False, "begin"), (False, "send"), (True, "receive")])
def test_both_learn_where_the_other_stands_whenever_each_begins(
    without_cursor: tuple[str, ...], differ: bool, steps: list[tuple[bool, str]]
) -> None:
    left = msgspec.structs.replace(OURS, **({"cursor_index_id": b""} if "left" in without_cursor else {}))
    right = msgspec.structs.replace(THEIRS, **({"cursor_index_id": b""} if "right" in without_cursor else {}))
    sides = Side(left), Side(msgspec.structs.replace(right, root=b"o" * 32) if differ else right)
    for which, step in steps:
        one, other = sides[which], sides[not which]
        match step:
            case "begin":
                one.begin()
            case "receive":
                one.receive()
            case _:
                one.send(other)
    for side in sides:
        if not side.begun:
            side.begin()
    for _ in range(20):
        for one, other in (sides, sides[::-1]):
            one.send(other)
            other.receive()
    for one, other in (sides, sides[::-1]):
        assert one.heard is not None
        assert msgspec.structs.replace(one.heard, fresh=False, heard=False) == other.announce
    begun = sum(side.begun for side in sides)
    assert all(side.said <= 2 * begun for side in sides)


@pytest.mark.parametrize("without_cursor", [(), ("one",), ("two",), ("one", "two")])
@simulated
async def test_a_first_word_that_is_lost_between_two_connections_is_said_again(
    monkeypatch: pytest.MonkeyPatch, without_cursor: tuple[str, ...]
) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        for name in ("one", "two"):
            story.user(name).write(name.encode(), b"1")
            await story.settle(name)
        for name, other in (("one", "two"), ("two", "one")):
            if name in without_cursor:
                peer = story.nodes[other].device_id
                story.folder(name).context.index.write(lambda writer, peer=peer: writer.set_cursor(peer, b"", 0))
        await story.stop("two")
        story.user("one").write(b"g", b"2")
        await story.nodes["one"].folder_scan(LABEL)
        lost: list[Message] = []
        make, deliver = Exchange.__init__, Exchange.deliver

        def is_lost(exchange: Exchange, message: Message | None) -> bool:
            """Whatever the arbiter, "two", says before "one" has spoken."""
            is_first = isinstance(message, FolderAnnounce | FolderResume) and exchange._telling._told is None
            if message is not None and is_first and exchange._context.device == story.nodes["one"].device_id:
                lost.append(message)
                return True
            return False

        def made(self: Exchange, *arguments: Any, heard: Message | None, **others: Any) -> None:
            make(self, *arguments, heard=None, **others)
            self._heard = None if is_lost(self, heard) else heard

        async def delivered(self: Exchange, message: Message) -> None:
            if not is_lost(self, message):
                await deliver(self, message)

        monkeypatch.setattr(Exchange, "__init__", made)
        monkeypatch.setattr(Exchange, "deliver", delivered)
        await story.again("two")
        await story.until(lambda: contents(story, "two").get(b"g") == b"2", 10)
        assert lost
