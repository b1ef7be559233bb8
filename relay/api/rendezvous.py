"""Rendezvous over HTTP: who is present, and calls from one device to another."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2psync.errors import InputError
from p2psync.model.ids import parse_folder_id
from p2psync.protocol.candidates import format_candidate, read_candidate
from p2psync.protocol.rendezvous_api import Arrangement, NewCall, NewPresence, OwnPresence, PeerEntry, PeerList
from relay.api.route import Call, Route
from relay.errors import ApiError
from relay.rendezvous.presence import TTL_S


class PeerQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`folder`: only devices of accounts that share this one."""

    folder: Annotated[str, Meta(min_length=26, max_length=26)] | None = None


async def put_presence(call: Call) -> OwnPresence:
    """The device is present until `ttl_s` is over; renew it in half that time."""
    body: NewPresence = call.body
    addresses = _candidates(body.addresses)
    host, port = call.scope.get("client") or ("", 0)
    observed, seen = "", _seen(host)
    if seen is not None:
        observed = f"{seen[1]}:{port}"
        if body.port:
            with suppress(ValueError):  # no other device can be there
                addresses.append(format_candidate(seen[0], body.port))
    call.services.rendezvous.appear(
        call.caller.account_id, call.caller.device_id, list(dict.fromkeys(addresses)), call.now
    )
    return OwnPresence(observed, TTL_S)


async def delete_presence(call: Call) -> None:
    """The device is going away."""
    call.services.rendezvous.leave(call.caller.account_id, call.caller.device_id)


async def get_peers(call: Call) -> PeerList:
    """Devices that are present and share the account, or a folder, with the calling device."""
    query: PeerQuery = call.query
    folder_id = None
    if query.folder is not None:
        try:
            folder_id = parse_folder_id(query.folder)
        except InputError as error:
            raise ApiError(400, "bad-request", str(error)) from None
    caller = call.caller
    found = await call.services.rendezvous.peers(caller.account_id, caller.device_id, folder_id, call.now)
    return PeerList([PeerEntry(peer.device_id, list(peer.addresses), peer.expires) for peer in found])


async def post_call(call: Call) -> Arrangement:
    """The other device is told; both then do as arranged."""
    body: NewCall = call.body
    return await call.services.rendezvous.call(
        call.caller.account_id,
        call.caller.device_id,
        called=body.device_id,
        purpose=body.purpose,
        addresses=_candidates(body.addresses),
        now=call.now,
    )


@lru_cache(maxsize=4096)
def _seen(host: str) -> tuple[IPv4Address | IPv6Address, str] | None:
    """A client's address, and its text before a port; None when there is none."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    return address, str(address) if address.version == 4 else f"[{address}]"


def _candidates(texts: Sequence[str]) -> list[str]:
    """Candidate addresses in their one form. ApiError 400 for anything else."""
    try:
        return [read_candidate(text) for text in texts]
    except InputError as error:
        raise ApiError(400, "bad-request", str(error)) from None


ROUTES: Final = (
    Route("PUT", "/api/v1/presence", put_presence, "Say where the calling device may be reached",
          body=NewPresence, answer=OwnPresence, problems=("bad-request", "rate-limited", "unavailable")),
    Route("DELETE", "/api/v1/presence", delete_presence, "Say that the calling device is going away"),
    Route("GET", "/api/v1/peers", get_peers, "Devices that are present", query=PeerQuery, answer=PeerList,
          problems=("bad-request", "not-found")),
    Route("POST", "/api/v1/calls", post_call, "Ask another device to connect", body=NewCall, answer=Arrangement,
          problems=("bad-request", "forbidden", "not-found", "rate-limited", "unavailable")),
)  # fmt: skip
