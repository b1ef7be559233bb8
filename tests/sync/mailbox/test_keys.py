"""Epoch keys: founded where a mailbox is used, granted to who reads, and renewed with every removal."""

from __future__ import annotations

import trio

from p2psync.crypto.epochs import EpochKey, KeyRing
from p2psync.membership import Membership, Role, make_epoch
from p2psync.membership.grants import decode_grant
from p2psync.membership.links import Add, decode_link
from p2psync.sync.mailbox.keys import (
    EDITOR_PATIENCE,
    KEY_PATIENCE,
    OWNER_PATIENCE,
    keys_to_grant,
    recipients,
    sealing_key,
    start_after,
)
from tests.membership.helpers import act, device, merged, remove, team
from tests.simulation.nodes import PORT
from tests.sync.conftest import FOLDER, LABEL, Story, simulated, told

EDITOR, OWNER, VIEWER, VAULT = Role.EDITOR, Role.OWNER, Role.VIEWER, Role.VAULT


def epoch(membership: Membership, ring: KeyRing, secret: int, author: int = 0) -> tuple[Membership, EpochKey]:
    link, key = make_epoch(device(author), membership, ring, bytes((secret,)) * 32)
    return membership.extend([link]), key


# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_the_first_owner_starts_an_epoch_at_once_others_later_and_viewers_never() -> None:
    folder = team(OWNER, EDITOR, VIEWER, VAULT)
    nothing = KeyRing(folder.folder)
    wanted = [0.0, OWNER_PATIENCE, EDITOR_PATIENCE, None, None]
    assert [start_after(folder, device(n).device_id, nothing) for n in range(5)] == wanted
    grown, key = epoch(folder, nothing, 1)
    ring = KeyRing(folder.folder, [key])
    assert all(start_after(grown, device(n).device_id, ring) is None for n in range(5))
    assert start_after(grown, device(1).device_id, nothing) == KEY_PATIENCE
    stale = act(grown, 0, remove(3))
    assert [start_after(stale, device(n).device_id, ring) for n in range(3)] == wanted[:3]


def test_nothing_is_sealed_under_a_key_of_a_stale_epoch_or_one_that_is_not_here() -> None:
    folder = team(EDITOR, VIEWER)
    nothing = KeyRing(folder.folder)
    assert sealing_key(folder, nothing) is None
    grown, key = epoch(folder, nothing, 1)
    assert sealing_key(grown, nothing) is None
    ring = KeyRing(folder.folder, [key])
    assert sealing_key(grown, ring) == key
    assert sealing_key(act(grown, 0, remove(2)), ring) is None


def test_who_is_given_the_newest_key_and_those_it_does_not_open_reaches_all() -> None:
    folder = team(OWNER, VIEWER)
    first, one = epoch(folder, KeyRing(folder.folder), 1)
    second, two = epoch(first, KeyRing(folder.folder, [one]), 2)
    ring = KeyRing(folder.folder, [one, two])
    assert keys_to_grant(second, ring) == [two]
    # Another owner, who has seen neither, starts the second epoch as well.
    aside, three = epoch(first, KeyRing(folder.folder), 3, author=1)
    both = merged(second, aside)
    granted = keys_to_grant(both, KeyRing(folder.folder, [one, two, three]))
    assert {key.id for key in granted} == {two.id, three.id}
    assert len(KeyRing(folder.folder).climb(both.rungs, *granted)) == 3


def test_keys_go_to_readers_who_have_not_got_them() -> None:
    folder = team(EDITOR, VIEWER, VAULT)
    me, other, viewer = (device(n).device_id for n in range(3))
    assert recipients(folder, []) == [me, other, viewer]
    assert recipients(folder, [me, other]) == [viewer]


# ── stories ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def use_mailbox(story: Story, *names: str) -> None:
    for name in names:
        keys = story.folder(name).mailroom.keys
        keys.wanted = True
        story.folder(name).context.state_changed.fire()


def held(story: Story, name: str) -> set[bytes]:
    return {key.id for key in story.folder(name).mailroom.keys.ring}


def current(story: Story, name: str) -> bytes:
    found = story.folder(name).context.membership.current_epoch
    return found.key_id if found is not None else b""


@simulated
async def test_a_folder_without_a_mailbox_has_no_epoch() -> None:
    async with told() as story:
        await story.start("owner", "friend")
        await story.share("owner", friend="editor")
        assert current(story, "owner") == b""
        assert not held(story, "owner")


@simulated
async def test_members_who_meet_are_granted_the_key_and_keep_it() -> None:
    async with told() as story:
        await story.start("owner", "friend", "viewer")
        await story.share("owner", friend="editor", viewer="viewer")
        use_mailbox(story, "owner")
        everybody = ("owner", "friend", "viewer")
        await story.until(lambda: all(current(story, n) in held(story, n) for n in everybody))
        await story.stop("viewer")
        await story.again("viewer")
        await story.until(lambda: held(story, "viewer") == held(story, "owner"))
        assert story.folder("owner").mailroom.keys.sealing_key() is not None


@simulated
async def test_grants_whose_epoch_becomes_known_are_settled_by_whoever_comes_first() -> None:
    async with told() as story:
        await story.start("owner", "friend")
        await story.share("owner", friend="editor")
        use_mailbox(story, "owner")
        keys = story.folder("friend").mailroom.keys
        await story.until(lambda: bool(keys.ring))
        (grant,) = story.folder("owner").mailroom.keys.grants_for(story.folder("friend").context.device)
        keys._early = {bytes([number]): decode_grant(grant) for number in range(3)}
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(keys.take, ())
        assert not keys.early


@simulated
async def test_a_removal_brings_the_next_epoch_which_the_removed_never_gets() -> None:
    async with told() as story:
        await story.start("owner", "friend", "gone")
        await story.share("owner", friend="editor", gone="editor")
        use_mailbox(story, "owner")
        await story.until(lambda: all(len(held(story, n)) == 1 for n in ("friend", "gone")))
        await story.nodes["owner"].folder_unshare(LABEL, (await story.nodes["gone"].identity()).id)
        # Both at once: there is no moment at which something could be sealed under the old key.
        assert story.folder("owner").context.membership.epoch == 2
        assert not story.folder("owner").context.membership.epoch_stale
        await story.until(lambda: len(held(story, "friend")) == 2)
        await story.until(lambda: story.folder("gone").role is None)
        assert len(held(story, "gone")) == 1
        assert story.folder("friend").mailroom.keys.sealing_key() == story.folder("owner").mailroom.keys.sealing_key()


@simulated
async def test_two_owners_apart_found_an_epoch_each_and_agree_when_they_meet() -> None:
    async with told() as story:
        await story.start("owner", "second")
        await story.share("owner", second="owner")
        one, two = story.letter("owner"), story.letter("second")
        story.sim.network.part(one, two)
        use_mailbox(story, "owner", "second")
        await story.until(lambda: bool(held(story, "owner")) and bool(held(story, "second")))
        story.sim.network.unite(one, two)
        await story.until(lambda: len(held(story, "owner")) == 2 and held(story, "owner") == held(story, "second"))
        assert story.folder("owner").mailroom.keys.sealing_key() == story.folder("second").mailroom.keys.sealing_key()


@simulated
async def test_an_invitation_brings_the_card_of_a_device_that_was_met() -> None:
    async with told() as story:
        await story.start("owner", "friend")
        owner, friend = story.nodes["owner"], story.nodes["friend"]
        ids = {"owner": (await owner.identity()).id, "friend": (await friend.identity()).id}
        await owner.device_add(ids["friend"], "friend", [f"{story.letter('friend')}:{PORT}"])
        await friend.device_add(ids["owner"], "owner", [f"{story.letter('owner')}:{PORT}"])
        await story.until(lambda: bool(owner.state.devices[0].card))
        folder = await owner.folder_add(FOLDER, LABEL)
        await owner.folder_share(folder.id, ids["friend"], "editor")
        membership = story.folder("owner").context.membership
        (added,) = [a for data in membership.encoded_links() if isinstance(a := decode_link(data).action, Add)]
        assert added.card == friend.keys.card.encode()


@simulated
async def test_who_was_invited_before_it_was_met_is_granted_the_key_afterwards() -> None:
    async with told() as story:
        await story.start("owner", "friend")
        owner, friend = story.nodes["owner"], story.nodes["friend"]
        ids = {"owner": (await owner.identity()).id, "friend": (await friend.identity()).id}
        await owner.device_add(ids["friend"], "friend", [])
        folder = await owner.folder_add(FOLDER, LABEL)
        await owner.folder_share(folder.id, ids["friend"], "editor")
        use_mailbox(story, "owner")
        await story.until(lambda: bool(held(story, "owner")))
        await friend.device_add(ids["owner"], "owner", [f"{story.letter('owner')}:{PORT}"])
        await story.until(lambda: bool(friend.synchronizer.offers))
        await friend.folder_accept(folder.id, FOLDER)
        await story.until(lambda: held(story, "friend") == held(story, "owner"))
