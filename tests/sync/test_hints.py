"""Hints: few due paths out of many hints, none lost, and everything when some were."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2psync.ports import Hint
from p2psync.sync import hints
from p2psync.sync.hints import Due, HintInbox

DEBOUNCE, QUIET = 0.05, 1.0


@pytest.fixture
def inbox() -> HintInbox:
    return HintInbox(DEBOUNCE, QUIET)


async def due(inbox: HintInbox) -> tuple[Due, float]:
    """What comes next, and after how long."""
    began = trio.current_time()
    return await inbox.wait_due(began + 60), trio.current_time() - began


async def test_lost_events_mean_everything(inbox: HintInbox, autojump_clock: MockClock) -> None:
    inbox.open()
    inbox.put(Hint(b"a"))
    inbox.put(Hint(None))
    inbox.put(Hint(b"b"))
    assert not inbox.idle
    assert await due(inbox) == (Due((), everything=True), 0)
    assert inbox.idle


async def test_hints_before_the_loop_listens_are_kept(inbox: HintInbox) -> None:
    await trio.to_thread.run_sync(inbox.put, Hint(None))
    inbox.open()
    assert (await due(inbox))[0].everything


async def test_a_hint_from_a_thread_wakes_the_waiter(inbox: HintInbox) -> None:
    inbox.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, inbox.put, Hint(b"a"))
        assert (await inbox.wait_due(trio.current_time() + 3600)).paths == (b"a",)


async def test_too_many_paths_mean_everything(inbox: HintInbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "MAX_PATHS", 3)
    inbox.open()
    for number in range(4):
        inbox.put(Hint(b"%d" % number))
    assert (await due(inbox))[0].everything


async def test_a_file_is_left_alone_until_its_writer_pauses(inbox: HintInbox, autojump_clock: MockClock) -> None:
    inbox.open()
    inbox.put(Hint(b"open"))
    inbox.put(Hint(b"closed", settled=True))
    first, after = await due(inbox)
    assert (first.paths, after) == ((b"closed",), pytest.approx(DEBOUNCE))
    inbox.put(Hint(b"open"))
    second, after = await due(inbox)
    assert (second.paths, after) == ((b"open",), pytest.approx(QUIET))


async def test_what_was_put_off_comes_when_it_is_due_or_hinted(inbox: HintInbox, autojump_clock: MockClock) -> None:
    inbox.open()
    inbox.defer([b"a"], 5.0)
    inbox.defer([b"a"], 9.0)
    assert await due(inbox) == (Due((b"a",), everything=False), pytest.approx(5.0))
    inbox.defer([b"b"], 5.0)
    inbox.put(Hint(b"b", settled=True))
    assert await due(inbox) == (Due((b"b",), everything=False), pytest.approx(DEBOUNCE))


async def test_an_interrupt_brings_nothing(inbox: HintInbox, autojump_clock: MockClock) -> None:
    inbox.open()
    inbox.interrupt()
    assert await due(inbox) == (Due((), everything=False), 0)
    assert await due(inbox) == (Due((), everything=False), 60)


async def test_names_that_are_due_within_moments_are_handed_out_together(
    inbox: HintInbox, autojump_clock: MockClock
) -> None:
    inbox.open()
    for at, path in ((0.0, b"old"), (hints.TOGETHER / 2, b"new"), (3 * hints.TOGETHER, b"later")):
        inbox.defer([path], DEBOUNCE + at)
    (first, waited), (second, _) = await due(inbox), await due(inbox)
    assert (first.paths, second.paths) == ((b"new", b"old"), (b"later",))
    assert waited == pytest.approx(DEBOUNCE)
