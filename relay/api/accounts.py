"""Accounts over HTTP: sign-up, sessions, passwords, devices, plans and billing."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from p2psync.membership.sigchain import MAX_CHAIN, DeviceKind
from p2psync.model.ids import format_device_id
from p2psync.protocol.relay_api import (
    CHAIN_PAGE,
    AccountStatus,
    ChainPage,
    Deletion,
    DeviceEntry,
    DeviceList,
    KeyLogIn,
    LogIn,
    NewLink,
    PasswordChange,
    PlanChoice,
    PlanEntry,
    PlanLimits,
    PlanList,
    Refresh,
    Reset,
    ResetRequest,
    Session,
    SignUp,
    Subscription,
    Verification,
)
from relay.accounts.billing import SIGNATURE_FIELD, Subscribed
from relay.accounts.context import Origin
from relay.accounts.plans import Limits
from relay.accounts.sessions import TOKEN_SIZE, Tokens
from relay.api.route import KIB, RAW, Auth, Call, Rate, Route, decode_id, encode_id
from relay.errors import ApiError, unauthorized


# ── sign-up ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def sign_up(call: Call) -> None:
    """Always the same answer; the rest is said by mail."""
    body: SignUp = call.body
    await call.services.accounts.signups.sign_up(body.email, body.login_key, body.genesis, _origin(call))


async def verify(call: Call) -> Session:
    """The account exists from now on."""
    body: Verification = call.body
    return _session(await call.services.accounts.signups.verify(body.account_id, body.code, _origin(call)))


async def delete(call: Call) -> None:
    """The account and all it stored are gone."""
    body: Deletion = call.body
    await call.services.accounts.signups.delete(call.caller.account_id, body.login_key, call.now)


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────
async def log_in(call: Call) -> Session:
    """A session by password."""
    body: LogIn = call.body
    return _session(await call.services.accounts.logins.log_in(body.email, body.login_key, _origin(call)))


async def log_in_by_key(call: Call) -> Session:
    """A session for a device that has not logged out."""
    body: KeyLogIn = call.body
    return _session(await call.services.accounts.logins.log_in_by_key(body.account_id, call.caller.device_id, call.now))


async def refresh(call: Call) -> Session:
    """Both tokens anew."""
    body: Refresh = call.body
    try:
        token = decode_id(body.refresh_token, TOKEN_SIZE)
    except ApiError:
        raise unauthorized() from None
    return _session(await call.services.accounts.logins.refresh(token, call.caller.device_id, call.now))


async def log_out(call: Call) -> None:
    """The device's next session needs the password."""
    await call.services.accounts.logins.log_out(call.caller.account_id, call.caller.device_id)


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────────
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
class ChainQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to begin."""

    start: Annotated[int, Meta(ge=0, le=MAX_CHAIN)] = 0


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
    return ChainPage(links, len(links) == CHAIN_PAGE)


async def append_link(call: Call) -> None:
    """The chain is one link longer; a device that was put out has no session any more."""
    body: NewLink = call.body
    await call.services.accounts.append(call.caller.account_id, body.link, call.now)


# ── plans ───────────────────────────────────────────────────────────────────────────────────────────────────────────
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
    await call.services.accounts.billed(call.header(SIGNATURE_FIELD.encode()) or "", bytes(await call.read()), call.now)


def _origin(call: Call) -> Origin:
    return Origin(call.caller.device_id, call.address, call.now)


def _session(tokens: Tokens) -> Session:
    return Session(
        tokens.account_id,
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
        limit=_BODY, rate=Rate.SENSITIVE, problems=("bad-request", "device-unknown", "suspended"),
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
