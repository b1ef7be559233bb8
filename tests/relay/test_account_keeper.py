"""The folders of an account find its devices: by the relay alone, in virtual time, whoever comes, goes or lies."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2psync.crypto.recovery import parse_recovery_key, recovery_keys
from p2psync.errors import StateError
from p2psync.index.mailbox import grants
from p2psync.membership.keeping import everybody
from p2psync.membership.links import Role
from p2psync.membership.sigchain import AccountChain, DeviceKind
from p2psync.model.ids import DeviceId, format_device_id
from p2psync.node import account_keeper
from p2psync.node.account_joining import Joining
from p2psync.node.node import NodeOperations
from p2psync.node.relay_folder import RelayFolder
from p2psync.sync.mailbox.finding import Found
from p2psync.sync.mailbox.service import MailboxUnavailable
from tests.relay.homes import EMAIL, FOLDER, KEY, LABEL, Home, is_posted, the_folder, until
from tests.relay.simulated import ADDRESS, device

URL = str(ADDRESS)


@pytest.fixture
def home(home: Home) -> Home:
    for name in "cde":
        home.device(name).disk.make_directories(b"/data")
    return home


def members(node: NodeOperations) -> dict[DeviceId, Role]:
    return {d: member.role for d, member in the_folder(node).context.membership.members.items()}


async def left(node: NodeOperations) -> None:
    """Everything is at the relay, and everybody who reads has been given the key."""
    await node.folder_scan(LABEL)
    await until(lambda: is_posted(node))

    async def keyless() -> list[str]:
        return (await node.folder_mailbox(LABEL)).keyless

    with trio.fail_after(300):
        while await keyless():
            await trio.sleep(1)
    await trio.sleep(5)


async def begun(home: Home, desk: NodeOperations) -> str:
    """A device alone, with an account and a folder in its mailbox; the recovery key."""
    made = await desk.account_sign_up([URL], EMAIL, KEY)
    await desk.account_verify(await home.relay.code(EMAIL))
    await desk.folder_add(FOLDER, LABEL)
    await desk.folder_mailbox(LABEL, "always")
    home.device("a").user(FOLDER).write(b"f", b"from the desk")
    await until(lambda: len(members(desk)) == 2)
    await left(desk)
    return made.recovery_key


async def come(home: Home, node: NodeOperations, recovery: str) -> None:
    """A device that nobody is there for takes everything from the relay."""
    view = await node.account_log_in(EMAIL, KEY, [URL], recovery)
    assert view.problems == []
    await offered(node)
    accepted = await node.folder_accept(LABEL, FOLDER)
    assert accepted.label == LABEL
    assert (await node.folder_mailbox(LABEL)).policy == "always"


async def offered(node: NodeOperations) -> None:
    await until(lambda: bool(node.synchronizer.offers))


# ── devices that have met nobody ────────────────────────────────────────────────────────────────────────────────────
async def test_a_device_that_has_met_nobody_comes_by_the_recovery_key(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
        paper = recovery_keys(parse_recovery_key(recovery)).device_id
        assert members(desk) == {desk.device_id: Role.OWNER, paper: Role.OWNER}
        assert [m.name for m in await desk.folder_members(LABEL)] == ["a", "recovery key"]
    async with home.node("b") as laptop:
        await come(home, laptop, recovery)
        assert members(laptop)[laptop.device_id] is Role.OWNER
        await until(lambda: home.files("b") == {b"f": b"from the desk"})
        home.device("b").user(FOLDER).write(b"g", b"from the laptop")
        await left(laptop)
    async with home.node("c") as tablet:
        await come(home, tablet, recovery)
        await until(lambda: home.files("c") == home.files("b"))
    async with home.node("a") as desk:
        await until(lambda: home.files("a") == home.files("b"))
        assert len(members(desk)) == 4
        assert not the_folder(desk).context.problems


async def test_devices_that_come_by_one_recovery_key_at_once_all_come_in(autojump_clock: MockClock, home: Home) -> None:
    """Each ends the sessions of the key that the others have, adds a link where they do, and logs the key out."""
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
    async with home.node("b") as laptop, home.node("c") as tablet, home.node("d") as phone:
        comers = (laptop, tablet, phone)
        async with trio.open_nursery() as nursery:
            for node in comers:
                nursery.start_soon(come, home, node, recovery)
        await until(lambda: all(home.files(letter) == {b"f": b"from the desk"} for letter in "bcd"))
        everybody = {desk.device_id, *(node.device_id for node in comers)}
        await until(lambda: all(everybody <= members(node).keys() for node in comers))


async def test_offers_are_there_again_after_a_restart(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
    async with home.node("b") as laptop:
        await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    async with home.node("b") as laptop:
        await offered(laptop)
        (offer,) = await laptop.folder_offers()
        assert (offer.label, offer.role, offer.device_name) == (LABEL, "owner", "recovery key")


async def test_a_search_that_outlives_the_account_offers_nothing(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
    find, found, go_on = account_keeper.find_folder, trio.Event(), trio.Event()

    async def find_slowly(*arguments: Any) -> Found | None:
        folder = await find(*arguments)
        assert folder is not None
        found.set()
        await go_on.wait()
        return folder

    monkeypatch.setattr(account_keeper, "find_folder", find_slowly)
    async with home.node("b") as laptop:
        await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
        with trio.fail_after(300):
            await found.wait()
        await laptop.account_log_out(forget=True)
        await trio.sleep(60)
        go_on.set()
        await trio.sleep(60)
        assert await laptop.folder_offers() == []


@pytest.mark.parametrize("call", ["granted", "give", "append"])
async def test_a_relay_that_breaks_off_half_way(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
    async with home.node("b") as laptop:

        async def lost(*_: object) -> None:
            raise MailboxUnavailable("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(RelayFolder, call, lost)
            view = await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
        assert [p.code for p in view.problems] == ["folders-not-joined"]
        assert view.state == "active"
        await trio.sleep(60)
        assert await laptop.folder_offers() == []
        await come(home, laptop, recovery)
        await until(lambda: home.files("b") == {b"f": b"from the desk"})


async def test_what_was_left_half_done_is_completed_by_another_device(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
    async with home.node("b") as laptop:

        async def nothing(*_: object) -> None:
            return

        with monkeypatch.context() as patch:
            patch.setattr(Joining, "run", nothing)
            await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
    async with home.node("a") as desk:
        await until(lambda: len(members(desk)) == 3)
        await left(desk)
    async with home.node("b") as laptop:
        await offered(laptop)
        assert [o.device_name for o in await laptop.folder_offers()] == [format_device_id(desk.device_id)[:7]]


async def test_a_recovery_key_of_another_account_changes_nothing(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk, home.node("e") as eve:
        recovery = await begun(home, desk)
        await eve.account_sign_up([URL], "eve@example.org", KEY)
        await eve.account_verify(await home.relay.code("eve@example.org"))
        with pytest.raises(StateError, match="another account"):
            await eve.account_log_in(EMAIL, KEY, [URL], recovery)
        assert eve.account.require().email == "eve@example.org"


# ── a device that was paired ────────────────────────────────────────────────────────────────────────────────────────
async def test_a_device_of_the_account_finds_the_folders(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        await begun(home, desk)
        home.sim.network.part("a", "b")
        async with home.node("b") as laptop:
            await desk.account.add(laptop.keys.card.encode(), DeviceKind.DEVICE, laptop.device_id)
            await laptop.account.join(desk.account.invitation())
            await offered(laptop)
            (offer,) = await laptop.folder_offers()
            assert (offer.label, offer.role) == (LABEL, "owner")
            await laptop.folder_accept(LABEL, FOLDER)
            await until(lambda: home.files("b") == {b"f": b"from the desk"})
            assert not laptop.synchronizer.peers


async def test_devices_of_the_account_know_each_other_until_a_person_says_no(
    autojump_clock: MockClock, home: Home
) -> None:
    async with home.node("a") as desk, home.node("b") as laptop:
        recovery = await begun(home, desk)
        await laptop.account_log_in(EMAIL, KEY, [URL], recovery)

        def met() -> bool:
            return bool(desk.synchronizer.peers) and bool(laptop.synchronizer.peers)

        await until(lambda: len(desk.state.devices) == len(laptop.state.devices) == 1)
        await until(met)
        assert [d.name for d in await desk.device_list()] == ["b"]
        await desk.device_remove(format_device_id(laptop.device_id))
        await trio.sleep(400)
        assert desk.state.devices == ()


async def test_folders_without_a_mailbox_are_nobodys_business(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        await begun(home, desk)
        home.device("a").disk.make_directories(b"/data/private")
        private = await desk.folder_add(b"/data/private", "private")
        await trio.sleep(300)
        assert [m.name for m in await desk.folder_members(private.id)] == ["a"]


async def test_nothing_is_left_for_a_key_on_paper_alone(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        await desk.account_sign_up([URL], EMAIL, KEY)
        await desk.account_verify(await home.relay.code(EMAIL))
        await desk.folder_add(FOLDER, LABEL)
        await desk.folder_mailbox(LABEL, "offline")
        await until(lambda: len(members(desk)) == 2)
        home.device("a").user(FOLDER).write(b"f", b"1" * 500)
        await desk.folder_scan(LABEL)
        await trio.sleep(200)
        assert (await desk.folder_mailbox(LABEL)).sent == 0
        await desk.account.add(device("away").card.encode(), DeviceKind.DEVICE, device("away").device_id)
        desk.hurry.fire()
        await until(lambda: len(members(desk)) == 3)
        await left(desk)
        assert (await desk.folder_mailbox(LABEL)).sent == 500


async def test_a_member_whose_card_nobody_has_is_named(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        await begun(home, desk)
        stranger = format_device_id(device("stranger").device_id)
        await desk.device_add(stranger, "printer")
        await desk.folder_share(LABEL, stranger, "viewer")
        await trio.sleep(100)
        assert (await desk.folder_mailbox(LABEL)).keyless == ["printer"]
        await desk.remember(device("stranger").card, None)
        await left(desk)


# ── devices that go ─────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_device_that_was_put_out_opens_nothing_that_comes_later(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
        async with home.node("b") as laptop:
            await come(home, laptop, recovery)
            await until(lambda: home.files("b") == {b"f": b"from the desk"})
            await until(lambda: len(members(desk)) == 3)
            keys = laptop.keys
            old = the_folder(laptop).mailroom.keys.ring
        await desk.account_remove_device(format_device_id(keys.device_id))
        await until(lambda: keys.device_id not in members(desk))
        home.device("a").user(FOLDER).write(b"later", b"not for the laptop")
        await left(desk)
        membership = the_folder(desk).context.membership
        assert membership.current_epoch is not None
        assert not membership.epoch_stale
        assert membership.current_epoch.key_id not in old
        assert len(old) == 1
    async with home.node("b") as laptop:
        await trio.sleep(400)
        assert b"later" not in home.files("b")
        assert membership.current_epoch.key_id not in the_folder(laptop).mailroom.keys.ring
    async with home.node("c") as tablet:
        await come(home, tablet, recovery)
        await until(lambda: home.files("c") == home.files("a"))


async def test_a_device_that_was_unshared_is_not_added_again(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
        async with home.node("b") as laptop:
            await come(home, laptop, recovery)
        await until(lambda: len(members(desk)) == 3)
        laptop_id = format_device_id(laptop.device_id)
        await desk.folder_unshare(LABEL, laptop_id)
        assert laptop.device_id not in members(desk)
        await trio.sleep(400)
        assert laptop.device_id not in members(desk)
        await left(desk)
    async with home.node("a") as desk:
        await trio.sleep(400)
        assert laptop.device_id not in members(desk)
    async with home.node("b") as laptop:
        view = await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
        assert [p.code for p in view.problems] == ["folders-removed"]
    async with home.node("a") as desk:
        await desk.folder_share(LABEL, laptop_id, "viewer")
        await trio.sleep(400)
        assert members(desk)[laptop.device_id] is Role.VIEWER


async def test_a_renewed_recovery_key_takes_the_place_of_the_old(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        old = await begun(home, desk)
        new = (await desk.account_recovery()).recovery_key
        papers = [recovery_keys(parse_recovery_key(text)).device_id for text in (old, new)]
        await until(lambda: papers[1] in members(desk) and papers[0] not in members(desk))
        home.device("a").user(FOLDER).write(b"g", b"since")
        await left(desk)
        context = the_folder(desk).context
        assert context.membership.current_epoch is not None
        with context.index.read() as reader:
            given = grants(reader, context.membership.current_epoch.key_id)
        assert papers[1] in given
        assert papers[0] not in given
    async with home.node("b") as laptop:
        await come(home, laptop, new)
        await until(lambda: home.files("b") == home.files("a"))


# ── at the same time ────────────────────────────────────────────────────────────────────────────────────────────────
async def test_two_devices_that_do_it_at_once_come_to_one_end(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk, home.node("b") as laptop:
        recovery = await begun(home, desk)
        home.sim.network.part("a", "b")
        await come(home, laptop, recovery)
        await until(lambda: len(members(desk)) == len(members(laptop)) == 3)
        gone, come_in = device("gone"), device("come")
        for keys in (gone, come_in):
            await desk.account.add(keys.card.encode(), DeviceKind.DEVICE, keys.device_id)
        await laptop.account.refresh()
        for node in (desk, laptop):
            node.hurry.fire()
        await until(lambda: len(members(desk)) == len(members(laptop)) == 5)
        await desk.account.remove(gone.device_id)
        await laptop.account.refresh()
        for node in (desk, laptop):
            node.hurry.fire()

        def at_rest() -> bool:
            one, two = (the_folder(node).context.membership for node in (desk, laptop))
            return one.heads == two.heads and gone.device_id not in one.members and not one.epoch_stale

        await until(at_rest, timeout=900)
        count = the_folder(desk).context.membership.link_count
        await trio.sleep(300)
        assert (
            the_folder(desk).context.membership.link_count == the_folder(laptop).context.membership.link_count == count
        )
        assert members(desk) == members(laptop)
        assert set(members(desk)) == set(everybody(_chain(desk))) - {gone.device_id}


def _chain(node: NodeOperations) -> AccountChain:
    assert node.account.chain is not None
    return node.account.chain
