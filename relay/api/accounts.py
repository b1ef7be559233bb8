"""Accounts over HTTP: sign-up, sessions, passwords, devices, plans and billing."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from p2psync.crypto.password import LOGIN_KEY_SIZE, MAX_EMAIL
from p2psync.membership.sigchain import ACCOUNT_ID_SIZE, MAX_CHAIN, MAX_CHAIN_LINK, DeviceKind
from p2psync.model.ids import format_device_id
from relay.accounts.billing import SIGNATURE_FIELD, Subscribed
from relay.accounts.chain import PAGE
from relay.accounts.context import Origin
from relay.accounts.plans import Limits
from relay.accounts.sessions import TOKEN_SIZE, Tokens
from relay.accounts.tables import PLAN_LENGTH
from relay.api.route import KIB, RAW, Auth, Call, Rate, Route, decode_id, encode_id
from relay.errors import ApiError, unauthorized

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
Token = Annotated[str, Meta(min_length=1, max_length=4 * TOKEN_SIZE)]


# ── sign-up ─────────────────────────────────────────────────────────────────────────────────────────────────────────
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


async def sign_up(call: Call) -> None:
    """Always the same answer; the rest is said by mail."""
    body: SignUp = call.body
    await call.services.accounts.signups.sign_up(body.email, body.login_key, body.genesis, _origin(call))


async def verify(call: Call) -> Session:
    """The account exists from now on."""
    body: Verification = call.body
    opened = await call.services.accounts.signups.verify(body.account_id, body.code, _origin(call))
    return _session(opened.account_id, opened.tokens)


class Deletion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Deletes the account; the password is asked for once more."""

    login_key: LoginKey


async def delete(call: Call) -> None:
    """The account and all it stored are gone."""
    body: Deletion = call.body
    await call.services.accounts.signups.delete(call.caller.account_id, body.login_key, call.now)


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────
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


async def log_in(call: Call) -> Session:
    """A session by password."""
    body: LogIn = call.body
    opened = await call.services.accounts.logins.log_in(body.email, body.login_key, _origin(call))
    return _session(opened.account_id, opened.tokens)


async def log_in_by_key(call: Call) -> Session:
    """A session for a device that has not logged out."""
    body: KeyLogIn = call.body
    opened = await call.services.accounts.logins.log_in_by_key(body.account_id, call.caller.device_id, call.now)
    return _session(opened.account_id, opened.tokens)


async def refresh(call: Call) -> Session:
    """Both tokens anew."""
    body: Refresh = call.body
    try:
        token = decode_id(body.refresh_token, TOKEN_SIZE)
    except ApiError:
        raise unauthorized() from None
    tokens = await call.services.accounts.logins.refresh(token, call.caller.device_id, call.now)
    return _session(token[:ACCOUNT_ID_SIZE], tokens)


async def log_out(call: Call) -> None:
    """The device's next session needs the password."""
    await call.services.accounts.logins.log_out(call.caller.account_id, call.caller.device_id)


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────────
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


async def ask_reset(call: Call) -> None:
    """Always the same answer; the rest is said by mail."""
    body: ResetRequest = call.body
    await call.services.accounts.logins.ask_reset(body.email, _origin(call))


async def reset(call: Call) -> None:
    """Every session of the account is over."""
    body: Reset = call.body
    await call.services.accounts.logins.reset(body.email, body.code, body.login_key, _origin(call))


async def change_password(call: Call) -> None:
    """Every session of the account is over."""
    body: PasswordChange = call.body
    account_id = call.caller.account_id
    await call.services.accounts.logins.change_password(account_id, body.login_key, body.new_login_key, call.now)


# ── the account ─────────────────────────────────────────────────────────────────────────────────────────────────────
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


class ChainQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to begin."""

    start: Annotated[int, Meta(ge=0, le=MAX_CHAIN)] = 0


class ChainPage(msgspec.Struct, frozen=True):
    """Signed links, in order; `more` when there are others after them."""

    links: list[bytes]
    more: bool


class NewLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next link of the chain."""

    link: Link


async def status(call: Call) -> AccountStatus:
    """Plan, usage and numbers."""
    found = await call.services.accounts.status(call.caller.account_id)
    return AccountStatus(
        call.caller.account_id,
        found.email,
        _limits(found.limits),
        found.usage.used,
        found.usage.reserved,
        found.devices,
        found.folders,
        None if found.pending is None else _subscription(call, found.pending),
    )


async def devices(call: Call) -> DeviceList:
    """What the relay knows of the account's devices; who they are, the chain says."""
    return DeviceList(
        [
            DeviceEntry(
                format_device_id(device.device_id),
                "recovery" if device.kind is DeviceKind.RECOVERY else "device",
                device.added,
                device.seen,
                device.logged_out,
            )
            for device in await call.services.accounts.devices(call.caller.account_id)
        ]
    )


async def read_chain(call: Call) -> ChainPage:
    """The chain as the relay has it; devices verify it."""
    query: ChainQuery = call.query
    links = await call.services.accounts.chain(call.caller.account_id, query.start)
    return ChainPage(links, len(links) == PAGE)


async def append_link(call: Call) -> None:
    """The chain is one link longer; a device that was put out has no session any more."""
    body: NewLink = call.body
    await call.services.accounts.append(call.caller.account_id, body.link, call.now)


# ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────────
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

    plan: Annotated[str, Meta(min_length=1, max_length=PLAN_LENGTH)]


async def plans(call: Call) -> PlanList:
    """The operator's plans."""
    known = call.services.accounts.plans
    return PlanList(
        _limits(known.free),
        [PlanEntry(plan.name, plan.price, int(plan.bytes), plan.devices, plan.folders) for plan in known.listed],
    )


async def subscribe(call: Call) -> Subscription:
    """The plan is in force, or waits for its payment."""
    body: PlanChoice = call.body
    return _subscription(call, await call.services.accounts.subscribe(call.caller.account_id, body.plan, call.now))


async def unsubscribe(call: Call) -> None:
    """Back to the free allowance; nothing stored is removed."""
    await call.services.accounts.unsubscribe(call.caller.account_id, call.now)


async def billed(call: Call) -> None:
    """Takes in a message of the billing provider."""
    await call.services.accounts.billed(call.headers.get(SIGNATURE_FIELD, ""), await call.read(), call.now)


def _origin(call: Call) -> Origin:
    return Origin(call.caller.device_id, call.address, call.now)


def _session(account_id: bytes, tokens: Tokens) -> Session:
    return Session(
        account_id,
        encode_id(tokens.access),
        tokens.access_expires,
        encode_id(tokens.refresh),
        tokens.refresh_expires,
    )


def _limits(limits: Limits) -> PlanLimits:
    return PlanLimits(limits.plan, limits.bytes, limits.devices, limits.folders)


def _subscription(call: Call, subscribed: Subscribed) -> Subscription:
    if subscribed.reference is None:
        return Subscription(subscribed.plan, "active")
    reference = encode_id(subscribed.reference)
    checkout = call.services.config.billing.checkout
    checkout = checkout.replace("{plan}", subscribed.plan).replace("{reference}", reference)
    return Subscription(subscribed.plan, "pending", reference, checkout)


_BODY: Final = 4 * KIB

ROUTES: Final = (
    Route(
        "POST", "/api/v1/accounts", sign_up, "Sign up; the rest is said by mail", auth=Auth.SIGNED, body=SignUp,
        limit=_BODY, rate=Rate.SENSITIVE, problems=("bad-request",), status=202,
    ),
    Route(
        "POST", "/api/v1/accounts/verify", verify, "Prove the address by the mailed code", auth=Auth.SIGNED,
        body=Verification, answer=Session, limit=_BODY, rate=Rate.SENSITIVE,
    ),
    Route(
        "POST", "/api/v1/sessions", log_in, "Log in by password", auth=Auth.SIGNED, body=LogIn, answer=Session,
        limit=_BODY, rate=Rate.SENSITIVE, problems=("device-unknown", "suspended"),
    ),
    Route(
        "POST", "/api/v1/sessions/key", log_in_by_key, "Open a session by the device's key", auth=Auth.SIGNED,
        body=KeyLogIn, answer=Session, limit=_BODY,
    ),
    Route(
        "POST", "/api/v1/sessions/refresh", refresh, "Exchange a refresh token", auth=Auth.SIGNED, body=Refresh,
        answer=Session, limit=_BODY,
    ),
    Route("DELETE", "/api/v1/sessions", log_out, "Log this device out"),
    Route(
        "POST", "/api/v1/password-resets", ask_reset, "Ask for a new password by mail", auth=Auth.SIGNED,
        body=ResetRequest, limit=_BODY, rate=Rate.SENSITIVE, problems=("bad-request",), status=202,
    ),
    Route(
        "POST", "/api/v1/password-resets/confirm", reset, "Set a new password by the mailed code", auth=Auth.SIGNED,
        body=Reset, limit=_BODY, rate=Rate.SENSITIVE, problems=("bad-request",),
    ),
    Route("GET", "/api/v1/account", status, "Plan, usage and numbers of the account", answer=AccountStatus),
    Route(
        "PUT", "/api/v1/account/password", change_password, "Change the password", body=PasswordChange, limit=_BODY,
        rate=Rate.SENSITIVE,
    ),
    Route(
        "POST", "/api/v1/account/delete", delete, "Delete the account and all it stored", body=Deletion, limit=_BODY,
        rate=Rate.SENSITIVE,
    ),
    Route("GET", "/api/v1/account/devices", devices, "The account's devices", answer=DeviceList),
    Route("GET", "/api/v1/account/chain", read_chain, "The account's chain", query=ChainQuery, answer=ChainPage),
    Route(
        "POST", "/api/v1/account/chain", append_link, "Append the next link to the chain", body=NewLink, limit=_BODY,
        problems=("bad-request", "conflict", "plan-limit"),
    ),
    Route("GET", "/api/v1/plans", plans, "What can be subscribed to", auth=Auth.NONE, answer=PlanList),
    Route(
        "PUT", "/api/v1/account/plan", subscribe, "Subscribe to a plan", body=PlanChoice, answer=Subscription,
        limit=_BODY, problems=("not-found",),
    ),
    Route("DELETE", "/api/v1/account/plan", unsubscribe, "Go back to the free allowance"),
    Route(
        "POST", "/api/v1/billing/events", billed, "For the billing provider: a subscription begins or ends",
        auth=Auth.NONE, body=RAW, limit=64 * KIB, problems=("bad-request", "unauthorized"),
    ),
)  # fmt: skip
