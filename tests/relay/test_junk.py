"""No junk makes the relay fail: in whatever part of a request it stands, it ends in a refusal of the table."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from relay.api.route import MAX_SEGMENT_CHARS, Raw, Route
from relay.api.routes import all_routes
from relay.errors import PROBLEMS
from tests.relay.stack import Stack

ROUTES = [route for route in all_routes() if not route.is_stream]
JUNK = [None, True, 0, -1, 1 << 63, 1 << 64, 10**40, 1.5, "", "x", "\0", "é" * 40, "A" * 43, "a" * 26, [], [[]], {}]
TEXTS = [
    "0",
    "x",
    "-1",
    "%00",
    "a" * MAX_SEGMENT_CHARS,
    "a" * 26,
    "A" * 43,
    "0a" * 32,
    "AAAAAAA-" * 8,
    "..",
    "'",
    "%C3%A9",
]


def bodies(route: Route, chance: random.Random) -> list[Any]:
    if route.body is None:
        return [None]
    if isinstance(route.body, Raw):
        return [None, b"", b"\0", chance.randbytes(1000)]
    fields = route.body.__struct_encode_fields__
    made: list[Any] = [[], None, "x", {}]
    made += [{field: chance.choice(JUNK) for field in fields} for _ in range(12)]
    return made


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_junk_is_refused(route: Route, stack: Stack) -> None:
    chance = random.Random(f"{route.method} {route.path}")
    client = stack.client(b"a" * 16)
    for body in bodies(route, chance):
        path = re.sub(r"\{\w+\}", lambda _match: chance.choice(TEXTS), route.path)
        query = {name: chance.choice(TEXTS) for name in query_fields(route)} if chance.random() < 0.8 else {"x": "y"}
        for msgpack in (False, True):
            try:
                answer = await client.request(route.method, path, body, query=query, msgpack=msgpack)
            except OverflowError:
                continue  # MessagePack has no such number
            assert answer.status < 500 or answer.problem == "unavailable", (body, query, answer.body)
            if answer.status >= 400 and route.method != "HEAD":
                assert PROBLEMS[answer.problem].status == answer.status


def query_fields(route: Route) -> tuple[str, ...]:
    return route.query.__struct_encode_fields__ if route.query else ()
