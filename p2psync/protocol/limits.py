"""Every bound on what a peer can make us hold, each with its reason."""

from __future__ import annotations

from p2psync.membership.links import MAX_LINK
from p2psync.model.manifest import MAX_CHUNK
from p2psync.model.records import MAX_BATCH

PROTOCOL_VERSION = 1
MIN_PROTOCOL_VERSION = 1

MAX_CONTROL = 2 * 1024 * 1024
"""Bytes of a control message: it is decoded in one go on the event loop (about 2 ms), and a batch of records with every
record at its largest cannot fit, which is why `batcher` splits."""

MAX_BULK_PAYLOAD = 1024 * 1024
"""Bytes of content in one frame: the longest a control message waits behind bulk (8 ms at 1 Gbit/s)."""

BULK_PAYLOAD = 256 * 1024
"""Bytes of content per frame that a sender begins with, before it knows how fast the line is."""

MAX_REQUEST_BYTES = MAX_CHUNK
"""Bytes one chunk request may ask for: a whole chunk must fit; the answer is held in memory until it is verified."""

MAX_REQUEST_CHUNKS = 256
"""Chunks in one request: enough to pack small files, few enough to read from disk in one hop."""

MAX_RANGES = 256
"""Parts of chunks in one request: what is more scattered than that is asked for as a whole."""

MAX_REQUESTS_IN_FLIGHT = 64
"""Requests one peer may have open with us: with `MAX_REQUEST_BYTES` this bounds what is queued for it."""

RECORDS_TARGET = 512 * 1024
"""Bytes at which a Records message is sent and the next begun: one message is one index transaction at the receiver."""

MAX_RECORDS = 16_384
"""Records in one message."""

MAX_GROUPS = 1024
"""Batches in one Records message."""

MAX_GROUP_ITEMS = MAX_BATCH

MAX_KEYS = 32 * 1024
"""Path keys in one message: 512 KiB."""

MAX_LINKS_PER_MESSAGE = 100
"""Membership links in one message: with `MAX_LINK` they fit the control message."""

MAX_GRANTS_PER_MESSAGE = 64
"""Grants of epoch keys in one message: a device is given one or two at a time."""

MAX_HEADERS_PER_MESSAGE = 64
"""Heads of chains of a mailbox in one message: their signatures are verified on the event loop (about 5 ms)."""

STANDING_SIZE = 16
"""Bytes of the hash by which two devices know that they stand where they stood: nobody finds two ways to stand that
have the same."""

MAX_HEADS = 256
"""Heads of a membership DAG in one message; honest folders have one or two."""

MAX_MERKLE_NODES = 256
"""Trie nodes asked for or answered in one message."""

MAX_MERKLE_NODE = 4 * 1024
"""Bytes of one encoded trie node: a bucket of 32 path keys with a few record ids each."""

MAX_FEATURES = 64
MAX_TEXT = 255
"""Characters of a name, label, feature or agent."""

MAX_GOODBYE_TEXT = 1024
MAX_RELAYS = 8
"""Addresses of an account's relay."""

MAX_PAIRING = 1024
"""Bytes of a pairing message: SPAKE2 needs 33."""

assert MAX_LINKS_PER_MESSAGE * (MAX_LINK + 5) < MAX_CONTROL
