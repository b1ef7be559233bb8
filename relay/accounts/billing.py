"""Who pays: subscriptions, and the messages of a billing provider, whichever it is.

An account subscribes to a plan. One without a price is its own at once; for one with a price it gets a reference, with
which the person pays at the operator's provider. The provider, or a few lines between it and the relay, then posts

    P2PSync-Signature: t=SECONDS,v1=HEX            HMAC-SHA256(secret, SECONDS "." body)
    {"id": "…", "created": SECONDS, "type": "subscription.active" | "subscription.ended", "reference": "BASE64URL"}

Each event id has effect once, and an event older than the newest of its subscription has none.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from relay.accounts.plans import FREE, Plans, set_plan
from relay.accounts.tables import billing_events, subscriptions
from relay.db.upsert import insert_if_missing
from relay.errors import ApiError, not_found, unauthorized

REFERENCE_SIZE: Final = 16
TOLERANCE_S: Final = 300
EVENT_MEMORY_S: Final = 30 * 86_400
"""How long event ids are remembered; providers repeat an event for days, not for months."""
SIGNATURE_FIELD: Final = "p2psync-signature"

_SIGNATURE = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})", re.ASCII)


class State(IntEnum):
    """What the provider has said of a subscription."""

    PENDING = 0
    ACTIVE = 1
    ENDED = 2


class BillingEvent(msgspec.Struct, frozen=True):
    """What a provider says happened. Other fields are allowed and ignored."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    created: Annotated[int, Meta(ge=0, le=1 << 40)]
    type: Literal["subscription.active", "subscription.ended"]
    reference: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{22}$")]


_decoder = msgspec.json.Decoder(BillingEvent)


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What came of a wish: the plan is in force, or waits for the payment that names the reference."""

    plan: str
    reference: bytes | None


def subscribe(c: Connection, plans: Plans, account_id: bytes, name: str, *, now: int, reference: bytes) -> Subscribed:
    """Ask for a plan. `reference` is 16 random bytes. ApiError 404 when there is no such plan.

    A paid plan stays in force until another one is paid; asking again replaces what waits for its payment.
    """
    plan = plans.named(name)
    if plan is None:
        raise not_found()
    if not plan.price:
        unsubscribe(c, account_id)
        set_plan(c, account_id, plan.name)
        return Subscribed(plan.name, None)
    c.execute(delete(subscriptions).where(_of(account_id), subscriptions.c.state != State.ACTIVE))
    row = {"account_id": account_id, "reference": reference, "plan": plan.name, "state": int(State.PENDING)}
    c.execute(insert(subscriptions).values(**row, changed=now - TOLERANCE_S))  # the provider's clock may be behind ours
    return Subscribed(plan.name, reference)


def unsubscribe(c: Connection, account_id: bytes) -> None:
    """Back to the free allowance, at once. What is stored stays; more is taken when there is room again."""
    c.execute(delete(subscriptions).where(_of(account_id)))
    set_plan(c, account_id, FREE)


def pending(c: Connection, account_id: bytes) -> Subscribed | None:
    """The plan that waits for its payment."""
    row = c.execute(select(subscriptions).where(_of(account_id), subscriptions.c.state == State.PENDING)).one_or_none()
    return None if row is None else Subscribed(row.plan, row.reference)


def read_event(secret: str, field: str, body: bytes, now: int) -> BillingEvent:
    """The event, if the provider signed it just now.

    Raises:
        ApiError: 401 when the signature is missing, old or wrong, or no secret is configured; 400 when the event is
            malformed.
    """
    given = _SIGNATURE.fullmatch(field)
    if not secret or given is None or abs(now - int(given[1])) > TOLERANCE_S:
        raise unauthorized()
    if not hmac.compare_digest(given[2], _mac(secret, given[1], body)):
        raise unauthorized()
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise ApiError(400, "bad-request", f"not a billing event: {error}") from None


def apply_event(c: Connection, plans: Plans, event: BillingEvent, now: int) -> bytes | None:
    """Let an event have its effect. The account whose plan changed, None when none did."""
    c.execute(delete(billing_events).where(billing_events.c.received <= now - EVENT_MEMORY_S))
    if not insert_if_missing(c, billing_events, event_id=event.id, received=now):
        return None
    at = subscriptions.c.reference == base64.urlsafe_b64decode(event.reference + "==")
    row = c.execute(select(subscriptions).where(at).with_for_update()).one_or_none()
    if row is None or event.created < row.changed:
        return None
    account_id: bytes = row.account_id
    if event.type == "subscription.active":
        if plans.named(row.plan) is None:
            raise ApiError(503, "unavailable", "the configuration has no such plan any more")
        c.execute(delete(subscriptions).where(_of(account_id), ~at))
        set_plan(c, account_id, row.plan)
    elif row.state == State.ACTIVE:
        set_plan(c, account_id, FREE)
    state = State.ACTIVE if event.type == "subscription.active" else State.ENDED
    c.execute(update(subscriptions).where(at).values(state=int(state), changed=event.created))
    return account_id


def _of(account_id: bytes) -> ColumnElement[bool]:
    return subscriptions.c.account_id == account_id


def _mac(secret: str, time: str, body: bytes) -> str:
    return hmac.new(secret.encode(), time.encode() + b"." + body, hashlib.sha256).hexdigest()
