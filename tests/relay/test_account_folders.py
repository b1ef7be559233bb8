"""What a relay says of the folders of an account: made up, slipped in, held back, or nothing for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from p2psync.crypto.recovery import parse_recovery_key, recovery_keys
from p2psync.errors import ConnectionLost
from p2psync.membership.links import Add, Role
from p2psync.model.ids import FolderId, format_device_id
from p2psync.net.relay_mailbox import MailboxCalls
from p2psync.node import account_keeper
from p2psync.node.relay_folder import RelayFolder
from p2psync.protocol.relay_api import FolderEntry
from p2psync.sync.mailbox.finding import Found
from tests.relay.homes import EMAIL, FOLDER, KEY, LABEL, Home, the_folder, until
from tests.relay.test_account_keeper import URL, begun, left, offered
from tests.simulation.nodes import PORT


# ── relays that lie ─────────────────────────────────────────────────────────────────────────────────────────────────
def also_listed(monkeypatch: pytest.MonkeyPatch, entries: Callable[[], Sequence[FolderEntry]]) -> None:
    """The relay says that the account has more folders."""
    honest = MailboxCalls.folders

    async def folders(self: MailboxCalls) -> list[FolderEntry]:
        return [*await honest(self), *entries()]

    monkeypatch.setattr(MailboxCalls, "folders", folders)


async def test_folders_that_are_none_are_not_offered(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up = [FolderEntry(bytes([n]) * n, owned=True, rights="manage", last_seq=9, pruned_seq=0) for n in (1, 16, 40)]
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
    also_listed(monkeypatch, lambda: made_up)
    async with home.node("b") as laptop:
        view = await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
        assert [p.code for p in view.problems] in ([], ["folders-not-joined"])
        await offered(laptop)
        await trio.sleep(300)
        assert [o.label for o in await laptop.folder_offers()] == [LABEL]


async def test_a_folder_of_strangers_is_not_offered(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay knows every card of an account: it can make up a folder that this device and the recovery key own."""
    monkeypatch.setattr(account_keeper, "ASK_S", 60.0)
    async with home.node("a") as desk, home.node("e") as eve:
        recovery = await begun(home, desk)
        paper = recovery_keys(parse_recovery_key(recovery))
        await eve.account_sign_up([URL], "eve@example.org", KEY)
        await eve.account_verify(await home.relay.code("eve@example.org"))
        home.device("e").disk.make_directories(FOLDER)
        await eve.folder_add(FOLDER, LABEL)
        await eve.folder_mailbox(LABEL, "always")
        home.device("e").user(FOLDER).write(b"f", b"bait")
        trap = the_folder(eve)
        async with home.node("b") as laptop:
            for card in (paper.card, laptop.keys.card):
                await trap.act(Add(card.device_id, Role.OWNER, "", 0, card.encode()))
            await left(eve)
            ours = desk.account.require().account_id
            await eve.account.client.mailbox.set_access(trap.id, ours, "manage")
            await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
            await offered(laptop)
            await trio.sleep(200)
            (offer,) = await laptop.folder_offers()
            assert offer.id == the_folder(desk).context.name
            assert trap.context.membership.link_count == 5
            # Whoever knows that device has its word for it, as with a device that is connected.
            await laptop.device_add(format_device_id(eve.device_id), "eve", [f"nowhere:{PORT}"])
            await until(lambda: len(laptop.synchronizer.offers) == 2)


# ── a relay in trouble ──────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_relay_that_fails_is_asked_ever_less_and_soon_when_it_is_back(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.node("a") as desk:
        await begun(home, desk)
    honest, asked, fails = MailboxCalls.folders, list[float](), True

    async def folders(self: MailboxCalls) -> list[FolderEntry]:
        asked.append(trio.current_time())
        if fails:
            raise ConnectionLost("no answer")
        return await honest(self)

    monkeypatch.setattr(MailboxCalls, "folders", folders)
    async with home.node("a") as desk:
        for _ in range(1000):  # whatever goes on here meanwhile
            desk.synchronizer.changed.fire()
            await trio.sleep(2)
        assert 4 < len(asked) < 40
        await until(lambda: trio.current_time() - asked[-1] < 1, 2 * account_keeper.MAX_BACK_OFF_S)
        fails, known = False, len(asked)
        home.relay.line.part("a")
        await trio.sleep(5)
        home.relay.line.unite("a")
        await until(lambda: len(asked) > known, account_keeper.MAX_BACK_OFF_S / 10)


async def test_folders_that_cannot_be_had_keep_no_other_waiting(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.node("a") as desk:
        recovery = await begun(home, desk)
        ours = the_folder(desk).id
    honest, find = MailboxCalls.folders, account_keeper.find_folder
    running, most = 0, 0

    async def folders(self: MailboxCalls) -> list[FolderEntry]:
        held_back = [
            FolderEntry(bytes([n]) * 16, owned=True, rights="manage", last_seq=9, pruned_seq=0) for n in range(9)
        ]
        before = account_keeper.MAX_FINDS - 1
        return [*held_back[:before], *await honest(self), *held_back[before:]]

    async def find_or_hang(service: RelayFolder, keys: Any, folder: FolderId, offload: Any) -> Found | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await find(service, keys, folder, offload) if folder == ours else await trio.sleep_forever()
        finally:
            running -= 1

    async with home.node("b") as laptop:
        await laptop.account_log_in(EMAIL, KEY, [URL], recovery)
        monkeypatch.setattr(account_keeper, "find_folder", find_or_hang)
        monkeypatch.setattr(MailboxCalls, "folders", folders)
        await until(lambda: bool(laptop.synchronizer.offers), account_keeper.FIND_S / 2)
        await trio.sleep(2 * account_keeper.FIND_S)
        assert most == account_keeper.MAX_FINDS
