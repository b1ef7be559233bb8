"""A relay's folders, entries, snapshots and grants, as calls."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from p2psync.membership.grants import MAX_GRANT
from p2psync.model.ids import DeviceId, FolderId, format_device_id, format_folder_id
from p2psync.net.relay_call import RelayCaller, Request
from p2psync.protocol import relay_api as api
from p2psync.protocol.mailbox import MAX_ENTRY

S = TypeVar("S", bound=msgspec.Struct)

_PAGE: Final = api.MAX_OBJECT_BYTES + MAX_ENTRY + api.MAX_OBJECTS * 256 + (1 << 20)
"""Bytes of the longest page: entries up to the bound and one more, with their numbers, and a mark for each folder."""
_HEADS: Final = 8 << 20


class MailboxCalls:
    """Folders of the account and what is in them. Every call raises as `RelayCaller.call`."""

    def __init__(self, caller: RelayCaller, device: DeviceId) -> None:
        self._caller = caller
        self._device = device

    # ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def folders(self) -> list[api.FolderEntry]:
        """What the account may see, its own and those of others."""
        return (await self._caller.fetch(Request("GET", "/api/v1/folders"), api.FolderList)).folders

    async def folder(self, folder: FolderId) -> api.FolderEntry:
        """One folder. RelayRefusal `not-found`."""
        return await self._caller.fetch(Request("GET", _path(folder)), api.FolderEntry)

    async def create_folder(self, folder: FolderId) -> None:
        """Make a folder this account pays for; harmless when it exists. RelayRefusal `conflict`, `plan-limit`."""
        await self._caller.call(Request("PUT", _path(folder)))

    async def delete_folder(self, folder: FolderId) -> None:
        """Delete a folder of this account and all that is stored of it."""
        await self._caller.call(Request("DELETE", _path(folder)))

    async def access(self, folder: FolderId) -> list[api.AccessEntry]:
        """The accounts of a folder."""
        return (await self._caller.fetch(Request("GET", f"{_path(folder)}/access"), api.AccessList)).accounts

    async def set_access(self, folder: FolderId, account_id: bytes, rights: api.AccountRights) -> None:
        """Let an account in, or change what it may do."""
        await self._caller.call(Request("PUT", _access(folder, account_id)), api.NewRights(rights))

    async def remove_access(self, folder: FolderId, account_id: bytes) -> None:
        """Shut an account out; or leave, with one's own."""
        await self._caller.call(Request("DELETE", _access(folder, account_id)))

    # ── entries ─────────────────────────────────────────────────────────────────────────────────────────────────────
    async def append(self, entries: Sequence[bytes]) -> list[api.Place]:
        """Append entries of one folder that this device has signed, all or none, at most `MAX_APPEND`.

        The same entries may be sent again. RelayRefusal `conflict` when the chain goes on elsewhere, `over-quota`.
        """
        request = Request("POST", "/api/v1/objects", bulk=True)
        return (await self._caller.fetch(request, api.Places, api.NewEntries(list(entries)))).places

    async def objects(self, after: int, limit: int = api.MAX_OBJECTS) -> api.ObjectPage:
        """Entries of everything this device may see, after the cursor `local_object_id` of the page before."""
        query = {"device_id": format_device_id(self._device), "local_object_id": after, "limit": limit}
        request = Request("GET", "/api/v1/objects", query, max_body=_PAGE, bulk=True)
        return await self._caller.fetch(request, api.ObjectPage)

    async def folder_objects(self, folder: FolderId, after: int, limit: int = api.MAX_OBJECTS) -> api.FolderPage:
        """Entries of one folder after the number `after`, without gaps."""
        query = {"after": after, "limit": limit}
        request = Request("GET", f"{_path(folder)}/objects", query, max_body=_PAGE, bulk=True)
        return await self._caller.fetch(request, api.FolderPage)

    async def object(self, folder: FolderId, seq: int) -> api.StoredObject:
        """One entry by its number. RelayRefusal `not-found`."""
        request = Request("GET", f"{_path(folder)}/objects/{seq}", max_body=_PAGE)
        return await self._caller.fetch(request, api.StoredObject)

    async def heads(self, folder: FolderId) -> api.HeadList:
        """The newest header of every chain, as the relay says."""
        return await self._caller.fetch(Request("GET", f"{_path(folder)}/heads", max_body=_HEADS), api.HeadList)

    # ── snapshots and grants ────────────────────────────────────────────────────────────────────────────────────────
    async def post_snapshot(self, folder: FolderId, entry: bytes, covers: int, ref_id: bytes) -> api.Place:
        """Post a snapshot of the entries up to `covers`, whose parts the reference `ref_id` keeps."""
        request = Request("POST", f"{_path(folder)}/snapshot")
        return await self._caller.fetch(request, api.Place, api.NewSnapshot(entry, covers, ref_id))

    async def snapshot(self, folder: FolderId) -> api.StoredSnapshot:
        """The newest snapshot. RelayRefusal `not-found`."""
        return await self._caller.fetch(Request("GET", f"{_path(folder)}/snapshot", max_body=_PAGE), api.StoredSnapshot)

    async def put_grants(self, folder: FolderId, grants: Sequence[bytes]) -> None:
        """Give keys to devices, at most `MAX_GRANTS` at once."""
        await self._caller.call(Request("POST", f"{_path(folder)}/grants"), api.NewGrants(list(grants)))

    async def grants(self, folder: FolderId) -> list[bytes]:
        """The grants for this device, newest first."""
        limit = api.MAX_GRANTS_ANSWERED * (MAX_GRANT + 8)
        return (
            await self._caller.fetch(Request("GET", f"{_path(folder)}/grants", max_body=limit), api.GrantList)
        ).grants


def _path(folder: FolderId) -> str:
    return f"/api/v1/folders/{format_folder_id(folder)}"


def _access(folder: FolderId, account_id: bytes) -> str:
    return f"{_path(folder)}/access/{encode_id(account_id)}"


def encode_id(data: bytes) -> str:
    """Base64url without padding, as in the relay's paths."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
