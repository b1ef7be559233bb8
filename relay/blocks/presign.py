"""Links that let whoever has them do one thing with one chunk for a short time, without a token or a key.

A link says all that it allows and ends with a MAC under a key of this relay; nothing of it is stored. It stands in the
query of a URL, which no log keeps.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Annotated, Final, Literal

import msgspec

from p2psync.crypto.kdf import derive
from p2psync.model.hashing import keyed
from relay.errors import unauthorized

MAX_LINK: Final = 512
_MAC_SIZE = 32
_LABEL = b"p2psync relay presigned link"

Operation = Literal["get", "put"]
_Bytes16 = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Link(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a link allows."""

    operation: Operation
    account_id: _Bytes16
    """On whose behalf: what this account may no longer do, its links cannot do either."""
    device_id: _Bytes32
    folder_id: _Bytes16
    chunk_id: _Bytes32
    digest: _Bytes32
    """SHA-256 of the sealed bytes."""
    size: int
    expires: int
    """Seconds since the epoch."""


class Presigner:
    """Makes and reads links; `secret` is the relay's own."""

    def __init__(self, secret: bytes) -> None:
        self._key = derive(secret, b"p2psync-relay/1 presigned links")

    def make(self, link: Link) -> str:
        """The text of a link, for a query."""
        body = msgspec.msgpack.encode(link)
        return base64.urlsafe_b64encode(body + self._mac(body)).rstrip(b"=").decode()

    def read(self, text: str, operation: Operation, now: int) -> Link:
        """What a link allows. ApiError 401 unless this relay made it, for this operation, and its time is not over."""
        try:
            data = base64.b64decode(text[:MAX_LINK] + "=" * (-len(text) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise unauthorized() from None
        body, mac = data[:-_MAC_SIZE], data[-_MAC_SIZE:]
        if not hmac.compare_digest(mac, self._mac(body)):
            raise unauthorized()
        link = msgspec.msgpack.decode(body, type=Link)
        if link.operation != operation or link.expires <= now:
            raise unauthorized()
        return link

    def _mac(self, body: bytes) -> bytes:
        return keyed(self._key, _LABEL, body)
