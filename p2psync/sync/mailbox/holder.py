"""The mailbox as one more holder of contents: the swarm asks it as it asks peers, and the faster gives more."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from p2psync.crypto.epochs import EpochKey
from p2psync.crypto.seal import CONTENT_AT, ChunkKind, ChunkName, chunk_id, open_chunk_into
from p2psync.errors import AuthenticationError, ConnectionLost
from p2psync.model.ids import DeviceId
from p2psync.protocol.bulk import Absent
from p2psync.protocol.messages import Message
from p2psync.sync.context import FolderContext
from p2psync.sync.link import Asked
from p2psync.sync.mailbox.keys import KeyKeeper
from p2psync.sync.mailbox.service import MailboxError, MailboxService
from p2psync.sync.mailbox.troubles import Troubles

_log = structlog.get_logger(__name__)

PARALLEL = 8
"""Downloads at a time. A request of the swarm asks for 4 MiB at most, and the swarm bounds what is under way."""
LEAST_DELAY = 0.1
"""Seconds for which downloads are under way, if the relay is fast: each is a request of its own, in many steps here and
there, and is told of only when it is whole."""


class RelayHolder:
    """A `Link` that answers from a mailbox."""

    def __init__(self, context: FolderContext, service: MailboxService, keys: KeyKeeper, told: Troubles) -> None:
        self._context = context
        self._service = service
        self._keys = keys
        self._told = told
        self._slots = trio.Semaphore(PARALLEL)
        self.received = 0
        """Bytes of content that came from there since the start."""

    @property
    def device(self) -> DeviceId:
        """A name like a device's, which no device has."""
        return DeviceId(self._service.id)

    @property
    def least_delay(self) -> float:
        """See `Link.least_delay`."""
        return LEAST_DELAY

    @property
    def deltas(self) -> None:
        """A relay cannot look into the chunks that it keeps."""
        return None

    @property
    def name(self) -> str:
        """What people call the relay."""
        return self._service.name

    async def send(self, message: Message) -> None:
        """Nothing is said to it."""

    async def fetch(
        self,
        folder: bytes,
        asked: Asked,
        *,
        manifests: bool = False,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[memoryview | Absent]:
        """See `Link.fetch`; what comes has been opened, and so verified."""
        kind = ChunkKind.MANIFEST if manifests else ChunkKind.CONTENT
        found: list[memoryview | Absent] = [Absent.GONE] * len(asked)
        errors: list[MailboxError] = []

        async def fetch_one(index: int, name: ChunkName) -> None:
            try:
                async with self._slots:
                    found[index] = await self._fetch(name)
            except MailboxError as error:
                found[index] = Absent.LATER
                errors.append(error)
            item = found[index]
            if not isinstance(item, Absent):
                self.received += len(item)
                progress(len(item))

        async with trio.open_nursery() as nursery:
            for index, (digest, _) in enumerate(asked):
                nursery.start_soon(fetch_one, index, ChunkName(kind, digest, self._context.algorithm))
        if len(errors) == len(asked):
            raise ConnectionLost(f"{self.name} did not give what was asked for: {errors[0]}") from errors[0]
        return found

    async def _fetch(self, name: ChunkName) -> memoryview | Absent:
        """One chunk, from the newest epoch that has it."""
        offload = self._context.world.offload
        damaged = False
        for key in self._newest_first():
            sealed = await self._service.get_chunk(chunk_id(key, name))
            if sealed is None:
                continue
            buffer = sealed if isinstance(sealed, bytearray) else bytearray(sealed)
            out = memoryview(buffer)[CONTENT_AT:]

            def open_it(key: EpochKey = key, buffer: bytearray = buffer, out: memoryview = out) -> int:
                return open_chunk_into(key, name, buffer, out)

            try:
                return out[: await offload.run(open_it)]
            except AuthenticationError:
                damaged = True
        if damaged:
            self._told.damaged("a content does not open")
        return Absent.LATER if damaged else Absent.GONE

    def _newest_first(self) -> list[EpochKey]:
        epochs = self._context.membership.epochs
        return [key for epoch in epochs.values() if (key := self._keys.ring.get(epoch.key_id)) is not None]
