"""Folders of two nodes of one account that are never online together, through the whole relay, in virtual time."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import MockClock

from p2psync.errors import InputError, StateError
from tests.relay.homes import EMAIL, FOLDER, KEY, LABEL, Home, begun, is_posted, the_folder, until
from tests.relay.simulated import ADDRESS, VirtualRelay


async def test_what_one_leaves_at_the_relay_the_other_finds(autojump_clock: MockClock, home: Home) -> None:
    await begun(home)
    async with home.node("a") as desk:
        user = home.device("a").user(FOLDER)
        user.write(b"small", b"1")
        user.write(b"long", bytes(range(256)) * 4000)
        await desk.folder_scan(LABEL)
        await until(lambda: is_posted(desk))
        assert not the_folder(desk).context.problems
    async with home.node("b") as laptop:
        await until(lambda: home.files("b") == home.files("a"))
        home.device("b").user(FOLDER).write(b"answer", b"2")
        await laptop.folder_scan(LABEL)
        await until(lambda: is_posted(laptop))
        assert not the_folder(laptop).context.problems
    async with home.node("a") as desk:
        await until(lambda: home.files("a") == home.files("b"))
        assert not the_folder(desk).context.problems


async def test_news_comes_at_once(autojump_clock: MockClock, home: Home) -> None:
    await begun(home)
    async with home.node("a") as desk, home.node("b") as laptop:
        home.sim.network.part("a", "b")
        await until(lambda: bool(the_folder(desk).mailroom.mailboxes) and bool(the_folder(laptop).mailroom.mailboxes))
        await trio.sleep(60)
        home.device("a").user(FOLDER).write(b"f", b"now")
        await desk.folder_scan(LABEL)
        await until(lambda: b"f" in home.files("b"), timeout=30)


async def test_a_restarted_relay_has_everything(autojump_clock: MockClock) -> None:
    relay = VirtualRelay()
    home = Home(relay)
    async with relay.running():
        await begun(home)
    async with home.node("a") as desk:
        home.device("a").user(FOLDER).write(b"f", b"1")
        await desk.folder_scan(LABEL)
        await trio.sleep(300)
        assert "relay-unreachable" in the_folder(desk).context.problems
        async with relay.running():
            await until(lambda: is_posted(desk), timeout=90)
            assert "relay-unreachable" not in the_folder(desk).context.problems
    async with relay.running(), home.node("b"):
        await until(lambda: home.files("b") == {b"f": b"1"})
    relay.close()


async def test_a_relay_put_back_from_before_the_folder_is_told_of_and_filled_again(autojump_clock: MockClock) -> None:
    relay = VirtualRelay()
    home = Home(relay)
    async with home.node("a") as desk:
        async with relay.running():
            await desk.account_sign_up([str(ADDRESS)], EMAIL, KEY)
            await desk.account_verify(await relay.code(EMAIL))
            backup = relay.backup()
            folder = await desk.folder_add(FOLDER, LABEL)
            await desk.folder_mailbox(folder.id, "always")
            home.device("a").user(FOLDER).write(b"f", b"1")
            await desk.folder_scan(LABEL)
            await until(lambda: is_posted(desk))
        relay.restore(backup, chunks=True)
        assert not [key for key in relay.store.objects if key.startswith("chunks/")]
        async with relay.running():
            await until(lambda: "relay-rollback" in the_folder(desk).context.problems, timeout=900)
            await until(lambda: is_posted(desk), timeout=900)
            assert [key for key in relay.store.objects if key.startswith("chunks/")]
    relay.close()


async def test_a_home_that_is_full_keeps_no_session_from_being_used(
    autojump_clock: MockClock, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(home)
    async with home.node("a") as desk:
        tried = []

        def save_account(*_: object) -> None:
            tried.append(True)
            raise OSError(errno.ENOSPC, "no space left on device")

        monkeypatch.setattr(desk.home, "save_account", save_account)
        client = desk.account.client
        client._caller.session = None
        await client.mailbox.folders()
        assert tried


async def test_a_mailbox_is_set_seen_and_left(autojump_clock: MockClock, home: Home) -> None:
    async with home.node("a") as desk:
        folder = await desk.folder_add(FOLDER, LABEL)
        with pytest.raises(StateError, match="account signup"):
            await desk.folder_mailbox(folder.id, "always")
        assert (await desk.folder_mailbox(folder.id)).policy == "never"
        await desk.account_sign_up([str(ADDRESS)], EMAIL, KEY)
        await desk.account_verify(await home.relay.code(EMAIL))
        with pytest.raises(InputError, match="not 'sometimes'"):
            await desk.folder_mailbox(folder.id, "sometimes")  # type: ignore[arg-type]
        home.device("a").user(FOLDER).write(b"f", b"1" * 500)
        await desk.folder_mailbox(folder.id, "always")
        await desk.folder_scan(LABEL)
        await until(lambda: is_posted(desk))
        view = await desk.folder_mailbox(folder.id)
        assert (view.policy, view.relay, view.waiting, view.sent) == ("always", ADDRESS.authority, 0, 500)
    async with home.node("a") as desk:
        await until(lambda: bool(the_folder(desk).mailroom.mailboxes))
        assert (await desk.folder_mailbox(LABEL, "never")).relay == ""
        await until(lambda: not the_folder(desk).mailroom.mailboxes)
        await desk.account_log_out()
        with pytest.raises(StateError, match="logged out"):
            await desk.folder_mailbox(LABEL, "always")
