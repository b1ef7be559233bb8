"""Where it is measured: a relay and the bare server as processes, and accounts whose devices have sessions there."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Connection, insert

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership.sigchain import DeviceKind
from p2psync.net.relay_tls import relay_context
from p2psync.ports import RelayAddress
from p2psync.protocol.http_signature import NONCE_SIZE, sign_request
from p2psync.protocol.relay_address import parse_relay_address
from p2psync.protocol.relay_api import Session
from p2psync.system import SystemRng, ThreadOffload
from relay.accounts.sessions import ACCOUNT_ID_SIZE, SESSION_ENTROPY, open_session_by_key
from relay.accounts.tables import accounts, devices
from relay.api.route import encode_id
from relay.data import DataDirectory
from relay.db.database import database_from_url
from relay.mailbox.subscriptions import MAX_PER_ACCOUNT
from tests.relay.process import RelayProcess

LIMITS: Final = """
[free]
bytes = "1TB"
devices = 1000
[limits]
standard_per_account = 1000000000
standard_per_address = 1000000000
bulk_per_account = 1000000000
bulk_per_address = 1000000000
"""
"""As delivered, but for how often one address and one account may ask: here all clients are on one machine."""
CONFIG: Final = f"""
[server]
max_connections = 15000
max_connections_per_address = 15000
new_connections_per_address = 1000000
{LIMITS}"""
"""And as many connections as they like."""
TIMEOUT_S: Final = 60.0


class FailedError(Exception):
    """What was measured did not do its work; the text says how."""


class BareProcess(RelayProcess):
    """The bare server, started as the relay is."""

    def command(self, *arguments: str) -> list[str]:
        """See `RelayProcess`."""
        return [sys.executable, "-m", "benchmarks.relay.bare", *arguments]


@dataclass(frozen=True, slots=True)
class Device:
    """A device with a session. Everything in it can be given to another process."""

    seed: bytes
    account_id: bytes
    access_token: str
    refresh_token: str
    access_expires: int
    refresh_expires: int

    @property
    def keys(self) -> DeviceKeys:
        """Made anew with each call: keep it."""
        return DeviceKeys(self.seed)

    @property
    def session(self) -> Session:
        """As the relay answers a log-in."""
        return Session(
            self.account_id, self.access_token, self.access_expires, self.refresh_token, self.refresh_expires
        )


def make_devices(data: Path, count: int) -> list[Device]:
    """Devices with sessions, as many to an account as may listen to its news, put straight into a relay's database."""
    now, rng = int(time.time()), SystemRng()
    database = database_from_url(DataDirectory(data).database_url, ThreadOffload(), rng)

    def make(c: Connection) -> list[Device]:
        made: list[Device] = []
        for start in range(0, count, MAX_PER_ACCOUNT):
            account_id = secrets.token_bytes(ACCOUNT_ID_SIZE)
            seeds = [secrets.token_bytes(64) for _ in range(min(MAX_PER_ACCOUNT, count - start))]
            ids = [DeviceKeys(seed).device_id for seed in seeds]
            c.execute(
                insert(accounts).values(
                    account_id=account_id,
                    email=f"{account_id.hex()}@example.org",
                    verifier=b"",
                    plan="",
                    created=now,
                    suspended=False,
                )
            )
            fixed = {"account_id": account_id, "kind": int(DeviceKind.DEVICE), "added": now, "seen": 0}
            c.execute(insert(devices), [{**fixed, "device_id": name, "logged_out": False} for name in ids])
            for seed, name in zip(seeds, ids, strict=True):
                tokens = open_session_by_key(c, account_id, name, now, rng.token(SESSION_ENTROPY))
                assert tokens is not None
                made.append(
                    Device(
                        seed,
                        account_id,
                        encode_id(tokens.access),
                        encode_id(tokens.refresh),
                        tokens.access_expires,
                        tokens.refresh_expires,
                    )
                )
        return made

    try:
        return database.write_now(make)
    finally:
        database.close()


@dataclass(frozen=True, slots=True)
class Ask:
    """A request of one device: its bytes can be made again and again, each time freshly signed."""

    method: str
    path: str
    query: str = ""
    body: bytes = b""


class Signer:
    """Makes the bytes of signed HTTP/1.1 requests of one device to one server."""

    def __init__(self, device: Device, address: RelayAddress) -> None:
        self.device_id = device.keys.device_id
        self._keys = device.keys
        self._authorization = f"Bearer {device.access_token}"
        self._address = address

    def head(self, ask: Ask) -> bytes:
        """Everything before the body."""
        fields = sign_request(
            self._keys,
            self._address.identity,
            ask.method,
            ask.path,
            ask.query,
            body=ask.body,
            authorization=self._authorization,
            created=int(time.time()),
            nonce=os.urandom(NONCE_SIZE),
        )
        if ask.body:
            fields |= {"content-type": "application/msgpack", "content-length": str(len(ask.body))}
        target = f"{ask.path}?{ask.query}" if ask.query else ask.path
        lines = [f"{ask.method} {target} HTTP/1.1", f"host: {self._address.authority}", "accept: application/msgpack"]
        return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in fields.items()), "", ""]).encode()

    def whole(self, ask: Ask) -> bytes:
        """Head and body."""
        return self.head(ask) + ask.body


def connect(address: RelayAddress, context: ssl.SSLContext, source: str = "") -> ssl.SSLSocket:
    """A TLS connection of the operating system's sockets and nothing else, for many of them; from `source`."""
    plain = socket.create_connection((address.host, address.port), TIMEOUT_S, (source, 0) if source else None)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(plain)
    except BaseException:
        plain.close()
        raise


def client_context(address: RelayAddress) -> ssl.SSLContext:
    """Of a client that knows the server by its fingerprint, which is not looked at here."""
    context = relay_context(address.fingerprint)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Stage:
    """The two servers."""

    def __init__(self, base: Path) -> None:
        self.relay, self.bare = RelayProcess(base / "relay", CONFIG), BareProcess(base / "bare", CONFIG)

    def __enter__(self) -> Stage:
        try:
            for server in self.servers:
                server.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.kill()

    @property
    def servers(self) -> tuple[RelayProcess, RelayProcess]:
        """The relay, and the bare server."""
        return self.relay, self.bare

    def devices(self, count: int) -> list[Device]:
        """New ones of the relay: a session that begins now is good for a quarter of an hour."""
        return make_devices(self.relay.data, count)


def address_of(server: RelayProcess) -> RelayAddress:
    """Where it is."""
    return parse_relay_address(server.url)


PRESENCE: Final = Ask("PUT", "/api/v1/presence", body=msgspec.msgpack.encode({"addresses": [], "port": 0}))
"""Is answered from memory."""
FOLDERS: Final = Ask("GET", "/api/v1/folders")
"""Is answered from the database."""
