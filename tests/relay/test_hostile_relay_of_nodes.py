"""Whole nodes and a whole relay, between which somebody changes what the relay says and what it keeps.

The twelve attacks of `docs/security.md` are here as far as they need the relay's own answers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from p2psync.node.node import NodeOperations
from p2psync.sync.mailbox import mailbox
from tests.relay.homes import FOLDER, LABEL, Home, begun, is_posted, the_folder, until

Answer = dict[str, Any]
Lie = Callable[[Answer], Answer]
FILES = {b"f%d" % n: bytes([n]) * (300_000 + n) for n in range(3)}


class Liar:
    """Stands where the relay's application does; honest until it is told a lie."""

    def __init__(self, home: Home) -> None:
        self.app = home.relay.line.app
        assert self.app is not None
        self.pages: Lie | None = None
        """What becomes of a page of a folder's feed."""
        self.chunks: Callable[[bytes], bytes] | None = None
        """What becomes of the bytes of a chunk."""
        self.refuses = 0
        """So many requests more are refused, with a time of its own."""
        self.forgets = False
        """Whether entries are acknowledged that are not kept."""
        self.told = 0
        """How often it has lied."""

    def be_honest(self) -> None:
        self.pages = self.chunks = None
        self.forgets, self.refuses = False, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.app is not None
        method, path = scope.get("method"), scope["path"]
        if self.refuses and path != "/api/v1/notifications":
            self.refuses -= 1
            await self._say(send, 401, b"", [(b"date", formatdate(4_000_000_000, usegmt=True).encode())])
        elif self.forgets and (method, path) == ("POST", "/api/v1/objects"):
            await self._forget(receive, send)
        elif self.pages and method == "GET" and path.startswith("/api/v1/folders/") and path.endswith("/objects"):
            lie = self.pages
            await self._change(scope, receive, send, lambda body: _pack(lie(msgspec.msgpack.decode(body))))
        elif self.chunks and method == "GET" and path.startswith("/api/v1/chunks/"):
            await self._change(scope, receive, send, self.chunks)
        else:
            await self.app(scope, receive, send)

    async def _forget(self, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        count = len(msgspec.msgpack.decode(body)["entries"])
        places = [{"seq": 1000 + n, "object_id": 1000 + n} for n in range(count)]
        await self._say(send, 200, _pack({"places": places}), [(b"content-type", b"application/msgpack")])

    async def _change(self, scope: Any, receive: Any, send: Any, lie: Callable[[bytes], bytes]) -> None:
        assert self.app is not None
        head: Any = None
        body = b""

        async def take(message: Any) -> None:
            nonlocal head, body
            if message["type"] == "http.response.start":
                head = message
            else:
                body += message["body"]

        await self.app(scope, receive, take)
        headers = [(name, value) for name, value in head["headers"] if name != b"content-length"]
        await self._say(send, head["status"], lie(body) if head["status"] == 200 else body, headers)

    async def _say(self, send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.told += 1
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _pack(answer: Answer) -> bytes:
    return msgspec.msgpack.encode(answer)


@pytest.fixture
async def home(home: Home) -> Home:
    await begun(home)
    return home


@pytest.fixture
async def liar(home: Home) -> Liar:
    liar = Liar(home)
    home.relay.line.start(liar)
    return liar


async def left_by_the_desk(home: Home) -> None:
    """One device has left some files and is gone."""
    async with home.node("a") as desk:
        for name, content in FILES.items():
            home.device("a").user(FOLDER).write(name, content)
            await desk.folder_scan(LABEL)
            await until(lambda: is_posted(desk))


@asynccontextmanager
async def returning(home: Home) -> AsyncIterator[NodeOperations]:
    """The other device comes back when nobody is there but the relay."""
    async with home.node("b") as laptop:
        await until(lambda: bool(the_folder(laptop).mailroom.mailboxes))
        yield laptop


def problems(node: NodeOperations) -> set[str]:
    return set(the_folder(node).context.problems)


async def test_entries_in_another_order_under_other_numbers_are_put_right(
    autojump_clock: MockClock, home: Home, liar: Liar
) -> None:
    await left_by_the_desk(home)

    def turned(page: Answer) -> Answer:
        entries = [place["entry"] for place in reversed(page["objects"])]
        objects = [place | {"entry": entry} for place, entry in zip(page["objects"], entries, strict=True)]
        return page | {"objects": objects}

    liar.pages = turned
    async with returning(home):
        await until(lambda: home.files("b") == FILES, timeout=900)
    assert liar.told


async def test_what_is_acknowledged_and_forgotten_is_noticed_and_left_again(
    autojump_clock: MockClock, home: Home, liar: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "JUDGE_EVERY", 60.0)
    async with home.node("a") as desk:
        liar.forgets = True
        home.device("a").user(FOLDER).write(b"f", b"1")
        await desk.folder_scan(LABEL)
        await until(lambda: is_posted(desk))
        assert liar.told
        await until(lambda: bool({"relay-rollback", "relay-withholds"} & problems(desk)), timeout=600)
        liar.be_honest()
        await until(lambda: is_posted(desk), timeout=600)
        await trio.sleep(120)
    async with returning(home):
        await until(lambda: home.files("b") == {b"f": b"1"})


async def test_numbers_that_make_no_sense_hide_nothing_for_good(
    autojump_clock: MockClock, home: Home, liar: Liar
) -> None:
    """It says that everything is gone, and that there is more than anybody could read."""
    await left_by_the_desk(home)
    liar.pages = lambda page: page | {"objects": [], "pruned_seq": 1 << 40, "last_seq": 1 << 40}
    async with returning(home) as laptop:
        await until(lambda: "relay-withholds" in problems(laptop), timeout=900)
        assert home.files("b") == {}
        liar.be_honest()
        await until(lambda: home.files("b") == FILES, timeout=4000)


async def test_chunks_that_are_others_or_damaged_are_never_a_content(
    autojump_clock: MockClock, home: Home, liar: Liar
) -> None:
    await left_by_the_desk(home)
    first: list[bytes] = []

    def another(data: bytes) -> bytes:
        first.append(data)
        return first[0] if len(first) > 1 else data[:-1] + bytes((data[-1] ^ 1,))

    liar.chunks = another
    async with returning(home) as laptop:
        await until(lambda: "relay-damaged" in problems(laptop))
        await trio.sleep(30)
        assert all(FILES[name] == content for name, content in home.files("b").items())
        liar.be_honest()
        await until(lambda: home.files("b") == FILES, timeout=7200)


async def test_a_wrong_time_is_believed_for_signing_only(autojump_clock: MockClock, home: Home, liar: Liar) -> None:
    await left_by_the_desk(home)
    liar.refuses = 5
    async with returning(home):
        await until(lambda: home.files("b") == FILES, timeout=2000)
        a, b = (home.device(name).user(FOLDER) for name in ("a", "b"))
        for name in FILES:
            assert a.stat(name).mtime_ns == b.stat(name).mtime_ns  # type: ignore[union-attr]
    assert liar.told == 5
