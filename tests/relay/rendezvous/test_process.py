"""The real relay process forwards, unless its operator does not want that, and ends in time with a pair connected."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from p2psync.errors import ConnectionLost, Unreachable
from p2psync.net.forward import open_forwarded
from p2psync.protocol.relay_address import parse_relay_address
from tests.relay.process import RelayProcess


async def test_the_process_listens_to_tickets(relay_process: RelayProcess) -> None:
    with pytest.raises(ConnectionLost, match="does not take the ticket"):
        await open_forwarded(parse_relay_address(relay_process.url), bytes(32))
    # One that says nothing does not hold up the end.
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_wait_in_vain, relay_process.url)
        await trio.sleep(0.5)
        assert await trio.to_thread.run_sync(relay_process.stop) == 0
        nursery.cancel_scope.cancel()
    assert time.monotonic() - began < 9


async def _wait_in_vain(url: str) -> None:
    with pytest.raises(ConnectionLost):
        await open_forwarded(parse_relay_address(url), b"half a ticket")


async def test_an_operator_may_leave_it_out(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path / "data", "[forwarding]\nenabled = false\n")
    await trio.to_thread.run_sync(relay.start)
    try:
        with pytest.raises(Unreachable, match="does not forward"):
            await open_forwarded(parse_relay_address(relay.url), bytes(32))
    finally:
        relay.kill()
