"""The whole relay in one test: its app over a temporary directory, driven without sockets by clients that sign."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.ports import Offload
from p2psync.protocol.http_signature import sign_request
from p2psync.testing.world import SimRng
from relay.api.app import App, build_app
from relay.api.auth import TOKEN_SIZE
from relay.api.route import encode_id
from relay.api.routes import all_routes
from relay.config import Accounts, Config, Size
from relay.db.database import Database
from relay.ports import Mail, Sessions, StoredBlock
from relay.services import NANOSECONDS, Ports, Services, build_services

T = TypeVar("T")
RELAY = "relay.test"
"""By what devices know the relay."""
CLIENT_ADDRESS = ("203.0.113.7", 4711)


class ManualClock:
    """Time that passes only when a test says so."""

    def __init__(self, now: int = 1_800_000_000) -> None:
        self.now = float(now)

    def wall_ns(self) -> int:
        return int(self.now * NANOSECONDS)

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Inline:
    """Blocking work at once, in the test's own thread."""

    async def run(self, work: Callable[[], T], /) -> T:
        await trio.lowlevel.checkpoint()
        return work()


CHEAP = Accounts(hash_memory=Size(64 << 10), hash_passes=1)
"""Passwords that cost nothing to check."""


class MemoryMailer:
    """Keeps what is mailed."""

    target = "memory"

    def __init__(self) -> None:
        self.sent: list[Mail] = []

    def send(self, mail: Mail) -> None:
        self.sent.append(mail)


class MemoryStore:
    """A block store in memory; `clock` says when its objects were made."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.made: dict[str, int] = {}
        self._clock = clock or ManualClock()

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = bytes(data)
        self.made[key] = int(self._clock.now)

    def get(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key][start:stop]

    def size(self, key: str) -> int | None:
        return len(self.objects[key]) if key in self.objects else None

    def delete(self, keys: Collection[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)

    def list(self, prefix: str, after: str = "") -> Iterator[StoredBlock]:
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > after and key in self.objects:
                yield StoredBlock(key, len(self.objects[key]), self.made[key])

    def presign(self, method: str, key: str, expires_s: int) -> str | None:
        return None

    def probe(self) -> None:
        pass


class MemorySessions:
    """Access tokens that tests hand out, in front of the relay's own."""

    behind: Sessions

    def __init__(self) -> None:
        self._tokens: dict[bytes, tuple[bytes, bytes]] = {}

    def open(self, account_id: bytes, device_id: bytes) -> str:
        token = account_id + hashlib.sha256(b"token" + device_id).digest()
        self._tokens[token] = (account_id, device_id)
        return encode_id(token)

    async def account_of(self, token: bytes, device_id: bytes, now: int) -> bytes | None:
        assert len(token) == TOKEN_SIZE
        if token not in self._tokens:
            return await self.behind.account_of(token, device_id, now)
        account_id, owner = self._tokens[token]
        return account_id if owner == device_id else None


@dataclass(slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    def decode(self, kind: type[T]) -> T:
        if self.headers.get("content-type") == "application/msgpack":
            return msgspec.msgpack.decode(self.body, type=kind)
        return msgspec.json.decode(self.body, type=kind)

    @property
    def problem(self) -> str:
        """The code of the problem document, "" when this is none."""
        if self.headers.get("content-type") != "application/problem+json":
            return ""
        return str(self.json()["type"]).removeprefix("urn:p2psync:problem:")


class Events:
    """The body of a stream, as it comes."""

    def __init__(self, answer: Answer, pieces: trio.MemoryReceiveChannel[bytes]) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._pieces = pieces
        self._buffer = b""

    async def piece(self) -> bytes:
        """The next piece; trio.EndOfChannel when the stream has ended."""
        return await self._pieces.receive()

    async def event(self) -> dict[str, str]:
        """The next server-sent event; comments are passed over."""
        while True:
            while b"\n\n" not in self._buffer:
                self._buffer += await self.piece()
            block, _, self._buffer = self._buffer.partition(b"\n\n")
            fields = [line.partition(": ") for line in block.decode().split("\n") if not line.startswith(":")]
            if fields:
                return {name: value for name, _, value in fields}


class Socket:
    """The client's end of a WebSocket."""

    def __init__(self, send: trio.MemorySendChannel[Any], receive: trio.MemoryReceiveChannel[Any]) -> None:
        self._send = send
        self._receive = receive

    async def send(self, message: str | bytes) -> None:
        kind = "text" if isinstance(message, str) else "bytes"
        await self._send.send({"type": "websocket.receive", kind: message})

    async def receive(self) -> str | bytes | int:
        """The next message, or the code with which the relay closed."""
        message = await self._receive.receive()
        if message["type"] == "websocket.close":
            return int(message.get("code", 1000))
        text: str | bytes = message["text"] if message.get("text") is not None else message["bytes"]
        return text


@dataclass(slots=True)
class Client:
    """One device that calls the relay."""

    stack: Stack
    keys: DeviceKeys
    token: str | None = None
    account_id: bytes = b""
    address: tuple[str, int] = CLIENT_ADDRESS

    @property
    def device_id(self) -> bytes:
        return self.keys.device_id

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.request("GET", path, **options)

    async def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.request("POST", path, body, **options)

    async def put(self, path: str, body: Any = None, **options: Any) -> Answer:
        return await self.request("PUT", path, body, **options)

    async def delete(self, path: str, **options: Any) -> Answer:
        return await self.request("DELETE", path, **options)

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        msgpack: bool = False,
        signed: bool = True,
        created: int | None = None,
        piece_size: int = 1 << 16,
    ) -> Answer:
        """One request. A Struct or dict is sent as JSON (or MessagePack), bytes as they are."""
        scope, data = self._scope(method, path, body, query, headers, msgpack=msgpack, signed=signed, created=created)
        return await self.send(scope, data, piece_size=piece_size)

    async def send(self, scope: dict[str, Any], data: bytes, *, piece_size: int = 1 << 16) -> Answer:
        """One request whose head is made already."""
        pieces = deque(data[i : i + piece_size] for i in range(0, len(data), piece_size))
        answer = Answer(0, {}, b"")

        async def receive() -> Any:
            await trio.lowlevel.checkpoint()
            if scope.get("ended"):
                await trio.sleep_forever()
            piece = pieces.popleft() if pieces else b""
            scope["ended"] = not pieces
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            _note(answer, message)

        with trio.fail_after(60):
            await self.stack.app(scope, receive, send)
        return answer

    @asynccontextmanager
    async def stream(
        self, path: str, *, query: Mapping[str, object] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Events]:
        """A streamed answer, such as server-sent events; leaving the context is the client going away."""
        scope, _ = self._scope("GET", path, None, query, headers)
        answer, begun, gone = Answer(0, {}, b""), trio.Event(), trio.Event()
        pieces_in, pieces_out = trio.open_memory_channel[bytes](math.inf)
        asked = False

        async def receive() -> Any:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                _note(answer, message)
                begun.set()
            elif message["body"]:
                pieces_in.send_nowait(message["body"])

        async def run() -> None:
            async with pieces_in:
                await self.stack.app(scope, receive, send)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            with trio.fail_after(60):
                await begun.wait()
            yield Events(answer, pieces_out)
            gone.set()

    @asynccontextmanager
    async def websocket(self, path: str, *, query: Mapping[str, object] | None = None) -> AsyncIterator[Socket]:
        """An accepted WebSocket. AssertionError with the status when it is refused."""
        scope, _ = self._scope("GET", path, None, query, None)
        scope |= {"type": "websocket", "subprotocols": [], "extensions": {"websocket.http.response": {}}}
        to_relay, at_relay = trio.open_memory_channel[Any](math.inf)
        to_client, at_client = trio.open_memory_channel[Any](math.inf)
        to_relay.send_nowait({"type": "websocket.connect"})

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            to_client.send_nowait(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.stack.app, scope, at_relay.receive, send)
            with trio.fail_after(60):
                first = await at_client.receive()
            assert first["type"] == "websocket.accept", first
            yield Socket(to_relay, at_client)
            to_relay.send_nowait({"type": "websocket.disconnect", "code": 1000})

    def _scope(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, object] | None,
        headers: Mapping[str, str] | None,
        *,
        msgpack: bool = False,
        signed: bool = True,
        created: int | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        media_type = ""
        if isinstance(body, bytes):
            data, media_type = body, "application/octet-stream"
        elif body is None:
            data = b""
        elif msgpack:
            data, media_type = msgspec.msgpack.encode(body), "application/msgpack"
        else:
            data, media_type = msgspec.json.encode(body), "application/json"
        query_text = urlencode(query or {})
        fields = {"host": "relay.test"}
        if data:
            fields |= {"content-length": str(len(data)), "content-type": media_type}
        if msgpack:
            fields["accept"] = "application/msgpack"
        if signed:
            fields |= sign_request(
                self.keys,
                RELAY,
                method,
                path,
                query_text,
                body=data,
                authorization=f"Bearer {self.token}" if self.token else None,
                created=self.stack.services.now() if created is None else created,
                nonce=self.stack.services.ports.rng.token(16),
            )
        fields |= {name.lower(): value for name, value in (headers or {}).items()}
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query_text.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in fields.items()],
            "client": self.address,
            "server": ("relay.test", 443),
            "extensions": {},
        }
        return scope, data


def _note(answer: Answer, message: Any) -> None:
    if message["type"] == "http.response.start":
        answer.status = message["status"]
        answer.headers = {name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]}
    else:
        answer.body += message["body"]


@dataclass(slots=True)
class Stack:
    """The app with all services, and what a test holds of its world."""

    app: App
    services: Services
    sessions: MemorySessions
    clock: ManualClock
    _devices: int = field(default=0)

    def keys(self) -> DeviceKeys:
        """Keys of a device that exists only in this test, the same in every run."""
        self._devices += 1
        return DeviceKeys(SimRng(f"device {self._devices}").token(64))

    def client(self, account_id: bytes = b"", keys: DeviceKeys | None = None) -> Client:
        """A device; with `account_id` it has a session of that account."""
        keys = keys or self.keys()
        token = self.sessions.open(account_id, keys.device_id) if account_id else None
        return Client(self, keys, token, account_id)


def make_stack(
    database: Database,
    offload: Offload | None = None,
    secret: bytes = b"s" * 32,
    config: Config = Config(),  # noqa: B008
) -> Stack:
    """The app over this database, whose blocking work is done at once unless `offload` says otherwise."""
    clock, sessions = ManualClock(), MemorySessions()
    config = msgspec.structs.replace(config, accounts=CHEAP)
    ports = Ports(
        clock=clock,
        rng=SimRng("relay"),
        offload=offload or Inline(),
        database=database,
        mailer=MemoryMailer(),
        store=MemoryStore(clock),
        secret=secret,
    )
    services = build_services(config, ports)
    sessions.behind, services.sessions = services.sessions, sessions
    return Stack(build_app(services, all_routes(), {RELAY}), services, sessions, clock)
