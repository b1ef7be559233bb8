"""Connections that come and go."""

from __future__ import annotations

from typing import NoReturn

import pytest
import trio

from p2psync.errors import ProtocolError
from tests.sync.conftest import simulated, told


@simulated
async def test_a_device_that_always_breaks_the_protocol_is_not_dialled_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        attempts = []

        async def exchange(_: object) -> NoReturn:
            attempts.append(trio.current_time())
            raise ProtocolError("nonsense")

        with monkeypatch.context() as broken:
            broken.setattr(story.folder("two"), "exchange", exchange)
            story.sim.network.reset(story.letter("two"))
            await trio.sleep(600)
        assert 1 < len(attempts) < 150
        story.user("one").write(b"later", b"content")
        await story.until(lambda: b"later" in story.user("two").names(), 200)
