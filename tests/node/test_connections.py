"""Connections that come and go."""

from __future__ import annotations

from typing import NoReturn

import pytest
import trio

from p2psync.errors import ConnectionLost, ProtocolError
from p2psync.node import connections
from p2psync.protocol.messages import FolderOffer, GoodbyeCode, Message
from p2psync.sync.peer import Peer
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


@simulated
async def test_a_connection_that_ends_while_folders_are_offered_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with told() as story:
        await story.start("one", "two")
        await story.share("one", two="editor")
        errors: list[object] = []
        monkeypatch.setattr(connections._log, "exception", lambda *words, **more: errors.append((words, more)))
        send, lost = Peer.send, []

        async def send_or_lose(peer: Peer, message: Message) -> None:
            if isinstance(message, FolderOffer) and not lost:
                lost.append(message)
                await peer.close(GoodbyeCode.BUSY, "the cable was pulled")
                raise ConnectionLost("the connection is over")
            await send(peer, message)

        monkeypatch.setattr(Peer, "send", send_or_lose)
        story.sim.network.reset(story.letter("two"))
        story.user("one").write(b"later", b"content")
        await story.until(lambda: b"later" in story.user("two").names(), 200)
        assert lost
        assert errors == []
