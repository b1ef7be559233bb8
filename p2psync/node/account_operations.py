"""Operations on the account: the same on a running node and on a home that no node uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from p2psync.crypto.identity import DeviceCard
from p2psync.crypto.password import LOGIN_KEY_SIZE, normalise_email
from p2psync.crypto.recovery import parse_recovery_key
from p2psync.errors import (
    AuthenticationError,
    ConnectionLost,
    InputError,
    P2PSyncError,
    RelayRefusal,
    StateError,
    Unreachable,
)
from p2psync.membership.sigchain import ChainDevice, DeviceKind
from p2psync.model.ids import format_device_id, parse_device_id
from p2psync.net.relay_client import RelayClient
from p2psync.net.relay_mailbox import encode_id
from p2psync.node.account import Account, ChainRefusedError, Invitation
from p2psync.node.account_joining import Joining
from p2psync.node.core import Core
from p2psync.node.lookup import find
from p2psync.node.views import (
    AccountDevice,
    AccountUsage,
    AccountView,
    NewAccount,
    PlanChange,
    PlanView,
    Problem,
    RecoveryKey,
)
from p2psync.protocol import relay_api as api
from p2psync.protocol.messages import PairAccount
from p2psync.protocol.relay_address import parse_relay_address

MAX_RELAYS = 8
STATUS_TIME = 20.0
"""Seconds that a status waits for the relay."""
RECOVERY_NAME = "recovery key"
"""What the recovery key is called among devices."""


class AccountOperations(Core):
    """See `Operations`."""

    _account: Account | None = None

    @property
    def account(self) -> Account:
        """This device's account, read when it is first needed: what is wrong with it must not keep folders waiting."""
        return self._account if self._account is not None else self._hold(self._read())

    async def read_account(self) -> Account:
        """The account, read on a thread: a long chain takes a while. Raises as `AccountFiles.load`."""
        if self._account is not None:
            return self._account
        read = await self.world.offload.run(self._read)
        return self._account if self._account is not None else self._hold(read)

    def _read(self) -> Account:
        return Account(self.home, self.world, self.keys, self.account_changed)

    def _hold(self, account: Account) -> Account:
        self._account = account
        self.account_changed.fire()
        return account

    async def close_account(self) -> None:
        """Close the connections to the relay."""
        if self._account is not None:
            with trio.move_on_after(5, shield=True):
                await self._account.aclose()

    # ── beginning and end ───────────────────────────────────────────────────────────────────────────────────────────
    async def account_sign_up(self, relays: list[str], email: str, login_key: bytes) -> NewAccount:
        """Begin an account with this device."""
        named, address = _relays(relays), normalise_email(email)
        recovery = await self.account.sign_up(named, address, _login_key(login_key))
        stored = self.account.require()
        self.event_log.publish("account.signed-up", "an account was begun; it waits for the mailed code")
        return NewAccount(encode_id(stored.account_id), address, named[0], recovery)

    async def account_verify(self, code: str) -> AccountView:
        """The account exists from now on."""
        with _instead("the code is wrong or has expired; look at the newest mail, or sign up again"):
            await self.account.verify(code.strip())
        self.event_log.publish("account.active", "the account is in use")
        return await self.account_status()

    async def account_log_in(
        self,
        email: str,
        login_key: bytes,
        relays: list[str] = [],  # noqa: B006
        recovery_key: str = "",
    ) -> AccountView:
        """By password, and by the recovery key where this device is new."""
        address, key = normalise_email(email), _login_key(login_key)
        secret = parse_recovery_key(recovery_key) if recovery_key else None
        joining = Joining(self.keys.card, self.name, self.world)
        with _instead("the e-mail address or the password is wrong; a forgotten password: p2psync account reset"):
            if secret is None:
                await self.account.log_in(self._known(relays), address, key)
            else:
                await self.account.recover(self._known(relays), address, key, secret, joining.run)
        self.event_log.publish("account.active", "the account is in use")
        view = await self.account_status()
        return msgspec.structs.replace(view, problems=[*view.problems, *_joining_problems(joining)])

    async def account_log_out(self, forget: bool = False) -> None:
        """The next session needs the password."""
        await self.account.log_out(forget=forget)

    async def account_ask_reset(self, email: str, relays: list[str] = []) -> None:  # noqa: B006
        """A code is mailed, if there is such an account."""
        async with self._visiting(relays) as client:
            await client.accounts.ask_reset(normalise_email(email))

    async def account_reset(self, email: str, code: str, login_key: bytes, relays: list[str] = []) -> None:  # noqa: B006
        """By the mailed code."""
        async with self._visiting(relays) as client:
            with _instead("the code is wrong or has expired; ask for another with: p2psync account reset"):
                await client.accounts.reset(normalise_email(email), code.strip(), _login_key(login_key))

    async def account_change_password(self, login_key: bytes, new_login_key: bytes) -> None:
        """By the old one. The relay ends all sessions; devices open their next one by their keys."""
        self.account.active()
        old, new = _login_key(login_key), _login_key(new_login_key)
        try:
            with _instead("the old password is wrong; a forgotten one: p2psync account reset"):
                await self.account.client.accounts.change_password(old, new)
        except Unreachable:
            raise
        except ConnectionLost as error:
            raise ConnectionLost(
                "no answer came, so the password may have been changed or not; try again, and if the old one is wrong "
                "then, the new one is in force"
            ) from error
        self.event_log.publish("account.password-changed", "the account has a new password")

    async def account_delete(self, login_key: bytes) -> None:
        """The account and all it stored at the relay are gone; folders and devices here stay as they are."""
        with _instead("the password is wrong"):
            await self.account.delete(_login_key(login_key))
        self.event_log.publish("account.deleted", "the account was deleted")

    # ── how it stands ───────────────────────────────────────────────────────────────────────────────────────────────
    async def account_status(self) -> AccountView:
        """What is known here, and what the relay says."""
        self.account.require()
        usage, problems = await self.ask_usage()
        return self.account_view(usage, problems)

    async def ask_usage(self) -> tuple[AccountUsage | None, list[Problem]]:
        """What the relay says of the account, and what keeps it from saying so."""
        account = self.account
        try:
            if account.require().state in ("active", "joining"):
                if account.doing:
                    return None, [Problem("account-busy", account.doing, "wait until that is done")]
                with trio.fail_after(STATUS_TIME):
                    await account.refresh()
                    return _usage(await account.client.accounts.status()), []
        except trio.TooSlowError:
            return None, [Problem("relay-unreachable", "the relay does not answer in time", "try again later")]
        except P2PSyncError as error:
            return None, [_problem(error)]
        return None, []

    def account_view(self, usage: AccountUsage | None, found: Sequence[Problem]) -> AccountView:
        """The account as it is known here, with what the relay has said of it. StateError when there is none."""
        stored, chain = self.account.require(), self.account.chain
        problems = list(found)
        if stored.state == "unverified":
            remedy = "p2psync account verify CODE; no mail? sign up again"
            problems.append(Problem("account-unverified", "the account waits for the mailed code", remedy))
        elif stored.state == "logged-out":
            problems.append(Problem("account-logged-out", "this device is logged out", "p2psync account login"))
        devices = sum(d.kind is DeviceKind.DEVICE for d in chain.devices.values()) if chain is not None else 0
        return AccountView(
            encode_id(stored.account_id), stored.email, list(stored.relays), stored.state, devices, usage, problems
        )

    async def account_devices(self) -> list[AccountDevice]:
        """By the verified chain; the relay only adds what it saw."""
        chain = await self.account.refresh()
        seen = {entry.device_id: entry for entry in await self.account.client.accounts.devices()}
        devices = []
        for device in chain.devices.values():
            text = format_device_id(device.device_id)
            told = seen.get(text)
            recovery = device.kind is DeviceKind.RECOVERY
            devices.append(
                AccountDevice(
                    text,
                    self._device_label(device),
                    "recovery" if recovery else "device",
                    device.device_id == self.device_id,
                    float(told.seen) if told is not None and told.seen else None,
                    told is not None and told.logged_out,
                )
            )
        return devices

    async def account_remove_device(self, device: str) -> None:
        """Put a device out of the account."""
        chain = await self.account.refresh()
        named = [(format_device_id(d.device_id), self._device_label(d)) for d in chain.devices.values()]
        try:
            target = parse_device_id(find("device", device, named))
        except InputError:
            raise InputError(
                f"no one device of the account is meant by {device!r}; see: p2psync account devices"
            ) from None
        if target == self.device_id:
            raise InputError("that is this device; leave the account with: p2psync account logout --forget")
        await self.account.remove(target)
        self.event_log.publish(
            "account.device-removed",
            f"{self.device_name(target)} is out of the account",
            device=format_device_id(target),
        )

    def _device_label(self, device: ChainDevice) -> str:
        return RECOVERY_NAME if device.kind is DeviceKind.RECOVERY else self.device_name(device.device_id)

    async def account_recovery(self) -> RecoveryKey:
        """A new recovery key."""
        self.account.active()
        return RecoveryKey(await self.account.renew_recovery())

    # ── pairing ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def account_invitation(self) -> PairAccount:
        """What a device that is taken into the account is told. StateError unless this one is in it."""
        told = self.account.invitation()
        return PairAccount(told.account_id, list(told.relays), told.email, told.seq, told.head)

    async def account_take_in(self, card: DeviceCard) -> None:
        """Add a paired device to the account."""
        await self.account.add(card.encode(), DeviceKind.DEVICE, card.device_id)
        text = format_device_id(card.device_id)
        self.event_log.publish(
            "account.device-added", f"{self.device_name(card.device_id)} is in the account", device=text
        )

    async def account_come_in(self, invitation: PairAccount) -> None:
        """Join the account of a paired device; the relay must get to know this one."""
        told = Invitation(
            invitation.account_id,
            tuple(_relays(invitation.relays)),
            normalise_email(invitation.email),
            invitation.seq,
            invitation.head,
        )
        await self.account.join(told)
        self.event_log.publish("account.active", "the account is in use")

    # ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────
    async def account_plans(self, relays: list[str] = []) -> list[PlanView]:  # noqa: B006
        """Of the relay that is named, or of the account's."""
        async with self._visiting(relays) as client:
            found = await client.accounts.plans()
        free = found.free
        listed = [PlanView(p.name, p.price, p.bytes, p.devices, p.folders) for p in found.plans]
        return [PlanView("", "", free.bytes, free.devices, free.folders), *listed]

    async def account_subscribe(self, plan: str = "") -> PlanChange:
        """Subscribe, or go back to the free allowance."""
        self.account.active()
        calls = self.account.client.accounts
        if not plan:
            await calls.unsubscribe()
            return PlanChange("", active=True)
        with _instead(f"the relay has no plan {plan!r}; see: p2psync account plans", "not-found"):
            asked = await calls.subscribe(plan)
        return PlanChange(asked.plan, asked.state == "active", asked.reference, asked.checkout)

    # ── parts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def _known(self, relays: Sequence[str]) -> list[str]:
        """The relays that are named, else those of the account."""
        if relays:
            return _relays(relays)
        stored = self.account.stored
        if stored is None:
            raise StateError("no relay is named and this device is in no account; give one with --relay URL")
        return list(stored.relays)

    @asynccontextmanager
    async def _visiting(self, relays: Sequence[str]) -> AsyncIterator[RelayClient]:
        client = RelayClient(self.world, self.keys, [parse_relay_address(url) for url in self._known(relays)])
        try:
            yield client
        finally:
            with trio.move_on_after(5, shield=True):
                await client.aclose()


class _instead:  # noqa: N801  (reads as a statement)
    """A refusal that means one thing here is told in its words."""

    def __init__(self, text: str, code: str = "unauthorized") -> None:
        self._text = text
        self._code = code

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RelayRefusal) and error.code == self._code:
            raise RelayRefusal(self._text, error.code, error.status, error.figures) from error


def _relays(urls: Sequence[str]) -> list[str]:
    """Relay URLs in their one form. InputError for none, too many, or what is no URL of a relay."""
    if not 1 <= len(urls) <= MAX_RELAYS:
        raise InputError(f"name one relay, or up to {MAX_RELAYS} addresses of it, with --relay URL")
    return list(dict.fromkeys(str(parse_relay_address(url)) for url in urls))


def _login_key(key: bytes) -> bytes:
    if len(key) != LOGIN_KEY_SIZE:
        raise InputError(f"a login key has {LOGIN_KEY_SIZE} bytes")
    return key


def _problem(error: P2PSyncError) -> Problem:
    """What keeps this device from its account; the text says what to do."""
    what, _, remedy = str(error).partition("; ")
    remedy = remedy or "try again later"
    match error:
        case ConnectionLost():
            return Problem("relay-unreachable", what, remedy)
        case ChainRefusedError():
            return Problem("account-chain", str(error), "compare the devices of the account with each other")
        case AuthenticationError():
            return Problem("relay-identity", what, remedy)
        case StateError():
            return Problem("account-locked-out", what, remedy)
        case _:
            return Problem("relay-refused", what, remedy)


def _joining_problems(joining: Joining) -> list[Problem]:
    """What a recovery key could not do for this device."""
    problems = []
    if joining.failures:
        remedy = "p2psync account login --recovery-file FILE, again; another device of the account does it as well"
        problems.append(
            Problem("folders-not-joined", f"not all folders could be looked at: {joining.failures[0]}", remedy)
        )
    if joining.removed:
        remedy = "on an owner of it: p2psync folder share FOLDER --with DEVICE"
        text = f"this device was removed from {len(joining.removed)} of the account's folders, and stays out"
        problems.append(Problem("folders-removed", text, remedy))
    return problems


def _usage(status: api.AccountStatus) -> AccountUsage:
    limits, pending = status.limits, status.pending
    return AccountUsage(
        limits.plan,
        status.used,
        status.reserved,
        limits.bytes,
        status.devices,
        limits.devices,
        status.folders,
        limits.folders,
        pending.plan if pending is not None else "",
        pending.checkout if pending is not None else "",
    )
