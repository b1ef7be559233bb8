"""The seams between decisions and the world: every effect a node has goes through one of these interfaces.

Production adapters live in the edge rooms (`workspace`, `index`, `net`, `node`); simulated ones in `p2psync.testing`.
Nothing here imports an adapter. Blocking ports (`Root`, `KvStore`) are plain functions: the synchronizer calls them
inside `Offload.run`, in batches, so that the trio loop never waits for a disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from p2psync.ports.database import (
    Database,
    KvStore,
    ReadTxn,
    WriteTxn,
)
from p2psync.ports.files import (
    FsCapabilities,
    Hint,
    Kind,
    ReadFile,
    Rename,
    Root,
    Stat,
    Storage,
    Watch,
    Watcher,
    WriteFile,
)
from p2psync.ports.http import (
    HttpClient,
    HttpResponse,
    HttpStream,
    RelayAddress,
)
from p2psync.ports.machine import (
    Clock,
    Offload,
    Rng,
)
from p2psync.ports.network import (
    ByteStream,
    Discovery,
    FrameChannel,
    Network,
    PortMapper,
    PortMapping,
    Sighting,
    StreamListener,
)

__all__ = [
    "ByteStream",
    "Clock",
    "Database",
    "Discovery",
    "FrameChannel",
    "FsCapabilities",
    "Hint",
    "HttpClient",
    "HttpResponse",
    "HttpStream",
    "Kind",
    "KvStore",
    "Network",
    "Offload",
    "PortMapper",
    "PortMapping",
    "ReadFile",
    "ReadTxn",
    "RelayAddress",
    "Rename",
    "Rng",
    "Root",
    "Sighting",
    "Stat",
    "Storage",
    "StreamListener",
    "Watch",
    "Watcher",
    "World",
    "WriteFile",
    "WriteTxn",
]


@dataclass(frozen=True, slots=True)
class World:
    """All the ports of one node."""

    clock: Clock
    rng: Rng
    offload: Offload
    storage: Storage
    watcher: Watcher | None
    database: Database
    network: Network
    discovery: Discovery | None
    http: Callable[[RelayAddress], HttpClient] | None = None
    """Makes a client of a relay; None where relays cannot be reached."""
    forward: Callable[[RelayAddress, bytes], Awaitable[ByteStream]] | None = None
    """Opens a stream, through a relay, to the device that has the other ticket; None where there is none. Takes up to
    `forwarding.TICKET_LIFE_S`. AuthenticationError when it is another relay, Unreachable, or ConnectionLost when the
    other device does not come."""
    mapper: PortMapper | None = None
    """None where no router is to be asked."""
    longest_chunk: int = 4 * 1024 * 1024
    """Bytes of the longest chunk, alike on all devices of a folder: `manifest.MAX_CHUNK`, and less in simulations, so
    that small files have many chunks."""
