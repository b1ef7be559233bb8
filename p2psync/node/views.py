"""What a node tells people and programs: the results of its operations, as they stand in JSON.

Sizes are bytes, rates bytes per second, durations seconds, moments seconds since the Unix epoch (UTC). A path is
shown as text; where its bytes are not UTF-8 the text is escaped with backslashes and `path_b64` carries the bytes.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

FolderState = Literal["idle", "scanning", "syncing", "paused", "error"]
MailboxPolicy = Literal["always", "offline", "never"]
"""When what is here is left at the relay: at once, while somebody who reads is not connected, or not at all."""
Role = Literal["owner", "editor", "viewer", "vault"]
WatchState = Literal["live", "degraded", "off"]
RawPath = bytes
"""The exact bytes of a path; base64 in JSON."""


def path_fields(path: bytes) -> tuple[str, RawPath | UnsetType]:
    """The pair (`path`, `path_b64`) of a view: text for people, exact bytes only where the text is not exact."""
    try:
        return path.decode(), UNSET
    except UnicodeDecodeError:
        return path.decode(errors="backslashreplace"), path


# ── this device and others ──────────────────────────────────────────────────────────────────────────────────────────
class Identity(Struct, frozen=True):
    """A device: `id` in its full text form, `short` its first group."""

    id: str
    name: str
    short: str


class Rates(Struct, frozen=True):
    """Transfer rates of the last seconds."""

    incoming: float = 0.0
    outgoing: float = 0.0


class DeviceView(Struct, frozen=True):
    """Another device this one knows. `via` says how it is reached, `skew_s` how far its clock is ahead of ours.

    `sent_bytes` and `received_bytes` count what its connections carried since the node started.
    """

    id: str
    name: str
    connected: bool = False
    address: str | None = None
    via: Literal["lan", "direct", "relay"] | None = None
    paired: bool = True
    addresses: list[str] = []
    last_seen: float | None = None
    rates: Rates = Rates()
    skew_s: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0


class PairingOffer(Struct, frozen=True):
    """An open pairing: the code the other side types, and how long it is good for."""

    code: str
    expires_s: float


class Peer(Struct, frozen=True):
    """The device at the other end of a finished pairing; `account` says that both are in one account now."""

    id: str
    name: str
    account: bool = False


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────
class Problem(Struct, frozen=True):
    """Something that keeps a folder or one entry from being synchronised; stays until it is gone.

    `code` is stable for programs, `text` says what is wrong, `remedy` what the person can do. `path` is None when it
    concerns the whole folder.
    """

    code: str
    text: str
    remedy: str
    path: str | None = None
    path_b64: RawPath | UnsetType = UNSET


class Progress(Struct, frozen=True):
    """How far the current work is; `eta_s` is None while it cannot be told."""

    done_bytes: int
    total_bytes: int
    rate: float
    eta_s: float | None = None


class ScrubView(Struct, frozen=True):
    """Reading everything again in the background; `finished` is the end of the last whole round.

    `files` and `bytes` are those read in the present round; `found` counts damaged files ever found here, `healed`
    those of them that are not damaged any more.
    """

    began: float | None
    finished: float | None
    files: int
    bytes: int
    found: int
    healed: int


class MailboxView(Struct, frozen=True):
    """How a folder uses the account's relay. `policy` is a setting; the rest is empty while no node runs the mailbox.

    `waiting` counts paths that are still to be left there, as far as was looked, and `waiting_bytes` the content that
    goes with them; `sent` and `received` are bytes of content since the start; `confirmed` is when another device last
    said what it has seen there (seconds); `read_age_s` is how long ago what is there was read to its end.
    `keyless` names members who can read nothing there yet: their card is not known here, or they are granted the key
    just now.
    """

    label: str
    policy: MailboxPolicy
    relay: str = ""
    activity: str = ""
    waiting: int = 0
    sent: int = 0
    received: int = 0
    confirmed: int | None = None
    keyless: list[str] = []
    waiting_bytes: int = 0
    read_age_s: float | None = None


class FolderView(Struct, frozen=True):
    """One folder as it is now.

    `need_*` counts what is known to exist elsewhere and not yet here. `root` is the short Merkle root of its records
    and `equal_with` the IDs of the devices that have proved to hold the same.
    """

    id: str
    label: str
    path: str
    state: FolderState
    files: int
    bytes: int
    need_files: int
    need_bytes: int
    conflicts: int
    need_deletes: int = 0
    role: Role = "owner"
    problems: list[Problem] = []
    progress: Progress | None = None
    root: str | None = None
    equal_with: list[str] = []
    scrub: ScrubView | None = None
    watch: WatchState = "off"
    path_b64: RawPath | UnsetType = UNSET
    mailbox: MailboxView | None = None


class FolderRef(Struct, frozen=True):
    """A folder of this device, named: the answer to adding or accepting one."""

    id: str
    label: str
    path: str
    path_b64: RawPath | UnsetType = UNSET


class FolderSummary(Struct, frozen=True):
    """One line of the list of folders."""

    id: str
    label: str
    path: str
    role: Role
    state: FolderState
    path_b64: RawPath | UnsetType = UNSET


class Member(Struct, frozen=True):
    """A device that takes part in a folder; `here` marks this one."""

    id: str
    name: str
    role: Role
    here: bool = False
    pending: bool = False
    """Shared with it, not accepted there yet."""


class FolderOffer(Struct, frozen=True):
    """A folder another device has shared with this one and that is not accepted yet."""

    id: str
    label: str
    device_id: str
    device_name: str
    role: Role


class NodeView(Struct, frozen=True):
    """The running node itself. `discovery` is a word and, where it does not work, the reason."""

    version: str
    pid: int
    uptime_s: float
    listen: list[str]
    discovery: str
    rates: Rates


class FolderEquality(Struct, frozen=True):
    """Whether one folder is identical on every connected member, proved by equal Merkle roots."""

    id: str
    label: str
    identical: bool
    root: str | None
    equal_with: list[str]


class WaitResult(Struct, frozen=True):
    """The answer to `wait`; `missing` says in words what is not identical yet, empty when all is."""

    identical: bool
    missing: list[str]
    folders: list[FolderEquality]


# ── the account ─────────────────────────────────────────────────────────────────────────────────────────────────────
class NewAccount(Struct, frozen=True):
    """An account that waits for the mailed code. The recovery key is shown this once and kept nowhere."""

    account_id: str
    email: str
    relay: str
    recovery_key: str


class RecoveryKey(Struct, frozen=True):
    """A new recovery key; those before are void."""

    recovery_key: str


class AccountUsage(Struct, frozen=True):
    """What the relay says of the account; sizes are sealed bytes. `plan` is empty for the free allowance."""

    plan: str
    used: int
    reserved: int
    limit: int
    devices: int
    max_devices: int
    folders: int
    max_folders: int
    pending_plan: str = ""
    checkout: str = ""


class AccountView(Struct, frozen=True):
    """The account of this device. `usage` is None while the relay does not say; `problems` says why.

    `relay` is the one of `relays` that is in use, and `usage_age_s` how old `usage` is.
    """

    account_id: str
    email: str
    relays: list[str]
    state: Literal["unverified", "joining", "active", "logged-out"]
    devices: int
    usage: AccountUsage | None = None
    problems: list[Problem] = []
    relay: str = ""
    usage_age_s: float | None = None


class Status(Struct, frozen=True):
    """Everything at a glance; `node` is None while no node runs.

    `account` is None where there is none. What it and the folders' mailboxes say of the relay is what the relay said
    last: nothing waits for it.
    """

    device: Identity
    folders: list[FolderView]
    devices: list[DeviceView]
    node: NodeView | None = None
    account: AccountView | None = None


class AccountDevice(Struct, frozen=True):
    """A device of the account, as its verified chain says. The relay adds when it was last `seen` there.

    A recovery key is a device of kind `recovery`; `here` marks this one.
    """

    id: str
    name: str
    kind: Literal["device", "recovery"]
    here: bool = False
    seen: float | None = None
    logged_out: bool = False


class PlanView(Struct, frozen=True):
    """What can be subscribed to; the free allowance has no name."""

    name: str
    price: str
    bytes: int
    devices: int
    folders: int


class PlanChange(Struct, frozen=True):
    """A plan that was asked for: in force, or waiting for its payment at `checkout` under `reference`."""

    plan: str
    active: bool
    reference: str = ""
    checkout: str = ""


# ── versions of a file ──────────────────────────────────────────────────────────────────────────────────────────────
class Version(Struct, frozen=True):
    """One known version of a file, newest first in lists. `version` is what `restore` takes.

    `kind` says where it lives: as the file now, in history, or as a conflict copy. `replaced_at` is when it was
    replaced or deleted here.
    """

    version: str
    kind: Literal["current", "history", "conflict"]
    size: int
    modified: float
    author_id: str
    author: str
    replaced_at: float | None = None
    deleted: bool = False


class Restored(Struct, frozen=True):
    """Where a version was put back."""

    path: str
    version: str
    size: int
    path_b64: RawPath | UnsetType = UNSET


class Conflict(Struct, frozen=True):
    """A conflict copy: `path` is the copy, `original` the file that won; both absolute. The author made the copy."""

    folder_id: str
    folder: str
    path: str
    original: str
    author_id: str
    author: str
    modified: float
    size: int
    path_b64: RawPath | UnsetType = UNSET
    original_b64: RawPath | UnsetType = UNSET


# ── settings, checks, events ────────────────────────────────────────────────────────────────────────────────────────
class SettingView(Struct, frozen=True):
    """One setting of the configuration file."""

    key: str
    value: str | int | float | bool | list[str]
    default: str | int | float | bool | list[str]
    about: str
    unit: str | None = None
    needs_restart: bool = False


class Finding(Struct, frozen=True):
    """Something `check` found wrong with stored data; `code` is stable for programs."""

    folder: str
    text: str
    remedy: str
    path: str | None = None
    repaired: bool = False
    path_b64: RawPath | UnsetType = UNSET
    code: str = ""


class FolderCheck(Struct, frozen=True):
    """What `check` has read of a folder."""

    folder: str
    files: int
    bytes: int
    versions: int
    """Kept versions."""
    scrub: ScrubView


class CheckReport(Struct, frozen=True):
    """The result of `check`; `ok` when nothing is wrong, or all that was is repaired. At most 1000 findings."""

    ok: bool
    findings: list[Finding]
    folders: list[FolderCheck] = []


class Diagnosis(Struct, frozen=True):
    """One line of `doctor`."""

    check: str
    ok: bool
    text: str
    remedy: str | None = None


class Event(Struct, frozen=True):
    """One thing that happened. `cursor` counts up by one; `kind` is a dotted word such as `folder.state`.

    Kind `gap` stands for events that are no longer kept: read the status afresh.
    """

    cursor: int
    at: float
    kind: str
    text: str = ""
    folder: str | None = None
    device: str | None = None
    path: str | None = None
    data: dict[str, str | int | float | bool | None] = {}
