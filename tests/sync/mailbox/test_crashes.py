"""A node that is killed at any call to the relay repeats work, loses nothing, and never forks its chain."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2psync.sync.life import LIFE
from p2psync.testing.user import User
from tests.sync.conftest import FOLDER, contents, simulated
from tests.sync.mailbox.fake import FakeService
from tests.sync.mailbox.stories import Post, mailed
from tests.sync.mailbox.test_mailbox import met_and_parted

CALLS = 26
"""About as many as it takes to leave a few files."""


class Killed(FakeService):
    """Notes what was durable at one call: there the node is killed, before the relay heard of it or after."""

    note: Callable[[], None] = staticmethod(lambda: None)
    at = 0
    after = False

    async def _arrive(self) -> None:
        await super()._arrive()
        if self.calls == self.at and not self.after:
            self.note()

    def _answer(self) -> None:
        super()._answer()
        if self.calls == self.at and self.after:
            self.note()


def life(user: User) -> bytes:
    return user.read(LIFE)


async def killed_at(story: Post, call: int, *, after: bool) -> bool:
    """Leave some files with a node that dies at a call; False when it needs fewer calls."""
    await met_and_parted(story)
    await story.stop("one")
    device = story.device("one")
    (index,) = [path for path in device.database.paths() if path.endswith(b"/index")]
    durable: list[tuple[object, bytes]] = []
    service = Killed(story.relay, story.services["one"].keys)
    service.at, service.after = call, after
    service.note = lambda: durable.append((device.database.copy(index), life(device.user(FOLDER))))
    story.services["one"] = service
    user = device.user(FOLDER)
    user.write(b"a", b"1")
    user.write(b"b", b"2" * 5000)
    await story.again("one")
    await story.posted("one")
    user.write(b"c", b"3")
    user.delete(b"a")
    await story.posted("one")
    await story.stop("one")
    if not durable:
        return False
    database, token = durable[0]
    device.database.restore(index, database)  # type: ignore[arg-type]
    user.write(LIFE, token)
    story.services["one"] = FakeService(story.relay, service.keys)
    await story.again("one")
    await story.posted("one")
    await story.stop("one")
    return True


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [*range(1, 12), *range(13, CALLS, 4)])
@simulated
async def test_a_kill_at_any_call(call: int, after: bool) -> None:
    async with mailed() as story:
        if not await killed_at(story, call, after=after):
            return
        await story.again("two")
        await story.until(lambda: contents(story, "two") == {b"b": b"2" * 5000, b"c": b"3"}, timeout=300)
        assert not story.mailbox("two").journal.chains.forks
        assert not story.problems("two") & {"relay-fork", "relay-damaged", "relay-withholds"}
