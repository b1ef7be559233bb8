"""Threads and a real database: uploads, references and collection at the same time, on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection

from p2psync.system import SystemClock, SystemRng, ThreadOffload
from p2psync.testing.world import SimRng
from relay.accounts.ledger import Ledger
from relay.accounts.plans import Plans
from relay.blocks.check import check
from relay.blocks.maintenance import Maintenance
from relay.blocks.service import Blocks, Body, Settings, World
from relay.config import Allowance, Size
from relay.db.database import IN_MEMORY, Database, database_from_url
from relay.db.metadata import metadata
from relay.errors import ApiError
from relay.mailbox import folders
from relay.mailbox.folders import Rights
from tests.relay.blocks.helpers import ALICE, FOLDER, name, set_up
from tests.relay.stack import MemoryStore

SIZE = 2000
FIT = 60
LIMIT = FIT * SIZE + SIZE // 2


@pytest.fixture
def threaded(database_url: str, tmp_path: Path) -> Iterator[Database]:
    """A database whose transactions run at the same time as far as it can."""
    url = f"sqlite:///{tmp_path / 'relay.db'}" if database_url == IN_MEMORY else database_url
    database = database_from_url(url, ThreadOffload(), SimRng("database"), pool_size=16)
    metadata.create_all(database.engine)
    database.write_now(set_up)
    yield database
    database.close()


def service(database: Database, limit: int, settings: Settings | None = None) -> Blocks:
    ledger = Ledger(Plans(Allowance(bytes=Size(limit))))
    world = World(database, MemoryStore(), ledger, SystemClock(), SystemRng(), ThreadOffload(), bytes(32))
    return Blocks(world, settings)


async def put(blocks: Blocks, number: int) -> bool:
    data = name(number) * (SIZE // 32) + bytes(SIZE % 32)

    async def fill(target: memoryview) -> None:
        target[:] = data

    return await blocks.put(ALICE, FOLDER, name(number), Body(SIZE, hashlib.sha256(data).digest(), fill))


async def test_two_hundred_uploads_at_the_limit_overshoot_by_nothing(threaded: Database) -> None:
    blocks, stored, refused = service(threaded, LIMIT), [], []

    async def upload(number: int) -> None:
        try:
            stored.append(await put(blocks, number))
        except ApiError as error:
            refused.append(error.code)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(upload, number)
    assert (stored, refused) == ([True] * FIT, ["over-quota"] * (200 - FIT))
    usage = await threaded.read(lambda c: blocks.world.ledger.usage(c, ALICE))
    assert (usage.used, usage.reserved) == (FIT * SIZE, 0)
    assert (await check(blocks)).is_clean


async def test_one_chunk_uploaded_by_many_is_counted_once(threaded: Database) -> None:
    blocks, new = service(threaded, LIMIT), []

    async def upload() -> None:
        new.append(await put(blocks, 1))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(upload)
    assert sorted(new) == [False] * 19 + [True]
    report = await check(blocks)
    assert (report.is_clean, report.chunks, report.orphans) == (True, 1, 0)


async def test_what_is_referred_to_survives_a_collector_that_never_waits(threaded: Database) -> None:
    blocks = service(threaded, 10**9, Settings(wait_s=-1, orphan_s=-(10**9)))
    upkeep, refs = Maintenance(blocks), blocks.refs
    kept: dict[bytes, list[bytes]] = {}

    async def client(number: int) -> None:
        rng = SimRng(f"client {number}")
        ref_id = bytes([number]) * 32
        for _ in range(6):
            numbers = [int(rng.uniform(0, 8)) for _ in range(3)]
            wanted = [name(each) for each in numbers]

            def work(c: Connection, wanted: list[bytes] = wanted) -> None:
                folder = folders.require(c, FOLDER, ALICE, Rights.APPEND, lock=True)
                refs.put(c, folder, {ref_id: wanted}, 0)

            for _ in range(5):
                with contextlib.suppress(ApiError):  # swept between upload and reference: do it again
                    for each in numbers:
                        await put(blocks, each)
                    await threaded.write(work)
                    kept[ref_id] = wanted
                    break

    async with trio.open_nursery() as nursery:

        async def collect() -> None:
            while True:
                await upkeep.collect()
                await upkeep.list_store(force=True)

        nursery.start_soon(collect)
        async with trio.open_nursery() as clients:
            for number in range(6):
                clients.start_soon(client, number)
        nursery.cancel_scope.cancel()
    await upkeep.collect()
    await upkeep.list_store(force=True)
    report = await check(blocks)
    assert (report.is_clean, report.orphans) == (True, 0)
    assert kept
    for ref_id, wanted in kept.items():
        held = await threaded.read(lambda c, ref_id=ref_id: refs.read(c, FOLDER, ref_id))  # type: ignore[misc]
        assert held == list(dict.fromkeys(wanted))
        for chunk_id in wanted:
            found = await blocks.find(ALICE, FOLDER, chunk_id)
            assert hashlib.sha256(await blocks.read(found, 0, SIZE)).digest() == found.digest
    assert report.chunks == len({chunk_id for wanted in kept.values() for chunk_id in wanted})
