"""Chunks over HTTP: durable, counted once, never changed, and only for who may see the folder."""

from __future__ import annotations

import hashlib

import msgspec
import pytest
import trio
import trio.testing
from sqlalchemy import Connection

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from relay.accounts.ledger import Usage
from relay.blocks.budget import Budget
from relay.mailbox import folders
from relay.mailbox.folders import Rights
from tests.relay.blocks.helpers import (
    ALICE,
    BOB,
    EVE,
    FOLDER,
    FREE,
    ME,
    TEXT,
    alice,
    check_books,
    check_objects,
    chunk,
    let_in,
    memory,
    name,
    path,
    set_up,
    upload,
    usage,
)
from tests.relay.stack import Answer, Client, Stack


def outcome(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.problem


async def test_a_chunk_comes_back_as_it_went(stack: Stack) -> None:
    client = alice(stack)
    where, data = chunk(1, 100_000)
    answer = await client.put(where, data, query=ME)
    assert (answer.status, answer.json()) == (200, {"size": 100_000, "new": True})
    assert usage(stack) == Usage(100_000, 0)

    again = await client.put(where, data, query=ME)
    assert (again.status, again.json()) == (200, {"size": 100_000, "new": False})
    assert usage(stack) == Usage(100_000, 0)

    got = await client.get(where, query=ME)
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    assert (got.status, got.body) == (200, data)
    assert {key: got.headers[key] for key in ("etag", "accept-ranges", "content-length", "content-type")} == {
        "etag": etag,
        "accept-ranges": "bytes",
        "content-length": "100000",
        "content-type": "application/octet-stream",
    }
    head = await client.request("HEAD", where, query=ME)
    assert (head.status, head.body, head.headers["content-length"], head.headers["etag"]) == (200, b"", "100000", etag)


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=2990-", 2990, 3000),
        ("bytes=-5", 2995, 3000),
        ("bytes=2999-99999", 2999, 3000),
        ("bytes=-99999", 0, 3000),
        ("bytes=0-", 0, 3000),
        # No single range: all of it, as RFC 9110 allows.
        ("bytes=0-1,5-6", 0, 3000),
        ("bytes=-", 0, 3000),
        ("bytes=20-10", 0, 3000),
        ("lines=1-2", 0, 3000),
        ("bytes=\u0661-2", 0, 3000),
    ],
)
async def test_ranges(stack: Stack, asked: str, start: int, stop: int) -> None:
    client = alice(stack)
    await upload(client, 1)
    where, data = chunk(1)
    got = await client.get(where, query=ME, headers={"range": asked.encode().decode("latin-1")})
    assert got.body == data[start:stop]
    if stop - start < 3000:
        assert (got.status, got.headers["content-range"]) == (206, f"bytes {start}-{stop - 1}/3000")
    else:
        assert (got.status, "content-range" in got.headers) == (200, False)


async def test_ranges_of_something_else(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    where, data = chunk(1)
    for asked in ("bytes=3000-", "bytes=3000-3001", "bytes=-0"):
        refused = await client.get(where, query=ME, headers={"range": asked})
        assert outcome(refused) == (416, "range-not-satisfiable")
        assert refused.headers["content-range"] == "bytes */3000"
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    same = await client.get(where, query=ME, headers={"range": "bytes=0-1", "if-range": etag})
    other = await client.get(where, query=ME, headers={"range": "bytes=0-1", "if-range": '"x"'})
    assert (same.status, len(same.body), other.status, len(other.body)) == (206, 2, 200, 3000)


async def test_a_chunk_never_changes(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    refused = await client.put(path(1), b"other bytes", query=ME)
    assert outcome(refused) == (409, "conflict")
    assert (await client.get(path(1), query=ME)).body == chunk(1)[1]
    assert usage(stack) == Usage(3000, 0)


async def test_two_uploads_of_one_chunk_at_once(stack: Stack) -> None:
    """The same bytes are counted once; of two contents one wins, and what is acknowledged is what is there."""
    client = alice(stack)
    where, data = chunk(1)
    answers: dict[int, list[Answer]] = {0: [], 1: []}

    async def put(number: int) -> None:
        body = data if number % 2 else bytes(3000)
        answers[number % 2].append(await client.put(where, body, query=ME, piece_size=100))

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(put, number)
    stored = (await client.get(where, query=ME)).body
    winner = int(stored == data)
    assert stored == (data if winner else bytes(3000))
    assert sorted(answer.json()["new"] for answer in answers[winner]) == [False, False, True]
    assert {outcome(answer) for answer in answers[1 - winner]} == {(409, "conflict")}
    assert usage(stack) == Usage(3000, 0)
    assert len([key for key in memory(stack).objects if key.startswith("chunks/")]) == 1


async def test_bytes_that_are_not_what_was_signed_are_not_stored(stack: Stack) -> None:
    client = alice(stack)
    where, data = chunk(1)
    scope, _ = client._scope("PUT", where, data, ME, None)
    assert outcome(await client.send(scope, bytes(3000))) == (400, "digest-mismatch")
    scope, _ = client._scope("PUT", where, data, ME, None)
    assert outcome(await client.send(scope, data[:-1])) == (400, "bad-request")
    assert outcome(await client.put(where, b"", query=ME)) == (400, "bad-request")
    large = bytes(MAX_SEALED_CHUNK + 1)
    assert outcome(await client.put(where, large, query=ME)) == (413, "too-large")
    assert outcome(await client.put(where, data, query=ME, headers={"content-length": "x"})) == (400, "bad-request")
    scope, _ = client._scope("PUT", where, data, ME, None)
    scope["headers"] = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
    assert outcome(await client.send(scope, data)) == (411, "length-required")
    assert usage(stack) == Usage(0, 0)
    assert [key for key in memory(stack).objects if key.startswith("chunks/")] == []
    exact = bytes(MAX_SEALED_CHUNK)
    assert (await client.put(where, exact, query=ME)).status == 200


async def test_who_may_do_what(stack: Stack) -> None:
    """Strangers learn nothing, not even whether a chunk or a folder exists; readers store nothing."""
    client = alice(stack)
    await upload(client, 1)
    stack.services.database.write_now(lambda c: let_in(c, BOB, Rights.READ))
    reader, stranger = stack.client(BOB), stack.client(EVE)
    question = {"folder_id": b"folder" + bytes(10), "chunk_ids": [name(1), name(2)]}
    for query in (ME, {"folder": TEXT[:-2] + "ba"}):
        for where in (path(1), path(2)):
            assert outcome(await stranger.get(where, query=query)) == (404, "not-found")
            assert outcome(await stranger.request("HEAD", where, query=query)) == (404, "not-found")
            assert outcome(await stranger.put(where, chunk(1)[1], query=query)) == (404, "not-found")
    assert outcome(await stranger.post("/api/v1/chunks/missing", question)) == (404, "not-found")
    assert (await reader.get(path(1), query=ME)).status == 200
    assert outcome(await reader.put(path(2), chunk(2)[1], query=ME)) == (403, "forbidden")
    assert (await reader.post("/api/v1/chunks/missing", question, msgpack=True)).status == 200
    for wrong in ({"folder": "x" * 26}, {"folder": "1" * 26}):
        assert outcome(await client.get(path(1), query=wrong)) == (404, "not-found")
    assert outcome(await client.get(path(1))) == (400, "bad-request")
    for malformed in ("AB" * 32, "ab" * 31, "zz" * 32):
        assert outcome(await client.get(f"/api/v1/chunks/{malformed}", query=ME)) == (404, "not-found")


async def test_what_is_missing(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1, 3)
    question = {"folder_id": FOLDER, "chunk_ids": [name(number) for number in (3, 2, 1, 4)]}
    for msgpack in (False, True):
        answer = await client.post("/api/v1/chunks/missing", question, msgpack=msgpack)
        if not msgpack:
            assert len(answer.json()["chunk_ids"]) == 2
    assert name(2) in answer.body
    assert name(4) in answer.body
    many = {"folder_id": FOLDER, "chunk_ids": [name(number) for number in range(1000)]}
    assert len((await client.post("/api/v1/chunks/missing", many)).json()["chunk_ids"]) == 998
    many["chunk_ids"].append(name(1000))
    assert outcome(await client.post("/api/v1/chunks/missing", many)) == (400, "bad-request")


async def test_the_owner_pays_for_what_others_store(stack: Stack) -> None:
    alice(stack)
    stack.services.database.write_now(lambda c: let_in(c, BOB, Rights.APPEND))
    await upload(stack.client(BOB), 1, 2)
    await upload(stack.client(BOB), 3, size=100)
    assert usage(stack) == Usage(7024, 0)  # 1 KiB for the small one
    assert usage(stack, BOB) == Usage(0, 0)


async def test_over_quota(stack: Stack) -> None:
    client = alice(stack)
    ledger = stack.services.accounts.ledger
    stack.services.database.write_now(lambda c: ledger.charge(c, ALICE, FREE - 5000, 0))
    await upload(client, 1)
    refused = await client.put(*chunk(2), query=ME)
    assert outcome(refused) == (507, "over-quota")
    figures = {key: refused.json()[key] for key in ("used", "reserved", "limit", "asked", "plan")}
    assert figures == {"used": FREE - 2000, "reserved": 0, "limit": FREE, "asked": 3000, "plan": ""}
    await upload(client, 1)  # what is there already needs no room
    assert usage(stack) == Usage(FREE - 2000, 0)


async def test_two_hundred_uploads_at_the_limit(stack: Stack) -> None:
    """Nothing is overshot, every refusal is one of quota, and no promise is left behind."""
    client = alice(stack)
    ledger = stack.services.accounts.ledger
    stack.services.database.write_now(lambda c: ledger.charge(c, ALICE, FREE - 41 * 3000 - 1500, 0))
    statuses: list[int] = []

    async def put(number: int) -> None:
        statuses.append((await client.put(*chunk(number), query=ME)).status)

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(put, number)
    assert (statuses.count(200), statuses.count(507)) == (41, 159)
    assert usage(stack) == Usage(FREE - 1500, 0)
    assert len([key for key in memory(stack).objects if key.startswith("chunks/")]) == 41


async def test_a_store_that_fails_costs_nothing(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client = alice(stack)
    await upload(client, 1)

    def fail(*_: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        for method in ("put", "get"):
            patch.setattr(memory(stack), method, fail)
        assert outcome(await client.put(*chunk(2), query=ME)) == (503, "unavailable")
        assert outcome(await client.get(path(1), query=ME)) == (503, "unavailable")
    assert usage(stack) == Usage(3000, 0)
    assert (await client.get(path(1), query=ME)).body == chunk(1)[1]


async def test_who_leaves_in_the_middle_leaves_nothing(stack: Stack) -> None:
    client = alice(stack)
    where, data = chunk(1)
    scope, _ = client._scope("PUT", where, data, ME, None)
    messages = [
        {"type": "http.request", "body": data[:1000], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> object:
        await trio.lowlevel.checkpoint()
        return messages.pop(0)

    async def send(_message: object) -> None:
        raise AssertionError("nobody is there")

    await stack.app(scope, receive, send)
    assert usage(stack) == Usage(0, 0)


async def test_a_slow_upload_gives_back_what_it_was_promised(
    stack: Stack, autojump_clock: trio.testing.MockClock
) -> None:
    client = alice(stack)
    where, data = chunk(1)
    scope, _ = client._scope("PUT", where, data, ME, None)

    async def receive() -> object:
        await trio.sleep(1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await stack.app(scope, receive, send)
    assert sent[0]["status"] == 408
    assert usage(stack) == Usage(0, 0)


async def test_an_upload_whose_promise_is_gone_is_not_stored(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    client, store, ledger = alice(stack), memory(stack), stack.services.accounts.ledger
    real = store.put

    def put(key: str, data: bytes) -> None:
        real(key, data)
        stack.clock.advance(24 * 3600)
        if key.startswith("chunks/"):
            assert stack.services.database.write_now(lambda c: ledger.expire(c, stack.services.now())) == 1

    monkeypatch.setattr(store, "put", put)
    assert outcome(await client.put(*chunk(1), query=ME)) == (408, "timeout")
    assert [key for key in store.objects if key.startswith("chunks/")] == []
    stack.services.database.read_now(lambda c: check_books(c, ledger, ALICE, [FOLDER]))


@pytest.mark.parametrize("again", [False, True])
async def test_an_upload_into_a_folder_that_is_being_deleted(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It is refused, also when the folder exists anew by then; nothing is counted or kept of it."""
    client, store, services = alice(stack), memory(stack), stack.services
    real = store.put

    def put(key: str, data: bytes) -> None:
        real(key, data)
        if key.startswith("chunks/"):
            services.database.write_now(lambda c: drop(c, again))

    def drop(c: Connection, again: bool) -> None:
        folder = folders.require(c, FOLDER, ALICE, Rights.MANAGE, lock=True)
        folders.remove(c, services.accounts.ledger, services.blocks.refs, folder, 0)
        if again:
            set_up(c, BOB)

    monkeypatch.setattr(store, "put", put)
    assert outcome(await client.put(*chunk(1), query=ME)) == (404, "not-found")
    assert [key for key in store.objects if key.startswith("chunks/")] == []
    assert (usage(stack), usage(stack, BOB)) == (Usage(0, 0), Usage(0, 0))


async def test_a_lost_object_is_noticed_and_uploaded_anew(stack: Stack) -> None:
    client, store = alice(stack), memory(stack)
    await upload(client, 1, 2)
    ref = f"/api/v1/folders/{TEXT}/refs/{'A' * 43}"
    assert (await client.put(ref, {"chunk_ids": [name(1)]})).status == 204
    lost = next(key for key in store.objects if name(1).hex() in key)
    del store.objects[lost]
    assert outcome(await client.get(path(1), query=ME)) == (404, "not-found")
    assert outcome(await client.request("HEAD", path(1), query=ME)) == (404, "not-found")
    assert usage(stack).used == 3000 + 64 + 32
    listed = await client.get(f"/api/v1/folders/{TEXT}/lost-chunks", msgpack=True)
    assert name(1) in listed.body
    answer = await client.put(*chunk(1), query=ME)
    assert answer.json() == {"size": 3000, "new": True}
    assert (await client.get(path(1), query=ME)).body == chunk(1)[1]
    assert (await client.get(f"/api/v1/folders/{TEXT}/lost-chunks")).json() == {"chunk_ids": []}
    stack.services.database.read_now(lambda c: check_books(c, stack.services.accounts.ledger, ALICE, [FOLDER]))
    stack.services.database.read_now(lambda c: check_objects(c, store))


async def test_memory_is_bounded_and_nobody_is_held_up_by_another_account() -> None:
    budget = Budget(total=100, per_account=60)
    order: list[str] = []
    gates = {text: trio.Event() for text in "abcde"}

    async def hold(text: str, account_id: bytes, size: int) -> None:
        async with budget.hold(account_id, size):
            order.append(text)
            await gates[text].wait()

    async with trio.open_nursery() as nursery:
        for text, account_id, size in (("a", ALICE, 50), ("b", ALICE, 20), ("c", BOB, 40), ("d", BOB, 20)):
            nursery.start_soon(hold, text, account_id, size)
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["a", "c"]  # b would exceed Alice's share, d the total
        with trio.move_on_after(0):
            await hold("e", EVE, 1)
        gates["a"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(order) == ["a", "b", "c", "d"]
        for gate in gates.values():
            gate.set()
    assert (budget._free, budget._held, budget._waiting) == (100, {}, {})


async def test_an_unknown_store_is_not_used(stack: Stack) -> None:
    """As when the directory is that under a disk which is not mounted."""
    client, store = alice(stack), memory(stack)
    await upload(client, 1)
    kept = dict(store.objects)
    store.objects.clear()
    assert outcome(await client.get(path(1), query=ME)) == (503, "unavailable")
    store.put("about/store", b"x" * 16)
    assert outcome(await client.get(path(1), query=ME)) == (503, "unavailable")
    store.objects = kept
    assert (await client.get(path(1), query=ME)).status == 200


async def test_a_store_of_another_database_is_not_taken_over(stack: Stack) -> None:
    client, store = alice(stack), memory(stack)
    store.put("about/store", b"x" * 16)
    store.put("chunks/any/00/thing.1", b"x")
    assert outcome(await client.put(*chunk(1), query=ME)) == (503, "unavailable")
    store.delete(["chunks/any/00/thing.1"])
    assert (await client.put(*chunk(1), query=ME)).status == 200


async def link(client: Client, **wish: object) -> Answer:
    return await client.post("/api/v1/presigned", {"folder_id": FOLDER, "chunk_id": name(1), **wish}, msgpack=True)


async def test_links(stack: Stack) -> None:
    """They work for anyone, for exactly what they name, and for their time only."""
    client, nobody = alice(stack), stack.client()
    _, data = chunk(1)
    digest = hashlib.sha256(data).digest()
    made = msgspec.msgpack.decode((await link(client, operation="put", size=3000, digest=digest)).body)
    where, _, query = made["url"].partition("?link=")
    put = {"query": {"link": query}, "signed": False}
    assert outcome(await nobody.put(where, bytes(3000), **put)) == (400, "digest-mismatch")
    assert outcome(await nobody.put(where, data[:-1], **put)) == (400, "bad-request")
    assert outcome(await nobody.get(where, **put)) == (401, "unauthorized")
    assert usage(stack) == Usage(0, 0)
    assert (await nobody.put(where, data, **put)).json() == {"size": 3000, "new": True}
    assert (await nobody.put(where, data, **put)).json() == {"size": 3000, "new": False}

    made = msgspec.msgpack.decode((await link(client, operation="get", lifetime_s=60)).body)
    assert made["expires"] == stack.services.now() + 60
    query = made["url"].partition("?link=")[2]
    get = {"query": {"link": query}, "signed": False}
    assert (await nobody.get(where, **get)).body == data
    part = await nobody.get(where, **get, headers={"range": "bytes=1-2"})
    assert (part.status, part.body) == (206, data[1:3])
    assert outcome(await nobody.put(where, data, **get)) == (401, "unauthorized")
    for index in range(0, len(query), 7):
        forged = query[:index] + ("A" if query[index] != "A" else "B") + query[index + 1 :]
        answer = await nobody.get(where, query={"link": forged}, signed=False)
        assert outcome(answer) == (401, "unauthorized")
    for wrong in ("", "x", "AAAA", "é"):
        answer = await nobody.get(where, query={"link": wrong}, signed=False)
        assert answer.status in (400, 401)
    stack.clock.advance(60)
    assert outcome(await nobody.get(where, **get)) == (401, "unauthorized")


async def test_links_end_with_the_rights_behind_them(stack: Stack) -> None:
    client = alice(stack)
    await upload(client, 1)
    stack.services.database.write_now(lambda c: let_in(c, BOB, Rights.READ))
    bob = stack.client(BOB)
    made = msgspec.msgpack.decode((await link(bob, operation="get")).body)
    assert outcome(await link(bob, operation="put", size=1, digest=bytes(32))) == (403, "forbidden")
    assert outcome(await link(stack.client(EVE), operation="get")) == (404, "not-found")
    assert outcome(await link(client, operation="put", size=1)) == (400, "bad-request")
    assert outcome(await link(client, operation="get", lifetime_s=901)) == (400, "bad-request")
    where, _, query = made["url"].partition("?link=")
    assert (await bob.get(where, query={"link": query}, signed=False)).status == 200

    def shut_out(c: Connection) -> None:
        folders.remove_access(c, folders.require(c, FOLDER, ALICE, Rights.MANAGE, lock=True), BOB, 0)

    stack.services.database.write_now(shut_out)
    assert outcome(await bob.get(where, query={"link": query}, signed=False)) == (404, "not-found")


async def test_a_store_that_is_reached_directly_makes_its_own_links(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = alice(stack)
    await upload(client, 1)
    monkeypatch.setattr(memory(stack), "presign", lambda method, key, expires: f"https://s3/{method}/{expires}/{key}")
    answer = await client.post("/api/v1/presigned", {"operation": "get", "folder_id": FOLDER, "chunk_id": name(1)})
    assert answer.json()["url"].startswith(f"https://s3/GET/900/chunks/{TEXT}/")
