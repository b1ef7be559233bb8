"""The whole relay as a WSGI application, in which requests are signed on their way by a device that has a session.

schemathesis knows nothing of signatures: it sends `PASS` in their place, and leaves it out, or sends something else, to
see whether the relay minds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import trio
from trio.testing import MockClock

from p2psync.model.ids import FolderId, format_device_id, format_folder_id, parse_folder_id
from p2psync.protocol.http_signature import sign_request
from p2psync.testing.world import SimRng
from relay.api.auth import TOKEN_SIZE
from relay.api.route import Auth, Route, Router, encode_id
from relay.api.routes import all_routes
from relay.config import Billing, Config, Limits, Log, Plan, Secret, Size
from relay.db.database import IN_MEMORY, database_from_url
from relay.db.metadata import metadata
from relay.errors import ApiError
from tests.relay.accounts.helpers import Person, b64, registered
from tests.relay.blocks.helpers import chunk, name
from tests.relay.mailbox.helpers import Author
from tests.relay.stack import RELAY, Answer, Client, Inline, Stack, make_stack

PASS: Final = "p2p"
"""Stands for the signature and for the token in what schemathesis sends."""
FOLDERS: Final = 8
SAMPLE: Final = 3
"""Of the refusals of one kind, so many are probed; of what succeeds, everything."""
PLENTY: Final = 1 << 40
_SIGNATURE: Final = {"signature", "signature-input", "p2psync-relay", "content-digest"}


def _plan(label: str, price: str = "") -> Plan:
    return Plan(name=label, price=price, bytes=Size(10**12), devices=1000, folders=1000)


_CONFIG: Final = Config(
    limits=Limits(PLENTY, PLENTY, PLENTY, PLENTY, PLENTY, PLENTY),
    plans=(_plan("big"), _plan("paid", price="1 a month")),
    billing=Billing(Secret("b" * 32)),
    log=Log(access=False),
)

Environ = Mapping[str, Any]


@dataclass
class Gateway:
    """One relay, a device with a real session, and folders with something in them."""

    stack: Stack
    owner: Person
    other: Person
    folders: list[str] = field(default_factory=list)
    """Text of the IDs."""
    requests: int = 0
    probes: int = 0
    """Requests that were made again, each in a way in which the relay must refuse it."""
    bypasses: list[str] = field(default_factory=list)
    """Probes that were not refused."""
    statuses: dict[tuple[str, int], int] = field(default_factory=dict)
    """How often an operation ended how."""

    def __post_init__(self) -> None:
        self._router = Router(all_routes())
        self._stranger = self.other.first

    @property
    def device(self) -> Client:
        """Which signs what has `PASS`."""
        return self.owner.first

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """See WSGI (PEP 3333). Time passes only where the relay waits."""
        answer = trio.run(self._answer, environ, clock=MockClock(autojump_threshold=0))
        start_response(f"{answer.status} -", list(answer.headers.items()))
        return [answer.body]

    async def _answer(self, environ: Environ) -> Answer:
        request = _read(environ)
        self.requests += 1
        route = self._route(request)
        if request.fields.get("signature") != PASS or route is None or route.auth is Auth.NONE:
            return self._note(route, await self._send(request, request.fields))
        token = f"Bearer {self.device.token}" if request.fields.get("authorization") == f"Bearer {PASS}" else None
        fields = self._signed(request, self.device, token or request.fields.get("authorization"))
        answer = self._note(route, await self._send(request, fields))
        if answer.status < 300 or self.statuses[_label(route), answer.status] <= SAMPLE:
            await self._probe(request, "sent again", fields)
            for what, forged in self._forged(request, route, token):
                await self._probe(request, what, forged)
        if answer.status < 300 and route.path == "/api/v1/sessions":
            await self.owner.log_in()
        return answer

    def _route(self, request: _Request) -> Route | None:
        try:
            return self._router.find(request.method, unquote(request.path))[0]
        except ApiError:
            return None

    def _note(self, route: Route | None, answer: Answer) -> Answer:
        key = _label(route), answer.status
        self.statuses[key] = self.statuses.get(key, 0) + 1
        return answer

    def _forged(self, request: _Request, route: Route, token: str | None) -> Iterable[tuple[str, dict[str, str]]]:
        """The same request as the relay must not take it."""
        bare = {name: text for name, text in request.fields.items() if name != "signature"}
        yield "not signed", bare | ({"authorization": token} if token else {})
        signed = self._signed(request, self.device, token)
        yield (
            "with another path signed",
            signed | {"signature": self._signed(request, self.device, token, path="/")["signature"]},
        )
        if route.auth is Auth.SESSION:
            yield "with a token of nobody", self._signed(request, self.device, f"Bearer {encode_id(bytes(TOKEN_SIZE))}")
            yield "without a token", self._signed(request, self.device, None)
            if token:
                yield "with a stolen token", self._signed(request, self._stranger, token)

    async def _probe(self, request: _Request, what: str, fields: dict[str, str]) -> None:
        """The relay must answer 401, if it does not refuse the request without asking who sends it."""
        self.probes += 1
        answer = await self._send(request, fields)
        if answer.status != 401 and answer.problem not in {"too-large", "bad-request"}:
            self.bypasses.append(f"{request.method} {request.path} {what}: {answer.status}")

    def _signed(self, request: _Request, client: Client, token: str | None, *, path: str = "") -> dict[str, str]:
        fields = {name: text for name, text in request.fields.items() if name not in {*_SIGNATURE, "authorization"}}
        return fields | sign_request(
            client.keys,
            RELAY,
            request.method,
            path or request.path,
            request.query,
            body=request.body,
            authorization=token,
            created=self.stack.services.now(),
            nonce=self.stack.services.ports.rng.token(16),
        )

    async def _send(self, request: _Request, fields: Mapping[str, str]) -> Answer:
        """As one whole request; of a stream, its beginning."""
        scope = {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "https",
            "path": unquote(request.path),
            "raw_path": request.path.encode(),
            "query_string": request.query.encode("latin-1"),
            "root_path": "",
            "headers": [(name.encode(), text.encode("latin-1")) for name, text in fields.items()],
            "client": ("127.0.0.1", 4711),
            "server": ("relay.test", 443),
            "extensions": {},
        }
        answer, asked, begun = Answer(0, {}, b""), False, trio.Event()

        async def receive() -> Any:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": request.body, "more_body": False}
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await trio.lowlevel.checkpoint()
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {n.decode().lower(): v.decode("latin-1") for n, v in message["headers"]}
            else:
                answer.body += message["body"]
                if answer.body:
                    begun.set()

        with trio.fail_after(3600):
            await self.stack.app(scope, receive, send)
        return answer

    def dictionaries(self) -> dict[str, list[str]]:
        """What is there, by the names of parameters and fields that it may stand in."""
        chunks = [name(number) for number in range(3)]
        account = [self.owner.account_id, self.other.account_id]
        return {
            "path.folder_id": self.folders,
            "query.folder": self.folders,
            "path.chunk_id": [chunk_id.hex() for chunk_id in chunks],
            "path.ref_id": [encode_id(chunk_id) for chunk_id in chunks],
            "path.account_id": [encode_id(account_id) for account_id in account],
            "path.seq": ["1", "2", "3"],
            "body.folder_id": [b64(parse_folder_id(text)) for text in self.folders],
            "body.chunk_id": [b64(chunk_id) for chunk_id in chunks],
            "body.plan": ["big", "paid"],
            "query.device_id": [format_device_id(self.device.device_id)],
        }


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    """As on the wire."""
    query: str
    fields: dict[str, str]
    body: bytes


def _label(route: Route | None) -> str:
    return f"{route.method} {route.path}" if route else ""


def _read(environ: Environ) -> _Request:
    path = str(environ["RAW_URI"]).partition("?")[0]
    fields = {
        key.removeprefix("HTTP_").lower().replace("_", "-"): text
        for key, text in environ.items()
        if key.startswith("HTTP_") or (key in {"CONTENT_TYPE", "CONTENT_LENGTH"} and text)
    }
    return _Request(environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], fields, environ["wsgi.input"].read())


def make_gateway(seed: int = 0) -> Gateway:
    """A relay with two accounts and some folders."""
    routes = all_routes()
    assert routes
    database = database_from_url(IN_MEMORY, Inline(), SimRng(f"{seed} database"))
    metadata.create_all(database.engine)
    stack = make_stack(database, config=_CONFIG)
    return trio.run(_furnished, stack)


async def _furnished(stack: Stack) -> Gateway:
    owner, other = await registered(stack), await registered(stack, "bob@example.org")
    gateway = Gateway(stack, owner, other)
    assert (await owner.first.put("/api/v1/account/plan", {"plan": "big"})).status == 200
    author = Author(0)
    author.keys = owner.first.keys
    for number in range(FOLDERS):
        folder = FolderId(number.to_bytes(16, "big"))
        text = format_folder_id(folder)
        gateway.folders.append(text)
        await _done(owner.first.put(f"/api/v1/folders/{text}"))
        for n in range(2):
            path, data = chunk(n)
            await _done(owner.first.put(path, data, query={"folder": text}))
        reference = f"/api/v1/folders/{text}/refs/{encode_id(name(0))}"
        await _done(owner.first.put(reference, {"chunk_ids": [b64(name(0))]}))
        entries = [author.sign(folder, b"%d" % n).encoded for n in range(2)]
        await _done(owner.first.post("/api/v1/objects", {"entries": [b64(entry) for entry in entries]}))
    return gateway


async def _done(request: Any) -> None:
    answer = await request
    assert answer.status in {200, 204}, (answer.status, msgspec.json.decode(answer.body))
