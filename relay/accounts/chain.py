"""The relay's copy of each account's chain, and the table of devices that follows from it.

The relay takes a link that stands at the end of the chain and is signed by a device in it. It does so to keep rubbish
out; devices believe nothing of it and verify every link themselves.
"""

from __future__ import annotations

import base64

from sqlalchemy import Connection, delete, func, insert, select

from p2psync.errors import AuthenticationError, InputError
from p2psync.membership.sigchain import (
    MAX_CHAIN,
    MAX_DEVICES,
    Add,
    ChainLink,
    DeviceKind,
    Genesis,
    Remove,
    decode_chain_link,
)
from p2psync.protocol.relay_api import CHAIN_PAGE
from relay.accounts.plans import Plans
from relay.accounts.tables import accounts, chain_links, devices
from relay.errors import ApiError, not_found


def read_link(data: bytes) -> ChainLink:
    """A well-formed link with a valid signature. ApiError 400 when it is none."""
    try:
        link = decode_chain_link(data)
        link.verify()
    except (InputError, AuthenticationError) as error:
        raise ApiError(400, "bad-request", str(error)) from None
    return link


def begin_chain(c: Connection, genesis: ChainLink, now: int) -> None:
    """Store the first link of an account whose row exists."""
    c.execute(insert(chain_links).values(account_id=genesis.account_id, seq=0, link=genesis.encoded))
    _add_device(c, genesis, DeviceKind.DEVICE, now)


def read_chain(c: Connection, account_id: bytes, start: int) -> list[bytes]:
    """At most `CHAIN_PAGE` links, from the place `start` on."""
    return list(
        c.execute(
            select(chain_links.c.link)
            .where(chain_links.c.account_id == account_id, chain_links.c.seq >= start)
            .order_by(chain_links.c.seq)
            .limit(CHAIN_PAGE)
        ).scalars()
    )


def append_link(c: Connection, link: ChainLink, plans: Plans, now: int) -> bytes | None:
    """Store the next link of a chain. The device that is put out by it, whose session is over; None when none is.

    Raises:
        ApiError: 409 `conflict` with the `head` when another link came first, 400 when the link has no effect or its
            signer is not in the account, 403 `plan-limit`, 404 when the account was deleted just now.
    """
    held = select(accounts.c.account_id).where(accounts.c.account_id == link.account_id).with_for_update()
    if c.execute(held).one_or_none() is None:
        raise not_found()
    head = decode_chain_link(
        c.execute(
            select(chain_links.c.link)
            .where(chain_links.c.account_id == link.account_id)
            .order_by(chain_links.c.seq.desc())
            .limit(1)
        ).scalar_one()
    )
    if link.hash == head.hash:
        return None
    if (link.seq, link.prev) != (head.seq + 1, head.hash):
        raise ApiError(
            409,
            "conflict",
            "another link came first; read the chain and sign again",
            head={"seq": head.seq, "hash": base64.b64encode(head.hash).decode()},
        )
    present = set(c.execute(select(devices.c.device_id).where(devices.c.account_id == link.account_id)).scalars())
    if link.author not in present or link.seq >= MAX_CHAIN:
        raise ApiError(400, "bad-request", "the link is not signed by a device of the account, or the chain is full")
    c.execute(insert(chain_links).values(account_id=link.account_id, seq=link.seq, link=link.encoded))
    match link.action:
        case Add(kind=kind) if link.target not in present and len(present) < MAX_DEVICES:
            if kind is DeviceKind.DEVICE:
                plans.check_device(c, link.account_id)
            _add_device(c, link, kind, now)
            return None
        case Remove() if link.target in present and len(present) > 1:
            at = (devices.c.account_id == link.account_id) & (devices.c.device_id == link.target)
            c.execute(delete(devices).where(at))  # its session goes with it
            return link.target
        case Genesis() | Add() | Remove():
            raise ApiError(400, "bad-request", "the link has no effect on the account")


def count_devices(c: Connection, account_id: bytes) -> int:
    """Devices that the plan counts."""
    counted = (devices.c.account_id == account_id) & (devices.c.kind == DeviceKind.DEVICE)
    return c.execute(select(func.count()).select_from(devices).where(counted)).scalar_one()


def _add_device(c: Connection, link: ChainLink, kind: DeviceKind, now: int) -> None:
    row = {"account_id": link.account_id, "device_id": link.target, "kind": int(kind), "added": now}
    c.execute(insert(devices).values(**row, seen=0, logged_out=False))
