"""The table of routes: what a handler is given, and everything the router, the limits and the API document need.

A body or an answer is a msgspec Struct, in JSON or MessagePack as Content-Type and Accept say; bytes in JSON are base64
(RFC 4648, section 4). In paths and queries bytes are base64url without padding, device and folder IDs their own text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.websockets import WebSocket

from p2psync.errors import AuthenticationError, InputError
from p2psync.model.ids import DeviceId, FolderId, parse_device_id, parse_folder_id
from p2psync.protocol.http_signature import Signed
from relay.errors import ApiError, not_found, unauthorized

if TYPE_CHECKING:
    from relay.services import Services

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
OCTETS: Final = "application/octet-stream"
EVENTS: Final = "text/event-stream"

KIB: Final = 1 << 10
DEFAULT_BODY: Final = 64 * KIB
DEFAULT_DEADLINE_S: Final = 30.0
_SHORT: Final = 512 * KIB

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "WEBSOCKET"]
Receive = Callable[[], Awaitable[Any]]
S = TypeVar("S", bound=msgspec.Struct)


class Auth(Enum):
    """Who may call a route."""

    NONE = "none"
    """Anyone; what such a route reveals or changes is guarded by its handler."""
    SIGNED = "signed"
    """Any device that signs with its key, whether the relay knows it or not."""
    SESSION = "session"
    """A device that signs with its key and holds an access token bound to that key."""


class Rate(StrEnum):
    """Which allowance a call is taken from; see `relay.api.limits`."""

    STANDARD = "standard"
    BULK = "bulk"
    """Chunks and batches: many, and counted by the quota besides."""
    SENSITIVE = "sensitive"
    """What guesses a password, sends mail or makes an account."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A body or answer of bare bytes."""

    media_type: str = OCTETS


RAW: Final = Raw()


class Caller(msgspec.Struct, frozen=True):
    """Who made the request, proven."""

    device_id: DeviceId
    signing_key: bytes
    account_id: bytes = b""
    """Empty on routes that need no session."""


Handler = Callable[["Call"], Awaitable[msgspec.Struct | Response | None]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API."""

    method: Method
    path: str
    """Segments joined by `/`; `{name}` stands for one segment."""
    handler: Handler
    summary: str
    auth: Auth = Auth.SESSION
    body: type[msgspec.Struct] | Raw | None = None
    answer: type[msgspec.Struct] | Raw | None = None
    """None: no content (204)."""
    query: type[msgspec.Struct] | None = None
    limit: int = DEFAULT_BODY
    """Most bytes of the body."""
    rate: Rate = Rate.STANDARD
    problems: tuple[str, ...] = ()
    """Codes of `relay.errors.PROBLEMS` that the handler raises, beside those of every request."""
    status: int = 0
    """Of a success; 0 stands for 200, or 204 without an answer."""
    also: tuple[int, ...] = ()
    """Other statuses of a success, such as 206 for a part."""
    deadline_s: float = DEFAULT_DEADLINE_S
    """The whole request must be answered in this time; `math.inf` for streams, which end when the relay stops."""

    logged: bool = True
    """Whether the access log has a line for each call."""

    @property
    def is_stream(self) -> bool:
        """Whether it goes on until the client or the relay ends it."""
        return self.deadline_s == math.inf

    @property
    def success(self) -> int:
        """The status of a success."""
        return self.status or (200 if self.answer else 204)


@dataclass(slots=True)
class Call:
    """One request on its way through a handler."""

    services: Services
    route: Route
    scope: Mapping[str, Any]
    """Of ASGI."""
    now: int
    """Seconds since the epoch when the request arrived, by the relay's clock."""
    address: str
    """Whom the limits count: the client's network, /24 of IPv4 or /48 of IPv6. Never stored or logged more exactly."""
    path: Mapping[str, str]
    fields: Mapping[bytes, bytes]
    """Header fields by their names in lower case; of a repeated one the last."""
    source: Source
    """Where its body comes from."""
    signed: Signed | None = None
    identity: Caller | None = None
    body: Any = None
    """The decoded `route.body`."""
    query: Any = None
    """The decoded `route.query`."""
    websocket: WebSocket | None = None
    extra_headers: dict[str, str] = field(default_factory=dict)
    """Added to the answer."""

    def header(self, name: bytes) -> str | None:
        """A header field; None when there is none."""
        value = self.fields.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def caller(self) -> Caller:
        """The authenticated caller. ApiError 401 on a route that asks for none."""
        if self.identity is None:
            raise unauthorized()
        return self.identity

    def id(self, name: str, size: int) -> bytes:
        """A path parameter of `size` bytes in base64url. ApiError 404 when it is no such text."""
        return decode_id(self.path[name], size)

    def folder_id(self, name: str = "folder_id") -> FolderId:
        """A folder ID in the path. ApiError 404 when it is none."""
        try:
            return parse_folder_id(self.path[name])
        except InputError:
            raise not_found() from None

    def device_id(self, name: str = "device_id") -> DeviceId:
        """A device ID in the path. ApiError 404 when it is none."""
        try:
            return parse_device_id(self.path[name])
        except InputError:
            raise not_found() from None

    def hex_id(self, name: str, size: int) -> bytes:
        """A path parameter of `size` bytes in lower-case hexadecimal. ApiError 404 when it is no such text."""
        text = self.path[name]
        if not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text):
            raise not_found()
        return bytes.fromhex(text)

    async def receive(self) -> Any:
        """The next message of ASGI."""
        return await self.source.receive()

    async def read(self) -> bytearray:
        """The whole body, which is what was signed.

        Raises:
            ApiError: 400 `digest-mismatch`; 413 as soon as it is longer than the route takes.
        """
        data, more = bytearray(), True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            data += message.get("body", b"")
            if len(data) > self.route.limit:
                raise too_large(self.route.limit)
            more = message.get("more_body", False)
        if self.signed is not None:
            # Where it takes milliseconds, others go on.
            digest = hashlib.sha256(data).digest() if len(data) < _SHORT else await self._hashed(data)
            try:
                self.signed.check_body(digest)
            except AuthenticationError:
                raise ApiError(400, "digest-mismatch") from None
        return data

    async def _hashed(self, data: bytearray) -> bytes:
        return await self.services.ports.offload.run(lambda: hashlib.sha256(data).digest())


class Source(Protocol):
    """The body of a request, as it arrives."""

    async def receive(self) -> Any:
        """The next message of ASGI."""
        ...

    async def fill(self, target: memoryview) -> None:
        """Put the whole body into memory of its length; compare its digest with what was signed.

        Raises:
            ApiError: 400 when it has another length.
            ClientGoneError
        """
        ...


class ClientGoneError(Exception):
    """The client left before the request was complete; nobody is there to answer."""


def too_large(limit: int) -> ApiError:
    """The refusal of a body over `limit` bytes."""
    return ApiError(413, "too-large", f"this path takes bodies of at most {limit} bytes", limit=limit)


# ── text forms ──────────────────────────────────────────────────────────────────────────────────────────────────────
def encode_id(data: bytes) -> str:
    """Base64url without padding, as in paths and queries."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_id(text: str, size: int) -> bytes:
    """The reverse of `encode_id`. ApiError 404 unless `text` is the one encoding of `size` bytes."""
    if len(text) == (size * 4 + 2) // 3:
        try:
            data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            raise not_found() from None
        if encode_id(data) == text:
            return data
    raise not_found()


# ── routing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
MAX_SEGMENTS: Final = 12
MAX_SEGMENT_CHARS: Final = 128


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: dict[int, list[tuple[tuple[str, ...], dict[str, Route]]]] = {}
        for route in routes:
            segments = tuple(route.path.split("/"))
            methods = self._table(route.path, segments)
            assert route.method not in methods, f"two routes for {route.method} {route.path}"
            methods[route.method] = route

    def _table(self, path: str, segments: tuple[str, ...]) -> dict[str, Route]:
        if "{" not in path:
            return self._exact.setdefault(path, {})
        same_length = self._patterns.setdefault(len(segments), [])
        for known, methods in same_length:
            if known == segments:
                return methods
        methods = {}
        same_length.append((segments, methods))
        return methods

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route and its path parameters.

        Raises:
            ApiError: 404, or 405 with `Allow` when the path exists for other methods.
        """
        methods, parameters = self._match(path)
        route = methods.get(method)
        if route is None:
            allowed = ", ".join(sorted(known for known in methods if known != "WEBSOCKET"))
            raise ApiError(405, "method-not-allowed", headers={"Allow": allowed})
        return route, parameters

    def _match(self, path: str) -> tuple[dict[str, Route], dict[str, str]]:
        exact = self._exact.get(path)
        if exact is not None:
            return exact, {}
        given = path.split("/", MAX_SEGMENTS)
        for segments, methods in self._patterns.get(len(given), ()):
            parameters = {}
            for expected, segment in zip(segments, given, strict=True):
                if expected.startswith("{") and len(segment) <= MAX_SEGMENT_CHARS:
                    parameters[expected[1:-1]] = segment
                elif expected != segment:
                    break
            else:
                return methods, parameters
        raise not_found()
