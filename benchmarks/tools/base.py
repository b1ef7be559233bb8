"""What every program that is compared can be asked, and the small helpers that drive them."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from benchmarks.network import Host

START_LIMIT_S = 60.0


class NotInstalledError(Exception):
    """The program is not on this machine; the text is its name."""


class Tool(Protocol):
    """One program that keeps (or makes) folders the same, one folder per host of a network."""

    name: str
    folders: list[Path]
    """Empty directories after `start`; what happens in the first has to appear in the others."""

    def start(self) -> None:
        """Begin; leaves all ends idle."""

    def roots(self) -> tuple[int | None, ...]:
        """The process of each end whose family does the work; None while it does not run."""

    def kick(self, changed: bool) -> None:
        """Say that there is work, at once; `changed`: a single change, which is left to whoever watches."""

    def stop(self) -> None:
        """End everything."""


class Service(Tool, Protocol):
    """A program that runs all the time and can be asked how it stands."""

    def scan(self, end: int) -> None:
        """Compare the folder of an end with what is known of it; returns when that is done."""

    def in_sync(self, end: int) -> bool:
        """Whether an end has scanned, lacks nothing and knows another that has the same."""

    def halt(self, end: int) -> None:
        """End the process of one end."""

    def launch(self, end: int) -> None:
        """Start it again; returns once it answers."""

    def pause(self, end: int) -> None:
        """Neither scan nor exchange the folder of an end."""

    def resume(self, end: int) -> None:
        """Go on."""


class Api:
    """The HTTP interface of a program on 127.0.0.1 of a host."""

    def __init__(self, host: Host, port: int, headers: Mapping[str, str]) -> None:
        self._host, self._port, self._headers = host, port, headers

    def begin(self, method: str, path: str, body: bytes = b"", timeout: float = 10) -> socket.socket:
        """Send a request and leave its answer unread; whoever closes the connection may end it."""
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self._port}",
            "Connection: close",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in self._headers.items()),
        ]
        call = self._host.connect(self._port, timeout)
        call.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return call

    def ask(self, method: str, path: str, body: bytes = b"", timeout: float = START_LIMIT_S) -> Any:
        """The answer's document, None when it has none. OSError when the answer is not a good one."""
        with self.begin(method, path, body, timeout) as call, call.makefile("rb") as answer:
            head, _, content = answer.read().partition(b"\r\n\r\n")
        status = head.partition(b"\r\n")[0].split(b" ")
        if len(status) < 2 or not status[1].startswith(b"2"):
            raise OSError(f"{path}: {head[:100]!r} {content[:200]!r}")
        if b"transfer-encoding: chunked" in head.lower():
            content = _joined(content)
        return json.loads(content) if content.strip() else None


def _joined(chunked: bytes) -> bytes:
    """The body of a chunked transfer (RFC 9112, section 7.1)."""
    body = b""
    while True:
        size, _, rest = chunked.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            return body
        body, chunked = body + rest[:length], rest[length + 2 :]


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, kill it if that does not help, and close its pipes."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
