"""Who guesses learns nothing and gets slower: one answer, one length, one duration, and delays that double."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import trio
import trio.testing
from sqlalchemy import select

from p2psync.membership.sigchain import begin_account
from relay.accounts.passwords import SALT_SIZE, Cost, PasswordHasher
from relay.accounts.tables import accounts
from relay.accounts.throttle import Policies, Policy, policies
from relay.errors import ApiError
from tests.relay.stack import Answer, Client, Stack

from .helpers import KEY, OTHER_KEY, Person, b64, mails, registered, shape

T = TypeVar("T")
KNOWN, UNKNOWN = "ann@example.org", "eve@example.org"
WARM_UP = 10
POLICIES = Policies()


# ── one answer ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def guess(client: Client, email: str, key: bytes = OTHER_KEY) -> Answer:
    return await client.post("/api/v1/sessions", {"email": email, "login_key": b64(key)})


async def test_answers_do_not_tell_whether_an_account_exists(stack: Stack) -> None:
    await registered(stack)
    for ask in ASKS:
        assert shape(await ask(stack.client(), KNOWN)) == shape(await ask(stack.client(), UNKNOWN))


async def test_the_owner_of_an_address_is_told_by_mail_alone(stack: Stack) -> None:
    await registered(stack)
    before = len(await mails(stack))
    for ask in (sign_up, log_in):
        await ask(stack.client(), KNOWN)
    await ask_reset(stack.client(), UNKNOWN)
    sent = (await mails(stack))[before:]
    assert [(mail.to, mail.subject) for mail in sent] == [(KNOWN, "You have a p2psync account already")]
    assert "code is" not in sent[0].body


# ── one duration ────────────────────────────────────────────────────────────────────────────────────────────────────
def p_value(left: list[float], right: list[float]) -> float:
    """Two-sided p of Welch's t-test; the normal distribution stands for Student's, as the samples are large."""
    variance = statistics.variance(left) / len(left) + statistics.variance(right) / len(right)
    t = (statistics.fmean(left) - statistics.fmean(right)) / math.sqrt(variance)
    return math.erfc(abs(t) / math.sqrt(2))


def without_outliers(samples: list[float]) -> list[float]:
    """The fastest nine tenths: what the machine did besides is not what a statistician of the network would keep."""
    return sorted(samples)[: len(samples) * 9 // 10]


Ask = Callable[[Client, str], Awaitable[Answer]]


async def compare(stack: Stack, ask: Ask, rounds: int) -> float:
    """How likely the durations for an address with an account and for one without differ by chance alone as they do.

    The two kinds take turns in an order that changes with every round, so that a drift of the machine hits both.
    """
    took: dict[str, list[float]] = {KNOWN: [], UNKNOWN: []}
    client = stack.client()
    gc.disable()
    try:
        for number in range(rounds + WARM_UP):
            for email in (KNOWN, UNKNOWN) if number % 2 else (UNKNOWN, KNOWN):
                stack.clock.advance(2 * 86_400)  # nobody has to wait
                begun = time.process_time()
                assert (await ask(client, email)).status in {202, 401}
                if number >= WARM_UP:
                    took[email].append(time.process_time() - begun)
    finally:
        gc.enable()
    return p_value(without_outliers(took[KNOWN]), without_outliers(took[UNKNOWN]))


async def differs(stack: Stack, ask: Ask, rounds: int) -> bool:
    """A true difference shows every time; chance shows one in a hundred times, and three in a row in a million."""
    for _ in range(3):
        if await compare(stack, ask, rounds) > 0.01:
            return False
    return True


async def log_in(client: Client, email: str) -> Answer:
    return await guess(client, email)


async def ask_reset(client: Client, email: str) -> Answer:
    return await client.post("/api/v1/password-resets", {"email": email})


async def confirm_reset(client: Client, email: str) -> Answer:
    body = {"email": email, "code": "AAAA-AAAA", "login_key": b64(KEY)}
    return await client.post("/api/v1/password-resets/confirm", body)


async def sign_up(client: Client, email: str) -> Answer:
    genesis = begin_account(client.keys, bytes(16)).head.encoded
    return await client.post("/api/v1/accounts", {"email": email, "login_key": b64(KEY), "genesis": b64(genesis)})


ASKS = (log_in, ask_reset, confirm_reset, sign_up)


@pytest.mark.parametrize("ask", ASKS)
async def test_durations_do_not_tell_whether_an_account_exists(stack: Stack, ask: Ask) -> None:
    await registered(stack)
    assert not await differs(stack, ask, 40)


@pytest.mark.large
@pytest.mark.parametrize("ask", ASKS)
async def test_two_thousand_durations_do_not_tell_either(stack: Stack, ask: Ask) -> None:
    await registered(stack)
    assert not await differs(stack, ask, 2000)


async def test_the_comparison_itself_sees(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the dummy hash, one look is enough."""
    await registered(stack)
    matches = PasswordHasher.matches

    async def hasty(self: PasswordHasher, login_key: bytes, verifier: bytes | None) -> bool:
        return verifier is not None and await matches(self, login_key, verifier)

    monkeypatch.setattr(PasswordHasher, "matches", hasty)
    monkeypatch.setattr(PasswordHasher, "_run", slow(PasswordHasher._run))
    assert await compare(stack, log_in, 40) < 0.01


def slow(run: Callable[[PasswordHasher, bytes, bytes], Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    """Nearer to what the operator's Argon2id costs: some milliseconds."""

    async def dear(self: PasswordHasher, login_key: bytes, head: bytes) -> bytes:
        for _ in range(30):
            await run(self, login_key, head)
        return await run(self, login_key, head)

    return dear


# ── slower and slower ───────────────────────────────────────────────────────────────────────────────────────────────
def test_delays_double_up_to_a_limit() -> None:
    policy = Policy(free=2, first_s=3, longest_s=20, forget_s=60)
    assert [policy.delay(tries) for tries in range(1, 8)] == [0, 3, 6, 12, 20, 20, 20]
    assert policy.delay(10**9) == 20


def test_an_operator_with_many_people_behind_one_address_allows_more() -> None:
    more = policies(mails_per_network=500, guesses_per_network=600)
    assert (more.mails_per_network.delay(500), more.guesses_per_network.delay(600)) == (10, 1)
    assert (more.mails_per_network.delay(499), more.guesses_per_network.delay(599)) == (0, 0)
    assert (more.mails_per_address, more.guesses_per_account) == (
        POLICIES.mails_per_address,
        POLICIES.guesses_per_account,
    )


@pytest.mark.parametrize("email", [KNOWN, UNKNOWN])
async def test_guesses_have_to_wait_whether_the_account_exists(stack: Stack, email: str) -> None:
    await registered(stack)
    client = stack.client()
    waits = []
    for _ in range(9):
        answer = await guess(client, email)
        if answer.status == 429:
            waits.append(int(answer.headers["retry-after"]))
            stack.clock.advance(waits[-1])
            answer = await guess(client, email)
        assert answer.status == 401
    assert waits == [2, 4, 8, 16]


async def test_who_was_quiet_for_long_starts_anew(stack: Stack) -> None:
    client = stack.client()
    for _ in range(3):
        for _ in range(POLICIES.guesses_per_account.free):
            assert (await guess(client, UNKNOWN)).status == 401
        assert (await guess(client, UNKNOWN)).status == 429
        stack.clock.advance(POLICIES.guesses_per_account.forget_s)


async def test_a_thousand_guesses_at_once_are_no_better(stack: Stack) -> None:
    await registered(stack)
    statuses: list[int] = []

    async def one() -> None:
        statuses.append((await guess(stack.client(), KNOWN)).status)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(one)
    assert sorted(set(statuses)) == [401, 429]
    assert statuses.count(401) == POLICIES.guesses_per_account.free


async def test_a_right_password_too_early_is_refused_all_the_same(stack: Stack) -> None:
    ann = await registered(stack)
    stranger = stack.client()
    for _ in range(POLICIES.guesses_per_account.free):
        await guess(stranger, ann.email)
    assert (await guess(stranger, ann.email, KEY)).status == 429
    stack.clock.advance(2)
    assert (await guess(stranger, ann.email, KEY)).problem == "device-unknown"


async def test_strangers_cannot_lock_a_device_of_the_account_out(stack: Stack) -> None:
    ann = await registered(stack)
    stranger = stack.client()
    for _ in range(POLICIES.guesses_per_account.free + 1):
        await guess(stranger, ann.email)
    assert (await guess(stranger, ann.email)).status == 429
    assert (await ann.log_in()).status == 200


async def test_a_network_that_guesses_at_many_accounts_has_to_wait(stack: Stack) -> None:
    client, elsewhere = stack.client(), stack.client()
    elsewhere.address = ("198.51.100.1", 1)
    statuses = []
    for number in range(40):
        answer = await guess(client, f"user{number}@example.org")
        statuses += [answer.status]
        stack.clock.advance(3)
    assert set(statuses[:30]) == {401}
    assert 429 in statuses[30:]
    assert (await guess(elsewhere, "user1@example.org")).status == 401


async def test_mail_to_one_address_is_bounded(stack: Stack) -> None:
    statuses = [(await ask_reset(stack.client(), KNOWN)).status for _ in range(6)]
    assert statuses == [202, 202, 202, 429, 429, 429]
    assert (await Person(stack, KNOWN).sign_up()).status == 429


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────
class Gate:
    """Work that waits until it is let through."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.opened = trio.Event()

    async def run(self, work: Callable[[], T], /) -> T:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.opened.wait()
        self.running -= 1
        return work()


async def test_few_are_hashed_at_once_few_wait_and_the_rest_come_back_later() -> None:
    gate = Gate()
    hasher = PasswordHasher(gate, Cost(64, 1), parallel=2, waiting=3)
    refused: list[ApiError] = []
    done: list[bytes] = []

    async def one() -> None:
        try:
            done.append(await hasher.make(KEY, bytes(SALT_SIZE)))
        except ApiError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert (gate.running, len(refused)) == (2, 4)
        gate.opened.set()
    assert (gate.most, len(done)) == (2, 5)
    assert all((error.status, error.headers) == (503, {"Retry-After": "5"}) for error in refused)


async def test_a_dearer_hash_is_made_when_the_password_is_seen_again(stack: Stack) -> None:
    ann = await registered(stack)
    hasher = stack.services.accounts.logins._context.hasher
    before = hasher.cost
    hasher.cost = Cost(128, 2)
    assert (await ann.log_in()).status == 200
    assert (await ann.log_in()).status == 200
    hasher.cost = before
    verifier = await stack.services.database.read(lambda c: c.execute(select(accounts.c.verifier)).scalar_one())
    assert hasher.is_dated(verifier)
    assert (await guess(ann.first, ann.email)).status == 401
