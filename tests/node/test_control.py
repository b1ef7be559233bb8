"""The control API and its client, over real loopback sockets."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from p2psync.errors import InputError, P2PSyncError, StateError
from p2psync.node import control, views
from p2psync.node.control import serve_control
from p2psync.node.control_client import connect
from p2psync.node.control_file import ControlFile
from p2psync.node.events import EventLog
from p2psync.node.operations import OPERATION_NAMES, Operations, operation
from tests.cli.fake import FOLDER, ME, FakeOperations


@asynccontextmanager
async def served(home: Path) -> AsyncIterator[tuple[FakeOperations, Operations]]:
    fake = FakeOperations()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, fake, home)
        client = await connect(home)
        assert client is not None
        yield fake, client
        with trio.fail_after(2):
            nursery.cancel_scope.cancel()
            await trio.sleep(0)


async def ask(
    home: Path, request: str, *, token: str | None = None, host: str | None = None
) -> tuple[int, dict[str, object]]:
    """One raw HTTP request: "METHOD TARGET" or "METHOD TARGET BODY"."""
    file = ControlFile.read(home / "control.json")
    assert file is not None
    method, target, *rest = request.split(" ", 2)
    where = file.url.removeprefix("http://")
    body = rest[0] if rest else ""
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: {host or where}\r\nAuthorization: Bearer {token or file.token}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    answer = b""
    with trio.fail_after(5):
        async with await trio.open_tcp_stream("127.0.0.1", int(where.rpartition(":")[2])) as stream:
            await stream.send_all((head + body).encode())
            async for data in stream:
                answer += data
    top, _, content = answer.partition(b"\r\n\r\n")
    assert b"access-control" not in top.lower()
    return int(top.split(b" ")[1]), json.loads(content)


async def test_control_file_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    async with served(tmp_path):
        file = tmp_path / "control.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_bytes())["pid"] == os.getpid()
    assert not file.exists()
    assert await connect(tmp_path) is None


async def test_every_operation_is_served_by_the_same_name(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, client):
        assert await client.identity() == ME
        status = await client.status()
        assert status.folders == [FOLDER]
        assert status.node is not None
        assert await client.folder_add(b"/data/\xff", label="x") == views.FolderRef(
            FOLDER.id, "x", "/data/\\xff", b"/data/\xff"
        )
        await client.folder_resume("photos", adopt=True)
        assert fake.calls == [
            ("folder_add", b"/data/\xff", "x", "blake3"),
            ("folder_resume", FOLDER.id, False, True),
        ]
        assert (await client.wait(1.5)).identical
        assert await client.restore(b"/a", at=5.0) == views.Restored("/a", "v1", 12)


def test_the_fake_has_every_operation_and_every_row_can_be_built() -> None:
    for name in OPERATION_NAMES:
        assert callable(getattr(FakeOperations, name))
        row = operation(name)
        msgspec.json.Decoder(row.result)
    assert "wait" in OPERATION_NAMES
    assert "events" not in OPERATION_NAMES


async def test_errors_keep_class_text_and_exit_code(tmp_path: Path) -> None:
    async with served(tmp_path) as (_, client):
        with pytest.raises(InputError, match="cannot contain"):
            await client.device_add("???")
        with pytest.raises(StateError, match="used already"):
            await client.pair_join("used")
        with pytest.raises(InputError, match="no folder is called 'nope'"):
            await client.folder_pause("nope")
        with pytest.raises(P2PSyncError, match="internal error in folder_scan: RuntimeError") as caught:
            await client.folder_scan("photos")
        assert "secret" not in str(caught.value)
        with pytest.raises(StateError, match=r"^from inside a nursery$"):
            await client.folder_unshare("grouped", "x")
        with pytest.raises(P2PSyncError, match=r"^/data/\\udcff: No space left on device$"):
            await client.folder_unshare("disk", "x")
        assert (await client.identity()).name == "desk"


@pytest.mark.parametrize(
    ("request_line", "status", "kind"),
    [
        ("POST /v1/nothing {}", 404, "InputError"),
        ("POST /v1/events {}", 404, "InputError"),
        ("POST /identity {}", 404, "InputError"),
        ("GET /v1/identity", 405, "UsageError"),
        ("POST /v1/identity {", 400, "UsageError"),
        ('POST /v1/identity {"x":1}', 400, "UsageError"),
        ("POST /v1/wait", 400, "UsageError"),
        ('POST /v1/wait {"timeout_s":"1"}', 400, "UsageError"),
        ('POST /v1/folder_share {"folder":"a","with_":"b","role":"king"}', 400, "UsageError"),
        ("GET /v1/events?after=-1", 400, "UsageError"),
        ("GET /v1/events?after=" + "9" * 30, 400, "UsageError"),
        ("GET /v1/events?after=13", 403, "PermissionDenied"),
    ],
)
async def test_bad_requests_are_answered_as_json(tmp_path: Path, request_line: str, status: int, kind: str) -> None:
    async with served(tmp_path):
        number, answer = await ask(tmp_path, request_line)
    assert (number, answer["kind"]) == (status, kind)
    assert answer["error"]
    assert answer["exit_code"] == (2 if kind == "UsageError" else 1)


async def test_a_wrong_token_or_host_gets_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, _):
        for target in ("POST /v1/identity {}", "GET /v1/events", "POST /v1/nothing {}"):
            assert (await ask(tmp_path, target, token="guess"))[0] == 401
            assert (await ask(tmp_path, target, host="evil.example"))[0] == 403
            assert (await ask(tmp_path, target, host="evil.example:80"))[0] == 403
        assert (await ask(tmp_path, "GET /v1/health", host="evil.example"))[0] == 403
        number, health = await ask(tmp_path, "GET /v1/health", token="guess")
        assert (number, health["service"], health["pid"]) == (200, "p2psync", os.getpid())
        assert fake.calls == []


async def test_a_web_socket_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path):
        file = ControlFile.read(tmp_path / "control.json")
        assert file is not None
        where = file.url.removeprefix("http://")
        async with await trio.open_tcp_stream("127.0.0.1", int(where.rpartition(":")[2])) as stream:
            upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13"
            key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
            await stream.send_all(f"GET /v1/events HTTP/1.1\r\nHost: {where}\r\n{upgrade}\r\n{key}\r\n\r\n".encode())
            with trio.fail_after(5):
                assert b" 403 " in await stream.receive_some(4096)


async def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path):
        assert (await ask(tmp_path, "POST /v1/identity " + " " * (control.MAX_BODY_BYTES - 2) + "{}"))[0] == 200
        number, answer = await ask(tmp_path, "POST /v1/identity " + " " * (control.MAX_BODY_BYTES - 1) + "{}")
        assert (number, answer["error"]) == (400, "a request is at most 1048576 bytes")


async def test_a_body_that_never_comes_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BODY_TIMEOUT_S", 0.05)
    async with served(tmp_path):
        file = ControlFile.read(tmp_path / "control.json")
        assert file is not None
        where = file.url.removeprefix("http://")
        async with await trio.open_tcp_stream("127.0.0.1", int(where.rpartition(":")[2])) as stream:
            head = f"POST /v1/identity HTTP/1.1\r\nHost: {where}\r\nAuthorization: Bearer {file.token}\r\n"
            await stream.send_all(f"{head}Content-Length: 9\r\n\r\n".encode())
            with trio.fail_after(5):
                assert b" 400 " in await stream.receive_some(4096)


async def test_a_caller_that_leaves_cancels_its_operation(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, client):
        with trio.move_on_after(0.1) as scope:
            await client.pair_wait("never")
        assert scope.cancelled_caught
        with trio.fail_after(2):
            await fake.cancelled.wait()


async def test_deadline_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = msgspec.structs.replace(operation("pair_wait"), deadline=0.05)
    monkeypatch.setattr(control, "operation", lambda _: slow)
    async with served(tmp_path) as (_, client):
        with pytest.raises(StateError, match="did not finish within"):
            await client.pair_wait("never")


async def test_more_requests_than_allowed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_EVENT_STREAMS", 1)
    async with served(tmp_path) as (_, client):
        async with client.events():
            with pytest.raises(StateError, match="busy"):
                async with client.events():
                    pass
        assert await client.identity() == ME


async def test_events_arrive_and_resume_after_a_cursor(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, client):
        fake.log_of_events.publish("before")
        with trio.fail_after(5):
            async with client.events() as events:
                fake.log_of_events.publish("folder.state", "now idle", folder=FOLDER.id, state="idle")
                event = await anext(events)
            assert (event.cursor, event.kind, event.data) == (2, "folder.state", {"state": "idle"})
            async with client.events(0) as events:
                assert [(await anext(events)).kind for _ in range(2)] == ["before", "folder.state"]


async def test_stopping_with_an_open_event_stream_is_quick(tmp_path: Path) -> None:
    async with trio.open_nursery() as outer:
        fake = FakeOperations()
        scope = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[str]) -> None:
            with scope:
                await serve_control(fake, tmp_path, task_status=task_status)

        await outer.start(serve)
        client = await connect(tmp_path)
        assert client is not None
        async with client.events():
            start = trio.current_time()
            scope.cancel()
            while (tmp_path / "control.json").exists():
                await trio.lowlevel.checkpoint()
        assert trio.current_time() - start < 1


async def test_stream_ends_when_the_node_ends_it(tmp_path: Path) -> None:
    async with served(tmp_path) as (fake, client):
        with trio.fail_after(5):
            async with client.events() as events:
                fake.log_of_events.close()
                assert [event async for event in events] == []


@pytest.mark.parametrize(
    "answer", [b"", b"220 mail.example ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]
)
async def test_another_program_on_the_port_is_not_taken_for_the_node(tmp_path: Path, answer: bytes) -> None:
    heard = bytearray()

    async def impostor(stream: trio.SocketStream) -> None:
        heard.extend(await stream.receive_some())
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, impostor, 0)
        port = listeners[0].socket.getsockname()[1]
        ControlFile(f"http://127.0.0.1:{port}", "the-token", 1).write(tmp_path / "control.json")
        assert await connect(tmp_path) is None
        nursery.cancel_scope.cancel()
    assert heard
    assert b"the-token" not in heard


async def test_stale_or_damaged_control_file_means_not_running(tmp_path: Path) -> None:
    file = tmp_path / "control.json"
    ControlFile("http://127.0.0.1:1", "t", 1).write(file)
    assert await connect(tmp_path) is None
    file.write_bytes(b"{")
    assert await connect(tmp_path) is None
    file.chmod(0o644)
    with pytest.raises(StateError, match="other users"):
        await connect(tmp_path)


async def test_slow_reader_is_told_of_the_gap() -> None:
    log = EventLog(lambda: 1.0, kept=3)
    async with log.subscribe() as events:
        for number in range(5):
            log.publish("tick", n=number)
        first, second = await anext(events), await anext(events)
        assert (first.kind, first.cursor, second.kind, second.cursor) == ("gap", 2, "tick", 3)
        assert [(await anext(events)).cursor for _ in range(2)] == [4, 5]
        log.close()
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_cursor_of_an_earlier_run_gives_a_gap() -> None:
    log = EventLog(lambda: 1.0)
    log.publish("start")
    async with log.subscribe(900) as events:
        event = await anext(events)
        assert (event.kind, event.cursor) == ("gap", 1)


async def test_cancelled_wait_loses_no_event() -> None:
    log = EventLog(lambda: 1.0)
    async with log.subscribe() as events:
        with trio.move_on_after(0):
            await anext(events)
        log.publish("tick")
        assert (await anext(events)).kind == "tick"
