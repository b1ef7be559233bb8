"""Layout of the client metadata database: every table, its keys and its rows, in one place.

Keys are at most 127 bytes and fixed-size where possible, never whole paths: a path may have 4096 bytes and a key 511.
`key` is the 16-byte path key of an entry and `directory` that of the directory holding it.

| table         | key                                     | value                                                      |
|---------------|-----------------------------------------|------------------------------------------------------------|
| meta          | b"identity", b"state"                   | `Identity`, `State`                                        |
| records       | key                                     | `Row`: the antichain of signed records of one path         |
| announced     | directory, key                          | last component of the path                                 |
| batches       | batch id                                | SignedBatch                                                |
| references    | b"b" + batch id, b"m" + content root    | how many records (and synced entries) refer to it          |
| manifests     | content root                            | encoded manifest too long to be inline                     |
| leaves        | key                                     | Merkle leaf hash                                           |
| nodes         | trie prefix                             | Merkle node                                                |
| descendants   | key of a directory                      | number of live records anywhere below, u64                 |
| synced        | directory, key                          | Synced                                                     |
| contents      | content root[:16], directory, key       | empty: a synced file with that content                     |
| locations     | chunk hash[:16], directory, key, offset | chunk hash[16:], length u32: a synced file has that chunk |
| pending       | see `pending_order`                     | `PendingRow`                                               |
| held          | key                                     | Problem                                                    |
| problems      | key, code                               | Problem                                                    |
| feed          | sequence                                | `FeedRow`                                                  |
| cursors       | device id                               | (index id, sequence)                                       |
| links         | hash of a membership link               | (insertion number, encoded link)                           |
| history       | key, replaced_ns, digest                | HistoryEntry                                               |
| history_times | replaced_ns, key, digest                | empty                                                      |
| intents       | id                                      | Intent                                                     |
| settings      | name                                    | value                                                      |
| epoch_keys    | key id                                  | key of an epoch                                            |
| grants        | key id, device id                       | Grant; empty when the device has shown that it has the key |
| mailboxes     | mailbox                                 | `MailboxRow`                                               |
| chains        | mailbox, kind, signer, chain            | newest header, proof of a fork, or (counter, time); and    |
|               | mailbox, kind, key id, device id        | empty: a grant that is there                               |
| outbox        | mailbox, number                         | (signed entry, path key and posted row of its records)     |
| posted        | mailbox, key                            | record id + content root[:8] of what is there of that path |
| uploads       | mailbox, content root                   | (key id, when it was referred to)                          |

A mailbox is named by 8 bytes (`index.mailbox`).
Synced entries and announced names carry their directory first, so that one range is one directory. Numbers in keys are
big-endian, so that their order is the order of the bytes.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from p2psync.errors import IntegrityError
from p2psync.index.values import HistoryEntry, Intent, Problem
from p2psync.model.paths import PathKey, RelPath, depth, parent, path_key
from p2psync.model.records import SignedBatch

T = TypeVar("T")

SCHEMA = 1
"""Version of this layout; an index with a greater one is refused, one with a lesser one upgraded when it is opened."""

META = "meta"
RECORDS = "records"
ANNOUNCED = "announced"
BATCHES = "batches"
REFERENCES = "references"
MANIFESTS = "manifests"
LEAVES = "leaves"
NODES = "nodes"
DESCENDANTS = "descendants"
SYNCED = "synced"
CONTENTS = "contents"
LOCATIONS = "locations"
PENDING = "pending"
HELD = "held"
PROBLEMS = "problems"
FEED = "feed"
CURSORS = "cursors"
LINKS = "links"
HISTORY = "history"
HISTORY_TIMES = "history_times"
INTENTS = "intents"
SETTINGS = "settings"
EPOCH_KEYS = "epoch_keys"
GRANTS = "grants"
MAILBOXES = "mailboxes"
CHAINS = "chains"
OUTBOX = "outbox"
POSTED = "posted"
UPLOADS = "uploads"

TABLES = (
    META,
    RECORDS,
    ANNOUNCED,
    BATCHES,
    REFERENCES,
    MANIFESTS,
    LEAVES,
    NODES,
    DESCENDANTS,
    SYNCED,
    CONTENTS,
    LOCATIONS,
    PENDING,
    HELD,
    PROBLEMS,
    FEED,
    CURSORS,
    LINKS,
    HISTORY,
    HISTORY_TIMES,
    INTENTS,
    SETTINGS,
    EPOCH_KEYS,
    GRANTS,
    MAILBOXES,
    CHAINS,
    OUTBOX,
    POSTED,
    UPLOADS,
)

IDENTITY = b"identity"
STATE = b"state"

MAX_NAME = 255
"""Longest setting name, cursor device or intent id."""

_ORDER_PATH = 96
"""Bytes of the path in a pending key: enough that neighbours on disk are worked on together."""


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Whose index this is. Written once, apart from `incarnation` and `schema`."""

    schema: int
    index_id: bytes
    folder: bytes
    device: bytes
    incarnation: int


class State(msgspec.Struct, array_like=True):
    """What changes with nearly every transaction: clocks, flags and totals, in one row.

    `issued` is the last counter this incarnation gave out. The totals mean what `values.Totals` says.
    """

    sequence: int = 0
    clock: int = 0
    issued: int = 0
    rolled_back: bool = False
    files: int = 0
    directories: int = 0
    bytes: int = 0
    need_files: int = 0
    need_bytes: int = 0
    need_deletes: int = 0
    conflicts: int = 0
    tombstones: int = 0
    diverged: int = 0
    held: int = 0


BatchId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""As `SignedBatch.batch_id` makes it. It is a key elsewhere: the store does not take one of any length."""


class Row(msgspec.Struct, array_like=True):
    """Everything about one path that changes with its records.

    `records` are (encoded record, batch id) in dot order. `sequence` is the feed entry of the last change of the
    records and `possessed` that of the last announcement that we hold the content (0: none since). `order` and `need`
    repeat key and size of the pending row, empty and 0 when the path is settled or held.
    """

    records: list[tuple[bytes, BatchId]]
    sequence: int = 0
    possessed: int = 0
    order: bytes = b""
    need: int = 0


class FeedRow(msgspec.Struct, frozen=True, array_like=True):
    """A feed entry without its sequence."""

    path: bytes
    possession: bool
    origin: bytes


class PendingRow(msgspec.Struct, frozen=True, array_like=True):
    """A pending entry without its order."""

    path: bytes
    size: int


class MailboxRow(msgspec.Struct, frozen=True, array_like=True):
    """How far this index and a mailbox have come with each other. Times in seconds since the epoch."""

    cursor: int = 0
    """Last entry of its feed that was taken in or passed over."""
    skipped: int = 0
    """First entry passed over for want of a key or a link; 0: none."""
    posted: int = 0
    """Sequence of this index's feed up to which everything is there."""
    links: tuple[bytes, ...] = ()
    """Hashes of membership links that are there, with all before them."""
    generation: int = 0
    """Counts the chains that this device had to give up there."""
    statement: int = 0
    """Counter of this device's last statement of heads."""
    stated: int = 0
    joined: int = 0
    tidied: int = 0
    covered: int = 0
    """Last entry that the newest known snapshot covers."""


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────
def number(value: int) -> bytes:
    """u64 key or value. IntegrityError when it is none: it then stood in a damaged row."""
    try:
        return value.to_bytes(8, "big")
    except OverflowError:
        raise IntegrityError(f"damaged number in the index: {value}; run `p2psync check --repair`") from None


def from_number(data: bytes | None) -> int:
    """Inverse of `number`; 0 for an absent row."""
    return int.from_bytes(data, "big") if data else 0


def place(path: RelPath, key: PathKey | None = None) -> bytes:
    """Key of an entry in `synced` and `announced`: its directory's key, then its own."""
    return path_key(parent(path)) + (key or path_key(path))


def location(chunk: bytes, at: bytes, offset: int) -> bytes:
    """Key of a chunk location in the synced entry with the place `at`."""
    return chunk[:16] + at + offset.to_bytes(8, "big")


def stop_of(prefix: bytes) -> bytes | None:
    """The least key greater than every key with this prefix; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


MAKE_DIRECTORY, WRITE, REMOVE = b"\x00", b"\x01", b"\x02"
"""First byte of a pending key: directories outermost first, then files and symlinks, then removals innermost first."""


def pending_order(group: bytes, path: RelPath, key: PathKey) -> bytes:
    """Key of a pending path: group, depth (outwards for removals, ignored for files), start of the path, path key."""
    level = {MAKE_DIRECTORY: depth(path), WRITE: 0, REMOVE: 255 - depth(path)}[group]
    return group + bytes([level]) + path[:_ORDER_PATH] + b"\0" + key


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────
encode = msgspec.msgpack.Encoder().encode

identity_rows = msgspec.msgpack.Decoder(Identity)
state_rows = msgspec.msgpack.Decoder(State)
record_rows = msgspec.msgpack.Decoder(Row)
feed_rows = msgspec.msgpack.Decoder(FeedRow)
pending_rows = msgspec.msgpack.Decoder(PendingRow)
batch_rows = msgspec.msgpack.Decoder(SignedBatch)
history_rows = msgspec.msgpack.Decoder(HistoryEntry)
intent_rows = msgspec.msgpack.Decoder(Intent)
problem_rows = msgspec.msgpack.Decoder(Problem)
link_rows = msgspec.msgpack.Decoder(tuple[int, bytes])
mailbox_rows = msgspec.msgpack.Decoder(MailboxRow)
statement_rows = msgspec.msgpack.Decoder(tuple[int, int])
outbox_rows = msgspec.msgpack.Decoder(tuple[bytes, bytes])
upload_rows = msgspec.msgpack.Decoder(tuple[bytes, int])
cursor_rows = msgspec.msgpack.Decoder(tuple[bytes, int])


def decode(rows: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """Decode a row of our own; IntegrityError when it is damaged."""
    try:
        return rows.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"damaged row in the index: {error}; run `p2psync check --repair`") from None
