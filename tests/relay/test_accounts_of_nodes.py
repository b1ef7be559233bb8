"""Accounts as nodes have them, with the whole relay, in virtual time: an honest relay, a bad line, a lying relay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2psync.crypto.pairing import CODE_ENTROPY, new_code
from p2psync.crypto.recovery import parse_recovery_key, recovery_keys
from p2psync.errors import AuthenticationError, ConnectionLost, InputError, RelayRefusal, StateError
from p2psync.membership.sigchain import AccountChain, Add, DeviceKind, begin_account, fold_chain
from p2psync.net import relay_accounts
from p2psync.net.relay_client import RelayClient
from p2psync.node.account import Account, ChainRefusedError
from p2psync.node.account_joining import Joining
from p2psync.node.node import NodeOperations
from p2psync.node.views import Peer
from p2psync.testing.relay import Seen
from tests.relay.homes import EMAIL, FOLDER, KEY, LABEL, Home
from tests.relay.simulated import ADDRESS, device
from tests.simulation.nodes import PORT

OTHER_KEY = b"o" * 32
URL = str(ADDRESS)


async def signed_up(home: Home, node: NodeOperations) -> str:
    made = await node.account_sign_up([URL], EMAIL, KEY)
    view = await node.account_verify((await home.relay.code(EMAIL)).lower())
    assert (view.state, view.email, view.devices, view.problems) == ("active", EMAIL, 1, [])
    assert view.usage is not None
    assert view.usage.limit
    return made.recovery_key


async def test_sign_up_and_a_second_device_by_the_recovery_key(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    recovery = await signed_up(home, desk)
    with pytest.raises(RelayRefusal, match="--recovery-file"):
        await laptop.account_log_in(EMAIL, KEY, [URL])
    with pytest.raises(RelayRefusal, match="password is wrong"):
        await laptop.account_log_in(EMAIL, OTHER_KEY, [URL], recovery)
    assert laptop.account.stored is None
    view = await laptop.account_log_in(EMAIL.upper(), KEY, [URL], recovery.lower())
    assert (view.state, view.devices) == ("active", 2)
    found = await desk.account_devices()
    assert [(d.kind, d.here) for d in found] == [("device", True), ("recovery", False), ("device", False)]
    assert found == [
        msgspec.structs.replace(d, here=d.id == found[0].id, name=f.name, seen=f.seen)
        for d, f in zip(await laptop.account_devices(), found, strict=True)
    ]


async def test_status_says_what_takes_so_long(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = await signed_up(home, desk)

    async def join_slowly(*_: object) -> None:
        await trio.sleep(600)

    monkeypatch.setattr(Joining, "run", join_slowly)
    for node in (desk, laptop):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.account_log_in, EMAIL, KEY, [URL], recovery)
            await trio.sleep(60)
            asked = trio.current_time()
            if node is desk:
                (problem,) = (await node.account_status()).problems
                assert (problem.code, "recovery key" in problem.text) == ("account-busy", True)
            else:  # which is in no account yet
                with pytest.raises(StateError, match="recovery key"):
                    await node.account_status()
            assert trio.current_time() == asked
        assert (await node.account_status()).problems == []


async def test_an_account_outlives_a_restart(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        await signed_up(home, desk)
    async with home.node("a") as desk:
        assert (await desk.account_status()).state == "active"


async def test_a_device_that_was_put_out(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    recovery = await signed_up(home, desk)
    await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    there = (await laptop.identity()).id
    with pytest.raises(InputError, match="this device"):
        await desk.account_remove_device((await desk.identity()).id)
    with pytest.raises(InputError, match="account recovery"):
        await desk.account_remove_device("recovery key")
    await desk.account_remove_device(there)
    assert len(await desk.account_devices()) == 2
    view = await laptop.account_status()
    assert view.usage is None
    assert "without the password" in view.problems[0].text
    with pytest.raises(RelayRefusal, match="not in the account"):
        await laptop.account_log_in(EMAIL, KEY)
    await laptop.account_log_out(forget=True)
    assert (await laptop.account_log_in(EMAIL, KEY, [URL], recovery)).state == "active"


async def test_logging_out_and_in_and_forgetting_a_password(
    autojump_clock: MockClock, home: Home, desk: NodeOperations
) -> None:
    await signed_up(home, desk)
    await desk.account_log_out()
    assert (await desk.account_status()).state == "logged-out"
    with pytest.raises(StateError, match="logged out"):
        await desk.account_recovery()
    with pytest.raises(RelayRefusal, match="password is wrong"):
        await desk.account_log_in(EMAIL, OTHER_KEY)
    await desk.account_ask_reset(EMAIL)
    code = await home.relay.code(EMAIL)
    await desk.account_reset(EMAIL, code, OTHER_KEY)
    assert (await desk.account_log_in(EMAIL, OTHER_KEY)).state == "active"
    with pytest.raises(RelayRefusal, match="password is wrong"):
        await desk.account_delete(KEY)
    await desk.account_delete(OTHER_KEY)
    with pytest.raises(StateError, match="no account"):
        await desk.account_status()


async def test_a_device_that_logs_in_again_has_one_session_and_hears_the_news(
    autojump_clock: MockClock, home: Home, desk: NodeOperations
) -> None:
    await signed_up(home, desk)
    await desk.folder_add(FOLDER, LABEL)
    await desk.folder_mailbox(LABEL, "always")
    await trio.sleep(60)
    await desk.account_log_out()
    await desk.account_log_in(EMAIL, KEY)
    await trio.sleep(10)
    assert home.relay.services is not None
    assert home.relay.services.mailbox.subscriptions.count() == 2
    seen: list[Seen] = []
    home.relay.line.observe = seen.append
    await trio.sleep(300)
    assert [request for request in seen if request.status == 401] == []


async def test_a_changed_password_leaves_devices_in(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    recovery = await signed_up(home, desk)
    await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    with pytest.raises(RelayRefusal, match="old password is wrong"):
        await desk.account_change_password(OTHER_KEY, OTHER_KEY)
    await desk.account_change_password(KEY, OTHER_KEY)
    for node in (desk, laptop):
        assert (await node.account_status()).problems == []
    await laptop.account_log_out()
    with pytest.raises(StateError, match="logged out"):
        await laptop.account_change_password(OTHER_KEY, KEY)
    with pytest.raises(RelayRefusal, match="password is wrong"):
        await laptop.account_log_in(EMAIL, KEY)
    assert (await laptop.account_log_in(EMAIL, OTHER_KEY)).problems == []


async def test_guesses_of_the_old_password_are_slowed_down(
    autojump_clock: MockClock, home: Home, desk: NodeOperations
) -> None:
    await signed_up(home, desk)
    begun = trio.current_time()
    for _ in range(12):
        with pytest.raises(RelayRefusal):
            await desk.account_change_password(OTHER_KEY, OTHER_KEY)
    assert trio.current_time() - begun > 60
    await trio.sleep(1000)
    await desk.account_change_password(KEY, OTHER_KEY)


async def test_whether_a_password_was_changed_is_not_made_up(
    autojump_clock: MockClock, home: Home, desk: NodeOperations
) -> None:
    await signed_up(home, desk)
    home.relay.line.faults.lost_answers = 1.0
    with pytest.raises(ConnectionLost, match="may have been changed"):
        await desk.account_change_password(KEY, OTHER_KEY)
    home.relay.line.faults.lost_answers = 0.0
    assert (await desk.account_status()).problems == []
    with pytest.raises(RelayRefusal, match="old password is wrong"):
        await desk.account_change_password(KEY, OTHER_KEY)


async def test_a_new_recovery_key_takes_the_place_of_the_old(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    old = await signed_up(home, desk)
    new = (await desk.account_recovery()).recovery_key
    assert [d.kind for d in await desk.account_devices()] == ["device", "recovery"]
    with pytest.raises(RelayRefusal, match="not in the account"):
        await laptop.account_log_in(EMAIL, KEY, [URL], old)
    assert (await laptop.account_log_in(EMAIL, KEY, [URL], new)).devices == 2


async def test_plans(autojump_clock: MockClock, home: Home, desk: NodeOperations) -> None:
    [free, *_] = await desk.account_plans([URL])
    assert (free.name, free.bytes > 0) == ("", True)
    await signed_up(home, desk)
    with pytest.raises(RelayRefusal, match="no plan 'gold'"):
        await desk.account_subscribe("gold")
    assert (await desk.account_subscribe()).active


async def test_both_devices_change_the_account_at_once(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    recovery = await signed_up(home, desk)
    await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    async with trio.open_nursery() as nursery:
        for number, node in enumerate((desk, laptop) * 2):
            keys = device(f"new {number}")
            nursery.start_soon(node.account.add, keys.card.encode(), DeviceKind.DEVICE, keys.device_id)
    assert len(await desk.account_devices()) == len(await laptop.account_devices()) == 7


@pytest.mark.parametrize("seed", range(4))
async def test_on_a_bad_line(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations, seed: int
) -> None:
    recovery = await signed_up(home, desk)
    await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    home.relay.line.faults.lost_requests = home.relay.line.faults.lost_answers = 0.1
    for number in range(3):
        keys = device(f"{seed} {number}")
        for node in (desk, laptop):
            for _ in range(10):
                try:
                    await node.account.add(keys.card.encode(), DeviceKind.DEVICE, keys.device_id)
                    break
                except ConnectionLost:
                    continue
    home.relay.line.faults.lost_requests = home.relay.line.faults.lost_answers = 0.0
    assert len(await desk.account_devices()) == len(await laptop.account_devices()) == 6
    assert (await desk.account_status()).problems == []


async def test_the_same_link_is_sent_again(autojump_clock: MockClock, home: Home, desk: NodeOperations) -> None:
    await signed_up(home, desk)
    keys, other = device("new"), device("other")
    sent: list[bytes] = []
    lost = [True]
    honest = relay_accounts.AccountCalls.append_link

    async def append(self: relay_accounts.AccountCalls, link: bytes) -> None:
        sent.append(link)
        if lost:
            lost.clear()
            raise ConnectionLost("the request is lost")
        await honest(self, link)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay_accounts.AccountCalls, "append_link", append)
        with pytest.raises(ConnectionLost):
            await desk.account.add(keys.card.encode(), DeviceKind.DEVICE, keys.device_id)
        await desk.account.add(other.card.encode(), DeviceKind.DEVICE, other.device_id)
    assert sent[0] == sent[1]
    assert len(await desk.account_devices()) == 4


# ── pairing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def paired(host: NodeOperations, guest: NodeOperations, *, offered: bool, wanted: bool) -> tuple[Peer, Peer]:
    offer = await host.pair_open(offered)
    peers: dict[str, Peer] = {}

    async def wait() -> None:
        peers["host"] = await host.pair_wait(offer.code)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        peers["guest"] = await guest.pair_join(offer.code, f"a:{PORT}", wanted)
    return peers["host"], peers["guest"]


async def test_a_paired_device_joins_the_account(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    with pytest.raises(StateError, match="no account"):
        await desk.pair_open(account=True)
    await signed_up(home, desk)
    at_host, at_guest = await paired(desk, laptop, offered=True, wanted=True)
    assert (at_host.account, at_guest.account) == (True, True)
    view = await laptop.account_status()
    assert (view.state, view.devices, view.email, view.problems) == ("active", 2, EMAIL, [])
    assert [d.here for d in await desk.account_devices()] == [True, False, False]
    with pytest.raises(StateError, match="already"):
        await laptop.pair_join(str(new_code(bytes(CODE_ENTROPY))), account=True)


async def test_nobody_joins_an_account_unasked(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    await signed_up(home, desk)
    at_host, at_guest = await paired(desk, laptop, offered=False, wanted=False)
    assert (at_host.account, at_guest.account) == (False, False)
    assert len(await desk.account_devices()) == 2
    with pytest.RaisesGroup(pytest.RaisesExc(StateError, match="has not offered")):
        await paired(desk, laptop, offered=False, wanted=True)
    assert laptop.account.stored is None


async def test_an_invited_device_knows_its_account_from_a_made_up_one(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    await signed_up(home, desk)
    told = desk.account.invitation()
    here = (await laptop.identity()).id
    await desk.account.add(laptop.keys.card.encode(), DeviceKind.DEVICE, laptop.device_id)
    with pytest.raises(ChainRefusedError, match="another chain"):
        await laptop.account.join(dataclasses.replace(told, head=bytes(32)))
    await laptop.account.join(told)
    assert here in [d.id for d in await laptop.account_devices()]


# ── relays that lie ─────────────────────────────────────────────────────────────────────────────────────────────────
Lie = Callable[[list[bytes]], list[bytes]]


def lied_to(monkeypatch: pytest.MonkeyPatch, lie: Lie) -> None:
    """From now on the relay shows what `lie` makes of the chain."""
    honest = relay_accounts.AccountCalls.chain

    async def chain(self: relay_accounts.AccountCalls, start: int = 0) -> list[bytes]:
        links: list[bytes] = lie(await honest(self))
        return links[start:]

    monkeypatch.setattr(relay_accounts.AccountCalls, "chain", chain)


async def test_a_relay_that_was_put_back_from_a_backup_lets_in_who_came_since(
    autojump_clock: MockClock, home: Home, desk: NodeOperations, laptop: NodeOperations
) -> None:
    recovery = await signed_up(home, desk)
    backup = home.relay.backup()
    await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    before = await desk.account.refresh()
    line = home.relay.line
    app, line.app = line.app, None
    home.relay.restore(backup, chunks=True)
    line.app = app
    assert (await desk.account.refresh()).links == before.links
    assert (await laptop.account.refresh()).links == before.links


@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_a_relay_that_was_set_back(
    autojump_clock: MockClock,
    home: Home,
    desk: NodeOperations,
    laptop: NodeOperations,
    monkeypatch: pytest.MonkeyPatch,
    kept: int,
) -> None:
    recovery = await signed_up(home, desk)
    await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    before = await desk.account.refresh()
    lied_to(monkeypatch, lambda links: links[:kept])
    view = await desk.account_status()
    assert (view.usage, view.devices) == (None, 2)
    assert (view.problems[0].code, "fewer devices" in view.problems[0].text) == ("account-chain", True)
    with pytest.raises(ChainRefusedError, match="fewer devices"):
        await desk.account.refresh()
    assert desk.account.chain is not None
    assert desk.account.chain.links == before.links


async def test_a_relay_that_forks_the_chain(
    autojump_clock: MockClock,
    home: Home,
    desk: NodeOperations,
    laptop: NodeOperations,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recovery = await signed_up(home, desk)
    await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    await desk.account.refresh()

    def lie(links: list[bytes]) -> list[bytes]:
        # The recovery key was stolen, and its thief is in league with the relay.
        short = fold_chain(links[:2])
        stolen = recovery_keys(parse_recovery_key(recovery))
        other = short.sign(stolen, Add(device("eve").card.encode(), DeviceKind.DEVICE))
        return [*links[:2], other.encoded]

    lied_to(monkeypatch, lie)
    view = await desk.account_status()
    assert (view.problems[0].code, "forked" in view.problems[0].text) == ("account-chain", True)


async def test_a_relay_that_makes_up_an_account_around_a_recovery_key(
    autojump_clock: MockClock,
    home: Home,
    desk: NodeOperations,
    laptop: NodeOperations,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recovery = await signed_up(home, desk)

    assert desk.account.chain is not None
    eve = device("eve")
    made_up = begin_account(eve, bytes(16))
    add_recovery = desk.account.chain.links[1].action
    assert isinstance(add_recovery, Add)
    made_up = made_up.extend([made_up.sign(eve, add_recovery).encoded])

    async def fetch(_self: Account, _client: RelayClient) -> AccountChain:
        return made_up

    monkeypatch.setattr(Account, "_fetch", fetch)
    with pytest.raises(AuthenticationError, match="made it up"):
        await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    assert laptop.account.stored is None
