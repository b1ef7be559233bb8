"""Who may know of whom: devices of one account, and of accounts that have a folder in common; nobody else."""

from __future__ import annotations

from sqlalchemy import Connection, select

from relay.mailbox import folders
from relay.mailbox.folders import Rights
from relay.mailbox.tables import folder_access

MAX_NEIGHBOURS = 4096
"""Accounts that are looked at for one question."""

_ours = folder_access.alias("ours")
_theirs = folder_access.alias("theirs")
_COMMON = _ours.c.folder_id == _theirs.c.folder_id


def neighbours(c: Connection, account_id: bytes) -> list[bytes]:
    """The account itself, then those with which it has a folder in common, at most `MAX_NEIGHBOURS`."""
    statement = (
        select(_theirs.c.account_id)
        .join(_ours, _COMMON)
        .where(_ours.c.account_id == account_id, _theirs.c.account_id != account_id)
        .distinct()
        .order_by(_theirs.c.account_id)
        .limit(MAX_NEIGHBOURS)
    )
    return [account_id, *c.execute(statement).scalars()]


def neighbours_in(c: Connection, account_id: bytes, folder_id: bytes) -> list[bytes]:
    """The account itself, then the others of one folder. ApiError 404 when it may not see that folder."""
    folders.require(c, folder_id, account_id, Rights.READ)
    others = (access.account_id for access in folders.list_access(c, folder_id))
    return [account_id, *(other for other in others if other != account_id)]


def are_neighbours(c: Connection, one: bytes, other: bytes) -> bool:
    """Whether two accounts are one, or have a folder in common."""
    statement = (
        select(_ours.c.folder_id)
        .join(_theirs, _COMMON)
        .where(_ours.c.account_id == one, _theirs.c.account_id == other)
        .limit(1)
    )
    return c.execute(statement).first() is not None or one == other
