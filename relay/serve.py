"""The relay's process: everything composed over the real world, from the lock on its data to its orderly end."""

from __future__ import annotations

import functools
import os
import resource
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import trio

from p2psync.errors import ConfigError
from p2psync.system import calm_collector
from relay.api.app import build_app
from relay.api.route import encode_id
from relay.api.routes import all_routes
from relay.compose import composed
from relay.config import Config, parse_listen
from relay.data import DataDirectory
from relay.db.migrate import upgrade
from relay.logs import configure_logging, get_logger
from relay.rendezvous.forwarder import Forwarder
from relay.server import Server
from relay.tls import Certificate, find_certificate, make_context

_LOG = get_logger(__name__)

EVERY_INTERFACE: Final = (None, "0.0.0.0", "::")  # noqa: S104
SPARE_FILES: Final = 512
"""Open files beside connections: the database, chunks, certificates."""
COLLECT: Final = (500, 2, 2_000)
"""Objects made before the collector looks at the young ones, and how often it does so before it looks at older ones.

A connection is 60 objects; to look at a thousand takes a millisecond, in which nothing is answered. A full collection
costs 0.15 ms for each connection.
"""


def serve(config: Config, directory: Path) -> None:
    """Run the relay until SIGTERM or SIGINT; SIGHUP loads the certificate anew.

    Raises:
        P2PSyncError: the configuration cannot be used, or another relay runs on the directory.
        OSError: the directory cannot be written or the address is not free.
    """
    configure_logging(config.log.level)
    os.umask(0o077)
    raise_file_limit(config.server.max_connections)
    data = DataDirectory(directory.absolute())
    data.create()
    with data.locked():
        trio.run(_serve, config, data)


def raise_file_limit(connections: int) -> None:
    """Let this process have so many connections: each is an open file, and few systems allow many by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            _LOG.warning("fewer open files are allowed than server.max_connections needs", allowed=soft, needed=wanted)


async def _serve(config: Config, data: DataDirectory) -> None:
    with composed(config, data) as services:
        await services.ports.offload.run(lambda: upgrade(services.database.engine))
        if not config.database.url:  # then the lock on the directory says that no other process uses it
            await services.blocks.end_interrupted()
        host, port = parse_listen(config.server.listen)
        name = socket.gethostname() if host in EVERY_INTERFACE else host
        certificate = find_certificate(config.server, data.tls, name)
        context = make_context(certificate, forwarding=config.forwarding.enabled)
        names = set(certificate.identities(config.server.url))
        forwarder = services.rendezvous.forwarder
        server = Server(build_app(services, all_routes(), names), context, config.server, forwarder.serve)
        services.metrics.connections.set_function(lambda: server.gate.open)
        services.metrics.refused_connections.set_function(lambda: server.gate.refused)
        listeners = await trio.open_tcp_listeners(port, host=host)
        url = relay_url(config.server.url or _url(name, listeners[0]), certificate)
        stop = trio.Event()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(services.run)
                nursery.start_soon(services.mailbox.watch.run)
                reload = functools.partial(_reload, certificate, context, names, config.server.url)
                nursery.start_soon(_obey, signals, reload, stop)
                nursery.start_soon(_stop_forwarding, forwarder, stop)
                calm_collector(*COLLECT)
                sys.stdout.write(f"ready {url} mail to {services.ports.mailer.target}\n")
                sys.stdout.flush()
                await server.run(listeners, stop)
                nursery.cancel_scope.cancel()
    _LOG.info("stopped")


async def _stop_forwarding(forwarder: Forwarder, stop: trio.Event) -> None:
    await stop.wait()
    forwarder.stop()


def _reload(certificate: Certificate, context: ssl.SSLContext, names: set[str], url: str) -> None:
    """Use the certificate as it is now. Connections go on under the old one, whose names stay. ConfigError."""
    identities = certificate.identities(url)
    certificate.load(context)
    names.update(identities)


async def _obey(signals: AsyncIterator[int], reload: Callable[[], None], stop: trio.Event) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            _LOG.info("stopping", signal=signal.Signals(number).name)
            stop.set()
            continue
        try:
            reload()
            _LOG.info("the certificate was loaded anew")
        except ConfigError as error:
            _LOG.error("the old certificate stays in use", reason=str(error))


def relay_url(base: str, certificate: Certificate) -> str:
    """What devices are given: the base, and the certificate's fingerprint where they must know it by that."""
    fragment = f"#sha256={encode_id(certificate.fingerprint())}" if certificate.pinned else ""
    return f"{base.rstrip('/')}/{fragment}"


def _url(host: str, listener: trio.SocketListener) -> str:
    port = listener.socket.getsockname()[1]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
