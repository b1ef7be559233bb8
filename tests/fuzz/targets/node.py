"""Settings, state, the control API and its client, and the texts of commands."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import msgspec
import trio
import typer

from p2psync.cli.versions import parse_time
from p2psync.errors import ConfigError, InputError, IntegrityError, P2PSyncError, StateError
from p2psync.model.ids import format_device_id, format_folder_id
from p2psync.node import config
from p2psync.node.control import ControlApi
from p2psync.node.control_client import _error, _EventReader
from p2psync.node.control_file import ControlFile
from p2psync.node.home import DeviceEntry, FolderEntry, Home, HomeState
from p2psync.node.lookup import find
from p2psync.node.operations import OPERATION_NAMES
from p2psync.node.values import format_size, parse_size
from tests.fuzz.rules import Target
from tests.fuzz.targets.net import at_once
from tests.fuzz.targets.signed import AUTHOR, FOLDER


class MemoryFile:
    """As much of a `Path` as the readers of small files use; every file below it is the same one."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __truediv__(self, _name: str) -> MemoryFile:
        return self

    def open(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self.data)

    def exists(self) -> bool:
        return True

    def read_bytes(self) -> bytes:
        return self.data

    def read_text(self, encoding: str) -> str:
        return io.TextIOWrapper(io.BytesIO(self.data), encoding=encoding).read()


def _replace(path: MemoryFile, content: bytes) -> None:
    path.data = content


@contextmanager
def in_memory() -> Iterator[None]:
    """Small files are replaced and read without a disk."""
    with (
        mock.patch("p2psync.node.config.replace_file", _replace),
        mock.patch("p2psync.node.home.replace_file", _replace),
        mock.patch("p2psync.node.control_file.read_private", lambda path: path.data),
    ):
        yield


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_config(data: bytes) -> None:
    """The configuration file: what is accepted can be shown, and means the same when it is written again."""
    settings = config.parse_config(data, "config.toml")
    shown = [(row, config.show_setting(settings, name)) for name, row in config.SETTINGS.items()]
    again = "".join(f"{row.section}.{row.key} = {value}\n" for row, value in shown)
    assert config.parse_config(again.encode(), "again") == settings


_SET = msgspec.msgpack.Decoder(tuple[bytes, bytes, bytes])


def feed_config_set(data: bytes) -> None:
    """`config set`: one setting changes, in a file laid out in any way; or it is refused and nothing does."""
    try:
        old, name, value = _SET.decode(data)
    except (msgspec.MsgspecError, ValueError):
        old, name, value = data, b"log.level", b"debug"
    file = MemoryFile(old)
    path = cast("Path", file)
    key = name.decode("utf-8", "surrogateescape")
    try:
        changed = config.set_setting(path, key, value.decode("utf-8", "surrogateescape"))
    except P2PSyncError:
        assert file.data == old
        raise
    before = config.parse_config(old, "old")
    for other in config.SETTINGS:
        assert other == key or config.get_setting(changed, other) == config.get_setting(before, other)


_TOML = b"""# note
device.name = "desk"
[network]   # where
listen = [":22067",
  "[::1]:1"]
discovery = true
max_send_rate = "1.5 MiB"
[sync]
rescan_interval_s = 0x10
[guards]
"max_delete_count" = 1_000
[log]
level = 'debug'
format = \"\"\"auto\"\"\"
"""


def _config_seeds() -> list[bytes]:
    default = config.render_default_config().encode()
    return [
        _TOML,
        b"log = {level = 'info'}\n",
        default[:2000],
        default[:1500].replace(b"\n#", b"\n").replace(b" Allowed", b"#"),
    ]


def _set_seeds() -> list[bytes]:
    wanted = [
        (b"log.level", b"error"),
        (b"network.listen", b":1,[::1]:2"),
        (b"guards.max_delete_count", b"7"),
        (b"device.name", 'd\u00e9sk "x"'.encode()),
        (b"network.max_send_rate", b"10MB"),
        (b"sync.debounce_ms", b"9"),
    ]
    files = (_TOML, b"", b"[log]\n#level = 'x'\n", b"log = {level = 'info'}\r\n[sync]\r\ndebounce_ms = 5 # x\r\n")
    return [msgspec.msgpack.encode((file, name, value)) for file in files for name, value in wanted]


# ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────────
def feed_state(data: bytes) -> None:
    """state.json: what is read is what is written again, and what the node takes from it at its start can be taken."""
    home = Home(cast("Path", MemoryFile(data)))
    state = home.load_state()
    for device in state.devices:
        bytes.fromhex(device.agreement_key)
    home.save_state(state)
    assert home.load_state() == state


def _state_seeds() -> list[bytes]:
    file = MemoryFile(b"")
    device = DeviceEntry(
        id=format_device_id(AUTHOR.device_id), name="desk", addresses=("192.0.2.1:1",), agreement_key="ab" * 32
    )
    folder = FolderEntry(id=format_folder_id(FOLDER), label="photos", path="/data/%\udcff", paused=True)
    with in_memory():
        Home(cast("Path", file)).save_state(HomeState(devices=(device, device), folders=(folder,)))
    return [file.data]


def feed_control_file(data: bytes) -> None:
    """control.json: one of ours, or none."""
    ControlFile.read(cast("Path", MemoryFile(data)))


# ── the control API ─────────────────────────────────────────────────────────────────────────────────────────────────
class Obedient:
    """Does whatever it is asked, at once: each operation's result is its arguments."""

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATION_NAMES:
            raise AttributeError(name)

        async def operation(**arguments: object) -> object:
            return arguments

        return operation

    @asynccontextmanager
    async def events(self, after: int | None) -> AsyncIterator[AsyncIterator[Any]]:
        assert after is None or after >= 0

        async def nothing() -> AsyncIterator[Any]:
            return
            yield

        yield nothing()


_REQUEST = msgspec.msgpack.Decoder(tuple[str, str, bytes, list[tuple[bytes, bytes]], list[bytes]])
_API = ControlApi(cast("Any", Obedient()), "token")


async def _answer(
    method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], pieces: list[bytes]
) -> list[Any]:
    """What the API says to a request."""
    said: list[Any] = []
    coming: list[dict[str, object]] = [{"type": "http.request", "body": b, "more_body": True} for b in pieces[:8]]
    coming.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, object]:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: object) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": headers,
        "server": ("127.0.0.1", 1),
    }
    await _API(scope, receive, send)
    return said


def feed_control(data: bytes) -> None:
    """A request: it is answered once, in JSON, whatever it was."""
    try:
        method, path, query, headers, pieces = _REQUEST.decode(data)
    except (msgspec.MsgspecError, ValueError):
        method, path, query, headers, pieces = "POST", "/v1/restore", b"", _HEADERS, [data]
    try:
        said = at_once(_answer(method, path, query, headers, pieces))
    except RuntimeError:
        # An event loop takes most of the time, and few requests come so far as to need one.
        said = trio.run(_answer, method, path, query, headers, pieces)
    if not said:
        return
    starts = [message for message in said if message["type"] == "http.response.start"]
    assert len(starts) == 1
    if starts[0]["status"] >= 400:
        answer = json.loads(b"".join(message.get("body", b"") for message in said))
        assert answer.keys() == {"error", "exit_code", "kind"}
        raise P2PSyncError(answer["error"])


_HEADERS = [(b"host", b"127.0.0.1:1"), (b"authorization", b"Bearer token")]


def _control_seeds() -> list[bytes]:
    bodies: dict[str, object] = {
        "device_add": {"device": "X", "name": None, "addresses": ["a:1"]},
        "folder_add": {"path": "L2RhdGE=", "label": "x"},
        "folder_share": {"folder": "f", "with_": "d", "role": "viewer"},
        "restore": {"path": "L2E=", "at": 5.5},
        "wait": {"timeout_s": 1.5},
        "folder_resume": {"folder": "f", "adopt": True},
        "status": {},
    }
    requests = [("POST", f"/v1/{name}", b"", _HEADERS, [json.dumps(body).encode()]) for name, body in bodies.items()]
    requests.append(("GET", "/v1/events", b"after=5", _HEADERS, []))
    requests.append(("GET", "/v1/health", b"", _HEADERS[:1], []))
    return [msgspec.msgpack.encode(request) for request in requests]


def feed_control_answer(data: bytes) -> None:
    """What stands at the port of a node that is gone: an error, or events."""
    assert isinstance(_error(data), P2PSyncError)
    at_once(_read_events([data[: len(data) // 2], data[len(data) // 2 :]]))


async def _read_events(pieces: list[bytes]) -> None:
    async def piece() -> bytes:
        return pieces.pop(0) if pieces else b""

    async for _ in _EventReader(cast("Any", SimpleNamespace(data=piece))):
        pass


# ── what people type ────────────────────────────────────────────────────────────────────────────────────────────────
def feed_size(data: bytes) -> None:
    """A number of bytes with a unit."""
    count = parse_size(data.decode("utf-8", "surrogateescape"))
    assert parse_size(format_size(count)) == count


def feed_time(data: bytes) -> None:
    """A moment, or an age."""
    assert isinstance(parse_time(data.decode("utf-8", "surrogateescape"), 1e9), float)


def feed_lookup(data: bytes) -> None:
    """A folder or device by name, ID or the beginning of one."""
    known = [("ABCDEFG-HIJKLMN", "desk"), ("ABCDXYZ-HIJKLMN", ""), ("QQQQQQQ-QQQQQQQ", "ABCDEFG")]
    assert find("device", data.decode("utf-8", "surrogateescape"), known) in dict(known)


_EVENT = b'id: 1\nevent: tick\ndata: {"cursor":1,"at":1.0,"kind":"tick","text":"","folder":null,"data":{}}\n\n'
_ANSWER = b'{"error":"no","exit_code":1,"kind":"InputError"}'

TARGETS = (
    Target("config", feed_config, (ConfigError,), _config_seeds, "text"),
    Target("config-set", feed_config_set, (ConfigError, InputError), _set_seeds, "msgpack", in_memory),
    Target("state", feed_state, (IntegrityError, StateError), _state_seeds, "json", in_memory),
    Target(
        "control-file", feed_control_file, (), lambda: [b'{"url":"http://x:1","token":"t","pid":1}'], "json", in_memory
    ),
    Target("size", feed_size, (InputError,), lambda: [b"10MiB", b"1.5 GB", b"4096"], "text"),
    Target("time", feed_time, (typer.BadParameter,), lambda: [b"90min", b"2026-01-31 08:15", b"3d"], "text"),
    Target("lookup", feed_lookup, (InputError,), lambda: [b"desk", b"abcd-efg", b"ABCDEFG"], "text"),
    Target("control", feed_control, (P2PSyncError,), _control_seeds, "msgpack"),
    Target("control-answer", feed_control_answer, (StateError,), lambda: [_ANSWER, _EVENT * 2], "json"),
)
