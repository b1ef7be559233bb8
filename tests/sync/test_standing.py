"""Where two devices stand: what one can say in a hash the other one reads, if it stands there, and else nobody."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.protocol import codec
from p2psync.protocol.messages import FolderAnnounce, FolderState
from p2psync.sync.standing import abridged, gist, unabridged

LEFT, RIGHT = b"l" * 16, b"r" * 16
OURS = FolderAnnounce(b"f" * 16, "photos", [b"h" * 32], 2, LEFT, 5, b"m" * 32, RIGHT, 9, 0, 0, 0, 3, False)
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
