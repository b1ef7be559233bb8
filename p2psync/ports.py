"""The seams between decisions and the world: every effect a node has goes through one of these interfaces.

Production adapters live in the edge rooms (`workspace`, `index`, `net`, `node`); simulated ones in `p2psync.testing`.
Nothing here imports an adapter. Blocking ports (`Root`, `KvStore`) are plain functions: the synchronizer calls them
inside `Offload.run`, in batches, so that the trio loop never waits for a disk.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Protocol, TypeVar

T = TypeVar("T")


# ── time, randomness, threads ───────────────────────────────────────────────────────────────────────────────────────
class Clock(Protocol):
    """Wall and monotonic time. Sleeping and deadlines use trio, whose clock is virtual in simulation."""

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch, as this device believes; never used to decide what is newer."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; the zero point is arbitrary."""
        ...

    def pause(self, seconds: float) -> None:
        """Block the calling worker thread for a few milliseconds, to let a file system's clock tick."""
        ...


class Rng(Protocol):
    """Randomness: cryptographic in production, seeded in simulation."""

    def token(self, size: int) -> bytes:
        """`size` unpredictable bytes."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A float in [low, high]; for jitter."""
        ...


class Offload(Protocol):
    """Where blocking work runs: worker threads in production, inline in simulation."""

    async def run(self, work: Callable[[], T], /) -> T:
        """Run `work` off the loop and return its result. Not cancelled half-way: cancellation waits for it to end."""
        ...


# ── file system ─────────────────────────────────────────────────────────────────────────────────────────────────────
class Kind(IntEnum):
    """What a directory entry is. The first three are synchronised; OTHER (sockets, devices, pipes) never is."""

    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    OTHER = 3


@dataclass(frozen=True, slots=True)
class Stat:
    """`lstat` of one entry. Times in nanoseconds, size in bytes, mode the permission bits only (0o7777)."""

    kind: Kind
    size: int
    mode: int
    mtime_ns: int
    ctime_ns: int
    dev: int
    ino: int


class Rename(Enum):
    """How `Root.rename` treats an existing target."""

    NOREPLACE = "noreplace"
    """Fail with FileExistsError when the target exists."""
    REPLACE = "replace"
    """Atomically replace the target file."""
    EXCHANGE = "exchange"
    """Atomically swap both entries; both must exist."""


@dataclass(frozen=True, slots=True)
class FsCapabilities:
    """What the file system under a folder can do, probed when the folder opens (never guessed from the platform)."""

    case_insensitive: bool = False
    normalising: bool = False
    symlinks: bool = True
    hard_links: bool = True
    exchange: bool = True
    noreplace: bool = True
    executable_bits: bool = True
    """Whether a file shows the executable bit that it was given."""
    utf8_only: bool = False
    name_max: int = 255
    granularity_ns: int = 10_000_000
    """Two changes closer than this may carry the same timestamp."""


class ReadFile(Protocol):
    """An open regular file, for reading."""

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; returns bytes read, less than asked only at the end of the file."""
        ...

    def stat(self) -> Stat:
        """`fstat` of this very file."""
        ...

    def next_data(self, offset: int) -> int | None:
        """Offset of the next byte at or after `offset` that is not a hole, or None when only a hole is left."""
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


class WriteFile(ReadFile, Protocol):
    """An open regular file, for reading and writing."""

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        ...

    def truncate(self, size: int) -> None:
        """Set the length; growing makes a hole."""
        ...

    def sync(self) -> None:
        """Make content durable (fsync). After an error the file must be thrown away, never synced again."""
        ...


class Root(Protocol):
    """One directory tree, opened once; every path is relative bytes and can never leave the tree.

    No intermediate component is ever followed through a symlink: such a path raises `EscapeError`.
    All calls block. `OSError` subclasses come through unchanged.
    """

    @property
    def capabilities(self) -> FsCapabilities:
        """What this file system can do."""
        ...

    def identity(self) -> Stat:
        """Stat of the root directory itself as it is reached by its path *now* (FileNotFoundError when it is gone)."""
        ...

    def stat(self, path: bytes) -> Stat | None:
        """`lstat`; None when the entry does not exist."""
        ...

    def scan(self, path: bytes) -> list[tuple[bytes, Stat]]:
        """Every entry of a directory (b"" is the root), sorted by name. Vanished entries are left out."""
        ...

    def open(self, path: bytes) -> ReadFile:
        """Open a regular file, never following a symlink and never blocking on a pipe."""
        ...

    def create(self, path: bytes, mode: int = 0o600) -> WriteFile:
        """Create a new regular file; FileExistsError when anything is there."""
        ...

    def reopen(self, path: bytes) -> WriteFile:
        """Open an existing regular file for writing."""
        ...

    def rename(self, source: bytes, target: bytes, how: Rename) -> None:
        """Rename in one step; see `Rename`. OSError(EINVAL) when the file system cannot do it that way."""
        ...

    def link(self, source: bytes, target: bytes) -> None:
        """Hard link; FileExistsError when the target exists."""
        ...

    def symlink(self, content: bytes, path: bytes) -> None:
        """Create a symlink at `path` with the given target; FileExistsError when anything is there."""
        ...

    def readlink(self, path: bytes) -> bytes:
        """The target of a symlink."""
        ...

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        """Create a directory; FileExistsError when anything is there."""
        ...

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        ...

    def unlink(self, path: bytes) -> None:
        """Remove a file or symlink."""
        ...

    def chmod(self, path: bytes, mode: int) -> None:
        """Change permission bits of a file or directory (never through a symlink)."""
        ...

    def utime(self, path: bytes, mtime_ns: int) -> None:
        """Set the modification time of an entry itself (never through a symlink)."""
        ...

    def sync_directory(self, path: bytes) -> None:
        """Make the entries of a directory durable."""
        ...

    def sync_all(self) -> None:
        """Make everything written so far on this file system durable (syncfs); cheaper than many fsyncs."""
        ...

    def free_space(self) -> tuple[int, int]:
        """(free for us, total) bytes of the file system."""
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


class Storage(Protocol):
    """Opens trees by absolute path."""

    def umask(self) -> int:
        """The permission bits that new files and directories of a person do not get."""
        ...

    def open_root(self, path: bytes) -> Root:
        """Open a directory as a root. FileNotFoundError, NotADirectoryError or PermissionError when it cannot be."""
        ...

    def make_directories(self, path: bytes) -> None:
        """Make a directory and what is missing above it, durably. FileExistsError when something else stands there."""
        ...


class Watch(Protocol):
    """A running watch of one tree; closing it stops the events."""

    @property
    def live(self) -> bool:
        """False once the watch is known to miss events (limit reached, root gone): rely on scans."""
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Hint:
    """Something may have changed at `path` (relative bytes); `settled` when the writer has closed or moved it.

    `path` None means that events were lost: scan everything.
    """

    path: bytes | None
    settled: bool = False


class Watcher(Protocol):
    """Reports changes under a tree as hints. Losing hints is allowed: scans are the truth."""

    def watch(self, path: bytes, hint: Callable[[Hint], None]) -> Watch:
        """Start watching the absolute `path`. `hint` may be called from any thread and must return at once."""
        ...


# ── database ────────────────────────────────────────────────────────────────────────────────────────────────────────
class ReadTxn(Protocol):
    """A consistent view of an ordered key-value store with named tables."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        ...

    def range(self, table: str, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start ≤ key < stop in key order; must not be held open over writes to the same table."""
        ...

    def count(self, table: str) -> int:
        """How many keys a table has."""
        ...


class WriteTxn(ReadTxn, Protocol):
    """A transaction: all or nothing, durable once `KvStore.write` has returned."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set the value of `key`."""
        ...

    def delete(self, table: str, key: bytes) -> bool:
        """True when the key was there."""
        ...


class KvStore(Protocol):
    """An embedded transactional store. Keys are at most 511 bytes."""

    def read(self) -> AbstractContextManager[ReadTxn]:
        """A snapshot; never await inside it, a long one keeps old pages from being reused."""
        ...

    def write(self, work: Callable[[WriteTxn], T]) -> T:
        """Run `work` in one write transaction on the writer thread and wait until it is durable.

        `work` may run twice (the store grows and starts again), so it must have no effect outside the transaction.
        """
        ...

    def close(self) -> None:
        """Release it; nothing may be called afterwards."""
        ...


class Database(Protocol):
    """Opens stores by absolute path (a directory)."""

    def open(self, path: bytes, tables: tuple[str, ...]) -> KvStore:
        """Open or create the store with these tables."""
        ...


# ── network ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class ByteStream(Protocol):
    """A reliable, ordered, bidirectional byte stream. One sender and one receiver task at a time."""

    @property
    def remote(self) -> str:
        """The other side's address as HOST:PORT ([HOST]:PORT for IPv6)."""
        ...

    async def send_all(self, data: bytes | memoryview) -> None:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError when the stream is gone."""
        ...

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte into `buffer`; 0 at the end of the stream."""
        ...

    async def aclose(self) -> None:
        """Close it; harmless when it is closed already."""
        ...


class StreamListener(Protocol):
    """Accepts incoming streams."""

    @property
    def addresses(self) -> list[str]:
        """The addresses it really listens on, with the port the system chose."""
        ...

    async def accept(self) -> ByteStream:
        """Wait for the next incoming stream."""
        ...

    async def aclose(self) -> None:
        """Close it; harmless when it is closed already."""
        ...


class Network(Protocol):
    """Opens and accepts streams."""

    async def listen(self, address: str) -> list[StreamListener]:
        """Listen on HOST:PORT (port 0: any). OSError when the address is in use or not ours."""
        ...

    async def dial(self, address: str) -> ByteStream:
        """Connect to HOST:PORT. OSError when it cannot; the caller sets the timeout."""
        ...


class FrameChannel(Protocol):
    """An authenticated, encrypted, ordered channel of frames to one device."""

    sent: int
    received: int
    """Bytes on the wire in each direction so far."""

    @property
    def remote(self) -> str:
        """The other side's address."""
        ...

    async def send(self, parts: Sequence[bytes | bytearray | memoryview], *, bulk: bool = False) -> None:
        """Queue one frame; waits while the queue is full. Control frames overtake bulk ones. Raises ConnectionLost.

        The parts must not change until they are sent.
        """
        ...

    async def receive(self) -> memoryview:
        """The next frame, valid until the next call. Raises ConnectionLost or ProtocolError."""
        ...

    async def drain(self) -> None:
        """Refuse new frames and wait until the queued ones are sent. The caller sets the time limit."""
        ...


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """Where a relay is and how it is recognised. Its text is the URL that its operator hands out."""

    host: str
    """A name in lower case, or an address; IPv6 without brackets."""
    port: int
    fingerprint: bytes | None = None
    """SHA-256 of its certificate (DER). None: any certificate for that host by an authority this machine trusts."""

    @property
    def authority(self) -> str:
        """HOST:PORT as in a Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def origin(self) -> str:
        """`https://HOST:PORT`: which relay it is, whatever its certificate."""
        return f"https://{self.authority}"

    def __str__(self) -> str:
        if self.fingerprint is None:
            return f"{self.origin}/"
        return f"{self.origin}/#sha256={base64.urlsafe_b64encode(self.fingerprint).rstrip(b'=').decode()}"


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole answer. Header names are in lower case; of a repeated one the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpStream(Protocol):
    """An answer that goes on, in lines."""

    @property
    def status(self) -> int:
        """Of the answer's head."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """As `HttpResponse.headers`."""
        ...

    async def line(self) -> bytes | None:
        """The next line without its end; None when the answer has ended. Raises as `HttpClient.request`."""
        ...


class HttpClient(Protocol):
    """Sends requests to one relay, whose certificate is checked before any byte of a request is sent."""

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes | memoryview = b"",
        max_body: int,
        timeout_s: float,
        bulk: bool = False,
    ) -> HttpResponse:
        """One request. `target` is path and query as on the wire; `body` must not change meanwhile.

        `bulk` says that body or answer is large: such a request has a connection to itself.

        Raises:
            Unreachable: nothing of the request was sent.
            ConnectionLost: no whole answer came in time; the relay may have done what it was asked.
            AuthenticationError: it is not that relay. Nothing was sent.
            ProtocolError: the answer is no HTTP, or its body has more than `max_body` bytes.
        """
        ...

    def stream(
        self, target: str, *, headers: Mapping[str, str], max_line: int, idle_s: float
    ) -> AbstractAsyncContextManager[HttpStream]:
        """GET an answer that goes on; it counts as lost when nothing arrives for `idle_s`. Raises as `request`."""
        ...

    async def aclose(self) -> None:
        """Close its connections; harmless when they are closed already."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """A hint that a device may be reachable; nothing in it is proven."""

    addresses: tuple[str, ...]
    """HOST:PORT strings to try."""
    tag: str
    """Opaque text the announcer chose; see `Discovery.announce`."""
    pairing: str | None = None
    """The nameplate of an open pairing, when one is announced."""


class Discovery(Protocol):
    """Announces this device and reports others nearby."""

    async def run(self) -> None:
        """Work until cancelled; the node starts it in its nursery. Failures are logged and retried, never raised."""
        ...

    def sightings(self) -> AsyncIterator[Sighting]:
        """Endless stream of hints, bounded: the oldest unread are dropped."""
        ...

    async def announce(self, port: int, tag: str, pairing: str | None) -> None:
        """Announce (or update) this device at `port` with an opaque tag. Failures are logged, never raised."""
        ...


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
    longest_chunk: int = 4 * 1024 * 1024
    """Bytes at which files are cut, alike on all devices of a folder: `manifest.MAX_CHUNK`, and less in simulations, so
    that small files have many chunks."""
