"""Requests that truly come at once: one of them wins, none fails, whichever database decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from sqlalchemy import Connection

from p2psync.membership.sigchain import Add, DeviceKind, Remove
from p2psync.system import ThreadOffload
from p2psync.testing.world import SimRng
from relay.accounts.outbox import Outbox
from relay.accounts.secrets import Secrets
from relay.accounts.throttle import Policies
from relay.db.database import database_from_url
from relay.db.metadata import metadata
from relay.ports import Mail
from tests.relay.stack import Answer, MemoryMailer, Stack, make_stack

from .helpers import OTHER_KEY, Person, alive, b64, code_in, mails, registered

POLICIES = Policies()


@pytest.fixture
def stack(database_url: str) -> Iterator[Stack]:
    """As elsewhere, with threads that run side by side."""
    offload = ThreadOffload()
    database = database_from_url(database_url, offload, SimRng("database"))
    metadata.create_all(database.engine)
    yield make_stack(database, offload)
    database.close()


async def at_once(count: int, ask: Callable[[int], Awaitable[Answer]]) -> Counter[int]:
    """How many answers of each status."""
    statuses: Counter[int] = Counter()

    async def one(number: int) -> None:
        statuses[(await ask(number)).status] += 1

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return statuses


async def test_a_refresh_token_works_once(stack: Stack) -> None:
    ann = await registered(stack)
    body = {"refresh_token": (await ann.log_in()).json()["refresh_token"]}
    statuses = await at_once(8, lambda _: ann.first.post("/api/v1/sessions/refresh", body))
    assert statuses == {200: 1, 401: 7}


async def test_a_code_works_once(stack: Stack) -> None:
    ann = Person(stack, "ann@example.org")
    await ann.sign_up()
    code = code_in(await mails(stack), ann.email)
    assert await at_once(8, lambda _: ann.verify(code)) == {200: 1, 401: 7}
    assert (await ann.log_in()).status == 200


async def test_of_links_at_one_place_one_is_taken(stack: Stack) -> None:
    ann = await registered(stack)
    assert ann.chain is not None
    links = [ann.chain.sign(ann.first.keys, Add(stack.keys().card.encode(), DeviceKind.DEVICE)) for _ in range(8)]
    assert await at_once(8, lambda number: ann.append(ann.first, links[number])) == {204: 1, 409: 7}


async def test_sign_ups_of_one_device_are_one(stack: Stack) -> None:
    ann = Person(stack, "ann@example.org")
    await ann.sign_up()
    free = POLICIES.mails_per_address.free - 1
    assert await at_once(6, lambda _: ann.sign_up()) == {202: free, 429: 6 - free}
    codes = [code_in([mail], ann.email) for mail in await mails(stack)]
    assert sorted([(await ann.verify(code)).status for code in codes]) == [200, 401, 401]


async def test_guesses_at_once_are_counted(stack: Stack) -> None:
    ann = await registered(stack)
    body = {"email": ann.email, "login_key": b64(OTHER_KEY)}
    statuses = await at_once(30, lambda _: stack.client().post("/api/v1/sessions", body))
    assert statuses == {401: POLICIES.guesses_per_account.free, 429: 30 - POLICIES.guesses_per_account.free}


async def test_a_device_that_is_removed_while_it_logs_in_has_no_session(stack: Stack) -> None:
    ann = await registered(stack)
    laptop = await ann.add(stack.keys())
    assert ann.chain is not None
    link = ann.chain.sign(ann.first.keys, Remove(laptop.device_id))

    async def ask(number: int) -> Answer:
        return await (ann.append(ann.first, link) if number == 4 else ann.log_in_by_key(laptop))

    statuses = await at_once(9, ask)
    assert statuses[204] == 1
    assert set(statuses) <= {200, 204, 401}
    assert not await alive(laptop)


async def test_an_account_that_is_deleted_while_it_is_used_is_gone(stack: Stack) -> None:
    ann = await registered(stack)

    async def ask(number: int) -> Answer:
        match number % 4:
            case 0:
                return await ann.first.post("/api/v1/account/delete", {"login_key": b64(ann.login_key)})
            case 1:
                return await ann.log_in_by_key()
            case 2:
                return await ann.first.get("/api/v1/account")
            case _:
                return await ann.first.put("/api/v1/account/plan", {"plan": "none such"})

    assert set(await at_once(12, ask)) <= {200, 204, 401, 404, 429}
    assert (await ann.log_in_by_key()).status == 401


async def test_a_message_is_sent_by_one_of_two_processes(stack: Stack) -> None:
    services, mailer = stack.services, MemoryMailer()
    ports = services.ports
    twins = [Outbox(ports.database, ports.offload, ports.clock, Secrets(ports.secret), mailer) for _ in range(4)]

    def queue(c: Connection) -> None:
        for number in range(12):
            mail = Mail("ann@example.org", str(number), "")
            services.accounts.outbox.queue(c, mail, services.now(), number.to_bytes(12, "big"))

    await services.database.write(queue)
    async with trio.open_nursery() as nursery:
        for twin in twins:
            nursery.start_soon(twin.send_due)
    assert sorted(int(mail.subject) for mail in mailer.sent) == list(range(12))
