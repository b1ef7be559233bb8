"""The control messages: MessagePack arrays whose first element is the message's tag.

A receiver ignores array elements it does not know and messages whose tag it does not know, so later versions can add
both. Every field is bounded where it is decoded. What each message means is in docs/protocol.md.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

from msgspec import Meta, Struct

from p2psync.crypto.identity import KEY_SIZE as SIGNING_KEY_SIZE
from p2psync.crypto.identity import SIGNATURE_SIZE
from p2psync.membership.grants import MAX_GRANT
from p2psync.membership.links import MAX_LINK, Role
from p2psync.membership.sigchain import ACCOUNT_ID_SIZE
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import FOLDER_ID_SIZE
from p2psync.model.paths import KEY_SIZE
from p2psync.protocol import limits
from p2psync.protocol.mailbox import MAX_HEADER
from p2psync.protocol.relay_address import MAX_URL

U16 = Annotated[int, Meta(ge=0, lt=2**16)]
U32 = Annotated[int, Meta(ge=0, lt=2**32)]
U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[str, Meta(max_length=limits.MAX_TEXT)]
Folder = Annotated[bytes, Meta(min_length=FOLDER_ID_SIZE, max_length=FOLDER_ID_SIZE)]
SigningKey = Annotated[bytes, Meta(min_length=SIGNING_KEY_SIZE, max_length=SIGNING_KEY_SIZE)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)]
Signature = Annotated[bytes, Meta(min_length=SIGNATURE_SIZE, max_length=SIGNATURE_SIZE)]
Token = Annotated[bytes, Meta(min_length=16, max_length=16)]
IndexId = Annotated[bytes, Meta(max_length=16)]
"""Names one life of a folder's index; empty where there is none."""
Heads = Annotated[list[Digest], Meta(max_length=limits.MAX_HEADS)]
LinkList = Annotated[list[Annotated[bytes, Meta(max_length=MAX_LINK)]], Meta(max_length=limits.MAX_LINKS_PER_MESSAGE)]
Keys = Annotated[bytes, Meta(max_length=limits.MAX_KEYS * KEY_SIZE)]
"""Concatenated 16-byte path keys."""
Features = Annotated[list[Text], Meta(max_length=limits.MAX_FEATURES)]


DELTAS = "deltas"
"""Feature: LeavesRequest and RangesRequest are answered."""


class GoodbyeCode(IntEnum):
    """Why a connection ends. A code this version does not know is read as PROTOCOL_ERROR."""

    PROTOCOL_ERROR = 0
    UNKNOWN_DEVICE = 1
    DUPLICATE = 2
    REMOVED = 3
    SHUTTING_DOWN = 4
    INCOMPATIBLE = 5
    BUSY = 6
    PAIRING_ONLY = 7
    TWIN = 8


class FolderState(IntEnum):
    """What a device does with a folder, for display; a code not known is shown as IDLE."""

    IDLE = 0
    SCANNING = 1
    SYNCING = 2
    PAUSED = 3
    ERROR = 4


# ── the connection ──────────────────────────────────────────────────────────────────────────────────────────────────
class Hello(Struct, frozen=True, array_like=True, tag=1):
    """First message of both sides. `instance` is random per process start, `incarnation` that of the device's home."""

    version: U16
    min_version: U16
    features: Features
    name: Text
    instance: Token
    incarnation: U32
    wall_ns: I64
    agent: Text = ""


class Welcome(Struct, frozen=True, array_like=True, tag=2):
    """The arbiter has chosen this connection: from now on it carries folders."""


class Goodbye(Struct, frozen=True, array_like=True, tag=3):
    """The last message of a connection. `text` is for people."""

    code: U16
    text: Annotated[str, Meta(max_length=limits.MAX_GOODBYE_TEXT)] = ""

    @property
    def reason(self) -> GoodbyeCode:
        """The code, as far as it is known here."""
        return GoodbyeCode(self.code) if self.code in _GOODBYE_CODES else GoodbyeCode.PROTOCOL_ERROR


class Ping(Struct, frozen=True, array_like=True, tag=4):
    """Asks for a Pong with the same token."""

    token: U63


class Pong(Struct, frozen=True, array_like=True, tag=5):
    """Answers a Ping."""

    token: U63


# ── membership ──────────────────────────────────────────────────────────────────────────────────────────────────────
class FolderAnnounce(Struct, frozen=True, array_like=True, tag=10):
    """Where the sender stands in a folder both are members of; sent on connect and whenever that changes.

    `index_id` and `sequence` are the sender's own feed; `cursor_index_id` and `cursor_sequence` how much of the
    receiver's feed it has taken in. `root` is the Merkle root over its records.
    `fresh` marks the first announcement of an exchange: the sender dropped whatever it was sent before, but for an
    announcement where `heard` says that it has one of the receiver.
    """

    folder: Folder
    label: Text
    heads: Heads
    link_count: U32
    index_id: IndexId
    sequence: U63
    root: Digest
    cursor_index_id: IndexId
    cursor_sequence: U63
    need_files: U63
    need_bytes: U63
    state: U16
    scan_generation: U63
    paused: bool
    fresh: bool = False
    heard: bool = False

    @property
    def activity(self) -> FolderState:
        """The state, as far as it is known here."""
        return FolderState(self.state) if self.state in _FOLDER_STATES else FolderState.IDLE


class FolderResume(Struct, frozen=True, array_like=True, tag=16):
    """The first announcement of an exchange to a device that may know all of it but these fields.

    `standing` is a hash of the others, as the sender has them (see `sync.standing`). Who cannot tell from it what they
    are sends a FolderAnnounce without `heard`, which is answered by one.
    """

    folder: Folder
    standing: Annotated[bytes, Meta(min_length=limits.STANDING_SIZE, max_length=limits.STANDING_SIZE)]
    need_files: U63
    need_bytes: U63
    state: U16
    paused: bool
    heard: bool


class FolderOffer(Struct, frozen=True, array_like=True, tag=11):
    """Tells a device that it is a member of a folder it may not know; `links` prove it (more come by LinksRequest)."""

    folder: Folder
    label: Text
    role: Role
    link_count: U32
    links: LinkList


class LinksRequest(Struct, frozen=True, array_like=True, tag=12):
    """Asks for the membership links that somebody with these heads lacks; without heads, for a FolderOffer."""

    folder: Folder
    heads: Heads


class Links(Struct, frozen=True, array_like=True, tag=13):
    """Membership links, predecessors first; `more` when further Links follow."""

    folder: Folder
    links: LinkList
    more: bool = False


class Grants(Struct, frozen=True, array_like=True, tag=14):
    """Keys of epochs, granted to the receiver; the links that the grants refer to come before them."""

    folder: Folder
    grants: Annotated[
        list[Annotated[bytes, Meta(max_length=MAX_GRANT)]], Meta(max_length=limits.MAX_GRANTS_PER_MESSAGE)
    ]


class MailboxHeads(Struct, frozen=True, array_like=True, tag=15):
    """Headers of entries that a relay has shown or acknowledged to the sender, the newest of some chains of a mailbox.

    `relay` is the 32-byte name of the mailbox's relay, the same for all devices of the account that it belongs to.
    """

    folder: Folder
    relay: Digest
    headers: Annotated[
        list[Annotated[bytes, Meta(max_length=MAX_HEADER)]], Meta(max_length=limits.MAX_HEADERS_PER_MESSAGE)
    ]


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Records(Struct, frozen=True, array_like=True, tag=20):
    """Part of the sender's feed, or the answer to a RecordsRequest (`request` its id, else 0). `body` as in `columns`.

    After this message the receiver has everything up to `upto_sequence` of feed `index_id` (0: nothing is said about
    the feed). `final` ends an answer, or says that the feed is exhausted for now.
    """

    folder: Folder
    body: Annotated[bytes, Meta(max_length=limits.MAX_CONTROL)]
    index_id: IndexId
    upto_sequence: U63
    final: bool
    request: U63 = 0


class Possession(Struct, frozen=True, array_like=True, tag=21):
    """The sender now holds the content that its records at these paths ask for."""

    folder: Folder
    keys: Keys
    index_id: IndexId
    upto_sequence: U63


class RecordsRequest(Struct, frozen=True, array_like=True, tag=22):
    """Asks for all records at these paths, after a Merkle descent."""

    request: U63
    folder: Folder
    keys: Keys


class MerkleQuery(Struct, frozen=True, array_like=True, tag=23):
    """Asks for trie nodes by address; the addresses are those of `p2psync.model.merkle`."""

    request: U63
    folder: Folder
    nodes: Annotated[
        list[Annotated[bytes, Meta(max_length=limits.MAX_MERKLE_NODE)]], Meta(max_length=limits.MAX_MERKLE_NODES)
    ]


class MerkleAnswer(Struct, frozen=True, array_like=True, tag=24):
    """The encoded nodes, in the order they were asked for. `root` is the root they belong to."""

    request: U63
    folder: Folder
    root: Digest
    nodes: Annotated[
        list[Annotated[bytes, Meta(max_length=limits.MAX_MERKLE_NODE)]], Meta(max_length=limits.MAX_MERKLE_NODES)
    ]


class Rescan(Struct, frozen=True, array_like=True, tag=25):
    """Asks the peer to scan the folder's disk now."""

    request: U63
    folder: Folder


class RescanDone(Struct, frozen=True, array_like=True, tag=26):
    """The scan asked for is done and what it found announced before; generation 0: the disk cannot be scanned now."""

    request: U63
    folder: Folder
    generation: U63


# ── content ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class _Asking(Struct, frozen=True, array_like=True):
    """What is common to requests for content: hashes, concatenated, and lengths."""

    request: U63
    folder: Folder
    hashes: Annotated[bytes, Meta(max_length=limits.MAX_REQUEST_CHUNKS * DIGEST_SIZE)]
    lengths: Annotated[
        list[Annotated[int, Meta(ge=1, le=limits.MAX_REQUEST_BYTES)]], Meta(max_length=limits.MAX_REQUEST_CHUNKS)
    ]

    def items(self) -> list[tuple[bytes, int]]:
        """(hash, length) of everything asked for."""
        return [(self.hashes[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE], n) for i, n in enumerate(self.lengths)]


class ChunkRequest(_Asking, frozen=True, array_like=True, tag=30):
    """Asks for content by hash; the reply is bulk frames with this id (see `bulk`).

    With `manifests` the hashes are content roots and the lengths upper bounds, else exact lengths.
    """

    manifests: bool = False


class ChunkCancel(Struct, frozen=True, array_like=True, tag=31):
    """The reply is no longer wanted; frames already under way may still arrive."""

    request: U63


class LeavesRequest(_Asking, frozen=True, array_like=True, tag=32):
    """Asks for the leaves of chunks (see `model.cutting`), each in an item of the reply."""


class RangesRequest(_Asking, frozen=True, array_like=True, tag=33):
    """Asks for parts of chunks: for each chunk (offset, length) of every part, ascending; an item has all of them."""

    ranges: Annotated[
        list[Annotated[list[tuple[U32, U32]], Meta(min_length=1, max_length=limits.MAX_RANGES)]],
        Meta(max_length=limits.MAX_REQUEST_CHUNKS),
    ]


ContentRequest = ChunkRequest | LeavesRequest | RangesRequest


# ── pairing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class PairHello(Struct, frozen=True, array_like=True, tag=40):
    """Opens a pairing by short code with a device that is not known yet, or answers that none is open."""

    nameplate: U16
    name: Text


class PairMessage(Struct, frozen=True, array_like=True, tag=41):
    """One step of the password-authenticated key exchange."""

    body: Annotated[bytes, Meta(max_length=limits.MAX_PAIRING)]


class PairAccount(Struct, frozen=True, array_like=True, tag=42):
    """The sender, who shows the code, takes the other device into its account; sent before its proof.

    `head` is the hash of link `seq` of the account's chain.
    """

    account_id: Annotated[bytes, Meta(min_length=ACCOUNT_ID_SIZE, max_length=ACCOUNT_ID_SIZE)]
    relays: Annotated[list[Annotated[str, Meta(max_length=MAX_URL)]], Meta(min_length=1, max_length=limits.MAX_RELAYS)]
    email: Text
    seq: U63
    head: Digest


# ── accounts ────────────────────────────────────────────────────────────────────────────────────────────────────────
class AccountHead(Struct, frozen=True, array_like=True, tag=50):
    """How far a relay has shown the sender the chain of an account that both are in: `head` is the hash of link `seq`.

    Sent on connect and whenever the chain has grown.
    """

    account_id: Annotated[bytes, Meta(min_length=ACCOUNT_ID_SIZE, max_length=ACCOUNT_ID_SIZE)]
    seq: U63
    head: Digest


Message = (
    Hello
    | Welcome
    | Goodbye
    | Ping
    | Pong
    | FolderAnnounce
    | FolderResume
    | FolderOffer
    | LinksRequest
    | Links
    | Grants
    | MailboxHeads
    | Records
    | Possession
    | RecordsRequest
    | MerkleQuery
    | MerkleAnswer
    | Rescan
    | RescanDone
    | ChunkRequest
    | ChunkCancel
    | LeavesRequest
    | RangesRequest
    | PairHello
    | PairMessage
    | PairAccount
    | AccountHead
)

_GOODBYE_CODES = frozenset(GoodbyeCode)
_FOLDER_STATES = frozenset(FolderState)
