"""What a hostile or strange relay answers: bounded, told in words, never believed further than it must be."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2psync.crypto.identity import DeviceKeys
from p2psync.errors import AuthenticationError, ConnectionLost, ProtocolError, RelayRefusal, Unreachable
from p2psync.net.relay_client import RelayClient
from p2psync.ports import HttpResponse, RelayAddress
from p2psync.protocol import relay_api as api
from p2psync.testing.world import SimRng, SimWorld

ACCOUNT = b"a" * 16
RELAY = RelayAddress("relay.test", 443, bytes(32))
Reply = Callable[[str, str], HttpResponse | Exception]


def answer(body: Any = None, status: int = 200, **headers: str) -> HttpResponse:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpResponse(status, fields, b"" if body is None else msgspec.msgpack.encode(body))


def problem(code: str, status: int, *, headers: Mapping[str, str] | None = None, **members: Any) -> HttpResponse:
    body = msgspec.json.encode({"type": f"urn:p2psync:problem:{code}", "title": "T", "status": status, **members})
    return HttpResponse(status, {"content-type": "application/problem+json", **(headers or {})}, body)


def session(**changes: Any) -> api.Session:
    return msgspec.structs.replace(api.Session(ACCOUNT, "access", 1 << 40, "refresh", 1 << 40), **changes)


@dataclass
class Http:
    """A relay that answers as the test says."""

    reply: Reply
    lines: list[bytes] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    streams: int = 0

    async def request(self, method: str, target: str, **_: Any) -> HttpResponse:
        await trio.lowlevel.checkpoint()
        self.asked.append((method, target))
        said = answer(session()) if target == "/api/v1/sessions/key" else self.reply(method, target)
        if isinstance(said, Exception):
            raise said
        return said

    @asynccontextmanager
    async def stream(self, target: str, **_: Any) -> AsyncIterator[Any]:
        self.streams += 1
        lines = iter(self.lines)

        class Stream:
            status = 200
            headers: Mapping[str, str] = {}

            async def line(self) -> bytes | None:
                await trio.lowlevel.checkpoint()
                return next(lines, None)

        yield Stream()

    async def aclose(self) -> None:
        pass

    def client(self, **options: Any) -> RelayClient:
        world = replace(SimWorld(0).device("a").world(), http=lambda _address: self)
        keys = DeviceKeys(SimRng("keys").token(64))
        return RelayClient(world, keys, [RELAY], account_id=ACCOUNT, **options)


@pytest.mark.parametrize(
    ("response", "code", "text"),
    [
        (problem("over-quota", 507, used=3 << 30, limit=1 << 30), "over-quota", r"full \(3.00 of 1.00 GiB used\)"),
        (problem("over-quota", 507, used="x", limit=None), "over-quota", "storage at the relay is full;"),
        (problem("plan-limit", 403, detail="5 devices"), "plan-limit", r"\(5 devices\); see: p2psync account plans"),
        (problem("made-up", 418, detail="a\x1b[31m\nb" + "x" * 10_000), "made-up", r"status 418: a \[31m b"),
        (problem("conflict", 409, detail=7), "", "status 409$"),
        (HttpResponse(404, {}, b"<html>nginx</html>"), "", "status 404$"),
        (HttpResponse(400, {"content-type": "application/problem+json"}, b"[" * 60_000), "", "status 400$"),
    ],
)
async def test_refusals_in_words(response: HttpResponse, code: str, text: str) -> None:
    client = Http(lambda *_: response).client()
    with pytest.raises(RelayRefusal, match=text) as refused:
        await client.accounts.status()
    assert (refused.value.code, refused.value.status) == (code, response.status)
    assert len(str(refused.value)) < 1000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", msgspec.msgpack.encode({"account_id": 1}), b"\x91" * 50_000])
async def test_answers_that_make_no_sense(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        await Http(lambda *_: HttpResponse(200, {}, body)).client().accounts.status()


@pytest.mark.parametrize("token", ["", "a b", "a\r\nx: y", "ä", "x" * 1000])
async def test_tokens_that_cannot_be_sent(token: str) -> None:
    client = Http(lambda *_: answer(session(access_token=token))).client()
    with pytest.raises(ProtocolError, match="token"):
        await client.accounts.log_in("me@example.org", bytes(32))


async def test_a_session_of_another_account_is_none() -> None:
    http = Http(lambda *_: answer(session(account_id=b"b" * 16)))
    client = http.client(session=session(access_expires=0))
    with pytest.raises(ProtocolError, match="another account"):
        await client.accounts.status()
    assert http.asked == [("POST", "/api/v1/sessions/refresh")]


@dataclass
class Elsewhen(Http):
    """A relay whose clock is years ahead; it takes what is signed at its own time."""

    now: int = 2_000_000_000

    async def request(self, method: str, target: str, **options: Any) -> HttpResponse:
        created = re.search(r"created=(\d+)", options["headers"]["signature-input"])
        assert created is not None
        if abs(int(created[1]) - self.now) > 60:
            await trio.lowlevel.checkpoint()
            return problem("unauthorized", 401, headers={"date": formatdate(self.now, usegmt=True)})
        return await super().request(method, target, **options)


async def test_calls_at_the_same_time_all_find_out_that_the_clock_is_wrong() -> None:
    client = Elsewhen(lambda *_: answer(session())).client()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(client.accounts.log_in, "me@example.org", bytes(32))


async def test_an_endless_chain_comes_to_an_end() -> None:
    http = Http(lambda *_: answer(api.ChainPage([b"x"] * 256, True)))
    with pytest.raises(ProtocolError, match="endless"):
        await http.client().accounts.chain()
    assert len(http.asked) < 20


@pytest.mark.parametrize(
    ("after", "least"), [("7", 7.0), ("0", 0.0), ("-5", 0.0), ("nan", 0.0), ("9" * 30, 0.0), ("٣", 0.0)]
)
async def test_retry_after(autojump_clock: MockClock, after: str, least: float) -> None:
    replies = [problem("rate-limited", 429, headers={"retry-after": after}), answer(api.FolderList([]))]
    began = trio.current_time()
    assert await Http(lambda *_: replies.pop(0)).client().mailbox.folders() == []
    assert least <= trio.current_time() - began < least + 2


async def test_a_wait_that_is_too_long_is_no_wait(autojump_clock: MockClock) -> None:
    client = Http(lambda *_: problem("rate-limited", 429, headers={"retry-after": "86400"})).client()
    with pytest.raises(RelayRefusal, match="again in 86400 s"):
        await client.mailbox.folders()
    assert trio.current_time() < 10


@pytest.mark.parametrize(
    ("failure", "times"),
    [
        (Unreachable("x"), 5),
        (ConnectionLost("x"), 5),
        (AuthenticationError("x"), 1),
        (ProtocolError("x"), 1),
        (problem("unavailable", 503), 5),
        (problem("internal", 500), 1),
    ],
)
async def test_what_is_tried_again(autojump_clock: MockClock, failure: Exception | HttpResponse, times: int) -> None:
    http = Http(lambda *_: failure)
    with pytest.raises((ConnectionLost, ProtocolError, RelayRefusal)):
        await http.client().mailbox.folders()
    assert len(http.asked) == 1 + times


@pytest.mark.parametrize("date", ["", "x", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "\0" * 50])
async def test_a_strange_date_costs_a_few_tries_at_most(date: str) -> None:
    http = Http(lambda *_: problem("unauthorized", 401, headers={"date": date}))
    with pytest.raises(RelayRefusal, match="log in again"):
        await http.client().mailbox.folders()
    assert len(http.asked) <= 6


# ── news ────────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_news_of_strange_relays(autojump_clock: MockClock) -> None:
    good = [b"id: 7", b"event: chain", b'data: {"kind":"chain"}', b""]
    http = Http(
        lambda *_: answer(), lines=[b":", b"", b"retry: 3000", b"id: 5", b"event: later", b"data: {}", b"", *good]
    )
    async with http.client().news.subscribe() as news:
        later, chain = await news.receive(), await news.receive()
    assert (later.cursor, later.event, later.reset) == (5, None, False)
    assert chain.event is not None
    assert (chain.cursor, chain.event.kind) == (7, api.EventKind.CHAIN)


@pytest.mark.parametrize(
    "lines",
    [
        [b"event: chain", b"data: {}", b""],
        [b"id: -1", b"event: chain", b""],
        [b"id: 7", b"event: chain", b"data: [[[", b""],
        [b"id: " + b"9" * 30, b"event: chain", b""],
        [b"x: " + b"y" * 1000] * 100,
    ],
)
async def test_broken_news_are_asked_for_again(autojump_clock: MockClock, lines: list[bytes]) -> None:
    http = Http(lambda *_: answer(), lines=lines)
    async with http.client().news.subscribe() as news:
        with trio.move_on_after(300):
            await news.receive()
            raise AssertionError
    assert http.streams > 3
