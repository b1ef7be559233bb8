"""Ports: HTTP to a relay."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """Where a relay is and how it is recognised. Its text is the URL that its operator hands out."""

    host: str
    """A name in lower case, or an address; IPv6 without brackets."""
    port: int
    fingerprint: bytes | None = None
    """SHA-256 of its certificate (DER). None: any certificate for that host by an authority this machine trusts."""

    @property
    def authority(self) -> str:
        """HOST:PORT as in a Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """`https://HOST:PORT`: which relay it is, whatever its certificate."""
        return f"https://{self.authority}"

    @property
    def identity(self) -> str:
        """What TLS proves of it, and what signatures and passwords are bound to: the certificate when that is pinned,
        at whatever address; else the host name.
        """
        return self.host if self.fingerprint is None else certificate_identity(self.fingerprint)

    def __str__(self) -> str:
        if self.fingerprint is None:
            return f"{self.origin}/"
        return f"{self.origin}/#{certificate_identity(self.fingerprint)}"


def certificate_identity(fingerprint: bytes) -> str:
    """How a certificate with this SHA-256 (of its DER) is named in URLs and signatures."""
    return f"sha256={base64.urlsafe_b64encode(fingerprint).rstrip(b'=').decode()}"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole answer. Header names are in lower case; of a repeated one the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray


class HttpStream(Protocol):
    """An answer that goes on, in lines."""

    @property
    def status(self) -> int:
        """Of the answer's head."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """As `HttpResponse.headers`."""
        ...

    async def line(self) -> bytes | None:
        """The next line without its end; None when the answer has ended. Raises as `HttpClient.request`."""
        ...


class HttpClient(Protocol):
    """Sends requests to one relay, whose certificate is checked before any byte of a request is sent."""

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes | memoryview = b"",
        max_body: int,
        timeout_s: float,
        bulk: bool = False,
    ) -> HttpResponse:
        """One request. `target` is path and query as on the wire; `body` must not change meanwhile.

        `bulk` says that body or answer is large: such a request has a connection to itself.

        Raises:
            Unreachable: nothing of the request was sent.
            ConnectionLost: no whole answer came in time; the relay may have done what it was asked.
            AuthenticationError: it is not that relay. Nothing was sent.
            ProtocolError: the answer is no HTTP, or its body has more than `max_body` bytes.
        """
        ...

    def stream(
        self, target: str, *, headers: Mapping[str, str], max_line: int, idle_s: float
    ) -> AbstractAsyncContextManager[HttpStream]:
        """GET an answer that goes on; it counts as lost when nothing arrives for `idle_s`. Raises as `request`."""
        ...

    async def aclose(self) -> None:
        """Close its connections; harmless when they are closed already."""
        ...
