"""The yardstick: the relay's own server, TLS and process, serving an application that does nothing.

It checks no signature, knows no session, stores nothing and writes no log: what it costs is the stack's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.protocol.relay_api import StoredChunk
from p2psync.system import calm_collector
from relay.config import load_config, parse_listen
from relay.serve import COLLECT, raise_file_limit, relay_url
from relay.server import Server
from relay.tls import find_certificate, make_context

EVENT: Final = b"retry: 3000\nid: 1\nevent: ready\ndata: {}\n\n"
_SMALL: Final = msgspec.msgpack.encode({"answer": "bare"})
_STORED: Final = msgspec.msgpack.encode(StoredChunk(MAX_SEALED_CHUNK, new=True))
_CHUNK: Final = bytes(MAX_SEALED_CHUNK)
_STREAM_HEAD: Final = [(b"content-type", b"text/event-stream")]


class Bare:
    """An ASGI application with the shapes of the relay's answers."""

    def stop(self) -> None:
        """There is nothing to end."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request: its body is read and forgotten."""
        path, method = scope["path"], scope["method"]
        if path == "/api/v1/notifications":
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEAD})
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass
        body = _SMALL
        if path.startswith("/api/v1/chunks/"):
            body = _STORED if method == "PUT" else _CHUNK
        headers = [(b"content-type", b"application/msgpack"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def _serve(data: Path, config: Path, listen: str) -> None:
    settings = load_config(config).server
    host, port = parse_listen(listen)
    certificate = find_certificate(settings, data, host or "localhost")
    server = Server(Bare(), make_context(certificate, forwarding=False), settings)
    listeners = await trio.open_tcp_listeners(port, host=host)
    base = f"https://{host}:{listeners[0].socket.getsockname()[1]}"
    sys.stdout.write(f"ready {relay_url(base, certificate)}\n")
    sys.stdout.flush()
    raise_file_limit(settings.max_connections)
    calm_collector(*COLLECT)
    await server.run(listeners, trio.Event())


def main() -> None:
    """Serve as `p2psync-relay serve` does, until killed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay.bare", description=__doc__)
    parser.add_argument("serve", choices=["serve"])
    for name, kind in (("--data", Path), ("--config", Path), ("--listen", str)):
        parser.add_argument(name, type=kind, required=True)
    arguments = parser.parse_args()
    arguments.data.mkdir(exist_ok=True)
    trio.run(_serve, arguments.data, arguments.config, arguments.listen)


if __name__ == "__main__":
    main()
