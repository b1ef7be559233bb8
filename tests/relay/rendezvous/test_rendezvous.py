"""Presence and calls through the API: who sees whom, what a call brings, and what is refused alike."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.errors import InputError
from p2psync.model.ids import format_folder_id
from p2psync.protocol.candidates import MAX_CANDIDATE, MAX_CANDIDATES, read_candidate
from p2psync.protocol.relay_api import Batch, EventKind
from p2psync.protocol.rendezvous_api import Arrangement, NewCall, NewPresence, PeerList
from relay.api.route import encode_id
from relay.errors import ApiError
from relay.ports import Presence
from relay.rendezvous.buckets import MAX_KEPT, Bucket, Buckets
from relay.rendezvous.presence import TTL_S, Board
from relay.rendezvous.service import CALLS_PER_MINUTE
from tests.relay.mailbox.helpers import account, folder_id
from tests.relay.rendezvous.helpers import add_accounts
from tests.relay.stack import Client, Stack

HOME, ABROAD = "192.168.1.7:22067", "[2001:db8::7]:22067"


async def appear(client: Client, *addresses: str, port: int = 0) -> None:
    answer = await client.put("/api/v1/presence", NewPresence(list(addresses), port), msgpack=True)
    assert answer.status == 200, answer.body


async def peers(client: Client, folder: bytes | None = None) -> list[bytes]:
    query = {"folder": format_folder_id(folder)} if folder else None
    answer = await client.get("/api/v1/peers", query=query, msgpack=True)
    assert answer.status == 200, answer.body
    return [peer.device_id for peer in answer.decode(PeerList).peers]


async def call(client: Client, called: Client, purpose: Any = "direct", *addresses: str) -> Any:
    return await client.post("/api/v1/calls", NewCall(called.device_id, purpose, list(addresses)), msgpack=True)


async def cursor(client: Client) -> int:
    answer = await client.get("/api/v1/notifications/poll", query={"wait": 0}, msgpack=True)
    return answer.decode(Batch).cursor


async def calls(client: Client, after: int) -> list[tuple[bytes, Arrangement]]:
    query = {"wait": 0, "after": after}
    batch = (await client.get("/api/v1/notifications/poll", query=query, msgpack=True)).decode(Batch)
    found = [event for event in batch.events if event.kind is EventKind.CALL]
    return [(event.sender, msgspec.msgpack.decode(event.body, type=Arrangement)) for event in found]


async def share(stack: Stack, owner: Client, number: int, *others: bytes) -> None:
    path = f"/api/v1/folders/{format_folder_id(folder_id(number))}"
    if number == 1:
        with stack.services.database.engine.begin() as c:
            add_accounts(c, 1)
    assert (await owner.put(path)).status == 204
    for other in others:
        assert (await owner.put(f"{path}/access/{encode_id(other)}", {"rights": "read"})).status == 204


async def test_devices_see_those_of_their_account_and_folders_only(stack: Stack) -> None:
    one, two = stack.client(account(1)), stack.client(account(1))
    friend, stranger = stack.client(account(2)), stack.client(account(3))
    for device in (one, two, friend, stranger):
        await appear(device, HOME)
    assert await peers(one) == [two.device_id]
    await share(stack, one, 1, account(2))
    await share(stack, one, 2)
    assert await peers(one) == [two.device_id, friend.device_id]
    assert await peers(one, folder_id(1)) == [two.device_id, friend.device_id]
    assert await peers(one, folder_id(2)) == [two.device_id]
    assert set(await peers(friend)) == {one.device_id, two.device_id}
    assert await peers(stranger) == []
    hidden = await stranger.get("/api/v1/peers", query={"folder": format_folder_id(folder_id(1))})
    assert hidden.problem == "not-found"


async def test_who_does_not_renew_or_leaves_is_gone(stack: Stack) -> None:
    one, two, three = (stack.client(account(1)) for _ in range(3))
    for device in (one, two, three):
        await appear(device, HOME)
    assert (await two.delete("/api/v1/presence")).status == 204
    assert await peers(one) == [three.device_id]
    stack.clock.advance(TTL_S - 1)
    await appear(one, HOME)
    assert await peers(one) == [three.device_id]
    stack.clock.advance(1)
    assert await peers(one) == []


async def test_the_address_that_the_relay_sees_is_a_candidate(stack: Stack) -> None:
    one, two = stack.client(account(1)), stack.client(account(1))
    answer = await one.put("/api/v1/presence", NewPresence([HOME, HOME], 22067))
    assert answer.json() == {"observed": "203.0.113.7:4711", "ttl_s": TTL_S}
    await appear(two, ABROAD)
    found = (await two.get("/api/v1/peers", msgpack=True)).decode(PeerList).peers
    assert [peer.addresses for peer in found] == [[HOME, "203.0.113.7:22067"]]
    assert found[0].expires == stack.services.now() + TTL_S
    one.address = ("::1", 4711)
    assert (await one.put("/api/v1/presence", NewPresence([], 22067))).json()["observed"] == "[::1]:4711"
    assert (await two.get("/api/v1/peers", msgpack=True)).decode(PeerList).peers[0].addresses == []


async def test_a_call_tells_both_what_to_do(stack: Stack) -> None:
    one, two = stack.client(account(1)), stack.client(account(1))
    await appear(one, HOME)
    await appear(two, ABROAD)
    before = await cursor(two)
    direct = (await call(one, two)).decode(Arrangement)
    assert (direct.addresses, direct.ticket) == ([ABROAD], b"")
    assert direct.start_ms > direct.now_ms == stack.services.now() * 1000
    [(sender, told)] = await calls(two, before)
    assert sender == one.device_id
    assert told == msgspec.structs.replace(direct, addresses=[HOME])
    assert await calls(one, before) == []
    forward = (await call(one, two, "forward", "198.51.100.1:7")).decode(Arrangement)
    [(_, told)] = await calls(two, before)
    assert told.addresses == ["198.51.100.1:7"]
    assert len(told.ticket) == len(forward.ticket) == 32
    assert told.ticket != forward.ticket
    stack.clock.advance(61)
    assert await calls(two, before) == []


async def test_calls_of_another_account_need_a_common_folder(stack: Stack) -> None:
    one, friend, stranger = (stack.client(account(number)) for number in (1, 2, 3))
    for device in (one, friend, stranger):
        await appear(device, HOME)
    await share(stack, one, 1, account(2))
    before = await cursor(one)
    assert (await call(friend, one, "forward")).status == 200
    absent = stack.client(account(1))
    refused = [await call(stranger, one), await call(stranger, one, "forward"), await call(one, absent)]
    refused += [await call(one, one), await call(one, stranger, "forward")]
    assert {(answer.status, answer.body) for answer in refused} == {(404, refused[0].body)}
    assert len(await calls(one, before)) == 1
    # What was refused holds no ticket.
    assert len(stack.services.rendezvous.forwarder._expected) == 1


async def test_calls_and_their_addresses_are_not_kept_once_they_are_void(stack: Stack) -> None:
    one, two = stack.client(account(1)), stack.client(account(1))
    for device in (one, two):
        await appear(device, HOME)
    await call(one, two)
    database, now = stack.services.database, stack.services.now()

    def stored() -> int:
        with database.engine.connect() as c:
            return int(c.exec_driver_sql("SELECT count(*) FROM events").scalar_one())

    await stack.services.rendezvous.upkeep(now)
    assert stored() == 1
    await call(two, one)
    await stack.services.rendezvous.upkeep(now + 61)
    assert stored() == 0


async def test_calls_are_limited(stack: Stack) -> None:
    one, two, other = stack.client(account(1)), stack.client(account(1)), stack.client(account(2))
    for device in (one, two):
        await appear(device, HOME)
    for _ in range(CALLS_PER_MINUTE):
        assert (await call(one, two)).status == 200
    refused = await call(one, two)
    assert (refused.problem, refused.headers["retry-after"]) == ("rate-limited", "1")
    assert (await call(other, one)).status == 404
    stack.clock.advance(1)
    assert (await call(one, two)).status == 200


@pytest.mark.parametrize(
    "address", ["", "x", "host:1", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:65536", "127.0.0.1:1", "[::1]:1", "[fe80::1]:1",
                "0.0.0.0:1", "224.0.0.1:1", "[::ffff:127.0.0.1]:1", "255.255.255.255:1", "::1:1", "[1.2.3.4]:1x",
                "[fe80::1%eth0]:1", "01.2.3.4:1", "1.2.3.4:١"]
)  # fmt: skip
async def test_what_is_no_address_of_a_device_is_refused(stack: Stack, address: str) -> None:
    with pytest.raises(InputError):
        read_candidate(address)
    answer = await stack.client(account(1)).put("/api/v1/presence", {"addresses": [HOME, address]})
    assert answer.problem == "bad-request"


@given(st.ip_addresses(), st.integers(1, 65535))
def test_candidates_have_one_form(address: Any, port: int) -> None:
    text = f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
    try:
        candidate = read_candidate(text)
    except InputError:
        assert (
            address.is_loopback
            or address.is_link_local
            or address.is_multicast
            or address.is_reserved
            or (address.is_unspecified or getattr(address, "ipv4_mapped", None))
        )
    else:
        assert len(candidate) <= MAX_CANDIDATE
        assert read_candidate(candidate) == candidate


async def test_lists_of_addresses_are_bounded(stack: Stack) -> None:
    client = stack.client(account(1))
    many = [f"192.0.2.1:{port}" for port in range(1, MAX_CANDIDATES + 2)]
    assert (await client.put("/api/v1/presence", {"addresses": many})).problem == "bad-request"
    assert (await client.put("/api/v1/presence", {"addresses": many[1:]})).status == 200


def presence(owner: int, device: int, expires: int = TTL_S) -> Presence:
    return Presence(account(owner), device.to_bytes(32, "big"), (), expires)


def test_a_board_has_bounds() -> None:
    board = Board(most=3, most_per_account=2)
    board.put(presence(1, 1), 0)
    board.put(presence(1, 2), 0)
    with pytest.raises(ApiError, match="one account"):
        board.put(presence(1, 3), 0)
    board.put(presence(1, 2), 0)
    board.put(presence(2, 2), 0)
    with pytest.raises(ApiError, match="too many devices are present"):
        board.put(presence(3, 1), 0)
    assert [each.account_id for each in board.of_device(presence(1, 2).device_id, 0)] == [account(1), account(2)]
    board.put(presence(3, 1, 2 * TTL_S), TTL_S)
    assert len(board) == 1
    assert board.of_accounts([account(1), account(2)], TTL_S) == []
    board.remove(account(3), presence(3, 1).device_id)
    assert (board._by_account, board._accounts) == ({}, {})


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(rate=100, burst=50)
    assert [bucket.take(25, 10) for _ in range(4)] == pytest.approx([0, 0, 0.25, 0.5])
    assert Bucket(0, 0).take(10**9, 0) == 0
    strict = Bucket(rate=1, burst=2)
    assert [strict.take_if_there(1, 5) for _ in range(4)] == [0, 0, 1, 1]
    assert strict.take_if_there(1, 6) == 0


def test_buckets_are_bounded() -> None:
    buckets = Buckets(1, 1)
    for number in range(MAX_KEPT + 100):
        buckets.of(number.to_bytes(4, "big"), 0).take(1, 0)
    assert len(buckets._buckets) <= MAX_KEPT
    kept = buckets.of(b"kept", 0)
    assert buckets.of(b"kept", 0) is kept
