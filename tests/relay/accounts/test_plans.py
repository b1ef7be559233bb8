"""Plans: what an account may use, how it comes to more, and who may say that it was paid."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection

from p2psync.errors import InputError
from p2psync.membership.sigchain import Add, DeviceKind
from relay.accounts import administration
from relay.accounts.billing import EVENT_MEMORY_S, TOLERANCE_S
from relay.accounts.plans import FREE
from relay.config import Allowance, Billing, Plan, Size
from relay.errors import ApiError
from relay.mailbox import folders
from tests.relay.stack import Answer, Client, Stack

from .helpers import Person, alive, b64, registered

SECRET = "whsec_test"
PLANS = (
    Plan(name="big", bytes=Size(10**10), devices=50, folders=100),
    Plan(name="paid", price="3 € a month", bytes=Size(10**11), devices=99, folders=999),
    Plan(name="more", price="9 € a month", bytes=Size(10**12), devices=999, folders=9999),
)
numbers = itertools.count()


@pytest.fixture
def stack(stack: Stack) -> Stack:
    """With two plans, few devices for who has none, and a billing provider."""
    services = stack.services
    checkout = "https://pay.example/{plan}?ref={reference}"
    services.config = msgspec.structs.replace(services.config, billing=Billing(checkout=checkout))
    services.accounts._webhook_secret = SECRET
    services.accounts._context.plans.__init__(Allowance(devices=2, folders=3), PLANS)  # type: ignore[misc]
    return stack


async def plan_of(person: Person) -> str:
    return str((await person.first.get("/api/v1/account")).json()["limits"]["plan"])


async def subscribe(person: Person, plan: str) -> Answer:
    return await person.first.put("/api/v1/account/plan", {"plan": plan})


async def test_plans_are_listed_for_anybody(stack: Stack) -> None:
    answer = (await Client(stack, stack.keys()).get("/api/v1/plans", signed=False)).json()
    assert answer["free"] == {"plan": "", "bytes": 10**9, "devices": 2, "folders": 3}
    assert answer["plans"][0] == {"name": "big", "price": "", "bytes": 10**10, "devices": 50, "folders": 100}
    assert answer["plans"][1]["price"] == "3 € a month"


async def test_a_plan_without_a_price_is_in_force_at_once(stack: Stack) -> None:
    ann = await registered(stack)
    changed: list[bytes] = []
    stack.services.account_hooks.changed.append(lambda _c, account, _now: changed.append(account))
    stack.services.account_hooks.committed.append(changed.append)
    answer = (await subscribe(ann, "big")).json()
    assert answer == {"plan": "big", "state": "active", "reference": "", "checkout": ""}
    limits = (await ann.first.get("/api/v1/account")).json()["limits"]
    assert limits == {"plan": "big", "bytes": 10**10, "devices": 50, "folders": 100}
    assert (await ann.first.delete("/api/v1/account/plan")).status == 204
    assert await plan_of(ann) == ""
    assert changed == [ann.account_id] * 4
    assert (await subscribe(ann, "none such")).status == 404


async def test_devices_are_bounded_by_the_plan(stack: Stack) -> None:
    ann = await registered(stack)
    await ann.add(stack.keys())
    await ann.add(stack.keys(), DeviceKind.RECOVERY)
    assert ann.chain is not None
    link = ann.chain.sign(ann.first.keys, Add(stack.keys().card.encode(), DeviceKind.DEVICE))
    refused = await ann.append(ann.first, link)
    assert (refused.problem, refused.json()["limit"]) == ("plan-limit", 2)
    await subscribe(ann, "big")
    assert (await ann.append(ann.first, link)).status == 204


async def test_folders_are_bounded_by_the_plan(stack: Stack) -> None:
    ann = await registered(stack)
    plans = stack.services.accounts.plans

    def check(c: Connection, owned: int) -> None:
        plans.check_folder(c, ann.account_id, owned)

    await stack.services.database.read(lambda c: check(c, 2))
    with pytest.raises(ApiError) as caught:
        await stack.services.database.read(lambda c: check(c, 3))
    assert (caught.value.code, caught.value.figures) == ("plan-limit", {"limit": 3})
    nothing = await stack.services.database.read(lambda c: plans.limits(c, b"x" * 16))
    assert (nothing.bytes, nothing.devices, nothing.folders) == (0, 0, 0)


async def test_folders_are_counted_and_go_with_the_account(stack: Stack) -> None:
    ann = await registered(stack)
    database, now = stack.services.database, stack.services.now()

    def create(c: Connection, number: int) -> None:
        folders.create(c, stack.services.accounts.plans, bytes([number]) * 16, ann.account_id, now)

    for number in range(3):
        await database.write(partial(create, number=number))
    assert (await ann.first.get("/api/v1/account")).json()["folders"] == 3
    with pytest.raises(ApiError, match="3 folders"):
        await database.write(partial(create, number=3))
    await ann.first.post("/api/v1/account/delete", {"login_key": b64(ann.login_key)})
    assert await database.read(lambda c: folders.owned(c, ann.account_id)) == []


async def test_a_plan_that_the_operator_took_away_is_none(stack: Stack) -> None:
    ann = await registered(stack)
    await subscribe(ann, "big")
    stack.services.accounts._context.plans.__init__(Allowance(), ())  # type: ignore[misc]
    assert await plan_of(ann) == FREE


# ── billing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def sign_event(secret: str, body: bytes, now: int) -> str:
    """The field `P2PSync-Signature`, as a provider makes it."""
    mac = hmac.new(secret.encode(), f"{now}.".encode() + body, hashlib.sha256)
    return f"t={now},v1={mac.hexdigest()}"


async def post(stack: Stack, event: dict[str, Any], *, secret: str = SECRET, age: int = 0) -> Answer:
    body = msgspec.json.encode(event)
    field = sign_event(secret, body, stack.services.now() - age)
    client = Client(stack, stack.keys())
    headers = {"p2psync-signature": field, "content-type": "application/json"}
    return await client.post("/api/v1/billing/events", body, signed=False, headers=headers)


def event(stack: Stack, reference: str, kind: str = "active", **fields: Any) -> dict[str, Any]:
    plain = {"id": f"evt_{next(numbers)}", "created": stack.services.now(), "reference": reference}
    return plain | {"type": f"subscription.{kind}", "more": {"than": "we need"}} | fields


async def asked(stack: Stack) -> tuple[Person, str]:
    ann = await registered(stack)
    answer = (await subscribe(ann, "paid")).json()
    assert answer["state"] == "pending"
    assert answer["checkout"] == f"https://pay.example/paid?ref={answer['reference']}"
    return ann, answer["reference"]


async def test_a_paid_plan_begins_and_ends_with_the_providers_word(stack: Stack) -> None:
    ann, reference = await asked(stack)
    status = (await ann.first.get("/api/v1/account")).json()
    assert (status["limits"]["plan"], status["pending"]["reference"]) == ("", reference)
    assert (await post(stack, event(stack, reference))).status == 204
    status = (await ann.first.get("/api/v1/account")).json()
    assert (status["limits"]["plan"], status["pending"]) == ("paid", None)
    stack.clock.advance(60)
    assert (await post(stack, event(stack, reference, "ended"))).status == 204
    assert await plan_of(ann) == ""


async def test_an_event_has_effect_once_and_in_its_order(stack: Stack) -> None:
    ann, reference = await asked(stack)
    begun = event(stack, reference)
    stack.clock.advance(10)
    ended = event(stack, reference, "ended")
    await post(stack, begun)
    await post(stack, ended)
    assert await plan_of(ann) == ""
    for late in (begun, begun | {"id": "evt_other"}):
        assert (await post(stack, late)).status == 204, "the provider need not try again"
        assert await plan_of(ann) == ""
    stack.clock.advance(EVENT_MEMORY_S)
    await post(stack, begun)
    await ann.log_in()
    assert await plan_of(ann) == "", "also when its id is forgotten"


async def test_an_event_that_comes_again_has_no_second_effect(stack: Stack) -> None:
    """Also when what undid it happened in the same second."""
    ann, reference = await asked(stack)
    begun = event(stack, reference)
    await post(stack, begun)
    await post(stack, event(stack, reference, "ended"))
    assert (await post(stack, begun)).status == 204
    assert await plan_of(ann) == ""


async def test_a_paid_plan_stays_until_another_is_paid(stack: Stack) -> None:
    """And who never pays for the other keeps neither when the first one ends."""
    ann, first = await asked(stack)
    await post(stack, event(stack, first))
    second, third = [(await subscribe(ann, name)).json()["reference"] for name in ("more", "more")]
    assert await plan_of(ann) == "paid"
    assert (await ann.first.get("/api/v1/account")).json()["pending"]["reference"] == third
    await post(stack, event(stack, second))
    assert await plan_of(ann) == "paid", "it was replaced before it was paid"
    stack.clock.advance(5)
    await post(stack, event(stack, first, "ended"))
    assert await plan_of(ann) == ""
    await post(stack, event(stack, third))
    assert await plan_of(ann) == "more"
    stack.clock.advance(5)
    for late in (event(stack, first), event(stack, first, "ended")):
        await post(stack, late)
        assert await plan_of(ann) == "more"


async def test_a_payment_that_failed_and_was_made_good(stack: Stack) -> None:
    ann, reference = await asked(stack)
    for kind, plan in (("active", "paid"), ("ended", ""), ("active", "paid")):
        await post(stack, event(stack, reference, kind))
        stack.clock.advance(5)
        assert await plan_of(ann) == plan
    assert (await ann.first.get("/api/v1/account")).json()["pending"] is None


async def test_only_the_provider_is_believed(stack: Stack) -> None:
    ann, reference = await asked(stack)
    good = event(stack, reference)
    assert (await post(stack, good, secret="other")).status == 401
    assert (await post(stack, good, age=TOLERANCE_S + 1)).status == 401
    assert (await post(stack, good, age=-TOLERANCE_S - 1)).status == 401
    body = msgspec.json.encode(good)
    field = sign_event(SECRET, body, stack.services.now())
    client = Client(stack, stack.keys())
    for changed, given in ((body + b" ", field), (body, field[:-1] + ("0" if field[-1] != "0" else "1")), (body, "")):
        headers = {"p2psync-signature": given}
        answer = await client.post("/api/v1/billing/events", changed, signed=False, headers=headers)
        assert answer.status == 401
    assert await plan_of(ann) == ""
    stack.services.accounts._webhook_secret = ""
    assert (await post(stack, good, secret="")).status == 401


async def test_events_that_mean_nothing_change_nothing(stack: Stack) -> None:
    ann, reference = await asked(stack)
    for bad in ({}, {"type": "subscription.active"}, event(stack, "short"), event(stack, reference, "exploded")):
        assert (await post(stack, bad)).status == 400
    assert (await post(stack, event(stack, "A" * 22))).status == 204
    await ann.first.delete("/api/v1/account/plan")
    assert (await post(stack, event(stack, reference))).status == 204
    assert await plan_of(ann) == "", "who unsubscribed before paying stays so"


# ── the operator ────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_the_operator_grants_suspends_and_lists(stack: Stack) -> None:
    ann, bob = await registered(stack), await registered(stack, "bob@example.org")
    database, plans = stack.services.database, stack.services.accounts.plans
    ledger = stack.services.accounts.ledger
    find = await database.read(lambda c: administration.find_account(c, "ANN@example.org"))
    assert find == ann.account_id
    await database.write(lambda c: administration.grant_plan(c, plans, find, "paid"))
    assert await plan_of(ann) == "paid"
    await database.write(lambda c: ledger.charge(c, find, 7, stack.services.now()))
    status = (await ann.first.get("/api/v1/account")).json()
    assert (status["used"], status["reserved"], status["folders"]) == (7, 0, 0)
    await database.write(lambda c: administration.suspend(c, find))
    stack.clock.advance(1)  # the operator's command is another process
    assert not await alive(ann.first)
    assert (await ann.log_in()).problem == "suspended"
    assert (await ann.log_in_by_key()).status == 401
    rows = await database.read(lambda c: administration.list_accounts(c, ledger))
    assert {(row.email, row.plan, row.suspended, row.usage.used) for row in rows} == {
        (ann.email, "paid", True, 7),
        (bob.email, "", False, 0),
    }
    await database.write(lambda c: administration.resume(c, find))
    assert (await ann.log_in()).status == 200
    now = stack.services.now()
    assert await database.write(lambda c: stack.services.accounts.remove(c, bob.account_id, now))
    assert not await database.write(lambda c: stack.services.accounts.remove(c, bob.account_id, now))
    assert (await bob.log_in_by_key()).status == 401
    for work in (
        lambda c: administration.find_account(c, "nobody@example.org"),
        lambda c: administration.grant_plan(c, plans, find, "none such"),
        lambda c: administration.invite(c, "no address", ""),
    ):
        with pytest.raises(InputError):
            await database.write(work)


async def test_an_invitation_brings_its_plan(stack: Stack) -> None:
    await stack.services.database.write(lambda c: administration.invite(c, "bob@example.org", "big"))
    await stack.services.database.write(lambda c: administration.invite(c, "bob@example.org", "paid"))
    assert await plan_of(await registered(stack, "bob@example.org")) == "paid"
