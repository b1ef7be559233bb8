"""Collecting, scrubbing and checking: what goes, what stays, and what is never concluded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
from prometheus_client import generate_latest
from sqlalchemy import Connection, delete, select, update

from p2psync.errors import StateError
from relay.accounts.ledger import Usage, account_usage
from relay.blocks.check import PAGE, Report, check
from relay.blocks.collect import PLAUSIBLE_ORPHANS
from relay.blocks.maintenance import MAX_BAD, Collected, Maintenance, Scrubbed
from relay.blocks.service import Blocks
from relay.blocks.tables import chunks, dropped_folders
from relay.errors import ApiError
from relay.mailbox import folders
from relay.mailbox.folders import Rights
from relay.ports import StoredBlock
from tests.relay.blocks.helpers import ALICE, FOLDER, ME, TEXT, alice, chunk, memory, name, path, set_up, upload, usage
from tests.relay.blocks.test_refs import put, ref
from tests.relay.stack import Stack

DAY = 86_400


def upkeep(stack: Stack) -> Maintenance:
    return Maintenance(stack.services.blocks)


def objects(stack: Stack) -> list[str]:
    return sorted(key for key in memory(stack).objects if key.startswith("chunks/"))


def key(stack: Stack, number: int) -> str:
    return next(key for key in objects(stack) if name(number).hex() in key)


async def test_what_nothing_refers_to_goes_after_a_day(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1, 2, 3)
    await put(client, 1, 1, 2)
    stack.clock.advance(DAY - 10)
    await upload(client, 3)  # again: about to be referred to
    assert await upkeep(stack).collect() == Collected()
    await client.delete(ref(1))
    await put(client, 2, 2)
    stack.clock.advance(DAY - 10)
    assert await upkeep(stack).collect() == Collected()
    stack.clock.advance(10)
    assert await upkeep(stack).collect() == Collected(swept=2, swept_bytes=6000)
    assert [name(2).hex() in key for key in objects(stack)] == [True]
    assert usage(stack) == Usage(3000 + 64 + 32, 0)
    assert (await client.get(path(1), query=ME)).status == 404
    await upload(client, 1)
    assert (await client.get(path(1), query=ME)).body == chunk(1)[1]


async def test_objects_that_nothing_names(stack: Stack) -> None:
    client, store = alice(stack), memory(stack)
    await upload(client, 1)
    half = key(stack, 1)[:-32] + "ab" * 16
    promised = key(stack, 1)[:-32] + "cd" * 16
    store.put(half, b"x")
    store.put(promised, b"x")
    store.put("chunks/strange", b"x")
    ledger = stack.services.accounts.ledger
    stack.services.database.write_now(
        lambda c: ledger.reserve(c, ALICE, b"\xcd" * 16, 1, expires=stack.services.now() + 2 * DAY, now=0)
    )
    assert await upkeep(stack).list_store() == Collected()  # not yet: it is new
    stack.clock.advance(DAY)
    assert await upkeep(stack).list_store() == Collected(objects=1)
    assert half not in objects(stack)
    stack.clock.advance(DAY)
    await upkeep(stack).collect()
    assert await upkeep(stack).list_store() == Collected(objects=1)
    assert objects(stack) == ["chunks/strange"]


async def test_a_database_that_knows_too_little_is_not_believed(stack: Stack) -> None:
    """It is an old one, put back from a backup: what it does not know may be all that there is."""
    client, store = alice(stack), memory(stack)
    await upload(client, 1)
    for number in range(PLAUSIBLE_ORPHANS + 1):
        store.put(f"{key(stack, 1)[:-32]}{number:032x}", b"x")
    stack.clock.advance(2 * DAY)
    assert await upkeep(stack).list_store() == Collected(refused=PLAUSIBLE_ORPHANS + 1)
    assert len(objects(stack)) == PLAUSIBLE_ORPHANS + 2
    assert await upkeep(stack).list_store(force=True) == Collected(objects=PLAUSIBLE_ORPHANS + 1)
    assert (await client.get(path(1), query=ME)).status == 200


async def test_a_listing_that_breaks_off_deletes_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client, store = alice(stack), memory(stack)
    await upload(client, 1)
    store.put(key(stack, 1)[:-32] + "ab" * 16, b"x")
    stack.clock.advance(2 * DAY)
    real = store.list

    def listed(prefix: str, after: str = "") -> Iterator[StoredBlock]:
        yield from real(prefix, after)
        raise OSError("the connection broke")

    monkeypatch.setattr(store, "list", listed)
    with pytest.raises(ApiError):
        await upkeep(stack).list_store()
    assert len(objects(stack)) == 2


async def test_objects_of_a_deleted_folder_go_at_once(stack: Stack) -> None:
    """Also when the folder exists anew by then, with chunks of its own."""
    client, services = alice(stack), stack.services
    await upload(client, 1, 2)

    def drop(c: Connection) -> None:
        folder = folders.require(c, FOLDER, ALICE, Rights.MANAGE, lock=True)
        folders.remove(c, services.accounts.ledger, services.blocks.refs, folder, 0)
        set_up(c)

    services.database.write_now(drop)
    await upload(client, 2)
    assert len(objects(stack)) == 3
    assert await upkeep(stack).collect() == Collected(objects=2)
    assert (await client.get(path(2), query=ME)).body == chunk(2)[1]
    assert services.database.read_now(lambda c: c.execute(select(dropped_folders)).all()) == []
    assert usage(stack) == Usage(3000, 0)


async def test_scrubbing_finds_what_the_disk_lost(stack: Stack) -> None:
    client, store = alice(stack), memory(stack)
    await upload(client, 1, 2, 3)
    await put(client, 1, 1, 2, 3)
    damaged, lost = key(stack, 1), key(stack, 2)
    store.objects[damaged] = b"\xff" + store.objects[damaged][1:]
    del store.objects[lost]
    found: list[None] = []
    work = Maintenance(stack.services.blocks, lambda: found.append(None))
    assert await work.scrub() == Scrubbed()  # all were seen sound lately
    stack.clock.advance(31 * DAY)
    assert await work.scrub() == Scrubbed(sound=1, bad=2, size=9000)
    assert len(found) == 2
    assert await work.scrub() == Scrubbed()
    assert store.objects["damaged/" + damaged][:1] == b"\xff"
    assert objects(stack) == [key(stack, 3)]
    assert usage(stack) == Usage(3000 + 64 + 96, 0)
    question = {"folder_id": FOLDER, "chunk_ids": [name(number) for number in (1, 2, 3)]}
    assert len((await client.post("/api/v1/chunks/missing", question)).json()["chunk_ids"]) == 2
    assert len((await client.get(f"/api/v1/folders/{TEXT}/lost-chunks")).json()["chunk_ids"]) == 2
    refused = await put(client, 2, 1)
    assert refused.problem == "conflict"
    await upload(client, 1, 2)
    assert (await client.get(path(1), query=ME)).body == chunk(1)[1]
    assert (await check(stack.services.blocks)).is_clean


async def test_a_lost_chunk_that_comes_again_waits_anew_for_its_reference(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    del memory(stack).objects[key(stack, 1)]
    stack.clock.advance(2 * DAY)
    assert (await client.get(path(1), query=ME)).status == 404
    await upload(client, 1)
    assert await upkeep(stack).collect() == Collected()
    assert (await put(client, 1, 1)).status == 204


async def test_a_store_that_fails_is_not_a_lost_chunk(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client, store = alice(stack), memory(stack)
    await upload(client, *range(20))
    stack.clock.advance(31 * DAY)

    def fail(*_: object) -> None:
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(store, "get", fail)
        with pytest.raises(ApiError):
            await upkeep(stack).scrub()
    kept = dict(store.objects)
    store.objects.clear()
    for work in (upkeep(stack).scrub, upkeep(stack).collect, upkeep(stack).list_store):
        with pytest.raises(StateError, match="mounted"):
            await work()
    with pytest.raises(StateError, match="mounted"):
        await check(stack.services.blocks, repair=True)
    store.put("about/store", kept["about/store"])
    assert (await upkeep(stack).scrub()).bad == MAX_BAD + 1  # then it is put off
    store.objects = kept
    assert usage(stack).used == (20 - MAX_BAD - 1) * 3000


async def test_upkeep_runs_by_itself(stack: Stack, autojump_clock: trio.testing.MockClock) -> None:
    client = alice(stack)
    await upload(client, 1)
    memory(stack).objects[key(stack, 1)] = b"x"
    stack.clock.advance(40 * DAY)
    await upload(client, 2)
    with trio.move_on_after(3600):
        await stack.services.run()
    assert objects(stack) == [key(stack, 2)]
    assert b"p2psync_relay_chunks_lost_total" in generate_latest(stack.services.metrics.registry)


async def test_a_foreign_store_ends_the_relay(stack: Stack) -> None:
    await upload(alice(stack), 1)
    memory(stack).objects.clear()
    fresh = Maintenance(Blocks(stack.services.blocks.world))
    with pytest.raises(StateError, match="mounted"):
        await fresh.run()


async def test_a_check_finds_each_kind_of_disorder_and_repairs_it(stack: Stack) -> None:
    client, store, services = alice(stack), memory(stack), stack.services
    await upload(client, *range(1, 7))
    await put(client, 1, 1, 2, 3, 4)
    clean = await check(services.blocks)
    assert clean.is_clean
    assert (clean.chunks, clean.size, clean.orphans) == (6, 18_000, 0)

    del store.objects[key(stack, 1)]
    store.objects[key(stack, 2)] = b"short"
    store.put(key(stack, 3)[:-32] + "ab" * 16, b"left over")
    store.put(f"chunks/{TEXT}/00/strange", b"x")

    def damage(c: Connection) -> None:
        c.execute(update(chunks).where(chunks.c.chunk_id == name(3)).values(refs=2))
        c.execute(update(chunks).where(chunks.c.chunk_id == name(5)).values(refs=1, unreferenced=None))
        c.execute(delete(chunks).where(chunks.c.chunk_id == name(4)))
        c.execute(update(account_usage).values(used=5))

    services.database.write_now(damage)

    def summary(report: Report) -> tuple[object, ...]:
        return report.lost.count, report.orphans, report.strange.count, report.counts.count, len(report.ledger)

    # The object of the deleted row is left over too.
    assert summary(await check(services.blocks)) == (2, 2, 1, 3, 1)
    assert summary(await check(services.blocks, repair=True)) == (2, 2, 1, 3, 1)
    left = await check(services.blocks)
    assert (summary(left), left.awaited) == ((0, 3, 1, 1, 0), 2)
    assert left.counts.named == [f"{name(4).hex()} is named and not stored"]
    assert usage(stack) == Usage(3 * 3000 + 64 + 4 * 32, 0)
    await upload(client, 1, 2, 4)
    await put(client, 1, 1, 2, 3, 4)
    store.delete([f"chunks/{TEXT}/00/strange"])


async def test_a_check_goes_on_from_page_to_page(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = alice(stack)
    await upload(client, *range(12))
    monkeypatch.setattr("relay.blocks.check.PAGE", 5)
    assert PAGE != 5
    memory(stack).objects.pop(key(stack, 3))
    report = await check(stack.services.blocks)
    assert (report.chunks, report.lost.count, report.orphans) == (12, 1, 0)


async def test_after_2038(stack: Stack) -> None:
    client = alice(stack)
    stack.clock.advance(1 << 32)
    await upload(client, 1, 2)
    await put(client, 1, 1, 2)
    await put(client, 1, 2)
    memory(stack).objects.pop(key(stack, 2))
    assert (await client.get(path(2), query=ME)).status == 404
    await upload(client, 2)
    stack.clock.advance(2 * DAY)
    assert await upkeep(stack).collect() == Collected(swept=1, swept_bytes=3000)
    assert (await check(stack.services.blocks)).is_clean
