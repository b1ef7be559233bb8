"""The forwarder over real sockets and TLS: tickets, what passes through a pair, shares, limits, and its ends."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
import trio

from p2psync.protocol.forwarding import TICKET_SIZE, Outcome
from p2psync.testing.world import SimRng
from relay.config import Server as Settings
from relay.db.database import Database
from relay.errors import ApiError
from relay.rendezvous import usage
from relay.rendezvous.forwarder import MAX_EXPECTED_PER_ACCOUNT
from relay.rendezvous.pair import SLICE, Pipe
from tests.relay.mailbox.helpers import NOW, account
from tests.relay.rendezvous.helpers import Relay, add_accounts, outcome, receive, relay
from tests.relay.stack import Stack

MIB = 1 << 20


async def settled(forwarder_of: Relay) -> None:
    """Every connection is over."""
    while forwarder_of.server.gate.open:
        await trio.sleep(0.01)


async def test_what_one_sends_the_other_receives(tmp_path: Path) -> None:
    async with relay(tmp_path, rate_per_account=0, rate_per_session=0) as running:
        one, other = await running.pair()
        up, down = SimRng("up").token(3 * MIB), SimRng("down").token(2 * MIB)
        got: dict[str, bytes] = {}

        async def take(name: str, stream: Pipe, size: int) -> None:
            got[name] = await receive(stream, size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, up)
            nursery.start_soon(other.send_all, down)
            nursery.start_soon(take, "up", other, len(up))
            nursery.start_soon(take, "down", one, len(down))
        assert got == {"up": up, "down": down}
        assert sum(running.forwarder.meter.waiting().values()) == len(up) + len(down)
        assert {name for name, _ in running.forwarder.meter.waiting()} == {account(1)}


async def test_the_last_bytes_arrive_when_a_device_leaves(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        one, other = await running.pair()
        await one.send_all(last := SimRng("last").token(200 << 10))
        await other.send_all(b"nobody reads this")
        await one.transport_stream.send_eof()
        assert await receive(other, 2 * MIB) == last
        await other.aclose()
        await settled(running)
        assert (running.forwarder.count, running.forwarder.accounts()) == (0, [])


async def test_tickets_work_once_each(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        mine, theirs = running.forwarder.expect(account(1))
        first = await running.connect(mine)
        while not any(meeting.first for meeting in running.forwarder._expected):
            await trio.sleep(0.01)
        assert await outcome(await running.connect(mine)) is Outcome.REFUSED
        second = await running.connect(theirs)
        assert [await outcome(first), await outcome(second)] == [Outcome.JOINED] * 2
        for ticket in (mine, theirs, bytes(TICKET_SIZE)):
            assert await outcome(await running.connect(ticket)) is Outcome.REFUSED
        await first.send_all(b"still joined")
        assert await receive(second, 12) == b"still joined"


async def test_a_ticket_that_comes_late_is_refused(tmp_path: Path) -> None:
    async with relay(tmp_path, ticket_life_s=0.1) as running:
        mine, theirs = running.forwarder.expect(account(1))
        await trio.sleep(0.15)
        assert await outcome(await running.connect(mine)) is Outcome.REFUSED
        assert await outcome(await running.connect(theirs)) is Outcome.REFUSED
        assert (running.forwarder._tickets, +running.forwarder._promised) == ({}, {})


async def test_one_whose_other_never_comes_is_told(tmp_path: Path) -> None:
    async with relay(tmp_path, ticket_life_s=0.5) as running:
        mine, theirs = running.forwarder.expect(account(1))
        stream = await running.connect(mine)
        assert await outcome(stream) is Outcome.ABSENT
        assert await receive(stream, 1) == b""
        assert await outcome(await running.connect(theirs)) is Outcome.REFUSED


async def test_one_who_left_before_the_other_came(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        mine, theirs = running.forwarder.expect(account(1))
        await (await running.connect(mine)).transport_stream.aclose()
        late = await running.connect(theirs)
        assert await receive(late, 2) in (b"", bytes((Outcome.JOINED,)))
        await settled(running)
        assert running.forwarder.count == 0


async def test_who_sends_no_ticket_in_time_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.rendezvous.forwarder.HELLO_S", 0.2)
    async with relay(tmp_path) as running:
        stream = await running.connect(b"x" * (TICKET_SIZE - 1))
        assert await receive(stream, 1) == b""


async def test_a_flood_of_guesses_does_not_reach_a_pair(tmp_path: Path) -> None:
    async with relay(tmp_path) as running:
        one, other = await running.pair()
        guesses = 0

        async def guess(number: int) -> None:
            nonlocal guesses
            for turn in range(10):
                junk = SimRng(f"guess {number} {turn}").token(TICKET_SIZE + turn)
                assert await outcome(await running.connect(junk)) is Outcome.REFUSED
                guesses += 1

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(guess, number)
            for turn in range(50):
                await one.send_all(bytes((turn,)) * 1000)
                assert await receive(other, 1000) == bytes((turn,)) * 1000
        assert guesses == 100
        assert running.forwarder.count == 1


async def test_pairs_of_one_account_share_its_rate_alike(tmp_path: Path) -> None:
    rate = 4 * MIB
    async with relay(tmp_path, rate_per_account=rate, rate_per_session=0) as running:
        pairs = [await running.pair() for _ in range(2)]
        free = await running.pair(2)
        taken = [0, 0]

        async def push(stream: Pipe) -> None:
            while True:
                await stream.send_all(bytes(MIB))

        async def pull(number: int, stream: Pipe) -> None:
            while piece := await stream.receive_some(MIB):
                taken[number] += len(piece)

        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for number, (one, other) in enumerate(pairs):
                nursery.start_soon(push, one)
                nursery.start_soon(pull, number, other)
            await trio.sleep(1.5)
            # Another account is not held up.
            asked = time.monotonic()
            await free[0].send_all(b"hello")
            assert await receive(free[1], 5) == b"hello"
            assert time.monotonic() - asked < 1
            nursery.cancel_scope.cancel()
        seconds = time.monotonic() - began
        assert sum(taken) <= rate * (seconds + 0.25) + 4 * SLICE + MIB
        assert sum(taken) > rate * seconds / 3
        assert min(taken) > 0.7 * max(taken)


async def test_one_pair_has_a_rate_of_its_own(tmp_path: Path) -> None:
    async with relay(tmp_path, rate_per_account=0, rate_per_session=2 * MIB) as running:
        one, other = await running.pair()
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_all, bytes(3 * MIB))
            assert len(await receive(other, 3 * MIB)) == 3 * MIB
        assert time.monotonic() - began > 1.2


async def test_who_takes_nothing_holds_up_its_sender_and_no_memory(tmp_path: Path) -> None:
    async with relay(tmp_path, rate_per_account=0, rate_per_session=0) as running:
        one, _ = await running.pair()
        sent = 0
        with trio.move_on_after(1):
            while True:
                await one.send_all(bytes(MIB))
                sent += MIB
        # What is on its way is in the buffers of four sockets.
        assert sent < 64 * MIB
        free = await running.pair()
        await free[0].send_all(b"hello")
        assert await receive(free[1], 5) == b"hello"


async def test_pairs_are_limited(tmp_path: Path) -> None:
    async with relay(tmp_path, sessions=3, sessions_per_account=2) as running:
        expect = running.forwarder.expect
        early = expect(account(1))
        await running.pair()
        await running.pair()
        with pytest.raises(ApiError, match="of this account") as refused:
            expect(account(1))
        assert refused.value.status == 429
        # What was promised before is not kept when there is no room any more.
        late = [await running.connect(ticket) for ticket in early]
        assert [await outcome(stream) for stream in late] == [Outcome.FULL] * 2
        await running.pair(2)
        with pytest.raises(ApiError, match="as it may") as full:
            expect(account(3))
        assert full.value.status == 503


async def test_promises_are_limited(tmp_path: Path) -> None:
    async with relay(tmp_path, sessions_per_account=1) as running:
        tickets = [running.forwarder.expect(account(1)) for _ in range(MAX_EXPECTED_PER_ACCOUNT + 1)]
        with pytest.raises(ApiError):
            running.forwarder.expect(account(1))
        running.forwarder.expect(account(2))
        running.forwarder.forget(tickets[0][0])
        running.forwarder.expect(account(1))


async def test_a_silent_pair_is_parted_and_a_busy_one_is_not(tmp_path: Path) -> None:
    async with relay(tmp_path, idle_s=1) as running:
        silent, busy = await running.pair(), await running.pair()
        for _ in range(8):
            await busy[0].send_all(b"x")
            assert await receive(busy[1], 1) == b"x"
            await trio.sleep(0.2)
        began = time.monotonic()
        assert [await receive(stream, 1) for stream in silent] == [b"", b""]
        assert time.monotonic() - began < 0.5
        assert await receive(busy[1], 1) == b""


async def test_a_pair_has_an_end(tmp_path: Path) -> None:
    async with relay(tmp_path, session_s=1) as running:
        one, other = await running.pair()
        with trio.move_on_after(20):
            while await receive(other, 1) or True:
                await one.send_all(b"x")
                if not await receive(other, 1):
                    break
        await other.aclose()


async def test_the_end_of_the_relay_drains_what_was_received(tmp_path: Path) -> None:
    async with relay(tmp_path, server=Settings(drain_s=50), rate_per_session=256 << 10, rate_per_account=0) as running:
        one, other = await running.pair()
        waiting = await running.connect(running.forwarder.expect(account(1))[0])
        await one.send_all(data := SimRng("data").token(200 << 10))
        while not running.forwarder.meter.waiting():
            await trio.sleep(0.01)
        began = time.monotonic()
        running.end()
        got = await receive(other, MIB)
        assert data.startswith(got)
        assert len(got) == sum(running.forwarder.meter.waiting().values()) > 0
        assert await receive(waiting, 1) == b""
        for stream in (one, other):
            await stream.transport_stream.aclose()
        await settled(running)
        assert time.monotonic() - began < 20
        with pytest.raises(ApiError, match="as it may"):
            running.forwarder.expect(account(1))


async def test_what_was_forwarded_is_in_the_account(stack: Stack, database: Database) -> None:
    with database.engine.begin() as c:
        add_accounts(c, 1, 2)
    room = stack.services.rendezvous
    meter = room.forwarder.meter
    meter.add(account(1), 100, NOW)
    meter.add(account(9), 7, NOW)
    await room.upkeep(NOW)
    meter.add(account(1), 20, NOW)
    meter.add(account(1), 3, NOW + usage.DAY_S)
    await room.upkeep(NOW)
    await room.upkeep(NOW)
    assert meter.waiting() == {}

    async def since(now: int) -> dict[bytes, int]:
        return await database.read(lambda c: usage.by_account(c, now))

    assert await since(NOW) == {account(1): 123}
    assert await since(NOW + usage.DAY_S) == {account(1): 3}
    assert await since(NOW + 2 * usage.DAY_S) == {}
    await room.upkeep(NOW + (usage.KEPT_DAYS + 1) * usage.DAY_S, forget=True)
    assert await since(0) == {account(1): 3}


async def test_pairs_of_accounts_that_are_gone_are_parted(stack: Stack, tmp_path: Path) -> None:
    with stack.services.database.engine.begin() as c:
        add_accounts(c, 1)
    room = stack.services.rendezvous
    async with relay(tmp_path) as running:
        room.forwarder = running.forwarder
        kept, lost = await running.pair(1), await running.pair(2)
        await room.upkeep(NOW)
        assert await receive(lost[0], 1) == b""
        await kept[0].send_all(b"x")
        assert await receive(kept[1], 1) == b"x"


async def test_a_relay_that_does_not_forward_says_so(stack: Stack) -> None:
    room = stack.services.rendezvous
    room._forwards = msgspec.structs.replace(stack.services.config.forwarding, enabled=False).enabled
    with pytest.raises(ApiError, match="does not forward"):
        await room.call(account(1), b"d" * 32, called=b"e" * 32, purpose="forward", addresses=[], now=NOW)
