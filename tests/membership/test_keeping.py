"""An account's devices against a folder's members: all come to the same changes, and a person's word stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync.membership import Membership, Remove, Role, SetRole, sigchain
from p2psync.membership.keeping import Admit, Change, Expel, Promote, changes_due, everybody, turn, voucher
from p2psync.membership.links import Add
from p2psync.membership.sigchain import AccountChain, DeviceKind, begin_account

from .helpers import act, add, demote, device, found, merged, remove, roles, team

EDITOR, OWNER, VIEWER = Role.EDITOR, Role.OWNER, Role.VIEWER
PAPER, NEW_PAPER = 8, 9


def link(chain: AccountChain, author: int, action: sigchain.Add | sigchain.Remove) -> AccountChain:
    return chain.extend([chain.sign(device(author), action).encoded])


def joins(number: int, kind: DeviceKind = DeviceKind.DEVICE) -> sigchain.Add:
    return sigchain.Add(device(number).card.encode(), kind)


def leaves(number: int) -> sigchain.Remove:
    return sigchain.Remove(device(number).device_id)


def account(*numbers: int) -> AccountChain:
    """Device 0 and the recovery key, then others."""
    chain = link(begin_account(device(0), b"r" * 16), 0, joins(PAPER, DeviceKind.RECOVERY))
    for number in numbers:
        chain = link(chain, 0, joins(number))
    return chain


def due(membership: Membership, chain: AccountChain, number: int, *, admits: bool = True) -> list[Change]:
    return changes_due(membership, chain, device(number).device_id, admits=admits)


def made(membership: Membership, number: int, change: Change) -> Membership:
    match change:
        case Admit(target, role, card):
            return act(membership, number, Add(target, role, "", 0, card))
        case Promote(target):
            return act(membership, number, SetRole(target, OWNER, None))
        case Expel(target):
            return act(membership, number, Remove(target, []))


def kept(membership: Membership, chain: AccountChain, number: int) -> Membership:
    """After the device has made all changes that are due."""
    for change in due(membership, chain, number):
        if not isinstance(change, Expel):
            assert not membership.was_revoked(change.device)
        elif membership.was_removed(change.device):
            pytest.fail("removed a second time")
        membership = made(membership, number, change)
    assert due(membership, chain, number) == []
    return membership


# ── who comes and who goes ──────────────────────────────────────────────────────────────────────────────────────────
def test_devices_and_recovery_key_become_owners_with_their_cards() -> None:
    membership = kept(found(), account(1, 2), 0)
    assert roles(membership) == dict.fromkeys([0, PAPER, 1, 2], "owner")
    assert membership.members[device(1).device_id].card == device(1).card
    assert due(membership, account(1, 2), 1) == due(membership, account(1, 2), 2) == []


def test_an_editor_lets_in_editors_and_an_owner_makes_the_recovery_key_one() -> None:
    membership = kept(team(EDITOR), account(1, 2), 1)
    assert roles(membership) == {0: "owner", 1: "editor", PAPER: "editor", 2: "editor"}
    membership = kept(membership, account(1, 2), 0)
    assert roles(membership) == {0: "owner", 1: "editor", PAPER: "owner", 2: "editor"}


def test_viewers_strangers_and_recovery_keys_change_nothing() -> None:
    assert due(team(VIEWER), account(1, 2), 1) == []
    assert due(team(OWNER), account(2), 1) == []
    assert due(kept(found(), account(), 0), link(account(1), 0, leaves(0)), 0) == []


def test_where_the_account_does_not_belong_nobody_is_let_in() -> None:
    assert due(found(), account(1), 0, admits=False) == []


def test_who_is_put_out_of_the_account_goes() -> None:
    chain = account(1, 2)
    membership = kept(found(), chain, 0)
    chain = link(chain, 0, leaves(1))
    assert due(membership, chain, 2) == [Expel(device(1).device_id)]
    assert due(membership, chain, 2, admits=False) == [Expel(device(1).device_id)]
    assert not any(isinstance(change, Expel) for change in due(team(EDITOR, EDITOR), chain, 2))
    membership = kept(membership, chain, 2)
    assert 1 not in roles(membership)
    assert membership.was_removed(device(1).device_id)


def test_a_renewed_recovery_key_takes_the_place_of_the_old() -> None:
    chain = account()
    membership = kept(found(), chain, 0)
    chain = link(link(chain, 0, joins(NEW_PAPER, DeviceKind.RECOVERY)), NEW_PAPER, leaves(PAPER))
    assert roles(kept(membership, chain, 0)) == {0: "owner", NEW_PAPER: "owner"}


# ── a person's word ─────────────────────────────────────────────────────────────────────────────────────────────────
def test_who_was_removed_by_hand_is_not_let_in_again() -> None:
    chain = account(1)
    membership = act(kept(found(), chain, 0), 0, remove(1))
    assert due(membership, chain, 0) == []
    # By hand it may come again, and then it stays even though the account puts it out.
    membership = act(membership, 0, add(1, VIEWER))
    assert due(membership, chain, 0) == []
    assert due(membership, link(chain, 0, leaves(1)), 0) == []


def test_who_was_put_out_and_came_back_is_let_in_by_hand_only() -> None:
    chain = account(1)
    membership = kept(found(), chain, 0)
    chain = link(chain, 0, leaves(1))
    membership = kept(membership, chain, 0)
    assert due(membership, link(chain, 0, joins(1)), 0) == []


def test_a_lesser_role_given_by_hand_stays() -> None:
    chain = account(1)
    membership = act(found(), 0, add(1, VIEWER))
    assert due(membership, chain, 0) == [Admit(device(PAPER).device_id, OWNER, device(PAPER).card.encode())]
    membership = act(kept(membership, chain, 0), 0, demote(PAPER, EDITOR))
    assert due(membership, chain, 0) == []


def test_a_removal_at_the_same_time_wins() -> None:
    chain = account(1, 2)
    membership = kept(found(), account(2), 0)
    removed = act(act(membership, 0, add(1, OWNER)), 0, remove(1))
    both = merged(kept(membership, chain, 2), removed)
    assert 1 not in roles(both)
    assert due(both, chain, 0) == due(both, chain, 2) == []


# ── who first ───────────────────────────────────────────────────────────────────────────────────────────────────────
def test_turns_are_different_and_owners_come_first() -> None:
    membership = act(act(found(3), 3, add(0, EDITOR)), 3, add(1, OWNER))
    chain = account(1, 2, 3)
    assert [turn(membership, chain, device(n).device_id) for n in (3, 1, 0, 2, PAPER)] == [1, 0, 2, 3, 3]


# ── who stands for a folder ─────────────────────────────────────────────────────────────────────────────────────────
def test_a_folder_of_strangers_has_no_voucher() -> None:
    chain = account(1)
    membership = act(found(5), 5, add(1, OWNER))
    mine = device(1).device_id
    assert voucher(membership, chain, mine) is None
    assert voucher(membership, chain, mine, [device(5).device_id]) == device(5).device_id
    assert voucher(kept(found(), chain, 0), chain, mine) == device(0).device_id
    assert voucher(kept(found(), chain, 0), link(chain, PAPER, leaves(0)), mine) == device(0).device_id
    assert voucher(found(), chain, device(0).device_id) == device(0).device_id


# ── many devices ────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class View:
    """What one device knows."""

    membership: Membership
    chain: AccountChain


def by_hand(draw: st.DrawFn, view: View, number: int) -> None:
    """Somebody shares, removes or demotes by hand, as far as that device may."""
    others = [action for n in (1, 2, 3, PAPER) for action in (remove(n), add(n, EDITOR), demote(n, VIEWER))]
    allowed = [a for a in (add(4, VIEWER), *others) if view.membership.can(device(number).device_id, a)]
    if allowed:
        view.membership = act(view.membership, number, draw(st.sampled_from(allowed)))


def _chains() -> Iterator[AccountChain]:
    chain = account()
    yield chain
    for author, action in (
        (0, joins(1)),
        (1, joins(2)),
        (1, joins(3)),
        (2, leaves(3)),
        (0, joins(NEW_PAPER, DeviceKind.RECOVERY)),
        (NEW_PAPER, leaves(PAPER)),
        (1, leaves(0)),
    ):
        chain = link(chain, author, action)
        yield chain


CHAINS = list(_chains())


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_devices_that_know_different_things_come_to_one_end(data: st.DataObject) -> None:
    chosen = data.draw(st.integers(0, len(CHAINS) - 1))
    last = CHAINS[chosen]
    begun = found()
    views = {number: View(begun, CHAINS[0]) for number in (0, 1, 2, 3)}
    for _ in range(data.draw(st.integers(0, 16))):
        number = data.draw(st.sampled_from(list(views)))
        view = views[number]
        match data.draw(st.sampled_from(["hear chain", "meet", "keep", "by hand"])):
            case "hear chain":
                view.chain = max(view.chain, CHAINS[data.draw(st.integers(0, chosen))], key=lambda c: len(c.links))
            case "meet":
                other = views[data.draw(st.sampled_from(list(views)))]
                view.membership = other.membership = merged(view.membership, other.membership)
            case "keep":
                view.membership = kept(view.membership, view.chain, number)
            case _:
                data.draw(st.composite(by_hand)(view, number))
    for number, view in views.items():  # what the account has made, people may undo
        view.membership = kept(view.membership, view.chain, number)
        data.draw(st.composite(by_hand)(view, number))
    for _ in range(6):
        everything = merged(*(view.membership for view in views.values()))
        views = {number: View(everything, last) for number in views}
        if not any(due(everything, last, number) for number in views):
            break
        for number, view in views.items():
            view.membership = kept(everything, last, number)
    else:
        pytest.fail("they never come to rest")
    _check_end(everything, last)


def _check_end(membership: Membership, chain: AccountChain) -> None:
    owners = [d for d in chain.devices if membership.role(d) is OWNER and d != device(PAPER).device_id]
    acting = [d for d in owners if chain.devices[d].kind is DeviceKind.DEVICE]
    if not acting:
        return
    for entry in chain.devices.values():
        target = entry.device_id
        if membership.was_removed(target):
            continue
        assert membership.role(target) is not None
        if entry.kind is DeviceKind.RECOVERY and not membership.was_revoked(target):
            assert membership.role(target) is OWNER
    for target in everybody(chain):
        if target not in chain.devices and not membership.was_removed(target):
            assert membership.role(target) is None
