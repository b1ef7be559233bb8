"""Grants: epoch keys, each sealed to one device, kept until that device fetches them or newer ones come.

The relay sees who gives to whom and nothing else. Grants stand under their signer, so that a member that gives a wrong
one cannot put it in the place of a right one.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, Connection, delete, insert, select

from p2psync.errors import AuthenticationError, InputError
from p2psync.membership.grants import Grant, decode_grant
from p2psync.protocol.relay_api import MAX_GRANTS_ANSWERED, Event, EventKind
from relay.errors import ApiError
from relay.mailbox import notifications
from relay.mailbox.folders import Folder
from relay.mailbox.hooks import Ledger
from relay.mailbox.tables import grants, take_numbers

MAX_PER_PAIR = 16
"""Grants of one giver to one device; the oldest goes first, as newer keys open the way to older ones."""


def read_grants(encoded: Sequence[bytes], folder_id: bytes, signer: bytes) -> list[Grant]:
    """Decode what a device wants to give: grants of this folder that it has signed itself.

    Raises:
        ApiError: 400, or 403 when another device signed it.
    """
    try:
        decoded = [decode_grant(data) for data in encoded]
    except (InputError, AuthenticationError) as error:
        raise ApiError(400, "bad-request", str(error)) from None
    for grant in decoded:
        if grant.folder != folder_id:
            raise ApiError(400, "bad-request", "a grant is of another folder")
        if grant.signer != signer:
            raise ApiError(403, "forbidden", "a device gives what it has signed itself")
    return decoded


def put(c: Connection, ledger: Ledger, folder: Folder, given: Sequence[Grant], now: int) -> None:
    """Keep grants of `read_grants` and tell their devices. `folder` is locked and its caller may append.

    Raises:
        ApiError: 507 `over-quota`.
    """
    unique = {(grant.recipient, grant.key_id): grant for grant in given}
    balance = 0
    for grant in unique.values():
        for row in c.execute(select(grants.c.key_id, grants.c.data).where(_same(grant))).all():
            balance -= len(row.data)
        c.execute(delete(grants).where(_same(grant)))
        balance += len(grant.encode()) - _make_room(c, grant)
    if balance > 0:
        ledger.charge(c, folder.owner, balance, now)
    elif balance < 0:
        ledger.refund(c, folder.owner, -balance, now)
    number = take_numbers(c, len(unique))
    for grant in unique.values():
        c.execute(
            insert(grants).values(
                folder_id=folder.folder_id,
                recipient=grant.recipient,
                signer=grant.signer,
                key_id=grant.key_id,
                object_id=number,
                data=grant.encode(),
            )
        )
        news = Event(EventKind.GRANT, folder_id=folder.folder_id, device_id=grant.recipient)
        notifications.emit(c, folder.folder_id, news, number, now, only=grant.recipient)
        number += 1


def granted(c: Connection, folder: Folder, recipient: bytes) -> list[bytes]:
    """The grants for one device, newest first, up to `MAX_GRANTS_ANSWERED`."""
    statement = select(grants.c.data).where(grants.c.folder_id == folder.folder_id, grants.c.recipient == recipient)
    return list(c.execute(statement.order_by(grants.c.object_id.desc()).limit(MAX_GRANTS_ANSWERED)).scalars())


def _make_room(c: Connection, grant: Grant) -> int:
    """Forget the oldest of a giver's grants to a device, so that one more fits; bytes freed."""
    rows = c.execute(
        select(grants.c.key_id, grants.c.data).where(_pair(grant)).order_by(grants.c.object_id.desc())
    ).all()
    surplus = rows[MAX_PER_PAIR - 1 :]
    for row in surplus:
        c.execute(delete(grants).where(_pair(grant), grants.c.key_id == row.key_id))
    return sum(len(row.data) for row in surplus)


def _pair(grant: Grant) -> ColumnElement[bool]:
    return (
        (grants.c.folder_id == grant.folder)
        & (grants.c.recipient == grant.recipient)
        & (grants.c.signer == grant.signer)
    )


def _same(grant: Grant) -> ColumnElement[bool]:
    return _pair(grant) & (grants.c.key_id == grant.key_id)
