"""How a device comes in: by password and key, by its key alone, by a refresh token; and how a password is replaced.

Every failure is the same 401, after the same work. What follows a right password may be told apart.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace

from sqlalchemy import Connection, delete, select, update

from relay.accounts import letters
from relay.accounts.context import Context, Origin, read_email
from relay.accounts.outbox import NOBODY
from relay.accounts.passwords import SALT_SIZE
from relay.accounts.secrets import CODE_ENTROPY, SEAL_ENTROPY, new_code, read_code
from relay.accounts.sessions import (
    ACCOUNT_ID_SIZE,
    SESSION_ENTROPY,
    Tokens,
    account_of,
    end_all_sessions,
    end_session,
    log_out,
    open_session,
    open_session_by_key,
    refresh_session,
)
from relay.accounts.signup import CODE_LIFETIME_S, CODE_TRIES
from relay.accounts.tables import accounts, devices, resets
from relay.accounts.throttle import count_try, forgive, take_back, too_often
from relay.db.upsert import put
from relay.errors import ApiError, unauthorized


class Logins:
    """Sessions begin and end."""

    def __init__(self, context: Context) -> None:
        self._context = context

    # ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────
    async def account_of(self, token: bytes, device_id: bytes, now: int) -> bytes | None:
        """The account of a live access token of this device, or None."""
        cache, claimed = self._context.sessions, token[:ACCOUNT_ID_SIZE]
        if cache.holds(claimed, device_id, token, now):
            return claimed
        generation = cache.generation
        account_id = await self._context.database.look_up(lambda c: account_of(c, token, device_id, now))
        if account_id is not None:
            cache.keep(account_id, device_id, token, now=now, generation=generation)
        return account_id

    async def log_in(self, email: str, login_key: bytes, origin: Origin) -> Tokens:
        """A session by password and device key.

        Raises:
            ApiError: 401 unless the password is right; then 403 `device-unknown` when the device is not in the account,
                or `suspended`; 429, 503.
        """
        context, address = self._context, read_email(email)
        place = context.secrets.pseudonym("guess from", origin.network)
        entropy = context.rng.token(SESSION_ENTROPY)
        salt = context.rng.token(SALT_SIZE)

        def begin(c: Connection) -> tuple[int, bytes, _Found | None]:
            found = _find(c, address, origin.device_id)
            # A device of the account has tries of its own, so that strangers cannot lock it out.
            device = origin.device_id if found is not None and found.is_member else b""
            subject = context.secrets.pseudonym("guess", address, device)
            policies = context.policies
            subjects = [(subject, policies.guesses_per_account), (place, policies.guesses_per_network)]
            return count_try(c, subjects, origin.now), subject, found

        wait, subject, found = await context.database.write(begin)
        if wait:
            raise too_often(wait)
        right = await context.hasher.matches(login_key, found.verifier if found is not None else None)
        if not right or found is None:
            raise unauthorized()
        dated = context.hasher.is_dated(found.verifier)
        verifier = await context.hasher.make(login_key, salt) if dated else found.verifier

        def finish(c: Connection) -> Tokens | None:
            if _find(c, address, origin.device_id) != found:
                raise unauthorized()  # it changed under our feet; the device tries again
            forgive(c, subject)
            take_back(c, place)
            if found.suspended or not found.is_member:
                return None
            if dated:
                c.execute(update(accounts).where(accounts.c.account_id == found.account_id).values(verifier=verifier))
            return open_session(c, found.account_id, origin.device_id, origin.now, entropy)

        tokens = await context.database.write(finish)
        context.committed(found.account_id, origin.device_id)
        if tokens is None:
            raise _suspended() if found.suspended else ApiError(403, "device-unknown", _JOIN)
        return tokens

    async def log_in_by_key(self, account_id: bytes, device_id: bytes, now: int) -> Tokens:
        """A session for a device of the account that has not logged out. ApiError 401 for any other."""
        entropy = self._context.rng.token(SESSION_ENTROPY)

        def work(c: Connection) -> Tokens | None:
            row = c.execute(select(accounts.c.suspended).where(accounts.c.account_id == account_id)).one_or_none()
            if row is None or row.suspended:
                return None
            return open_session_by_key(c, account_id, device_id, now, entropy)

        tokens = _granted(await self._context.database.write(work))
        self._context.committed(account_id, device_id)
        return tokens

    async def refresh(self, token: bytes, device_id: bytes, now: int) -> Tokens:
        """New tokens for the newest refresh token of this device; any other ends its session. ApiError 401."""
        entropy, account_id = self._context.rng.token(SESSION_ENTROPY), token[:ACCOUNT_ID_SIZE]

        def work(c: Connection) -> tuple[Tokens | None, bool]:
            tokens = refresh_session(c, token, device_id, now, entropy)
            return tokens, tokens is not None or end_session(c, account_id, device_id)

        tokens, changed = await self._context.database.write(work)
        if changed:
            self._context.committed(account_id, device_id)
        return _granted(tokens)

    async def log_out(self, account_id: bytes, device_id: bytes) -> None:
        """End the device's session; its next one needs the password."""
        await self._context.database.write(lambda c: log_out(c, account_id, device_id))
        self._context.committed(account_id, device_id)

    # ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def ask_reset(self, email: str, origin: Origin) -> None:
        """Mail a code with which this device may set a new password. ApiError 400, 429."""
        context, address = self._context, read_email(email)
        await context.throttle_mail(address, origin)
        code, nonce = new_code(context.rng.token(CODE_ENTROPY)), context.rng.token(SEAL_ENTROPY)
        place = {"address_hash": context.secrets.pseudonym("reset", address), "device_id": origin.device_id}
        letter = letters.reset(address, code, CODE_LIFETIME_S // 60)

        def work(c: Connection) -> None:
            known = c.execute(select(accounts.c.account_id).where(accounts.c.email == address)).first()
            code_hash = context.secrets.code_hash(code, *place.values())
            put(c, resets, **place, code_hash=code_hash, tries_left=CODE_TRIES, expires=origin.now + CODE_LIFETIME_S)
            context.outbox.queue(c, letter if known else replace(letter, to=NOBODY), origin.now, nonce)

        await context.database.write(work)
        context.outbox.ring()

    async def reset(self, email: str, code: str, login_key: bytes, origin: Origin) -> None:
        """Set a new password by a mailed code; every session of the account ends. ApiError 401, 429, 503."""
        context, address = self._context, read_email(email)
        network = await context.throttle_code(origin)
        verifier = await context.hasher.make(login_key, context.rng.token(SALT_SIZE))
        place = (context.secrets.pseudonym("reset", address), origin.device_id)
        code_hash = context.secrets.code_hash(read_code(code), *place)
        nonce = context.rng.token(SEAL_ENTROPY)

        def work(c: Connection) -> bytes | None:
            row = c.execute(select(accounts.c.account_id).where(accounts.c.email == address)).one_or_none()
            if not _use_code(c, place, code_hash, origin.now) or row is None:
                return None
            take_back(c, network)
            self._set_password(c, row.account_id, address, verifier, now=origin.now, nonce=nonce)
            account_id: bytes = row.account_id
            return account_id

        account_id = await context.database.write(work)
        if account_id is None:
            raise unauthorized()
        context.all_ended(account_id)
        context.outbox.ring()

    async def change_password(self, account_id: bytes, old: bytes, new: bytes, now: int) -> None:
        """Set a new password by the old one; every session of the account ends. ApiError 401, 429, 503."""
        context = self._context
        subject = await context.throttle_owner(account_id, now)
        row = await context.database.read(
            lambda c: c.execute(
                select(accounts.c.email, accounts.c.verifier).where(accounts.c.account_id == account_id)
            ).one_or_none()
        )
        if not await context.hasher.matches(old, row.verifier if row is not None else None) or row is None:
            raise unauthorized()
        verifier = await context.hasher.make(new, context.rng.token(SALT_SIZE))
        nonce = context.rng.token(SEAL_ENTROPY)

        def work(c: Connection) -> None:
            forgive(c, subject)
            self._set_password(c, account_id, row.email, verifier, now=now, nonce=nonce)

        await context.database.write(work)
        context.all_ended(account_id)
        context.outbox.ring()

    def _set_password(
        self, c: Connection, account_id: bytes, address: str, verifier: bytes, *, now: int, nonce: bytes
    ) -> None:
        c.execute(update(accounts).where(accounts.c.account_id == account_id).values(verifier=verifier))
        end_all_sessions(c, account_id)
        c.execute(delete(resets).where(resets.c.address_hash == self._context.secrets.pseudonym("reset", address)))
        self._context.outbox.queue(c, letters.password_changed(address), now, nonce)


_JOIN = (
    "the password is right and this device is not in the account: pair it with a device that is (`p2psync pair`), or "
    "use the recovery key"
)


def _granted(tokens: Tokens | None) -> Tokens:
    if tokens is None:
        raise unauthorized()
    return tokens


def _suspended() -> ApiError:
    return ApiError(403, "suspended", "the operator of this relay has suspended the account; ask them")


@dataclass(frozen=True, slots=True)
class _Found:
    account_id: bytes
    verifier: bytes
    suspended: bool
    is_member: bool
    """Whether the device that asks is in the account."""


def _find(c: Connection, address: str, device_id: bytes) -> _Found | None:
    mine = (devices.c.account_id == accounts.c.account_id) & (devices.c.device_id == device_id)
    row = c.execute(
        select(accounts.c.account_id, accounts.c.verifier, accounts.c.suspended, devices.c.device_id)
        .join_from(accounts, devices, mine, isouter=True)
        .where(accounts.c.email == address)
    ).one_or_none()
    return None if row is None else _Found(row[0], row[1], row[2], row[3] is not None)


def _use_code(c: Connection, place: tuple[bytes, bytes], code_hash: bytes, now: int) -> bool:
    """Whether the code is right; a wrong one uses up a try. With the new password, every code is void."""
    at = (resets.c.address_hash == place[0]) & (resets.c.device_id == place[1])
    row = c.execute(select(resets).where(at).with_for_update()).one_or_none()
    if row is None or row.expires <= now or row.tries_left <= 0:
        return False
    if not hmac.compare_digest(row.code_hash, code_hash):
        c.execute(update(resets).where(at).values(tries_left=row.tries_left - 1))
        return False
    return True
