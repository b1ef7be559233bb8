"""A node's client against the real relay process: TLS with its fingerprint, HTTP/2, large bodies, kill -9."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import httpcore2
import pytest
import trio

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.errors import AuthenticationError, RelayRefusal
from p2psync.membership.sigchain import begin_account
from p2psync.model.ids import FolderId
from p2psync.net.http import HttpsClient
from p2psync.net.relay_client import RelayClient
from p2psync.node import init, open_offline
from p2psync.node.world import real_world
from p2psync.protocol.relay_address import parse_relay_address
from p2psync.protocol.relay_api import EventKind
from tests.relay.process import RelayProcess
from tests.relay.simulated import device

EMAIL, KEY = "ann@example.org", b"k" * 32
FOLDER = FolderId(b"f" * 16)


async def mailed_code(relay: RelayProcess) -> str:
    """The newest code in the outbox directory."""
    with trio.fail_after(30):
        while True:
            for file in sorted((relay.data / "outbox").glob("*.eml"), reverse=True):
                body = message_from_bytes(file.read_bytes(), policy=default).get_content()
                found = re.search(r"code is ([A-Z2-7]{4}-[A-Z2-7]{4})", body)
                if found:
                    return found[1]
            await trio.sleep(0.1)


@asynccontextmanager
async def signed_up(relay: RelayProcess) -> AsyncIterator[RelayClient]:
    keys = device("desk")
    chain = begin_account(keys, bytes(16))
    client = RelayClient(real_world(discovery=False), keys, [parse_relay_address(relay.url)])
    try:
        await client.accounts.sign_up(EMAIL, KEY, chain.head.encoded)
        await client.accounts.verify(chain.account_id, await mailed_code(relay))
        yield client
    finally:
        await client.aclose()


async def test_an_account_of_a_home_without_a_node(relay_process: RelayProcess, tmp_path: Path) -> None:
    home = tmp_path / "home"
    await trio.to_thread.run_sync(init, home, "desk")
    async with open_offline(home) as desk:
        await desk.account_sign_up([relay_process.url], EMAIL, KEY)
    assert [path.stat().st_mode & 0o777 for path in (home / "account.json", home / "account")] == [0o600, 0o700]
    async with open_offline(home) as desk:
        view = await desk.account_verify(await mailed_code(relay_process))
        assert (view.state, view.problems) == ("active", [])
        assert len(await desk.account_devices()) == 2
    assert (home / "account" / "chain").stat().st_mode & 0o777 == 0o600


async def test_the_wrong_relay_is_told_nothing(relay_process: RelayProcess) -> None:
    wrong = replace(parse_relay_address(relay_process.url), fingerprint=hashlib.sha256(b"another").digest())
    client = RelayClient(real_world(discovery=False), device("desk"), [wrong])
    with pytest.raises(AuthenticationError, match="not the one its URL names"):
        await client.accounts.plans()
    await client.aclose()
    assert "/api/v1/plans" not in relay_process.log.read_text()


async def test_api_requests_share_one_connection_of_http_2(relay_process: RelayProcess) -> None:
    client = HttpsClient(parse_relay_address(relay_process.url))
    versions: set[bytes] = set()
    send = httpcore2.AsyncConnectionPool.handle_async_request

    async def note(self: httpcore2.AsyncConnectionPool, request: httpcore2.Request) -> httpcore2.Response:
        response = await send(self, request)
        versions.add(response.extensions["http_version"])
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpcore2.AsyncConnectionPool, "handle_async_request", note)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(_ask, client, "/healthz")
        assert versions == {b"HTTP/2"}
        versions.clear()
        await _ask(client, "/healthz", bulk=True)
        assert versions == set(), "a connection of its own"
    await client.aclose()


async def _ask(client: HttpsClient, target: str, *, bulk: bool = False) -> None:
    answer = await client.request("GET", target, headers={}, max_body=1 << 16, timeout_s=30, bulk=bulk)
    assert answer.status == 200


async def test_chunks_up_and_down(relay_process: RelayProcess) -> None:
    async with signed_up(relay_process) as client:
        await client.mailbox.create_folder(FOLDER)
        chunks = {hashlib.sha256(bytes([n])).digest(): bytes([n]) * (MAX_SEALED_CHUNK // (n + 1)) for n in range(6)}
        names = list(chunks)
        assert await client.blocks.missing(FOLDER, names) == names
        async with trio.open_nursery() as nursery:
            for name, data in chunks.items():
                nursery.start_soon(client.blocks.put, FOLDER, name, memoryview(data))
        assert await client.blocks.missing(FOLDER, names) == []
        assert (await client.blocks.put(FOLDER, names[0], chunks[names[0]])).new is False
        await client.blocks.put_ref(FOLDER, b"r" * 32, names)
        assert (await client.blocks.ref(FOLDER, b"r" * 32)).chunk_ids == names
        assert [ref.count for ref in await client.blocks.refs(FOLDER)] == [6]
        for name, data in chunks.items():
            assert await client.blocks.get(FOLDER, name) == data
            assert await client.blocks.get(FOLDER, name, len(data) - 5) == data[-5:]
        with pytest.raises(RelayRefusal) as refused:
            await client.blocks.get(FOLDER, bytes(32))
        assert refused.value.code == "not-found"
        with pytest.raises(RelayRefusal) as refused:
            await client.blocks.put(FOLDER, bytes(32), bytes(MAX_SEALED_CHUNK + 1))
        assert refused.value.code == "too-large"
        await client.blocks.delete_ref(FOLDER, b"r" * 32)


async def test_news_and_calls_outlive_a_killed_relay(relay_process: RelayProcess) -> None:
    relay = relay_process
    async with signed_up(relay) as client, client.news.subscribe() as news:
        first = await news.receive()
        await trio.to_thread.run_sync(relay.kill)
        with trio.move_on_after(0.3) as limit:
            await client.accounts.status()
        assert limit.cancelled_caught
        await trio.to_thread.run_sync(relay.start)
        with trio.fail_after(60):
            await client.mailbox.create_folder(FOLDER)
            async for step in news:
                assert step.cursor >= first.cursor
                if step.event is not None and step.event.folder_id == FOLDER:
                    break


async def test_a_plan_set_by_the_operator_is_news_at_once(relay_process: RelayProcess) -> None:
    """The operator's commands are another process."""
    async with signed_up(relay_process) as client, client.news.subscribe() as news:
        await news.receive()
        done = await trio.to_thread.run_sync(relay_process.run, "admin", "plans", "set", EMAIL, "free")
        assert done.returncode == 0, done.stderr
        with trio.fail_after(10):
            async for step in news:
                if step.event is not None and step.event.kind is EventKind.QUOTA:
                    break
