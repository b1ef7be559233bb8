"""Accounts at a real relay process, and their devices: the node's own client over real TLS."""

from __future__ import annotations

import contextlib
import email
import email.policy
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import trio

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.identity import DeviceKeys
from p2psync.membership.sigchain import AccountChain, Add, DeviceKind, begin_account
from p2psync.model.ids import FolderId
from p2psync.net.relay_client import RelayClient
from p2psync.node.world import real_world
from p2psync.protocol.relay_address import parse_relay_address
from p2psync.protocol.relay_api import Session
from tests.relay.process import RelayProcess

PATIENT = """
[accounts]
hash_memory = 65536
hash_passes = 1
mails_per_network = 100000
guesses_per_network = 100000

[limits]
standard_per_account = 1000000
standard_per_address = 1000000
bulk_per_account = 1000000
bulk_per_address = 1000000
sensitive_per_account = 100000
sensitive_per_address = 100000
"""
"""Passwords that cost nothing to check, and as many calls as one likes."""
_WORLD = real_world(discovery=False)
_CODE = re.compile(r"code is ([A-Z2-7]{4}-[A-Z2-7]{4})")


@dataclass(eq=False, slots=True)
class Device:
    """Keys and session of one device; what it keeps outlives every connection."""

    relay: RelayProcess
    name: str
    keys: DeviceKeys
    account_id: bytes = b""
    session: Session | None = None
    sessions: list[Session] = field(default_factory=list)
    """All it ever had."""
    _shared: RelayClient | None = None
    _users: int = 0

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[RelayClient]:
        """The client of all who use this device now: a node has one, since two would end each other's sessions."""
        made = self._shared = self._shared if self._shared is not None else self._new()
        self._users += 1
        try:
            yield made
        finally:
            self._users -= 1
            if not self._users:
                self._shared = None
                with trio.CancelScope(shield=True):
                    await made.aclose()

    @contextlib.asynccontextmanager
    async def client_alone(self) -> AsyncIterator[RelayClient]:
        """A client with connections of its own, as long as the session lasts."""
        made = self._new()
        try:
            yield made
        finally:
            with trio.CancelScope(shield=True):
                await made.aclose()

    def _new(self) -> RelayClient:
        return RelayClient(
            _WORLD,
            self.keys,
            (parse_relay_address(self.relay.url),),
            account_id=self.account_id,
            session=self.session,
            keep=self._keep,
        )

    async def _keep(self, session: Session) -> None:
        self.account_id, self.session = session.account_id, session
        self.sessions.append(session)


@dataclass(eq=False, slots=True)
class Account:
    """One account with its devices, the first of which began it."""

    email: str
    login_key: bytes
    devices: list[Device]
    chain: AccountChain

    @property
    def first(self) -> Device:
        return self.devices[0]

    @property
    def account_id(self) -> bytes:
        return self.chain.account_id


async def sign_up(relay: RelayProcess, address: str, login_key: bytes, names: list[str], rng: random.Random) -> Account:
    """A new account whose address is verified, with a device of each name."""
    devices = [Device(relay, name, DeviceKeys(rng.randbytes(64))) for name in names]
    chain = begin_account(devices[0].keys, rng.randbytes(16))
    async with devices[0].client() as client:
        await client.accounts.sign_up(address, login_key, chain.head.encoded)
        await client.accounts.verify(chain.account_id, await mailed_code(relay, address))
        for device in devices[1:]:
            link = chain.sign(devices[0].keys, Add(device.keys.card.encode(), DeviceKind.DEVICE))
            chain = chain.extend([link.encoded])
            await client.accounts.append_link(link.encoded)
    for device in devices[1:]:
        async with device.client() as client:
            await client.accounts.log_in(address, login_key)
    return Account(address, login_key, devices, chain)


async def mailed_code(relay: RelayProcess, address: str, known: frozenset[str] = frozenset()) -> str:
    """A code mailed to an address that is not `known` yet; it comes soon after the answer."""
    with trio.fail_after(60):
        while True:
            for path in sorted((relay.data / "outbox").glob("*.eml")):
                message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
                found = _CODE.search(message.get_content())
                if message["To"] == address and found and found[1] not in known:
                    return found[1]
            await trio.sleep(0.02)


def epoch_key(folder: FolderId) -> EpochKey:
    """The key under which everything of a folder is sealed here."""
    return EpochKey(folder, folder * 2)


async def restart(relay: RelayProcess) -> None:
    """Start the relay off the loop."""
    await trio.to_thread.run_sync(relay.start)


async def all_at_once(works: list[Callable[[], Awaitable[object]]], most: int = 16) -> None:
    """Do all of it, so much at a time."""
    limiter = trio.CapacityLimiter(most)

    async def run(work: Callable[[], Awaitable[object]]) -> None:
        async with limiter:
            await work()

    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(run, work)
