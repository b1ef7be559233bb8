"""What a relay is asked and answers: the bodies of its API, the same definitions on both sides.

Bodies are MessagePack (or JSON, where bytes are base64) with named fields. Every list and text from outside has a bound
here; answers may get more fields later, which older nodes pass over. `docs/openapi.json` says which path takes which.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from p2psync.crypto.password import LOGIN_KEY_SIZE, MAX_EMAIL
from p2psync.crypto.seal import MAX_SEALED_CHUNK
from p2psync.membership.grants import MAX_GRANT
from p2psync.membership.sigchain import ACCOUNT_ID_SIZE, MAX_CHAIN_LINK
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import FOLDER_ID_SIZE
from p2psync.model.manifest import MAX_CHUNKS
from p2psync.model.versions import MAX_COUNTER
from p2psync.protocol.mailbox import MAX_ENTRY

PROBLEM_PREFIX: Final = "urn:p2psync:problem:"
"""Begins the `type` of every refusal (RFC 9457); its code follows."""
MAX_TOKEN: Final = 192
MAX_PLAN_NAME: Final = 64
CHAIN_PAGE: Final = 256
"""Links of an account in one answer."""
MAX_ASKED: Final = 1000
"""Chunks in one question."""
MAX_LIST: Final = 1000
"""Names of chunks or references in one answer."""
MAX_REF_CHUNKS: Final = MAX_CHUNKS + 1
"""The chunks of a file, and its list of them."""
MAX_REFS: Final = 500
"""References in one request, which together name at most `MAX_REFS_CHUNKS` chunks."""
MAX_REFS_CHUNKS: Final = 10_000
MAX_LINK_LIFETIME_S: Final = 15 * 60
MAX_ACCOUNTS: Final = 256
"""Of one folder."""
MAX_APPEND: Final = 256
MAX_APPEND_BYTES: Final = 8 << 20
MAX_OBJECTS: Final = 1000
"""Entries in one answer, which ends after the entry with which it exceeds `MAX_OBJECT_BYTES`."""
MAX_OBJECT_BYTES: Final = 4 << 20
MAX_GRANTS: Final = 256
MAX_GRANTS_ANSWERED: Final = 1024
MAX_EVENTS: Final = 256
"""Events in one answer."""
MAX_CALL: Final = 4096
"""Bytes that one event may carry for its receiver."""

Email = Annotated[str, Meta(min_length=3, max_length=MAX_EMAIL, description="Upper and lower case are the same.")]
LoginKey = Annotated[
    bytes,
    Meta(
        min_length=LOGIN_KEY_SIZE,
        max_length=LOGIN_KEY_SIZE,
        description="Derived from the password on the device; the password itself never comes here.",
    ),
]
AccountId = Annotated[bytes, Meta(min_length=ACCOUNT_ID_SIZE, max_length=ACCOUNT_ID_SIZE)]
Link = Annotated[bytes, Meta(min_length=1, max_length=MAX_CHAIN_LINK, description="A signed link of the chain.")]
Code = Annotated[str, Meta(min_length=1, max_length=32, description="As it was mailed, in any case.")]
Token = Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN)]
FolderIdBytes = Annotated[bytes, Meta(min_length=FOLDER_ID_SIZE, max_length=FOLDER_ID_SIZE)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)]
Id = Annotated[bytes, Meta(max_length=32)]
AccountRights = Literal["read", "append", "manage"]
Cursor = Annotated[int, Meta(ge=0, le=MAX_COUNTER)]
EncodedEntry = Annotated[bytes, Meta(min_length=1, max_length=MAX_ENTRY, description="A signed entry, sealed inside.")]


# ── accounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class SignUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for an account; `genesis` is the first link of its chain, by the device that asks."""

    email: Email
    login_key: LoginKey
    genesis: Link


class Verification(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Proves that the mail was read."""

    account_id: AccountId
    code: Code


class Session(msgspec.Struct, frozen=True):
    """A session of the device that signed. Tokens are sent as `Authorization: Bearer TOKEN`. Times are seconds."""

    account_id: bytes
    access_token: str
    access_expires: int
    refresh_token: str
    refresh_expires: int


class Deletion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deletes the account; the password is asked for once more."""

    login_key: LoginKey


class LogIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By password, from a device that is in the account."""

    email: Email
    login_key: LoginKey


class KeyLogIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By the device's key alone."""

    account_id: AccountId


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exchanges a refresh token, which works once."""

    refresh_token: Token


class ResetRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for a code by mail, for the device that signs."""

    email: Email


class Reset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sets a new password by the mailed code."""

    email: Email
    code: Code
    login_key: LoginKey


class PasswordChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sets a new password by the old one."""

    login_key: LoginKey
    new_login_key: LoginKey


class PlanLimits(msgspec.Struct, frozen=True):
    """What an account may use; `plan` is empty for the free allowance."""

    plan: str
    bytes: int
    devices: int
    folders: int


class Subscription(msgspec.Struct, frozen=True):
    """A plan in force, or one that waits until the payment with this reference has arrived."""

    plan: str
    state: Literal["active", "pending"]
    reference: str = ""
    checkout: str = ""
    """URL at which to pay, when the operator named one."""


class AccountStatus(msgspec.Struct, frozen=True):
    """The account at a glance; sizes are sealed bytes."""

    account_id: bytes
    email: str
    limits: PlanLimits
    used: int
    reserved: int
    devices: int
    folders: int
    pending: Subscription | None = None


class DeviceEntry(msgspec.Struct, frozen=True):
    """A device of the account; times are seconds, `seen` is 0 when it never had a session."""

    device_id: str
    kind: Literal["device", "recovery"]
    added: int
    seen: int
    logged_out: bool


class DeviceList(msgspec.Struct, frozen=True):
    """In the order they came."""

    devices: list[DeviceEntry]


class ChainPage(msgspec.Struct, frozen=True):
    """Signed links, in order; `more` when there are others after them."""

    links: list[bytes]
    more: bool


class NewLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next link of the chain."""

    link: Link


class PlanEntry(msgspec.Struct, frozen=True):
    """A plan of this relay; without a price it is in force as soon as it is asked for."""

    name: str
    price: str
    bytes: int
    devices: int
    folders: int


class PlanList(msgspec.Struct, frozen=True):
    """What everybody has, and what can be subscribed to."""

    free: PlanLimits
    plans: list[PlanEntry]


class PlanChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for a plan."""

    plan: Annotated[str, Meta(min_length=1, max_length=MAX_PLAN_NAME)]


# ── sealed chunks ─────────────────────────────────────────────────────────────────────────────────────────────────────
class StoredChunk(msgspec.Struct, frozen=True):
    """The chunk is stored durably; `new` is false when these bytes were there already, which costs nothing."""

    size: int
    new: bool


class ChunkQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of these chunks are missing?"""

    folder_id: FolderIdBytes
    chunk_ids: Annotated[list[Digest], Meta(max_length=MAX_ASKED)]


class ChunkList(msgspec.Struct, frozen=True):
    """Names of chunks, in the order asked, or by name."""

    chunk_ids: list[bytes]


class NewRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a reference is to keep; it takes the place of what it kept before."""

    chunk_ids: Annotated[list[Digest], Meta(max_length=MAX_REF_CHUNKS)]


class NamedRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that one of several references is to keep."""

    ref_id: Digest
    chunk_ids: Annotated[list[Digest], Meta(max_length=MAX_REFS_CHUNKS)]


class NewRefs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """References, each named once, with at most 10,000 chunks together; all of them or none."""

    refs: Annotated[list[NamedRef], Meta(max_length=MAX_REFS)]


class FullRef(msgspec.Struct, frozen=True):
    """A reference; `modified` in seconds by the relay's clock."""

    modified: int
    chunk_ids: list[bytes]


class RefLine(msgspec.Struct, frozen=True):
    """A reference in a list."""

    ref_id: bytes
    modified: int
    count: int


class RefPage(msgspec.Struct, frozen=True):
    """References by name; a page shorter than `limit` is the last."""

    refs: list[RefLine]


class LinkWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a link is to allow. Uploads say size and SHA-256 of the sealed bytes; downloads need neither."""

    operation: Literal["get", "put"]
    folder_id: FolderIdBytes
    chunk_id: Digest
    size: Annotated[int, Meta(ge=0, le=MAX_SEALED_CHUNK)] = 0
    digest: Annotated[bytes, Meta(max_length=DIGEST_SIZE)] = b""
    lifetime_s: Annotated[int, Meta(ge=1, le=MAX_LINK_LIFETIME_S)] = MAX_LINK_LIFETIME_S


class PresignedLink(msgspec.Struct, frozen=True):
    """Works without token and signature for exactly what was asked; a `url` without host is of this relay."""

    url: str
    expires: int


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────────────
class FolderEntry(msgspec.Struct, frozen=True):
    """A folder as the calling account sees it. Entries up to `pruned_seq` are gone; the newest is `last_seq`."""

    folder_id: bytes
    owned: bool
    rights: AccountRights
    last_seq: int
    pruned_seq: int


class FolderList(msgspec.Struct, frozen=True):
    """Everything the calling account may see."""

    folders: list[FolderEntry]


class AccessEntry(msgspec.Struct, frozen=True):
    """What an account may do in a folder."""

    account_id: bytes
    rights: AccountRights


class AccessList(msgspec.Struct, frozen=True):
    """The accounts of a folder."""

    accounts: Annotated[list[AccessEntry], Meta(max_length=MAX_ACCOUNTS)]


class NewRights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A greater right includes the lesser: read, append, manage."""

    rights: AccountRights


class NewEntries(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entries of one folder that the calling device has signed, in the order of their chains."""

    entries: Annotated[list[EncodedEntry], Meta(min_length=1, max_length=MAX_APPEND)]


class Place(msgspec.Struct, frozen=True):
    """The numbers an entry has in its folder and in the relay."""

    seq: int
    object_id: int


class Places(msgspec.Struct, frozen=True):
    """One for each entry, in the order they came; the same entry has the same place however often it is sent."""

    places: list[Place]


class StoredObject(msgspec.Struct, frozen=True):
    """An entry as it was appended."""

    folder_id: bytes
    seq: int
    object_id: int
    entry: bytes


class FolderMark(msgspec.Struct, frozen=True):
    """A folder whose entries up to `before_seq` are in no page after this cursor: read its own feed if they lack.

    Those up to `pruned_seq` are gone: the folder's snapshot stands for them.
    """

    folder_id: bytes
    before_seq: int
    pruned_seq: int


class ObjectPage(msgspec.Struct, frozen=True):
    """Entries of all folders, in order. Take in the marks first; `local_object_id` goes into the next question."""

    objects: list[StoredObject]
    marks: list[FolderMark]
    local_object_id: int
    more: bool


class FolderPage(msgspec.Struct, frozen=True):
    """Entries of one folder without a gap, beginning after `pruned_seq` if that is greater than what was asked."""

    objects: list[StoredObject]
    last_seq: int
    pruned_seq: int


class HeadList(msgspec.Struct, frozen=True):
    """The newest header of every chain, and the numbers of the entries with the newest statements of freshness."""

    headers: list[bytes]
    statements: list[int]


class NewSnapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A snapshot of everything up to entry `covers`; `ref_id` is the reference that keeps its parts."""

    entry: EncodedEntry
    covers: Cursor
    ref_id: Annotated[bytes, Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)]


class StoredSnapshot(msgspec.Struct, frozen=True):
    """The newest snapshot."""

    object: StoredObject
    covers: int
    ref_id: bytes


class NewGrants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Grants that the calling device has signed."""

    grants: Annotated[
        list[Annotated[bytes, Meta(min_length=1, max_length=MAX_GRANT)]],
        Meta(min_length=1, max_length=MAX_GRANTS),
    ]


class GrantList(msgspec.Struct, frozen=True):
    """Grants for the calling device, newest first."""

    grants: Annotated[list[bytes], Meta(max_length=MAX_GRANTS_ANSWERED)]


# ── news ──────────────────────────────────────────────────────────────────────────────────────────────────────────────
class EventKind(StrEnum):
    """What is new."""

    OBJECTS = "objects"
    """A folder has entries up to `seq` and `object_id`."""
    GRANT = "grant"
    """There is a grant of a folder's key for this device."""
    CHAIN = "chain"
    """The account's chain of devices is longer."""
    ACCESS = "access"
    """What the account may do in a folder; without `rights` it may not see it any more."""
    QUOTA = "quota"
    """The account's plan or storage calls for attention."""
    CALL = "call"
    """Another device wants to connect: `body` is for this device, from `sender`."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of news. Which fields are there depends on `kind`; a client ignores kinds and fields it does not know.

    `device_id` is the device an event is about, `sender` that which a call comes from.
    """

    kind: EventKind
    event_id: int = 0
    folder_id: Id = b""
    seq: int = 0
    object_id: int = 0
    rights: str | None = None
    device_id: Id = b""
    sender: Id = b""
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_CALL)] = b""

    @property
    def topic(self) -> bytes:
        """What a newer event takes the place of."""
        return b"\0".join((self.kind.encode(), self.folder_id, self.device_id, self.sender))


class Batch(msgspec.Struct, frozen=True):
    """News after a cursor, oldest first. `cursor` goes into the next question."""

    events: list[Event]
    cursor: int
    reset: bool = False
    """Something before was forgotten, or the cursor is not of this relay: read everything again."""
