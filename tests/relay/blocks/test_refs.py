"""References: all or nothing, replaced at once, and chunks live exactly as long as one names them."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import Connection, select

from p2psync.protocol.relay_api import MAX_REF_CHUNKS, MAX_REFS_CHUNKS, FullRef, NamedRef, NewRefs, RefPage
from relay.accounts.ledger import Usage
from relay.api.route import encode_id
from relay.blocks.tables import chunks, dropped_folders
from relay.mailbox import folders
from relay.mailbox.folders import Rights
from tests.relay.blocks.helpers import (
    ALICE,
    BOB,
    EVE,
    FOLDER,
    FREE,
    TEXT,
    alice,
    check_books,
    let_in,
    name,
    upload,
    usage,
)
from tests.relay.stack import Answer, Client, Stack

REFS = f"/api/v1/folders/{TEXT}/refs"


def ref(number: int) -> str:
    return f"{REFS}/{encode_id(ref_id(number))}"


def ref_id(number: int) -> bytes:
    return bytes(28) + number.to_bytes(4, "big")


async def put(client: Client, number: int, *named: int) -> Answer:
    return await client.put(ref(number), {"chunk_ids": [name(chunk) for chunk in named]}, msgpack=True)


def counts(stack: Stack) -> dict[bytes, int]:
    def work(c: Connection) -> dict[bytes, int]:
        check_books(c, stack.services.accounts.ledger, ALICE, [FOLDER])
        return {row.chunk_id: row.refs for row in c.execute(select(chunks))}

    return stack.services.database.read_now(work)


async def test_a_reference_is_replaced_as_a_whole(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1, 2, 3)
    assert (await put(client, 1, 1, 2, 1)).status == 204
    assert (await put(client, 2, 2)).status == 204
    assert counts(stack) == {name(1): 1, name(2): 2, name(3): 0}
    stack.clock.advance(5)
    assert (await put(client, 1, 3, 2)).status == 204
    assert counts(stack) == {name(1): 0, name(2): 2, name(3): 1}
    got = (await client.get(ref(1), msgpack=True)).decode(FullRef)
    assert (got.chunk_ids, got.modified) == ([name(3), name(2)], stack.services.now())
    assert usage(stack) == Usage(3 * 3000 + 2 * 64 + 3 * 32, 0)
    assert (await client.delete(ref(1))).status == 204
    assert (await client.delete(ref(1))).status == 204
    assert (await client.get(ref(1))).problem == "not-found"
    assert counts(stack) == {name(1): 0, name(2): 1, name(3): 0}
    assert (await put(client, 3)).status == 204
    assert (await client.get(ref(3))).json() == {"modified": stack.services.now(), "chunk_ids": []}


async def put_many(client: Client, wanted: dict[int, list[int]]) -> Answer:
    lines = [NamedRef(ref_id(number), [name(chunk) for chunk in named]) for number, named in wanted.items()]
    return await client.post(REFS, NewRefs(lines), msgpack=True)


async def test_several_references_at_once_are_as_good_as_one_by_one(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1, 2, 3, 4)
    assert (await put(client, 1, 1, 2)).status == 204
    assert (await put(client, 2, 2, 3)).status == 204
    # New, replaced, given up by one and taken by two others, unchanged, named twice in one, empty.
    assert (await put_many(client, {1: [2, 3], 2: [3, 3], 3: [3, 1], 4: [], 5: [1, 4]})).status == 204
    assert counts(stack) == {name(1): 2, name(2): 1, name(3): 3, name(4): 1}
    assert usage(stack) == Usage(4 * 3000 + 5 * 64 + 7 * 32, 0)
    assert (await client.get(ref(2), msgpack=True)).decode(FullRef).chunk_ids == [name(3)]
    assert (await put_many(client, {number: [] for number in range(1, 6)})).status == 204
    assert set(counts(stack).values()) == {0}
    assert (await put_many(client, {})).status == 204


async def test_of_several_references_all_are_put_or_none(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    refused = await put_many(client, {1: [1], 2: [1, 2]})
    assert (refused.status, refused.problem, refused.json()["missing"]) == (409, "conflict", [name(2).hex()])
    twice = NewRefs([NamedRef(ref_id(1), [name(1)])] * 2)
    many = NewRefs([NamedRef(ref_id(number), [name(1)] * (MAX_REFS_CHUNKS // 2)) for number in range(3)])
    for bad in (twice, many):
        assert (await client.post(REFS, bad, msgpack=True)).problem == "bad-request"
    bob = stack.client(BOB)
    assert (await put_many(bob, {1: [1]})).problem == "not-found"
    stack.services.database.write_now(lambda c: let_in(c, BOB, Rights.READ))
    assert (await put_many(bob, {1: [1]})).problem == "forbidden"
    assert counts(stack) == {name(1): 0}


async def test_a_reference_that_somebody_put_again_stays(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    assert (await put(client, 1, 1)).status == 204
    (listed,) = (await client.get(REFS, msgpack=True)).decode(RefPage).refs
    stack.clock.advance(1)
    assert (await put(client, 1, 1)).status == 204
    refused = await client.delete(ref(1), query={"modified": listed.modified})
    assert (refused.status, refused.problem) == (409, "conflict")
    assert counts(stack) == {name(1): 1}
    assert (await client.delete(ref(1), query={"modified": listed.modified + 1})).status == 204
    # As is a request whose answer was lost.
    assert (await client.delete(ref(1), query={"modified": listed.modified + 1})).status == 204
    assert counts(stack) == {name(1): 0}


async def test_a_reference_to_what_is_missing(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    assert (await put(client, 1, 1)).status == 204
    refused = await put(client, 1, 2, 1, 3)
    assert (refused.status, refused.problem) == (409, "conflict")
    assert refused.json()["missing"] == [name(2).hex(), name(3).hex()]
    assert (await client.get(ref(1), msgpack=True)).decode(FullRef).chunk_ids == [name(1)]
    assert counts(stack) == {name(1): 1}


async def test_pages(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    for number in (3, 1, 2):
        await put(client, number, *([1] * (number % 2)))
    first = (await client.get(REFS, query={"limit": 2}, msgpack=True)).decode(RefPage).refs
    assert [(line.ref_id, line.count) for line in first] == [(ref_id(1), 1), (ref_id(2), 0)]
    after = encode_id(first[-1].ref_id)
    rest = (await client.get(REFS, query={"after": after}, msgpack=True)).decode(RefPage).refs
    assert [line.ref_id for line in rest] == [ref_id(3)]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"more": 1}):
        assert (await client.get(REFS, query=wrong)).problem == "bad-request"


async def test_who_may(stack: Stack) -> None:
    client = alice(stack)
    await put(client, 1)
    stack.services.database.write_now(lambda c: let_in(c, BOB, Rights.READ))
    reader, stranger = stack.client(BOB), stack.client(EVE)
    assert [(await reader.get(where)).status for where in (ref(1), REFS)] == [200, 200]
    assert (await put(reader, 1)).problem == (await reader.delete(ref(1))).problem == "forbidden"
    for answer in (
        await put(stranger, 1),
        await stranger.delete(ref(1)),
        await stranger.get(ref(1)),
        await stranger.get(REFS),
        await stranger.get(f"/api/v1/folders/{TEXT}/lost-chunks"),
    ):
        assert (answer.status, answer.problem) == (404, "not-found")
    assert (await client.put(f"{REFS}/short", {"chunk_ids": []})).problem == "not-found"


async def test_references_are_bounded_and_paid_for(stack: Stack) -> None:
    client, ledger = alice(stack), stack.services.accounts.ledger
    await upload(client, 1, 2)
    stack.services.database.write_now(lambda c: ledger.charge(c, ALICE, FREE - 6000 - 64 - 40, 0))
    assert (await put(client, 1, 1)).status == 204
    assert (await put(client, 1, 1, 2)).problem == "over-quota"
    assert (await put(client, 2)).problem == "over-quota"
    assert (await client.get(ref(1), msgpack=True)).decode(FullRef).chunk_ids == [name(1)]
    assert (await client.put(ref(1), {"chunk_ids": [bytes(31)]}, msgpack=True)).problem == "bad-request"


@pytest.mark.parametrize("size", [MAX_REF_CHUNKS, MAX_REF_CHUNKS + 1])
async def test_the_largest_reference(stack: Stack, size: int) -> None:
    """As many chunks as the largest content has; each named twice would be too many."""
    client = alice(stack)
    await upload(client, 1)
    body = msgspec.Raw(msgspec.msgpack.encode({"chunk_ids": [name(1)] * size}))
    answer = await client.put(ref(1), msgspec.msgpack.decode(body), msgpack=True)
    assert answer.status == (204 if size == MAX_REF_CHUNKS else 400)


async def test_a_deleted_folder_pays_back_and_leaves_no_rows(stack: Stack) -> None:
    client, services = alice(stack), stack.services
    await upload(client, 1, 2)
    await put(client, 1, 1)

    def work(c: Connection) -> list[bytes]:
        folder = folders.require(c, FOLDER, ALICE, Rights.MANAGE, lock=True)
        services.blocks.refs.drop_ref(c, FOLDER, ref_id(9), 0)
        services.blocks.refs.drop_ref(c, FOLDER, ref_id(1), 0)
        check_books(c, services.accounts.ledger, ALICE, [FOLDER])
        folders.remove(c, services.accounts.ledger, services.blocks.refs, folder, 0)
        assert c.execute(select(chunks)).all() == []
        return list(c.execute(select(dropped_folders.c.folder_id)).scalars())

    assert services.database.write_now(work) == [FOLDER]
    assert usage(stack) == Usage(0, 0)
