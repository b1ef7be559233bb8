"""Folders at the relay: an account that pays for each, and the accounts that may read, append or manage.

The relay knows nothing of members and roles: they are in sealed links. Rights here keep strangers away from the sealed
bytes and from the quota; what an entry is worth is for those who can open it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, delete, func, insert, select, update

from p2psync.protocol.relay_api import MAX_ACCOUNTS, Event, EventKind
from relay.db.often import Often
from relay.errors import ApiError, not_found
from relay.mailbox import notifications
from relay.mailbox.hooks import Chunks, FolderLimits, Ledger
from relay.mailbox.tables import entries, events, folder_access, folders, grants, take_numbers

MAX_FOLDERS = 1024
"""Folders that one account may see; its plan says how many it may own."""
FEW = 64
"""So many are read in less than a millisecond."""


class Rights(IntEnum):
    """What an account may do in a folder; a greater value includes the lesser ones."""

    READ = 1
    APPEND = 2
    MANAGE = 3
    """Say who else may."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder as one account sees it."""

    folder_id: bytes
    owner: bytes
    rights: Rights
    last_seq: int
    pruned_seq: int
    pruned_object: int
    granted_object: int


@dataclass(frozen=True, slots=True)
class Access:
    """One row of a folder's list."""

    account_id: bytes
    rights: Rights


def create(c: Connection, limits: FolderLimits, folder_id: bytes, account_id: bytes, now: int) -> bool:
    """Make a folder that this account owns; False when it has it already.

    Raises:
        ApiError: 409 `conflict` when it is another's, 403 `plan-limit`.
    """
    number = take_numbers(c, 2)  # first: it keeps two creations from passing the limit side by side
    owner = c.execute(select(folders.c.owner_account).where(_is(folder_id))).scalar_one_or_none()
    if owner is not None:
        if owner != account_id:
            raise ApiError(409, "conflict", "a folder of this id exists already")
        return False
    limits.check_folder(c, account_id, len(owned(c, account_id)))
    c.execute(
        insert(folders).values(
            folder_id=folder_id,
            owner_account=account_id,
            created=now,
            last_seq=0,
            last_object=0,
            pruned_seq=0,
            pruned_object=0,
        )
    )
    c.execute(
        insert(folder_access).values(
            folder_id=folder_id, account_id=account_id, rights=Rights.MANAGE, granted_object=number
        )
    )
    notifications.emit(c, account_id, _access_event(folder_id, Rights.MANAGE), number + 1, now)
    return True


# Built once: this is asked in every request, and building takes longer than asking.
_FOLDER = select(folders).where(folders.c.folder_id == bindparam("folder"))
_LOCKED_FOLDER = _FOLDER.with_for_update()
_FREE_FOLDER = Often(_FOLDER)
_RIGHTS = Often(
    select(folder_access.c.rights, folder_access.c.granted_object).where(
        folder_access.c.folder_id == bindparam("folder"), folder_access.c.account_id == bindparam("account")
    )
)
_LISTED = select(folder_access).where(folder_access.c.account_id == bindparam("account"))
_FIRST_LISTED = Often(_LISTED.limit(FEW + 1))
_FOLDERS = (
    select(folders).where(folders.c.folder_id.in_(bindparam("listed", expanding=True))).order_by(folders.c.folder_id)
)


def require(c: Connection, folder_id: bytes, account_id: bytes, rights: Rights, *, lock: bool = False) -> Folder:
    """The folder, for an account that may do this. With `lock` nobody else changes it before the transaction ends.

    Raises:
        ApiError: 404 when there is no such folder or the account may not see it, 403 when it may not do this.
    """
    # The folder before its list: whoever waited for the lock then reads the list as it is now.
    if lock:
        row = c.execute(_LOCKED_FOLDER, {"folder": folder_id}).one_or_none()
    else:
        row = _FREE_FOLDER.one(c, folder=folder_id)
    access = _RIGHTS.one(c, folder=folder_id, account=account_id)
    if row is None or access is None:
        raise not_found()
    if access.rights < rights:
        raise ApiError(403, "forbidden", f"this account may {Rights(access.rights).name.lower()} in this folder only")
    return Folder(
        folder_id,
        row.owner_account,
        Rights(access.rights),
        row.last_seq,
        row.pruned_seq,
        row.pruned_object,
        access.granted_object,
    )


def visible(c: Connection, account_id: bytes) -> list[Folder]:
    """All folders an account may see, by id."""
    return _of_list(c, c.execute(_LISTED, {"account": account_id}).all())


def few_visible(c: Connection, account_id: bytes) -> list[Folder] | None:
    """`visible` where they are no more than `FEW`; otherwise None, as soon."""
    rows = _FIRST_LISTED.all(c, account=account_id)
    return _of_list(c, rows) if len(rows) <= FEW else None


def _of_list(c: Connection, rows: Sequence[Any]) -> list[Folder]:
    # Two statements: an account's list may be in another shard than the folders.
    listed = {row.folder_id: row for row in rows}
    if not listed:
        return []
    found = c.execute(_FOLDERS, {"listed": list(listed)})
    return [
        Folder(
            row.folder_id,
            row.owner_account,
            Rights(listed[row.folder_id].rights),
            row.last_seq,
            row.pruned_seq,
            row.pruned_object,
            listed[row.folder_id].granted_object,
        )
        for row in found
    ]


def owned(c: Connection, account_id: bytes) -> list[bytes]:
    """The folders an account pays for."""
    statement = select(folders.c.folder_id).where(folders.c.owner_account == account_id)
    return list(c.execute(statement.order_by(folders.c.folder_id)).scalars())


# ── access ──────────────────────────────────────────────────────────────────────────────────────────────────────────
def list_access(c: Connection, folder_id: bytes) -> list[Access]:
    """Who may do what, by account."""
    statement = select(folder_access).where(folder_access.c.folder_id == folder_id)
    rows = c.execute(statement.order_by(folder_access.c.account_id))
    return [Access(row.account_id, Rights(row.rights)) for row in rows]


def set_access(c: Connection, folder: Folder, account_id: bytes, rights: Rights, now: int) -> None:
    """Let another account in, or change what it may do. `folder` is locked and its caller may manage.

    Whether there is such an account is not said: ids are not a way to find out.

    Raises:
        ApiError: 403 for the owner's own rights, 409 `conflict` when a list is full.
    """
    if account_id == folder.owner:
        raise ApiError(403, "forbidden", "the owner's rights cannot be changed")
    present = c.execute(
        select(folder_access.c.rights).where(_access(folder.folder_id, account_id))
    ).scalar_one_or_none()
    if present == rights:
        return
    if present is None:
        _check_room(c, folder.folder_id, account_id)
        number = take_numbers(c, 2)
        values = {"folder_id": folder.folder_id, "account_id": account_id, "rights": rights, "granted_object": number}
        c.execute(insert(folder_access).values(**values))
    else:
        c.execute(update(folder_access).where(_access(folder.folder_id, account_id)).values(rights=rights))
        number = take_numbers(c, 2)
    notifications.emit(c, account_id, _access_event(folder.folder_id, rights), number + 1, now)


def remove_access(c: Connection, folder: Folder, account_id: bytes, now: int) -> None:
    """Shut an account out; that it was not in is no error. `folder` is locked.

    Raises:
        ApiError: 403 for the owner, who can only delete the folder.
    """
    if account_id == folder.owner:
        raise ApiError(403, "forbidden", "the owner cannot leave a folder, only delete it")
    if c.execute(delete(folder_access).where(_access(folder.folder_id, account_id))).rowcount:
        notifications.emit(c, account_id, _access_event(folder.folder_id, None), take_numbers(c, 1), now)


def remove(c: Connection, ledger: Ledger, chunks: Chunks, folder: Folder, now: int) -> list[bytes]:
    """Delete a folder with all that is stored of it; the accounts that could see it, to be told. `folder` is locked."""
    size = select(func.coalesce(func.sum(entries.c.size), 0)).where(entries.c.folder_id == folder.folder_id)
    sealed = select(func.coalesce(func.sum(func.length(grants.c.data)), 0)).where(
        grants.c.folder_id == folder.folder_id
    )
    ledger.refund(c, folder.owner, int(c.execute(size).scalar_one()) + int(c.execute(sealed).scalar_one()), now)
    chunks.drop_folder(c, folder.folder_id, now)
    readers = [access.account_id for access in list_access(c, folder.folder_id)]
    c.execute(delete(events).where(events.c.audience == folder.folder_id))
    c.execute(delete(folders).where(_is(folder.folder_id)))  # and with it, by its keys, everything else
    number = take_numbers(c, len(readers))
    for reader in readers:
        notifications.emit(c, reader, _access_event(folder.folder_id, None), number, now)
        number += 1
    return readers


def forget_account(c: Connection, ledger: Ledger, chunks: Chunks, account_id: bytes, now: int) -> None:
    """Delete an account's folders and what it may see of others; who could see them finds it in their news."""
    # Every lock before the first number is taken: who holds one of these may be waiting for a number.
    mine = [require(c, folder_id, account_id, Rights.MANAGE, lock=True) for folder_id in owned(c, account_id)]
    c.execute(delete(folder_access).where(folder_access.c.account_id == account_id))
    for folder in mine:
        remove(c, ledger, chunks, folder, now)
    c.execute(delete(events).where(events.c.audience == account_id))


def _check_room(c: Connection, folder_id: bytes, account_id: bytes) -> None:
    for column, value, limit, what in (
        (folder_access.c.folder_id, folder_id, MAX_ACCOUNTS, "accounts of a folder"),
        (folder_access.c.account_id, account_id, MAX_FOLDERS, "folders of an account"),
    ):
        count = c.execute(select(func.count()).select_from(folder_access).where(column == value)).scalar_one()
        if count >= limit:
            raise ApiError(409, "conflict", f"there may be {limit} {what}", limit=limit)


def _access_event(folder_id: bytes, rights: Rights | None) -> Event:
    return Event(EventKind.ACCESS, folder_id=folder_id, rights=rights.name.lower() if rights else None)


def _is(folder_id: bytes) -> ColumnElement[bool]:
    return folders.c.folder_id == folder_id


def _access(folder_id: bytes, account_id: bytes) -> ColumnElement[bool]:
    return (folder_access.c.folder_id == folder_id) & (folder_access.c.account_id == account_id)
