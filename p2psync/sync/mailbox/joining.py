"""Letting a device into a folder through its mailbox alone: what the recovery key does while somebody holds it."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from functools import partial

from p2psync.crypto.epochs import EPOCH_KEY_SIZE
from p2psync.crypto.hpke import EPHEMERAL_SIZE
from p2psync.crypto.identity import DeviceCard, DeviceKeys
from p2psync.crypto.seal import SALT_SIZE, seal_body
from p2psync.membership.fold import Membership, make_link
from p2psync.membership.grants import make_epoch, make_grant
from p2psync.membership.keeping import voucher
from p2psync.membership.links import Add
from p2psync.membership.sigchain import AccountChain
from p2psync.model.ids import FolderId
from p2psync.ports import World
from p2psync.protocol import codec
from p2psync.protocol import messages as m
from p2psync.protocol.mailbox import CHAIN_SIZE, ChainKey, EntryKind, next_slot
from p2psync.sync.mailbox.finding import find_folder
from p2psync.sync.mailbox.keys import keys_to_grant, sealing_key
from p2psync.sync.mailbox.service import MAX_GIVEN, MailboxService


class Outcome(Enum):
    """What came of it."""

    MEMBER = "member"
    """The device is a member and has been granted the keys."""
    ABSENT = "absent"
    """No grant for this key leads to the folder, it is no member that may invite, or only strangers have let it in."""
    REMOVED = "removed"
    """Somebody has removed the device: it is let in again by hand only."""


async def let_in(
    service: MailboxService,
    host: DeviceKeys,
    folder: FolderId,
    card: DeviceCard,
    name: str,
    *,
    chain: AccountChain,
    world: World,
) -> Outcome:
    """Make the device of `card` a member of a folder that `host`, a member itself, finds in its mailbox.

    Grants go first, as ever, then the link that gives them their worth. What is interrupted is completed by another
    call: a member is only granted keys once more. Errors of the service come through.
    """
    found = await find_folder(service, host, folder, world.offload)
    if found is None or voucher(found.membership, chain, host.device_id) is None:
        return Outcome.ABSENT
    membership, ring, links = found.membership, found.ring, list[bytes]()
    role = membership.role(host.device_id)
    if not membership.may_edit(host.device_id) or role is None:
        return Outcome.ABSENT
    readers: Collection[DeviceCard] = [card]
    if membership.role(card.device_id) is None:
        if membership.was_removed(card.device_id):
            return Outcome.REMOVED
        add = Add(card.device_id, role, name, 0, card.encode())
        links.append(make_link(host, membership, add))
        membership = membership.extend(links)
    key = sealing_key(membership, ring)
    if key is None:
        # Nothing is sealed under a stale epoch, nor without its key.
        link, key = make_epoch(host, membership, ring, world.rng.token(EPOCH_KEY_SIZE))
        links.append(link)
        membership = membership.extend([link])
        ring = ring.climb(membership.rungs, key)
        readers = _readers(membership, card)
    grants = [
        make_grant(host, membership, old, reader, world.rng.token(EPHEMERAL_SIZE)).encode()
        for old in keys_to_grant(membership, ring)
        for reader in readers
    ]
    for start in range(0, len(grants), MAX_GIVEN):
        await service.give(grants[start : start + MAX_GIVEN])
    if links:
        own = ChainKey(host.card.signing_key, world.rng.token(CHAIN_SIZE))
        slot = next_slot(folder, own, None, EntryKind.LINKS, key.id)
        body = codec.encode(m.Links(folder, links))
        salt = world.rng.token(SALT_SIZE)
        sealed = await world.offload.run(partial(seal_body, key, slot.context, body, salt))
        await service.append([slot.sign(host, sealed).encoded])
    return Outcome.MEMBER


def _readers(membership: Membership, newcomer: DeviceCard) -> list[DeviceCard]:
    """Whoever reads and has a card in the links: a new epoch's key is for all of them."""
    known = [member.card for d, member in membership.members.items() if membership.may_read(d)]
    return [*(card for card in known if card is not None and card.device_id != newcomer.device_id), newcomer]
