"""What keeps a folder's members and an account's devices together: the chain of an account against a folder's links.

Values in, actions out. The result depends on what is signed alone, so every device of an account comes to the same
changes, and one that another device has made is due nowhere any more. Concurrent ones merge: the membership joins
equal invitations, and equal removals.

A person's word stands above the account's, and the links alone tell it. Whoever was removed from a folder at any time,
by whomever, is never let in again from here, only by hand (`folder share`). Whoever was let in again by hand after a
removal is not removed a second time, though the account has put it out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from p2psync.membership.fold import Membership
from p2psync.membership.links import Add, Role
from p2psync.membership.sigchain import AccountChain, DeviceKind, Remove
from p2psync.model.ids import DeviceId


@dataclass(frozen=True, slots=True)
class Admit:
    """A device of the account becomes a member. `card` is its encoded card: keys can be sealed to it."""

    device: DeviceId
    role: Role
    card: bytes


@dataclass(frozen=True, slots=True)
class Promote:
    """The recovery key becomes an owner: somebody who could not make it one has let it in."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class Expel:
    """A device that was put out of the account is a member no more."""

    device: DeviceId


Change = Admit | Promote | Expel


def changes_due(membership: Membership, chain: AccountChain, device: DeviceId, *, admits: bool) -> list[Change]:
    """What `device` has to change in a folder; nothing where it is not of the account, or not in a position to.

    `chain` is the account's, verified. `admits` says that its devices belong into this folder; who was put out of the
    account loses every folder that `device` owns, also those where it was let in by hand before.
    """
    own = membership.role(device) or Role.VAULT
    if device not in chain.devices or own < Role.EDITOR:
        return []
    due: list[Change] = []
    if admits:
        for entry in chain.devices.values():
            target = entry.device_id
            present = membership.role(target)
            is_key = entry.kind is DeviceKind.RECOVERY
            if present is None:
                if membership.can(device, Add(target, own)) and not membership.was_removed(target):
                    due.append(Admit(target, own, entry.card.encode()))
            elif is_key and present < own is Role.OWNER and not membership.was_revoked(target):
                due.append(Promote(target))
    if own is Role.OWNER:
        gone = (target for target in everybody(chain) if target not in chain.devices)
        due += [Expel(d) for d in gone if membership.role(d) is not None and not membership.was_removed(d)]
    return due


def turn(membership: Membership, chain: AccountChain, device: DeviceId) -> int:
    """Place of `device` among those of the account that could make the changes: owners first, then as they joined it.

    Changes made twice do no harm, and cost links; so each device leaves them for a while to those before it.
    """
    able = [d for d, e in chain.devices.items() if e.kind is DeviceKind.DEVICE and membership.may_edit(d)]
    order = sorted(able, key=lambda d: membership.role(d) is not Role.OWNER)
    return order.index(device) if device in able else len(order)


def voucher(
    membership: Membership, chain: AccountChain, device: DeviceId, known: Collection[DeviceId] = ()
) -> DeviceId | None:
    """Who stands for it that a folder found at a relay is what it seems: somebody of the account, or `known`, who has
    let `device` in. None for a folder that only strangers have, such as one that the relay has made up.
    """
    trusted = {*everybody(chain), *known}
    return next((inviter for inviter in membership.inviters(device) if inviter in trusted), None)


def everybody(chain: AccountChain) -> list[DeviceId]:
    """Every device that is or was in the account, in the order they came first."""
    return list(dict.fromkeys(link.target for link in chain.links if not isinstance(link.action, Remove)))
