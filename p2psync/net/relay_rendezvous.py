"""A relay's rendezvous, as calls: who is present, and asking another device to connect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2psync.model.ids import FolderId, format_folder_id
from p2psync.net.relay_call import RelayCaller, Request
from p2psync.protocol import rendezvous_api as api

_PRESENCE: Final = "/api/v1/presence"


class RendezvousCalls:
    """What is answered is the relay's word: the handshake says who a device is. Every call raises as
    `RelayCaller.call`.
    """

    def __init__(self, caller: RelayCaller) -> None:
        self._caller = caller

    async def appear(self, addresses: Sequence[str], port: int) -> api.OwnPresence:
        """Say that this device is here; again in half of `ttl_s`."""
        return await self._caller.fetch(
            Request("PUT", _PRESENCE), api.OwnPresence, api.NewPresence(list(addresses), port)
        )

    async def leave(self) -> None:
        """Say that this device is going."""
        await self._caller.call(Request("DELETE", _PRESENCE))

    async def peers(self, folder: FolderId | None = None) -> list[api.PeerEntry]:
        """Devices of the account and of its folders, or of one folder, that are here now."""
        query = {} if folder is None else {"folder": format_folder_id(folder)}
        return (await self._caller.fetch(Request("GET", "/api/v1/peers", query), api.PeerList)).peers

    async def call(self, device: bytes, purpose: api.CallPurpose, addresses: Sequence[str] = ()) -> api.Arrangement:
        """Ask a device to connect. RelayRefusal `not-found` when it is not there, `forbidden`, `rate-limited`."""
        body = api.NewCall(device, purpose, list(addresses))
        return await self._caller.fetch(Request("POST", "/api/v1/calls", repeatable=False), api.Arrangement, body)
