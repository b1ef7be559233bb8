"""Everything a node can be asked to do, once: the node implements it, the control API serves it, the commands call it.

FOLDER and DEVICE arguments are text a person types: see `p2psync.node.lookup`. Paths are bytes and absolute; in JSON
they travel as base64. Every operation may raise any `P2PSyncError`.
"""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec

from p2psync.node.views import (
    AccountDevice,
    AccountView,
    CheckReport,
    Conflict,
    DeviceView,
    Diagnosis,
    Event,
    FolderOffer,
    FolderRef,
    FolderSummary,
    Identity,
    MailboxPolicy,
    MailboxView,
    Member,
    NewAccount,
    PairingOffer,
    Peer,
    PlanChange,
    PlanView,
    RecoveryKey,
    Restored,
    Role,
    SettingView,
    Status,
    Version,
    WaitResult,
)


class Operations(Protocol):
    """The operations of one device, on a running node or (where it makes sense) on a home no node uses."""

    # ── this device and others ──────────────────────────────────────────────────────────────────────────────────
    async def identity(self) -> Identity:
        """Who this device is."""
        ...

    async def status(self) -> Status:
        """Folders, devices, progress; cheap enough to ask several times a second."""
        ...

    async def device_list(self) -> list[DeviceView]:
        """The devices this one knows, by name."""
        ...

    async def device_add(self, device: str, name: str | None = None, addresses: list[str] = []) -> DeviceView:  # noqa: B006
        """Trust the device with this full ID. Adding a known one changes its name and addresses as far as given."""
        ...

    async def device_remove(self, device: str) -> None:
        """Stop trusting a device and end its connection."""
        ...

    async def pair_open(self, account: bool = False) -> PairingOffer:
        """Start a pairing; one at a time, one guess per code. With `account` the other device may join the account."""
        ...

    async def pair_wait(self, code: str) -> Peer:
        """Wait until the other side has typed the code. StateError when it expired or was guessed wrong.

        A caller that goes away (is cancelled) withdraws the code.
        """
        ...

    async def pair_join(self, code: str, address: str | None = None, account: bool = False) -> Peer:
        """Type a code shown by another device, found by discovery or at `address` (HOST:PORT).

        With `account` this device joins the account of the other, which must offer that.
        """
        ...

    # ── the account ─────────────────────────────────────────────────────────────────────────────────────────────
    async def account_sign_up(self, relays: list[str], email: str, login_key: bytes) -> NewAccount:
        """Begin an account with this device; a code is mailed. `login_key` as `p2psync.crypto.password` derives it."""
        ...

    async def account_verify(self, code: str) -> AccountView:
        """Type the mailed code."""
        ...

    async def account_log_in(
        self,
        email: str,
        login_key: bytes,
        relays: list[str] = [],  # noqa: B006
        recovery_key: str = "",
    ) -> AccountView:
        """By password; with a recovery key a new device comes in. Without relays, those of this device's account."""
        ...

    async def account_status(self) -> AccountView:
        """What is known here, and what the relay says; problems instead of an error when it cannot be asked."""
        ...

    async def account_devices(self) -> list[AccountDevice]:
        """The devices of the account, in the order they came."""
        ...

    async def account_remove_device(self, device: str) -> None:
        """Put a device out of the account."""
        ...

    async def account_log_out(self, forget: bool = False) -> None:
        """End this device's session; with `forget` nothing of the account is kept here."""
        ...

    async def account_ask_reset(self, email: str, relays: list[str] = []) -> None:  # noqa: B006
        """Have a code mailed by which this device may set a new password."""
        ...

    async def account_reset(self, email: str, code: str, login_key: bytes, relays: list[str] = []) -> None:  # noqa: B006
        """Set a new password by the mailed code; every session of the account ends."""
        ...

    async def account_change_password(self, login_key: bytes, new_login_key: bytes) -> None:
        """Set a new password by the old one; devices that are logged in stay so."""
        ...

    async def account_delete(self, login_key: bytes) -> None:
        """Delete the account and all it stored at the relay."""
        ...

    async def account_plans(self, relays: list[str] = []) -> list[PlanView]:  # noqa: B006
        """The free allowance, then what can be subscribed to."""
        ...

    async def account_subscribe(self, plan: str = "") -> PlanChange:
        """Subscribe to a plan; empty goes back to the free allowance."""
        ...

    async def account_recovery(self) -> RecoveryKey:
        """A new recovery key in the place of the one before."""
        ...

    # ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────
    async def folder_add(self, path: bytes, label: str | None = None, algorithm: str = "blake3") -> FolderRef:
        """Make a directory a shared folder; `algorithm` is "blake3" or "sha256". The label defaults to its name."""
        ...

    async def folder_share(self, folder: str, with_: str, role: Role = "editor") -> Member:
        """Invite a known device, or change its role."""
        ...

    async def folder_unshare(self, folder: str, with_: str) -> None:
        """Remove a device from a folder: it gets nothing more and its later changes are refused."""
        ...

    async def folder_members(self, folder: str) -> list[Member]:
        """Who takes part in a folder."""
        ...

    async def folder_offers(self) -> list[FolderOffer]:
        """Folders shared with this device that wait for `folder_accept`."""
        ...

    async def folder_accept(self, folder: str, path: bytes) -> FolderRef:
        """Take part in an offered folder, keeping it at `path`."""
        ...

    async def folder_list(self) -> list[FolderSummary]:
        """The folders of this device, by label."""
        ...

    async def folder_remove(self, folder: str) -> FolderRef:
        """Stop synchronising a folder here; its files stay where they are."""
        ...

    async def folder_mailbox(self, folder: str, policy: MailboxPolicy | None = None) -> MailboxView:
        """How a folder uses the account's relay, or (with `policy`) from now on shall use it."""
        ...

    async def folder_pause(self, folder: str) -> None:
        """Neither scan nor exchange until resumed; survives a restart."""
        ...

    async def folder_resume(self, folder: str, confirm: bool = False, adopt: bool = False) -> None:
        """Go on. `confirm` lets held mass changes through; `adopt` takes a moved or restored directory as the root."""
        ...

    async def folder_scan(self, folder: str) -> None:
        """Compare the directory with the index now; returns when the scan is done."""
        ...

    async def wait(self, timeout_s: float) -> WaitResult:
        """Rescan, then wait until every folder is identical on every connected member, at most `timeout_s`."""
        ...

    # ── versions ────────────────────────────────────────────────────────────────────────────────────────────────
    async def log(self, path: bytes) -> list[Version]:
        """The versions of a file that can still be had, newest first."""
        ...

    async def restore(
        self, path: bytes, version: str | None = None, at: float | None = None, to: bytes | None = None
    ) -> Restored:
        """Put back a version: the one named, or the one that stood at a moment, or the last that was replaced.

        What is there now goes to history first. `to` puts it somewhere else, where nothing must exist.
        """
        ...

    async def conflicts(self) -> list[Conflict]:
        """Every conflict copy in every folder."""
        ...

    # ── settings and health ─────────────────────────────────────────────────────────────────────────────────────
    async def config_get(self, key: str | None = None) -> list[SettingView]:
        """One setting, or all of them in the order of the documentation."""
        ...

    async def config_set(self, key: str, value: str) -> SettingView:
        """Set from text as typed; ConfigError says what is allowed."""
        ...

    async def check(self, repair: bool = False, quick: bool = False, accept_local: bool = False) -> CheckReport:
        """Verify index, signatures, files and kept versions of every folder; `quick` reads no files.

        With `repair` what is wrong is put right, from other devices where needed, and `accept_local` publishes what is
        on this disk where no reachable device has what was lost. Events of kind `check.progress` tell how far it is.
        """
        ...

    async def doctor(self) -> list[Diagnosis]:
        """What the node itself can tell about its surroundings: network, discovery, watches, clocks."""
        ...

    def events(self, after: int | None = None) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """What happens from now on, or after the cursor of an earlier event. Ends when the node stops.

        A context manager, so that the subscription ends at a known point.
        """
        ...


class Operation(msgspec.Struct, frozen=True):
    """One row of the table: how an operation's arguments and result are read and written."""

    name: str
    arguments: type[msgspec.Struct]
    result: Any
    deadline: float
    """Seconds after which the control API gives up; an argument `timeout_s` is added to it."""


_DEADLINE = 60.0
_DEADLINES = {
    "pair_wait": 900.0,
    "pair_join": 120.0,
    "account_log_in": math.inf,
    "folder_scan": math.inf,
    "check": math.inf,
}
"""Work whose length the data decides has no deadline: it ends with the connection of who asked."""

OPERATION_NAMES = tuple(
    name for name, member in vars(Operations).items() if inspect.iscoroutinefunction(member) and name[0] != "_"
)


@functools.cache
def operation(name: str) -> Operation:
    """The table's row for `name`; KeyError when there is none. Derived from the annotations of `Operations`."""
    if name not in OPERATION_NAMES:
        raise KeyError(name)
    method = getattr(Operations, name)
    hints = typing.get_type_hints(method)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.default is parameter.empty:
            fields.append((parameter.name, hints[parameter.name]))
        else:
            fields.append((parameter.name, hints[parameter.name], parameter.default))
    arguments = msgspec.defstruct(f"{name}_arguments", fields, frozen=True, forbid_unknown_fields=True, kw_only=True)
    return Operation(name, arguments, hints["return"], _DEADLINES.get(name, _DEADLINE))
