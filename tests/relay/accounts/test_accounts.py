"""Accounts from the first mail to the last: sign-up, sessions, devices, passwords, deletion."""

from __future__ import annotations

from dataclasses import replace

import msgspec
from sqlalchemy import func, select

from p2psync.crypto.recovery import recovery_keys
from p2psync.membership import sigchain
from p2psync.membership.sigchain import Add, DeviceKind, Remove, begin_account, fold_chain
from relay.accounts.administration import invite
from relay.accounts.sessions import ACCESS_LIFETIME_S
from relay.accounts.signup import CODE_LIFETIME_S, CODE_TRIES
from relay.db.metadata import metadata
from tests.relay.stack import Answer, Stack

from .helpers import KEY, OTHER_KEY, Person, alive, b64, code_in, mails, registered, shape


async def count(stack: Stack, name: str) -> int:
    table = metadata.tables[name]
    return await stack.services.database.read(lambda c: c.execute(select(func.count()).select_from(table)).scalar_one())


# ── sign-up ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_sign_up_and_verification(stack: Stack) -> None:
    ann = Person(stack, "ann@example.org")
    assert (await ann.sign_up()).status == 202
    assert await count(stack, "accounts") == 0
    assert not await alive(ann.first)
    code = code_in(await mails(stack), "ann@example.org")
    assert (await ann.verify(code.lower().replace("-", " "))).status == 200
    status = (await ann.first.get("/api/v1/account")).json()
    assert status["email"] == "ann@example.org"
    assert status["limits"] == {"plan": "", "bytes": 10**9, "devices": 20, "folders": 20}
    assert (status["devices"], status["used"], status["reserved"]) == (1, 0, 0)
    assert (await ann.verify(code)).status == 401


async def test_a_code_has_few_tries_and_a_short_life(stack: Stack) -> None:
    ann = Person(stack, "ann@example.org")
    await ann.sign_up()
    code = code_in(await mails(stack), ann.email)
    for _ in range(CODE_TRIES):
        assert (await ann.verify("AAAA-AAAA")).status == 401
    assert (await ann.verify(code)).status == 401
    await ann.sign_up()
    stack.clock.advance(CODE_LIFETIME_S)
    assert (await ann.verify(code_in(await mails(stack), ann.email))).status == 401
    assert await count(stack, "accounts") == 0


async def test_a_code_is_for_the_device_that_signed_up(stack: Stack) -> None:
    """A stranger who signs up with Ann's address gets nothing from the code that she reads, nor she from theirs."""
    mallory = Person(stack, "ann@example.org", OTHER_KEY)
    ann = Person(stack, "ann@example.org")
    await mallory.sign_up()
    theirs = code_in(await mails(stack), ann.email)
    await ann.sign_up()
    hers = code_in(await mails(stack), ann.email)
    assert (await mallory.verify(hers)).status == 401
    assert (await ann.verify(theirs)).status == 401
    stranger = stack.client()
    body = {"account_id": b64(ann.account_id), "code": hers}
    assert (await stranger.post("/api/v1/accounts/verify", body)).status == 401
    assert (await ann.verify(hers)).status == 200
    assert (await mallory.verify(theirs)).status == 401


async def test_a_device_that_has_an_account_begins_no_other_with_the_same_link(stack: Stack) -> None:
    ann = await registered(stack)
    before = len(await mails(stack))
    ann.email = "ann@example.net"
    assert (await ann.sign_up()).status == 202
    assert len(await mails(stack)) == before


async def test_an_account_begins_with_a_link_of_the_device_that_asks(stack: Stack) -> None:
    client, other = stack.client(), stack.client()
    chain = begin_account(other.keys, bytes(16))
    second = chain.sign(other.keys, Add(client.keys.card.encode(), DeviceKind.DEVICE))
    for link in (chain.head.encoded, second.encoded, b"rubbish"):
        body = {"email": "ann@example.org", "login_key": b64(KEY), "genesis": b64(link)}
        assert (await client.post("/api/v1/accounts", body)).problem == "bad-request"
    body["email"] = "not an address"
    assert (await other.post("/api/v1/accounts", body | {"genesis": b64(chain.head.encoded)})).status == 400


async def test_closed_sign_up_takes_who_is_invited(stack: Stack) -> None:
    object.__setattr__(stack.services.accounts.signups._context, "open_signup", False)
    await stack.services.database.write(lambda c: invite(c, "Bob@example.org", ""))
    ann, bob = Person(stack, "ann@example.org"), Person(stack, "bob@example.org")
    assert shape(await ann.sign_up()) == shape(await bob.sign_up())
    assert {mail.to for mail in await mails(stack)} == {"bob@example.org"}
    assert (await bob.verify(code_in(await mails(stack), bob.email))).status == 200


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_sessions_by_password_and_by_key(stack: Stack) -> None:
    ann = await registered(stack)
    first = ann.first.token
    assert (await ann.log_in()).status == 200
    assert ann.first.token != first
    assert (await ann.log_in_by_key()).status == 200
    assert await alive(ann.first)
    stack.clock.advance(ACCESS_LIFETIME_S)
    assert not await alive(ann.first)


async def test_refresh_rotates_and_a_repeated_token_ends_the_session(stack: Stack) -> None:
    ann = await registered(stack)
    old = (await ann.log_in()).json()["refresh_token"]
    renewed = await ann.first.post("/api/v1/sessions/refresh", {"refresh_token": old})
    assert renewed.status == 200
    ann.first.token = renewed.json()["access_token"]
    assert await alive(ann.first)
    assert (await ann.first.post("/api/v1/sessions/refresh", {"refresh_token": old})).status == 401
    assert not await alive(ann.first)
    newest = renewed.json()["refresh_token"]
    assert (await ann.first.post("/api/v1/sessions/refresh", {"refresh_token": newest})).status == 401
    assert (await ann.first.post("/api/v1/sessions/refresh", {"refresh_token": "x"})).status == 401


async def test_a_stolen_token_without_the_key_is_worth_nothing(stack: Stack) -> None:
    ann = await registered(stack)
    tokens = (await ann.log_in()).json()
    thief = stack.client()
    thief.token = tokens["access_token"]
    assert not await alive(thief)
    body = {"refresh_token": tokens["refresh_token"]}
    assert (await thief.post("/api/v1/sessions/refresh", body)).status == 401
    assert await alive(ann.first)
    assert (await ann.first.post("/api/v1/sessions/refresh", body)).status == 200


async def test_a_request_works_once_and_strangers_take_no_room(stack: Stack) -> None:
    ann = await registered(stack)
    await stack.client().get("/api/v1/account")
    seen = sum(map(len, stack.app._authenticator._nonces._seen))
    stranger = stack.client()
    for token in (None, ann.first.token):
        stranger.token = token
        assert not await alive(stranger)
    assert sum(map(len, stack.app._authenticator._nonces._seen)) == seen
    scope, data = ann.first._scope("GET", "/api/v1/account", None, None, None)
    assert [(await ann.first.send(dict(scope), data)).status for _ in range(2)] == [200, 401]


async def test_who_logged_out_needs_the_password(stack: Stack) -> None:
    ann = await registered(stack)
    assert (await ann.first.delete("/api/v1/sessions")).status == 204
    assert not await alive(ann.first)
    assert (await ann.log_in_by_key()).status == 401
    assert (await ann.log_in()).status == 200
    assert (await ann.log_in_by_key()).status == 200


async def test_what_lasts_hears_of_every_session_that_ends(stack: Stack) -> None:
    """Streams of news ask again then; who has no session can make nobody ask."""
    ann = await registered(stack)
    told: list[bytes] = []
    stack.services.account_hooks.committed.append(told.append)
    stranger = stack.client()
    await ann.log_in_by_key(stranger)
    body = {"refresh_token": (await ann.log_in()).json()["refresh_token"]}
    told.clear()
    assert (await stranger.post("/api/v1/sessions/refresh", body)).status == 401
    assert told == []
    for expected, path in ((200, "/api/v1/sessions/refresh"), (401, "/api/v1/sessions/refresh")):
        assert (await ann.first.post(path, body)).status == expected
        assert told == [ann.account_id]
        told.clear()
    await ann.log_in()
    told.clear()
    await ann.first.delete("/api/v1/sessions")
    assert told == [ann.account_id]


async def test_a_device_that_is_not_in_the_account_is_told_so_after_the_right_password_only(stack: Stack) -> None:
    ann = await registered(stack)
    laptop = stack.client()
    assert (await ann.log_in(laptop)).problem == "device-unknown"
    ann.login_key = OTHER_KEY
    assert (await ann.log_in(laptop)).problem == "unauthorized"
    assert (await ann.log_in_by_key(laptop)).status == 401


# ── devices ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_devices_come_and_go(stack: Stack) -> None:
    ann = await registered(stack)
    laptop = await ann.add(stack.keys())
    assert (await ann.log_in_by_key(laptop)).status == 200
    assert await alive(laptop)
    listed = (await laptop.get("/api/v1/account/devices")).json()["devices"]
    assert [entry["kind"] for entry in listed] == ["device", "device"]
    await ann.remove(laptop)
    assert not await alive(laptop)
    assert (await ann.log_in_by_key(laptop)).status == 401
    assert (await ann.log_in(laptop)).problem == "device-unknown"
    assert await alive(ann.first)


async def test_the_chain_is_what_devices_made_of_it(stack: Stack) -> None:
    ann = await registered(stack)
    laptop = await ann.add(stack.keys())
    await ann.remove(laptop)
    page = await ann.first.get("/api/v1/account/chain", msgpack=True, headers={"accept": "application/msgpack"})
    links = msgspec.msgpack.decode(page.body)["links"]
    assert fold_chain(links) == ann.chain
    page = await ann.first.get("/api/v1/account/chain", query={"start": 2})
    assert page.json() == {"links": [b64(links[2])], "more": False}


async def test_of_two_links_at_one_place_the_first_stands(stack: Stack) -> None:
    ann = await registered(stack)
    assert ann.chain is not None
    one = ann.chain.sign(ann.first.keys, Add(stack.keys().card.encode(), DeviceKind.DEVICE))
    two = ann.chain.sign(ann.first.keys, Add(stack.keys().card.encode(), DeviceKind.DEVICE))
    assert (await ann.append(ann.first, one)).status == 204
    refused = await ann.append(ann.first, two)
    assert (refused.status, refused.problem) == (409, "conflict")
    assert refused.json()["head"] == {"seq": 1, "hash": b64(one.hash)}
    assert (await ann.append(ann.first, one)).status == 204, "an answer that was lost can be had again"


async def test_links_without_right_or_effect_are_refused(stack: Stack) -> None:
    ann, bob = await registered(stack), await registered(stack, "bob@example.org")
    assert ann.chain is not None
    assert bob.chain is not None
    by_bob = bob.chain.sign(bob.first.keys, Add(stack.keys().card.encode(), DeviceKind.DEVICE))
    assert (await ann.append(ann.first, by_bob)).status == 400
    head = ann.chain.head
    good = ann.chain.sign(ann.first.keys, Add(stack.keys().card.encode(), DeviceKind.DEVICE))
    assert (await ann.append(ann.first, replace(good, signature=bytes(64)))).status == 400
    for action in (Add(stack.keys().card.encode(), DeviceKind.DEVICE), Remove(ann.first.device_id)):
        forged = sigchain._sign(bob.first.keys, ann.account_id, 1, head.hash, action)
        assert (await ann.append(ann.first, forged)).status == 400
    await ann.add(bob.first.keys)
    again = ann.chain.sign(bob.first.keys, Add(stack.keys().card.encode(), DeviceKind.DEVICE))
    assert (await ann.append(ann.first, again)).status == 204
    same = fold_chain([*ann.chain.encoded_links()])
    twice = sigchain._sign(
        ann.first.keys, same.account_id, 3, again.hash, Add(bob.first.keys.card.encode(), DeviceKind.DEVICE)
    )
    assert (await ann.append(ann.first, twice)).status == 400
    assert await count(stack, "chain_links") == 4


async def test_a_third_device_joins_by_the_recovery_key(stack: Stack) -> None:
    ann = await registered(stack)
    paper = recovery_keys(b"r" * 32)
    recovery = await ann.add(paper, DeviceKind.RECOVERY)
    assert (await ann.log_in(recovery)).status == 200
    fresh = stack.keys()
    assert ann.chain is not None
    link = ann.chain.sign(paper, Add(fresh.card.encode(), DeviceKind.DEVICE))
    assert (await ann.append(recovery, link)).status == 204
    ann.chain = ann.chain.extend([link.encoded])
    client = stack.client(keys=fresh)
    assert (await ann.log_in_by_key(client)).status == 200
    assert await alive(client)


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────────
async def ask_reset(person: Person) -> Answer:
    return await person.first.post("/api/v1/password-resets", {"email": person.email})


async def confirm_reset(person: Person, code: str, login_key: bytes) -> Answer:
    body = {"email": person.email, "code": code, "login_key": b64(login_key)}
    return await person.first.post("/api/v1/password-resets/confirm", body)


async def test_a_password_is_reset_by_mail(stack: Stack) -> None:
    ann = await registered(stack)
    assert (await ask_reset(ann)).status == 202
    code = code_in(await mails(stack), ann.email)
    assert (await confirm_reset(ann, "AAAA-AAAA", OTHER_KEY)).status == 401
    assert (await confirm_reset(ann, code, OTHER_KEY)).status == 204
    assert not await alive(ann.first), "every session is over"
    assert (await confirm_reset(ann, code, KEY)).status == 401, "a code works once"
    assert (await ann.log_in()).status == 401
    ann.login_key = OTHER_KEY
    assert (await ann.log_in()).status == 200
    assert (await mails(stack))[-1].subject == "Your p2psync password was changed"


async def test_a_reset_code_has_few_tries_and_a_short_life(stack: Stack) -> None:
    ann = await registered(stack)
    await ask_reset(ann)
    for _ in range(CODE_TRIES):
        assert (await confirm_reset(ann, "AAAA-AAAA", OTHER_KEY)).status == 401
    assert (await confirm_reset(ann, code_in(await mails(stack), ann.email), OTHER_KEY)).status == 401
    await ask_reset(ann)
    stack.clock.advance(CODE_LIFETIME_S)
    assert (await confirm_reset(ann, code_in(await mails(stack), ann.email), OTHER_KEY)).status == 401
    assert (await ann.log_in()).status == 200


async def test_a_reset_code_is_for_the_device_that_asked(stack: Stack) -> None:
    ann = await registered(stack)
    await ask_reset(ann)
    code = code_in(await mails(stack), ann.email)
    mallory = Person(stack, ann.email, clients=[stack.client()])
    for _ in range(CODE_TRIES + 1):
        assert (await confirm_reset(mallory, code, OTHER_KEY)).status == 401
    assert (await confirm_reset(ann, code, OTHER_KEY)).status == 204


async def test_a_new_password_lets_no_new_device_in(stack: Stack) -> None:
    """Who reads the mailbox gets at the account's name, not at its devices' keys."""
    ann = await registered(stack)
    mallory = Person(stack, ann.email, OTHER_KEY, [stack.client()])
    await ask_reset(mallory)
    assert (await confirm_reset(mallory, code_in(await mails(stack), ann.email), OTHER_KEY)).status == 204
    assert (await mallory.log_in()).problem == "device-unknown"
    assert (await ann.log_in_by_key()).status == 200


async def test_a_password_is_changed_by_the_old_one(stack: Stack) -> None:
    ann = await registered(stack)
    body = {"login_key": b64(OTHER_KEY), "new_login_key": b64(OTHER_KEY)}
    assert (await ann.first.put("/api/v1/account/password", body)).status == 401
    body = {"login_key": b64(KEY), "new_login_key": b64(OTHER_KEY)}
    assert (await ann.first.put("/api/v1/account/password", body)).status == 204
    assert not await alive(ann.first)
    ann.login_key = OTHER_KEY
    assert (await ann.log_in()).status == 200


# ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_deletion_leaves_nothing_and_asks_the_other_rooms(stack: Stack) -> None:
    ann, bob = await registered(stack), await registered(stack, "bob@example.org")
    await ann.add(stack.keys())
    asked: list[bytes] = []
    stack.services.account_hooks.deleted.append(lambda _c, account_id, _now: asked.append(account_id))
    assert (await ann.first.post("/api/v1/account/delete", {"login_key": b64(OTHER_KEY)})).status == 401
    assert (await ann.first.post("/api/v1/account/delete", {"login_key": b64(KEY)})).status == 204
    assert asked == [ann.account_id]
    assert not await alive(ann.first)
    assert await alive(bob.first)
    for name in ("accounts", "chain_links", "devices", "sessions"):
        assert await count(stack, name) == 1, name
    assert (await mails(stack))[-1].subject == "Your p2psync account was deleted"
    again = Person(stack, ann.email)
    stack.clock.advance(86_400)
    await again.sign_up()
    assert (await again.verify(code_in(await mails(stack), ann.email))).status == 200


async def test_what_expired_is_forgotten(stack: Stack) -> None:
    ann = await registered(stack)
    await Person(stack, "bob@example.org").sign_up()
    await ask_reset(ann)
    stack.clock.advance(100 * 86_400)
    await stack.services.accounts.sweep(stack.services.now())
    for name in ("signups", "resets", "sessions", "attempts"):
        assert await count(stack, name) == 0, name
    assert await count(stack, "accounts") == 1
