"""Folders over HTTP: who may do what in them, their sealed entries, snapshots and grants."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2psync.errors import InputError
from p2psync.membership.grants import MAX_GRANT
from p2psync.membership.sigchain import ACCOUNT_ID_SIZE
from p2psync.model.ids import parse_device_id
from p2psync.protocol.mailbox import MAX_ENTRY
from p2psync.protocol.relay_api import (
    MAX_APPEND_BYTES,
    MAX_GRANTS,
    MAX_OBJECTS,
    AccessEntry,
    AccessList,
    AccountRights,
    Cursor,
    FolderEntry,
    FolderList,
    FolderMark,
    FolderPage,
    GrantList,
    HeadList,
    NewEntries,
    NewGrants,
    NewRights,
    NewSnapshot,
    ObjectPage,
    Place,
    Places,
    StoredObject,
    StoredSnapshot,
)
from relay.api.route import KIB, Call, Rate, Route
from relay.errors import ApiError, not_found
from relay.mailbox.feed import StoredEntry
from relay.mailbox.folders import Folder, Rights
from relay.mailbox.service import Member

PageSize = Annotated[int, Meta(ge=1, le=MAX_OBJECTS)]


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def list_folders(call: Call) -> FolderList:
    """The account's folders, its own and those of others."""
    found = await call.services.mailbox.folders(_member(call))
    return FolderList([_folder(folder, call.caller.account_id) for folder in found])


async def get_folder(call: Call) -> FolderEntry:
    """One folder."""
    folder = await call.services.mailbox.folder(_member(call), call.folder_id())
    return _folder(folder, call.caller.account_id)


async def create_folder(call: Call) -> None:
    """The folder exists, and the calling account pays for it."""
    await call.services.mailbox.create_folder(_member(call), call.folder_id(), call.now)


async def delete_folder(call: Call) -> None:
    """The folder is gone with all that was stored of it."""
    await call.services.mailbox.delete_folder(_member(call), call.folder_id(), call.now)


async def list_access(call: Call) -> AccessList:
    """Who may do what."""
    found = await call.services.mailbox.access(_member(call), call.folder_id())
    return AccessList([AccessEntry(access.account_id, _rights(access.rights)) for access in found])


async def put_access(call: Call) -> None:
    """The account may do this from now on."""
    body: NewRights = call.body
    rights = Rights[body.rights.upper()]
    account_id = call.id("account_id", ACCOUNT_ID_SIZE)
    await call.services.mailbox.set_access(_member(call), call.folder_id(), account_id, rights, call.now)


async def delete_access(call: Call) -> None:
    """The account does not see the folder any more; every account may do this for itself."""
    account_id = call.id("account_id", ACCOUNT_ID_SIZE)
    await call.services.mailbox.remove_access(_member(call), call.folder_id(), account_id, call.now)


# ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class ObjectQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`device_id` is the calling device's own."""

    device_id: Annotated[str, Meta(min_length=1, max_length=80)]
    local_object_id: Cursor = 0
    limit: PageSize = MAX_OBJECTS


class FolderQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last number that is known already."""

    after: Cursor = 0
    limit: PageSize = MAX_OBJECTS


async def append(call: Call) -> Places:
    """The entries are stored, all of them."""
    body: NewEntries = call.body
    if sum(map(len, body.entries)) > MAX_APPEND_BYTES:
        raise ApiError(413, "too-large", f"at most {MAX_APPEND_BYTES} bytes of entries at once")
    placed = await call.services.mailbox.append(_member(call), body.entries, call.now)
    return Places([Place(place.seq, place.object_id) for place in placed])


async def read_all(call: Call) -> ObjectPage:
    """What is new in everything the calling device may see."""
    query: ObjectQuery = call.query
    try:
        device_id = parse_device_id(query.device_id)
    except InputError as error:
        raise ApiError(400, "bad-request", str(error)) from None
    if device_id != call.caller.device_id:
        raise ApiError(403, "forbidden", "a device reads for itself")
    page = await call.services.mailbox.read_all(_member(call), query.local_object_id, query.limit)
    marks = [FolderMark(mark.folder_id, mark.before_seq, mark.pruned_seq) for mark in page.marks]
    return ObjectPage([_object(entry) for entry in page.entries], marks, page.cursor, page.more)


async def read_folder(call: Call) -> FolderPage:
    """What is new in one folder."""
    query: FolderQuery = call.query
    page = await call.services.mailbox.read_folder(_member(call), call.folder_id(), query.after, query.limit)
    return FolderPage([_object(entry) for entry in page.entries], page.last_seq, page.pruned_seq)


async def read_one(call: Call) -> StoredObject:
    """One entry by its number."""
    text = call.path["seq"]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise not_found()
    return _object(await call.services.mailbox.read_one(_member(call), call.folder_id(), int(text)))


async def read_heads(call: Call) -> HeadList:
    """What the relay says of a folder's chains."""
    heads = await call.services.mailbox.heads(_member(call), call.folder_id())
    return HeadList(heads.headers, heads.statements)


# ── snapshots and grants ────────────────────────────────────────────────────────────────────────────────────────────
async def post_snapshot(call: Call) -> Place:
    """The snapshot is stored; what it covers is forgotten some time later."""
    body: NewSnapshot = call.body
    placed = await call.services.mailbox.post_snapshot(
        _member(call), call.folder_id(), body.entry, covers=body.covers, ref_id=body.ref_id, now=call.now
    )
    return Place(placed.seq, placed.object_id)


async def get_snapshot(call: Call) -> StoredSnapshot:
    """Where a device begins that has nothing."""
    found = await call.services.mailbox.snapshot(_member(call), call.folder_id())
    return StoredSnapshot(_object(found.entry), found.covers, found.ref_id)


async def put_grants(call: Call) -> None:
    """Their devices are told."""
    body: NewGrants = call.body
    await call.services.mailbox.give(_member(call), call.folder_id(), body.grants, call.now)


async def get_grants(call: Call) -> GrantList:
    """Keys for the calling device."""
    return GrantList(await call.services.mailbox.granted(_member(call), call.folder_id()))


def _member(call: Call) -> Member:
    return Member(call.caller.account_id, call.caller.device_id, call.caller.signing_key)


def _folder(folder: Folder, account_id: bytes) -> FolderEntry:
    owned = folder.owner == account_id
    return FolderEntry(folder.folder_id, owned, _rights(folder.rights), folder.last_seq, folder.pruned_seq)


def _rights(rights: Rights) -> AccountRights:
    match rights:
        case Rights.READ:
            return "read"
        case Rights.APPEND:
            return "append"
        case Rights.MANAGE:
            return "manage"


def _object(entry: StoredEntry) -> StoredObject:
    return StoredObject(entry.folder_id, entry.seq, entry.object_id, entry.data)


_FOLDER: Final = "/api/v1/folders/{folder_id}"
_IN_JSON: Final = 4 / 3
"""Bytes in JSON are base64."""
_APPEND_LIMIT: Final = int(MAX_APPEND_BYTES * _IN_JSON) + 64 * KIB

ROUTES: Final = (
    Route("GET", "/api/v1/folders", list_folders, "Folders of the account", answer=FolderList),
    Route("GET", _FOLDER, get_folder, "One folder", answer=FolderEntry, problems=("not-found",)),
    Route("PUT", _FOLDER, create_folder, "Make a folder that this account pays for",
          problems=("not-found", "conflict", "plan-limit")),
    Route("DELETE", _FOLDER, delete_folder, "Delete a folder and all that is stored of it",
          problems=("not-found", "forbidden")),
    Route("GET", f"{_FOLDER}/access", list_access, "Accounts of a folder", answer=AccessList,
          problems=("not-found", "forbidden")),
    Route("PUT", f"{_FOLDER}/access/{{account_id}}", put_access, "Let an account in", body=NewRights,
          problems=("not-found", "forbidden", "conflict")),
    Route("DELETE", f"{_FOLDER}/access/{{account_id}}", delete_access, "Shut an account out, or leave",
          problems=("not-found", "forbidden")),
    Route("POST", "/api/v1/objects", append, "Append entries to a folder", body=NewEntries, answer=Places,
          limit=_APPEND_LIMIT, rate=Rate.BULK,
          problems=("bad-request", "not-found", "forbidden", "conflict", "over-quota")),
    Route("GET", "/api/v1/objects", read_all, "Entries of all folders after a cursor", query=ObjectQuery,
          answer=ObjectPage, rate=Rate.BULK, problems=("bad-request", "forbidden", "conflict")),
    Route("GET", f"{_FOLDER}/objects", read_folder, "Entries of a folder after a cursor", query=FolderQuery,
          answer=FolderPage, rate=Rate.BULK, problems=("bad-request", "not-found", "conflict")),
    Route("GET", f"{_FOLDER}/objects/{{seq}}", read_one, "One entry", answer=StoredObject, problems=("not-found",)),
    Route("GET", f"{_FOLDER}/heads", read_heads, "The newest entry of every chain", answer=HeadList,
          problems=("not-found",)),
    Route("POST", f"{_FOLDER}/snapshot", post_snapshot, "Post a snapshot", body=NewSnapshot, answer=Place,
          limit=int(MAX_ENTRY * _IN_JSON) + 4 * KIB, rate=Rate.BULK,
          problems=("bad-request", "not-found", "forbidden", "conflict", "over-quota")),
    Route("GET", f"{_FOLDER}/snapshot", get_snapshot, "The newest snapshot", answer=StoredSnapshot,
          problems=("not-found",)),
    Route("POST", f"{_FOLDER}/grants", put_grants, "Give keys to devices", body=NewGrants,
          limit=int(MAX_GRANT * MAX_GRANTS * _IN_JSON) + 16 * KIB,
          problems=("bad-request", "not-found", "forbidden", "over-quota")),
    Route("GET", f"{_FOLDER}/grants", get_grants, "Keys for this device", answer=GrantList,
          problems=("not-found",)),
)  # fmt: skip
