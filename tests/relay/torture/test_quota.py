"""200 uploads at once at the limit of a plan, through the real process; then a plan that lifts it."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
import trio

from p2psync.errors import RelayRefusal
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from tests.relay.process import RelayProcess
from tests.relay.torture.people import PATIENT, all_at_once, restart, sign_up

UPLOADS, CONNECTIONS = 200, 8
SIZE = 10_000
ROOM = 73
LIMIT = ROOM * SIZE + SIZE - 1
FOLDER = FolderId(b"f" * 16)
CONFIG = f"""
{PATIENT}
[free]
bytes = {LIMIT}

[[plans]]
name = "more"
bytes = {UPLOADS * SIZE}
"""


@pytest.mark.e2e
async def test_200_uploads_at_the_limit_do_not_exceed_it(tmp_path: Path) -> None:
    rng = random.Random(1)
    chunks = {rng.randbytes(32): rng.randbytes(SIZE) for _ in range(UPLOADS)}
    relay, told = RelayProcess(tmp_path / "data", CONFIG), Counter[str]()
    stored: set[bytes] = set()

    async def upload(client: RelayClient, chunk: bytes) -> None:
        try:
            assert (await client.blocks.put(FOLDER, chunk, chunks[chunk])).new
        except RelayRefusal as refusal:
            told[refusal.code] += 1
            figures = refusal.figures
            assert (figures["asked"], figures["limit"], figures["plan"]) == (SIZE, LIMIT, "")
            # What is promised and what is stored, never more than there may be.
            assert LIMIT - SIZE < int(str(figures["used"])) + int(str(figures["reserved"])) <= LIMIT
        else:
            stored.add(chunk)

    async def upload_all() -> None:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(device.client_alone()) for _ in range(UPLOADS // CONNECTIONS)]
            lacking = [chunk for chunk in chunks if chunk not in stored]
            await all_at_once(
                [partial(upload, clients[number % len(clients)], chunk) for number, chunk in enumerate(lacking)],
                UPLOADS,
            )

    try:
        await restart(relay)
        ann = await sign_up(relay, "ann@example.org", b"k" * 32, ["desk"], rng)
        device = ann.first
        async with device.client() as client:
            await client.mailbox.create_folder(FOLDER)
            await upload_all()
            status = await client.accounts.status()
            assert (status.used, status.reserved) == (ROOM * SIZE, 0)
            assert (len(stored), told) == (ROOM, {"over-quota": UPLOADS - ROOM})
            assert _bytes_on_disk(relay.data) == ROOM * SIZE
            # What was refused has left nothing; what is there can be read, and sent again for nothing.
            for chunk in sorted(stored)[:5]:
                assert await client.blocks.get(FOLDER, chunk) == chunks[chunk]
                assert not (await client.blocks.put(FOLDER, chunk, chunks[chunk])).new

            assert (await client.accounts.subscribe("more")).state == "active"
            await upload_all()
            status = await client.accounts.status()
            assert (status.used, status.reserved, status.limits.plan) == (UPLOADS * SIZE, 0, "more")
            assert stored == set(chunks)
            assert _bytes_on_disk(relay.data) == UPLOADS * SIZE
        checked = await trio.to_thread.run_sync(relay.run, "admin", "check")
        assert checked.returncode == 0, checked.stdout
    finally:
        await trio.to_thread.run_sync(relay.kill)


def _bytes_on_disk(data: Path) -> int:
    return sum(path.stat().st_size for path in (data / "chunks" / "chunks").rglob("*") if path.is_file())
