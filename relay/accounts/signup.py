"""How an account begins and ends: sign-up, proof of the address by mail, deletion.

Who asks learns nothing of who has an account: a sign-up is always taken and always answered by mail, and the mail
differs. A sign-up belongs to the device whose key began the account's chain, so a code that reached the wrong mailbox,
or was typed for somebody else's sign-up, is worth nothing.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, delete, select, update

from p2psync.membership.sigchain import Genesis, decode_chain_link
from relay.accounts import letters
from relay.accounts.chain import begin_chain, read_link
from relay.accounts.context import Context, Origin, read_email
from relay.accounts.outbox import NOBODY
from relay.accounts.passwords import SALT_SIZE
from relay.accounts.plans import FREE
from relay.accounts.secrets import CODE_ENTROPY, SEAL_ENTROPY, new_code, read_code
from relay.accounts.sessions import SESSION_ENTROPY, Tokens, open_session
from relay.accounts.tables import accounts, invitations, resets, signups
from relay.accounts.throttle import forgive, take_back
from relay.db.upsert import insert_if_missing, put
from relay.errors import ApiError, unauthorized
from relay.ports import Mail

CODE_LIFETIME_S: Final = 3600
CODE_TRIES: Final = 5


class SignUps:
    """Accounts come and go."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def sign_up(self, email: str, login_key: bytes, genesis: bytes, origin: Origin) -> None:
        """Ask for an account; `genesis` is the first link of its chain, signed by the device that asks.

        Raises:
            ApiError: 400 when the address or the link is malformed, 429, 503.
        """
        context = self._context
        address = read_email(email)
        link = read_link(genesis)
        if not isinstance(link.action, Genesis) or link.author != origin.device_id:
            raise ApiError(400, "bad-request", "an account begins with a first link by the device that signs up")
        await context.throttle_mail(address, origin)
        verifier = await context.hasher.make(login_key, context.rng.token(SALT_SIZE))
        code, nonce = new_code(context.rng.token(CODE_ENTROPY)), context.rng.token(SEAL_ENTROPY)

        def work(c: Connection) -> None:
            mail = self._letter(c, address, link.account_id, code)
            put(
                c,
                signups,
                account_id=link.account_id,
                email=address,
                verifier=verifier,
                genesis=link.encoded,
                code_hash=context.secrets.code_hash(code, link.account_id),
                tries_left=CODE_TRIES,
                expires=origin.now + CODE_LIFETIME_S,
            )
            context.outbox.queue(c, mail, origin.now, nonce)

        await context.database.write(work)
        context.outbox.ring()

    def _letter(self, c: Connection, address: str, account_id: bytes, code: str) -> Mail:
        """What the owner of the address is told. The code is mailed only where it may be used."""
        verification = letters.verification(address, code, CODE_LIFETIME_S // 60)
        taken = c.execute(select(accounts.c.account_id).where(accounts.c.email == address)).first()
        used = c.execute(select(accounts.c.account_id).where(accounts.c.account_id == account_id)).first()
        invited = c.execute(select(invitations.c.email).where(invitations.c.email == address)).first()
        if taken is not None:
            return letters.already_registered(address)
        if used is not None or (invited is None and not self._context.open_signup):
            return replace(verification, to=NOBODY)
        return verification

    async def verify(self, account_id: bytes, code: str, origin: Origin) -> Tokens:
        """The account exists from now on, and this device has a session. ApiError 401 unless the code is right, 429."""
        context = self._context
        place = await context.throttle_code(origin)
        code_hash = context.secrets.code_hash(read_code(code), account_id)
        entropy = context.rng.token(SESSION_ENTROPY)

        def work(c: Connection) -> Tokens | None:
            if not _use_code(c, account_id, origin.device_id, code_hash, origin.now):
                return None
            take_back(c, place)
            return open_session(c, account_id, origin.device_id, origin.now, entropy)

        tokens = await context.database.write(work)
        if tokens is None:
            raise unauthorized()
        return tokens

    async def delete(self, account_id: bytes, login_key: bytes, now: int) -> None:
        """Delete an account and all it stored. ApiError 401 unless the password is right, 429, 503."""
        context = self._context
        row = await context.database.read(
            lambda c: c.execute(
                select(accounts.c.email, accounts.c.verifier).where(accounts.c.account_id == account_id)
            ).one_or_none()
        )
        if row is None:
            raise unauthorized()
        subject = await context.throttle_owner(account_id, now)
        if not await context.hasher.matches(login_key, row.verifier):
            raise unauthorized()
        nonce = context.rng.token(SEAL_ENTROPY)

        def work(c: Connection) -> None:
            if delete_account(c, context, account_id, now):
                forgive(c, subject)
                context.outbox.queue(c, letters.deleted(row.email), now, nonce)

        await context.database.write(work)
        context.all_ended(account_id)
        context.outbox.ring()

    async def remove(self, account_id: bytes, now: int) -> bool:
        """Delete an account and all it stored, for the operator; its owner is told by mail. Whether there was one."""
        context, nonce = self._context, self._context.rng.token(SEAL_ENTROPY)

        def work(c: Connection) -> bool:
            email = c.execute(select(accounts.c.email).where(accounts.c.account_id == account_id)).scalar_one_or_none()
            if email is None or not delete_account(c, context, account_id, now):
                return False
            context.outbox.queue(c, letters.deleted(email), now, nonce)
            return True

        removed = await context.database.write(work)
        context.all_ended(account_id)
        context.outbox.ring()
        return removed


def delete_account(c: Connection, context: Context, account_id: bytes, now: int) -> bool:
    """Delete an account and, by the hooks of the other rooms, all it stored. Whether there was one."""
    email = c.execute(
        select(accounts.c.email).where(accounts.c.account_id == account_id).with_for_update()
    ).scalar_one_or_none()
    if email is None:
        return False
    for hook in context.hooks.deleted:
        hook(c, account_id, now)
    context.ledger.forget(c, account_id)
    c.execute(delete(signups).where(signups.c.email == email))
    c.execute(delete(resets).where(resets.c.address_hash == context.secrets.pseudonym("reset", email)))
    c.execute(delete(accounts).where(accounts.c.account_id == account_id))
    return True


def _use_code(c: Connection, account_id: bytes, device_id: bytes, code_hash: bytes, now: int) -> bool:
    """Make the account if the code is right; a wrong one uses up a try. It returns, so that the try is counted."""
    at = signups.c.account_id == account_id
    row = c.execute(select(signups).where(at).with_for_update()).one_or_none()
    if row is None or row.expires <= now or row.tries_left <= 0:
        return False
    link = decode_chain_link(row.genesis)
    if link.author != device_id:
        return False
    if not hmac.compare_digest(row.code_hash, code_hash):
        c.execute(update(signups).where(at).values(tries_left=row.tries_left - 1))
        return False
    plan = c.execute(select(invitations.c.plan).where(invitations.c.email == row.email)).scalar_one_or_none()
    account = {"account_id": account_id, "email": row.email, "verifier": row.verifier, "plan": plan or FREE}
    if not insert_if_missing(c, accounts, **account, created=now, suspended=False):
        return False
    begin_chain(c, link, now)
    c.execute(delete(signups).where(signups.c.email == row.email))
    c.execute(delete(invitations).where(invitations.c.email == row.email))
    return True
