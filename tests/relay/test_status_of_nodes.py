"""What `status` tells of account and mailboxes: at once, with its age, whether the relay answers or not."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from p2psync.node.node import NodeOperations
from p2psync.node.views import AccountUsage, AccountView, MailboxView
from tests.relay.homes import EMAIL, FOLDER, KEY, LABEL, Home, is_posted, the_folder, until
from tests.relay.simulated import ADDRESS, VirtualRelay

SIZE = 100_000


async def glance(node: NodeOperations) -> tuple[AccountView, MailboxView]:
    """The status, which takes no time at all."""
    begun = trio.current_time()
    status = await node.status()
    assert trio.current_time() - begun < 0.001
    assert status.account is not None
    (folder,) = status.folders
    assert folder.mailbox is not None
    return status.account, folder.mailbox


def usage_of(account: AccountView) -> AccountUsage:
    assert account.usage is not None
    return account.usage


def was_just_read(node: NodeOperations) -> bool:
    (status,) = the_folder(node).mailroom.status
    return status.read_age_s is not None and status.read_age_s < 0.5


async def test_status_shows_the_relay_without_asking_it(autojump_clock: MockClock) -> None:
    relay = VirtualRelay()
    home = Home(relay)
    async with home.node("a") as desk:
        await desk.folder_add(FOLDER, LABEL)
        assert (await desk.status()).account is None
        async with relay.running():
            await desk.account_sign_up([str(ADDRESS)], EMAIL, KEY)
            account, mailbox = await glance(desk)
            assert (account.email, account.relay, account.state) == (EMAIL, ADDRESS.authority, "unverified")
            assert mailbox == MailboxView(LABEL, "never")
            await desk.account_verify(await relay.code(EMAIL))
            home.device("a").user(FOLDER).write(b"first", b"1")
            await desk.folder_mailbox(LABEL, "always")
            await desk.folder_scan(LABEL)
            await until(lambda: is_posted(desk))
        relay.line.stop()
        home.device("a").user(FOLDER).write(b"f", b"1" * SIZE)
        await desk.folder_scan(LABEL)
        await trio.sleep(180)
        account, mailbox = await glance(desk)
        assert usage_of(account).limit == 10**9
        assert (account.usage_age_s or 0) > 100
        assert (mailbox.policy, mailbox.waiting, mailbox.waiting_bytes) == ("always", 1, SIZE)
        assert (mailbox.read_age_s or 0) > 100
        async with relay.running():
            await until(lambda: is_posted(desk) and was_just_read(desk), timeout=900)
            account, mailbox = await glance(desk)
            assert (mailbox.waiting, mailbox.waiting_bytes) == (0, 0)
            assert (mailbox.read_age_s or 99) < 1
            await trio.sleep(1000)
            account, _ = await glance(desk)
            assert usage_of(account).used > SIZE
            assert (account.usage_age_s or 9999) < 910
            assert not account.problems
    async with home.node("a") as desk:
        await until(lambda: bool(desk.synchronizer.folders))
        await trio.sleep(100)
        account, mailbox = await glance(desk)
        assert (account.state, account.usage, mailbox.read_age_s) == ("active", None, None)
        assert [problem.code for problem in account.problems] == ["relay-unreachable"]
    relay.close()
