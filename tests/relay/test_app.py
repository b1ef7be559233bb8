"""What every request passes: routing, signatures, sessions, bodies, streams, and the shape of refusals."""

from __future__ import annotations

import math

import msgspec
import pytest
import trio
from starlette.responses import StreamingResponse

from relay.api.app import build_app
from relay.api.auth import MAX_SKEW_S
from relay.api.limits import network_of
from relay.api.route import RAW, Auth, Call, Route
from relay.errors import ApiError
from tests.relay.stack import RELAY, Client, Stack

ACCOUNT = b"a" * 16


class Sum(msgspec.Struct, forbid_unknown_fields=True):
    terms: list[int]


class Total(msgspec.Struct):
    total: int
    account: bytes = b""


class Page(msgspec.Struct, forbid_unknown_fields=True):
    after: int = 0


async def add(call: Call) -> Total:
    return Total(sum(call.body.terms), call.caller.account_id)


async def page(call: Call) -> Total:
    return Total(call.query.after)


async def size(call: Call) -> Total:
    return Total(len(await call.read()))


async def whole(call: Call) -> Total:
    return Total(len(call.hex_id("chunk", 32)))


async def fail(_call: Call) -> None:
    raise KeyError("a secret detail")


async def full(_call: Call) -> None:
    raise ApiError(507, "over-quota", "nothing left", used=10, limit=10)


async def slow(_call: Call) -> None:
    await trio.sleep_forever()


async def events(_call: Call) -> StreamingResponse:
    async def body():  # type: ignore[no-untyped-def]
        yield b"data: 1\n\n"
        await trio.sleep_forever()

    return StreamingResponse(body(), media_type="text/event-stream")


async def echo(call: Call) -> None:
    socket = call.websocket
    assert socket is not None
    await socket.accept()
    while True:
        await socket.send_text(await socket.receive_text())


ROUTES = (
    Route("POST", "/sum", add, "Add", body=Sum, answer=Total),
    Route("POST", "/signed", size, "Size", auth=Auth.SIGNED, body=RAW, answer=Total, limit=1000),
    Route("GET", "/page", page, "Page", auth=Auth.NONE, query=Page, answer=Total),
    Route("GET", "/chunks/{chunk}", whole, "Chunk", auth=Auth.NONE, answer=Total),
    Route("GET", "/fail", fail, "Fail", auth=Auth.NONE),
    Route("GET", "/full", full, "Full", auth=Auth.NONE, problems=("over-quota",)),
    Route("GET", "/slow", slow, "Slow", auth=Auth.NONE, deadline_s=0.01),
    Route("GET", "/events", events, "Events", deadline_s=math.inf),
    Route("WEBSOCKET", "/echo", echo, "Echo", deadline_s=math.inf),
)


@pytest.fixture
def client(stack: Stack) -> Client:
    stack.app = build_app(stack.services, ROUTES, {RELAY})
    return stack.client(ACCOUNT)


async def test_a_signed_request_reaches_its_handler_and_is_answered_in_the_form_it_asks_for(client: Client) -> None:
    for msgpack in (False, True):
        answer = await client.post("/sum", Sum([1, 2]), msgpack=msgpack)
        assert answer.status == 200
        assert answer.decode(Total) == Total(3, ACCOUNT)
    assert answer.headers["content-type"] == "application/msgpack"
    assert answer.headers["date"] == "Fri, 15 Jan 2027 08:00:00 GMT"


async def test_whatever_is_wrong_with_a_caller_it_hears_the_same(client: Client, stack: Stack) -> None:
    stranger = stack.client()
    thief = Client(stack, stack.keys(), client.token)
    now = stack.services.now()
    answers = [
        await client.post("/sum", Sum([1]), signed=False),
        await stranger.post("/sum", Sum([1])),
        await thief.post("/sum", Sum([1])),
        await Client(stack, client.keys, "x").post("/sum", Sum([1])),
        await client.post("/sum", Sum([1]), created=now - MAX_SKEW_S - 1),
        await client.post("/sum", Sum([1]), created=now + MAX_SKEW_S + 1),
        await client.post("/sum", Sum([1]), created=now - 1),  # before the relay began
        await client.post("/sum", Sum([1]), headers={"Signature": "p2p=:AAAA:"}),
    ]
    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1


async def test_a_request_works_once(client: Client, stack: Stack) -> None:
    scope, data = client._scope("POST", "/sum", Sum([1]), None, None)
    assert (await client.send(dict(scope), data)).status == 200
    assert (await client.send(dict(scope), data)).status == 401
    stack.clock.advance(MAX_SKEW_S)
    assert (await client.send(dict(scope), data)).status == 401


async def test_a_request_for_another_relay_is_refused_like_any_other(client: Client, stack: Stack) -> None:
    """What a hostile relay is told is worth nothing elsewhere, also with its name changed on the way."""
    stack.app = build_app(stack.services, ROUTES, {"other.test"})
    refused = await client.post("/sum", Sum([1]))
    stranger = await stack.client().post("/sum", Sum([1]))
    assert (refused.status, refused.body) == (401, stranger.body)
    assert (await client.post("/sum", Sum([1]), headers={"p2psync-relay": "other.test"})).status == 401
    stack.app = build_app(stack.services, ROUTES, {RELAY, "other.test"})
    assert (await client.post("/sum", Sum([1]))).status == 200


async def test_a_body_must_be_the_one_that_was_signed(client: Client) -> None:
    scope, data = client._scope("POST", "/signed", b"abc", None, None)
    assert (await client.send(scope, data.upper())).problem == "digest-mismatch"
    scope, _ = client._scope("POST", "/signed", None, None, None)
    assert (await client.send(scope, b"abc")).problem == "digest-mismatch"
    assert (await client.post("/signed", b"abc")).json()["total"] == 3


async def test_a_body_over_the_limit_is_refused_whatever_its_length_field_says(client: Client) -> None:
    assert (await client.post("/signed", bytes(1000), piece_size=7)).json()["total"] == 1000
    assert (await client.post("/signed", bytes(1001))).json()["limit"] == 1000
    assert (await client.post("/signed", bytes(1001), headers={"Content-Length": "5"})).status == 413
    assert (await client.post("/signed", bytes(5), headers={"Content-Length": "1001"})).status == 413
    assert (await client.post("/signed", bytes(5), headers={"Content-Length": "-1"})).status == 400


@pytest.mark.parametrize("body", [{"terms": ["x"]}, {"terms": [1], "more": 1}, {}, []], ids=lambda body: str(body)[:20])
async def test_a_body_that_is_not_what_the_route_takes_is_refused(client: Client, body: object) -> None:
    assert (await client.post("/sum", body)).problem == "bad-request"
    assert (await client.post("/sum", body, msgpack=True)).problem == "bad-request"


async def test_odd_bodies_and_queries_are_refused(client: Client) -> None:
    deep = b'{"terms":' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    json = {"Content-Type": "application/json"}
    assert (await client.post("/sum", deep, headers=json)).problem == "bad-request"
    assert (await client.post("/sum", b"{", headers=json)).problem == "bad-request"
    assert (await client.post("/sum", b"{}")).problem == "unsupported-media-type"
    assert (await client.get("/page", query={"after": 7})).json()["total"] == 7
    assert (await client.get("/page")).json()["total"] == 0
    for query in ({"after": "x"}, {"before": 1}, {"after": ""}):
        assert (await client.get("/page", query=query)).problem == "bad-request"


async def test_unknown_paths_and_methods_are_refused(client: Client) -> None:
    assert (await client.get("/nowhere")).problem == "not-found"
    answer = await client.get("/sum")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert (await client.get("/chunks/" + "0a" * 32)).json()["total"] == 32
    for name in ("0A" * 32, "0a" * 31, "", "x", "0a" * 32 + "/"):
        assert (await client.get(f"/chunks/{name}")).problem == "not-found"


async def test_a_refusal_carries_its_figures_and_a_failure_no_details(client: Client) -> None:
    answer = await client.get("/full")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:p2psync:problem:over-quota",
        "title": "The account's storage is full",
        "status": 507,
        "detail": "nothing left",
        "used": 10,
        "limit": 10,
    }
    answer = await client.get("/fail")
    assert (answer.problem, b"secret" in answer.body) == ("internal", False)
    assert (await client.get("/slow")).problem == "timeout"


async def test_streams_end_when_the_relay_stops(client: Client, stack: Stack) -> None:
    with trio.fail_after(10):
        async with client.stream("/events") as events, client.websocket("/echo") as socket:
            assert await events.event() == {"data": "1"}
            await socket.send("hello")
            assert await socket.receive() == "hello"
            stack.app.stop()
            with pytest.raises(trio.EndOfChannel):
                await events.piece()
            assert await socket.receive() == 1001
    assert (await client.get("/events")).problem == "unavailable"


async def test_a_stream_ends_when_its_client_leaves(client: Client) -> None:
    with trio.fail_after(10):
        async with client.stream("/events") as events:
            await events.event()
        async with client.websocket("/echo") as socket:
            await socket.send("x")


def test_addresses_are_known_by_their_network_only() -> None:
    assert network_of(("203.0.113.77", 1)) == "203.0.113.0/24"
    assert network_of(("::ffff:203.0.113.77", 1)) == "203.0.113.0/24"
    assert network_of(("2001:db8:1:2::3", 1)) == "2001:db8:1::/48"
    assert network_of(("fe80::1%eth0", 1)) == "fe80::/48"
    assert network_of(None) == network_of(("nonsense", 1)) == ""
