"""This device's account: signing up, coming in, and a chain of devices that no relay can shorten, fork or make up.

The relay keeps the chain and is believed in nothing. What is verified here is anchored in one of three ways: this
device began the chain; a device of the account told its ID over a paired channel; or the recovery key vouches for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import structlog
import trio

from p2psync.crypto.identity import DeviceKeys
from p2psync.crypto.recovery import RECOVERY_KEY_SIZE, format_recovery_key, founding_random, recovery_keys
from p2psync.errors import AuthenticationError, InputError, IntegrityError, RelayRefusal, StateError
from p2psync.membership.sigchain import AccountChain, Add, DeviceKind, HeadVerdict, Remove, begin_account, fold_chain
from p2psync.model.ids import DeviceId
from p2psync.net.relay_client import RelayClient
from p2psync.node.account_joining import check_recovery, take_in
from p2psync.node.account_store import AccountStore, StoredAccount, verified
from p2psync.ports import World
from p2psync.protocol.relay_address import parse_relay_address
from p2psync.protocol.relay_api import Session
from p2psync.sync.pulse import Pulse

_log = structlog.get_logger(__name__)

JOIN_S: Final = 60.0
"""How long a device that was taken in waits until the relay knows it."""
_JOIN_PAUSE_S: Final = 2.0
_TRIES: Final = 4
"""Other devices may append a link at the same time."""
_OTHER_ACCOUNT = (
    "that is another account than the one this device is in; leave that first: p2psync account logout --forget"
)
_SET_BACK = (
    "the relay shows fewer devices of this account than it did: it was set back to an old copy, or withholds them; the "
    "devices known here stay as they are. Ask its operator"
)
_NO_ACCOUNT = "this device is in no account; run: p2psync account signup, or: p2psync account login"


class ChainRefusedError(AuthenticationError):
    """The relay shows a chain that cannot be this account's; what is kept here stands."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a device of an account tells another that it has taken in, over their paired channel."""

    account_id: bytes
    relays: tuple[str, ...]
    email: str
    seq: int
    head: bytes


class Account:
    """The account of one device and the client of its relay. One lock: one change at a time."""

    def __init__(self, store: AccountStore, world: World, keys: DeviceKeys, changed: Pulse) -> None:
        """Reads what is stored; blocks for a moment. Raises as `AccountFiles.load`.

        `changed` fires whenever something of the account was stored.
        """
        self._store = store
        self._world = world
        self._keys = keys
        self._lock = trio.Lock()
        self._saving = trio.Lock()
        """Sessions are renewed, and kept, beside whatever else goes on."""
        self._client: RelayClient | None = None
        self.doing = ""
        """In words, what this device is doing with its account that may take minutes, and meanwhile holds the lock."""
        self.stored: StoredAccount | None = None
        self.chain: AccountChain | None = None
        """As far as it was verified; with links at its end that the relay may not have yet."""
        self._changed = changed
        loaded = store.load_account()
        if loaded is not None:
            self.stored, links = loaded
            self.chain = fold_chain(links) if links else None
            if self.chain is not None and self.chain.account_id != self.stored.account_id:
                raise IntegrityError(
                    "account.json and account/chain are of different accounts; move both away and log in again"
                )

    async def aclose(self) -> None:
        """Close the client's connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    # ── what there is ───────────────────────────────────────────────────────────────────────────────────────────────
    def require(self) -> StoredAccount:
        """The account. StateError when this device is in none."""
        if self.stored is None:
            raise StateError(f"{self.doing}; wait until that is done" if self.doing else _NO_ACCOUNT)
        return self.stored

    def active(self) -> tuple[StoredAccount, AccountChain]:
        """The account and its chain. StateError unless this device is in it and may call the relay."""
        stored = self.require()
        if stored.state == "unverified":
            raise StateError("the account waits for the code that was mailed; run: p2psync account verify CODE")
        if stored.state == "logged-out":
            raise StateError("this device is logged out; run: p2psync account login")
        if stored.state == "joining" or self.chain is None:
            raise StateError("the relay does not know yet that this device was taken in; see: p2psync account status")
        return stored, self.chain

    def confirmed_chain(self) -> AccountChain | None:
        """The chain as far as the relay has it too: what only this device has may yet give way. Blocks for a moment."""
        chain, confirmed = self.chain, self.stored.confirmed if self.stored is not None else 0
        if chain is None or not confirmed:
            return None
        return chain if len(chain.links) <= confirmed else fold_chain(chain.encoded_links()[:confirmed])

    @property
    def client(self) -> RelayClient:
        """The client of the account's relay. StateError when this device is in no account."""
        if self._client is None:
            stored = self.require()
            self._client = RelayClient(
                self._world,
                self._keys,
                [parse_relay_address(url) for url in stored.relays],
                account_id=stored.account_id,
                session=stored.session,
                keep=self._keep,
            )
        return self._client

    async def _keep(self, session: Session) -> None:
        async with self._saving:
            stored = self.stored
            if stored is None or stored.state == "logged-out" or session.account_id != stored.account_id:
                return
            try:
                await self._write(msgspec.structs.replace(stored, session=session), None)
            except OSError as error:
                # It is as good as ever until the next start, which opens another one by the device's key.
                _log.warning("the session at the relay cannot be stored", error=str(error))

    async def _change(self, chain: AccountChain | None = None, **fields: object) -> None:
        """Change some of what is stored, and the chain when one is given."""
        async with self._saving:
            await self._write(msgspec.structs.replace(self.require(), **fields), chain)

    async def _replace(self, stored: StoredAccount | None, chain: AccountChain | None = None) -> None:
        """Another account, or none, in the place of what is stored."""
        async with self._saving:
            if self.stored is not None:
                await self._write(None, None)
            if stored is not None:
                await self._write(stored, chain)

    async def _write(self, stored: StoredAccount | None, chain: AccountChain | None) -> None:
        links = chain.encoded_links() if chain is not None else None
        await self._world.offload.run(lambda: self._store.save_account(stored, links))
        self.stored = stored
        if chain is not None or stored is None:
            self.chain = chain
        self._changed.fire()

    # ── beginning ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def sign_up(self, relays: Sequence[str], email: str, login_key: bytes) -> str:
        """Begin an account with this device and a recovery key; returns that key's text, which is kept nowhere.

        StateError when this device is in an account that is more than a sign-up.
        """
        async with self._lock:
            self.must_be_free()
            key = self._world.rng.token(RECOVERY_KEY_SIZE)
            chain = begin_account(self._keys, founding_random(key, self._keys.device_id))
            recovery = Add(recovery_keys(key).card.encode(), DeviceKind.RECOVERY)
            chain = chain.extend([chain.sign(self._keys, recovery).encoded])
            async with self._visiting(relays) as client:
                await client.accounts.sign_up(email, login_key, chain.links[0].encoded)
            stored = StoredAccount(relays=tuple(relays), email=email, account_id=chain.account_id, state="unverified")
            await self._begin(stored, chain)
            return format_recovery_key(key)

    async def verify(self, code: str) -> None:
        """The mailed code: the account exists, with its recovery key. RelayRefusal `unauthorized` for a wrong one."""
        async with self._lock:
            stored = self.require()
            if stored.state != "unverified":
                raise StateError("the account of this device is verified already; see: p2psync account status")
            await self.client.accounts.verify(stored.account_id, code)
            await self._change(state="active")
            await self._refresh()

    # ── coming in ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def log_in(self, relays: Sequence[str], email: str, login_key: bytes) -> None:
        """By password, as a device that is in the account.

        Raises:
            RelayRefusal: `unauthorized` for a wrong password, `device-unknown` for a device that is not in it.
            StateError: nothing but the relay's word says that this is the person's account, or it is another one.
        """
        async with self._lock:
            if self.stored is not None and self.stored.state != "unverified":
                # Whoever was put out of the account and taken in again is known by the same chain.
                await self._log_in_again(relays, email, login_key)
                return
            async with self._visiting(relays) as client:
                await client.accounts.log_in(email, login_key)
                chain = await self._fetch(client)
                if not any(link.author == self._keys.device_id for link in chain.links):
                    raise StateError(
                        "only the relay says that this is your account: pair this device with one that is in it "
                        "(p2psync pair --account, there), or give the recovery key with --recovery-file FILE"
                    )
            await self._enter(relays, email, chain)

    async def recover(
        self,
        relays: Sequence[str],
        email: str,
        login_key: bytes,
        key: bytes,
        let_in: Callable[[RelayClient, DeviceKeys, AccountChain], Awaitable[None]],
    ) -> None:
        """By password and recovery key: this device joins the account, or completes what an earlier try has left.

        `let_in` does what else the recovery key is good for, with a client of its own; then that key is forgotten.

        Raises:
            RelayRefusal: `unauthorized` for a wrong password, `device-unknown` for a recovery key of another account.
            AuthenticationError: the chain is none that the recovery key vouches for.
            StateError: this device is in another account.
        """
        async with self._slowly("this device is being let into the folders of its account by the recovery key"):
            is_new = self.stored is None or self.stored.state in ("unverified", "joining")
            recovery = recovery_keys(key)
            async with self._visiting(relays, recovery) as client:
                await client.accounts.log_in_as_one_of_many(email, login_key)
                chain = await self._fetch(client)
                check_recovery(chain, recovery.device_id, key)
                if not is_new and chain.account_id != self.require().account_id:
                    raise StateError(_OTHER_ACCOUNT)
                chain = await take_in(self._keys.card, client, recovery, chain, partial(self._fetch, client))
                await let_in(client, recovery, chain)
                await client.accounts.log_out()
            if is_new:
                await self._enter(relays, email, chain)
                await self.client.accounts.log_in(email, login_key)
            else:
                await self._log_in_again(relays, email, login_key)

    async def join(self, invitation: Invitation) -> None:
        """As another device of the account has told: wait until the relay knows this one too.

        StateError when it does not in time; `refresh` goes on then.
        """
        async with self._slowly("this device waits until the relay knows that it is in the account"):
            self.must_be_free()
            stored = StoredAccount(
                relays=invitation.relays,
                email=invitation.email,
                account_id=invitation.account_id,
                state="joining",
                head=invitation.head,
                head_seq=invitation.seq,
            )
            await self._begin(stored, None)
            with trio.move_on_after(JOIN_S):
                while True:
                    try:
                        await self._refresh()
                    except StateError:
                        await trio.sleep(_JOIN_PAUSE_S)
                    else:
                        return
            raise StateError("the relay does not know this device yet; see in a moment: p2psync account status")

    async def _log_in_again(self, relays: Sequence[str], email: str, login_key: bytes) -> None:
        stored = self.require()
        async with self._visiting(relays or stored.relays) as client:
            await client.accounts.log_in(email, login_key)
            if client.account_id != stored.account_id:
                await client.accounts.log_out()
                raise StateError(_OTHER_ACCOUNT)
        state = "joining" if self.chain is None else "active"
        await self.aclose()
        await self._change(relays=tuple(relays) or stored.relays, email=email, state=state, session=None)
        await self._refresh()

    async def _enter(self, relays: Sequence[str], email: str, chain: AccountChain) -> None:
        stored = StoredAccount(
            relays=tuple(relays),
            email=email,
            account_id=chain.account_id,
            state="active",
            confirmed=len(chain.links),
        )
        await self._begin(stored, chain)

    async def _begin(self, stored: StoredAccount, chain: AccountChain | None) -> None:
        await self.aclose()
        await self._replace(stored, chain)

    def must_be_free(self) -> None:
        """StateError when this device is in an account, or on its way into one that it has asked for itself."""
        if self.stored is not None and self.stored.state not in ("unverified", "joining"):
            raise StateError(
                "this device is in an account already; see: p2psync account status; leave it with: p2psync account "
                "logout --forget"
            )

    @asynccontextmanager
    async def _slowly(self, what: str) -> AsyncIterator[None]:
        """The lock, for what may take long: others are told what is going on, and need not wait to hear it."""
        async with self._lock:
            self.doing = what
            try:
                yield
            finally:
                self.doing = ""

    @asynccontextmanager
    async def _visiting(self, relays: Sequence[str], keys: DeviceKeys | None = None) -> AsyncIterator[RelayClient]:
        """A client whose session is not kept."""
        client = RelayClient(self._world, keys or self._keys, [parse_relay_address(url) for url in relays])
        try:
            yield client
        finally:
            with trio.move_on_after(5, shield=True):
                await client.aclose()

    async def _fetch(self, client: RelayClient) -> AccountChain:
        chain = await self._world.offload.run(partial(fold_chain, await client.accounts.chain()))
        if chain.account_id != client.account_id:
            raise AuthenticationError("the relay shows the chain of another account")
        return chain

    # ── end ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    async def log_out(self, *, forget: bool = False) -> None:
        """End the session: the next one needs the password. With `forget` nothing of the account is kept here."""
        async with self._lock:
            stored = self.require()
            if stored.state in ("active", "joining"):
                try:
                    await self.client.accounts.log_out()
                except (StateError, RelayRefusal):
                    if not forget:
                        raise
            await self.aclose()
            if forget:
                await self._replace(None)
            else:
                await self._change(state="logged-out", session=None)

    async def delete(self, login_key: bytes) -> None:
        """Delete the account at the relay with all it stored there, and forget it here."""
        async with self._lock:
            self.active()
            await self.client.accounts.delete(login_key)
            await self.aclose()
            await self._replace(None)

    # ── the chain ───────────────────────────────────────────────────────────────────────────────────────────────────
    async def refresh(self) -> AccountChain:
        """Take in what is new in the chain, and give the relay what it lacks.

        Raises:
            ChainRefusedError: the relay shows a shorter, forked or forged chain; what is kept here stands.
            StateError: this device is logged out, or was removed from the account.
        """
        async with self._lock:
            return await self._refresh()

    async def add(self, card: bytes, kind: DeviceKind, device: DeviceId) -> AccountChain:
        """Take a device into the account; harmless when it is in there."""
        async with self._lock:
            return await self._append(lambda c: None if device in c.devices else Add(card, kind))

    async def remove(self, device: DeviceId) -> AccountChain:
        """Put a device out of the account. InputError when it is not in there."""
        async with self._lock:
            known = (await self._refresh()).devices.get(device)
            if known is None:
                raise InputError("that device is not in the account; see: p2psync account devices")
            if known.kind is DeviceKind.RECOVERY:
                raise InputError("a recovery key is replaced by a new one with: p2psync account recovery")
            return await self._append(lambda c: Remove(device) if device in c.devices else None)

    async def renew_recovery(self) -> str:
        """A new recovery key in the place of all others; returns its text, which is kept nowhere.

        The new key itself signs the old ones out: by that link a device that comes in by it knows its account.
        """
        async with self._lock:
            key = self._world.rng.token(RECOVERY_KEY_SIZE)
            recovery = recovery_keys(key)
            add = Add(recovery.card.encode(), DeviceKind.RECOVERY)
            chain = await self._append(lambda c: None if recovery.device_id in c.devices else add)
            old = [d.device_id for d in chain.devices.values() if d.kind is DeviceKind.RECOVERY]
            for device in old:
                if device != recovery.device_id:
                    await self._append(lambda c, d=device: Remove(d) if d in c.devices else None, recovery)  # type: ignore[misc]
            return format_recovery_key(key)

    async def _append(
        self, wanted: Callable[[AccountChain], Add | Remove | None], keys: DeviceKeys | None = None
    ) -> AccountChain:
        """Append the link that `wanted` asks for until it is in the chain or not wanted any more."""
        for _ in range(_TRIES):
            chain = await self._refresh()
            action = wanted(chain)
            if action is None:
                return chain
            # Kept before it is sent: the same link is sent again, never another one at its place.
            await self._change(chain.extend([chain.sign(keys or self._keys, action).encoded]))
        raise StateError("other devices change the account at the same time; try again")

    async def _refresh(self) -> AccountChain:
        reminded = False
        for _ in range(_TRIES):
            stored = self.require()
            links = await self.client.accounts.chain(max(stored.confirmed - 1, 0))
            if not links and self.chain is not None and stored.confirmed:
                if reminded or not await self._remind(self.chain):
                    raise ChainRefusedError(_SET_BACK)
                reminded = True
                continue
            try:
                theirs = await self._world.offload.run(partial(verified, stored, self.chain, links))
            except (AuthenticationError, InputError) as error:
                raise ChainRefusedError(str(error)) from error
            mine = self.chain.links[len(theirs.links) :] if self._agrees(theirs) and self.chain is not None else ()
            try:
                for link in mine:
                    await self.client.accounts.append_link(link.encoded)
            except RelayRefusal as refusal:
                await self._confirm(theirs)
                if refusal.code != "conflict":
                    raise
                continue
            chain = theirs.extend([link.encoded for link in mine])
            await self._confirm(chain)
            if self._keys.device_id not in chain.devices:
                raise StateError(
                    "this device was removed from its account; forget it with: p2psync account logout --forget"
                )
            return chain
        raise StateError("other devices change the account at the same time; try again")

    async def _remind(self, known: AccountChain) -> bool:
        """Whether a relay that shows less than it did takes what it lacks: one that was put back from a backup does.

        Else whoever joined since could not come in any more.
        """
        accounts = self.client.accounts
        try:
            theirs = await self._world.offload.run(partial(fold_chain, await accounts.chain(0)))
            if not self._agrees(theirs):
                return False
            lost = known.links[len(theirs.links) :]
            for link in lost:
                await accounts.append_link(link.encoded)
        except (AuthenticationError, InputError, RelayRefusal):
            return False
        _log.warning("a relay that was put back was given the account's newer links", count=len(lost))
        return True

    async def _confirm(self, chain: AccountChain) -> None:
        stored = self.require()
        state = "active" if stored.state == "joining" and self._keys.device_id in chain.devices else stored.state
        if (len(chain.links), state) != (stored.confirmed, stored.state) or self.chain is None:
            await self._change(chain, confirmed=len(chain.links), state=state)
        elif self.chain.links != chain.links:
            await self._change(chain)

    def _agrees(self, theirs: AccountChain) -> bool:
        """Whether what is kept here goes on where the relay's chain ends."""
        head = theirs.head
        return self.chain is not None and self.chain.judge_head(head.seq, head.hash) is HeadVerdict.KNOWN

    async def note_introduced(self, links: int) -> None:
        """The devices of the first `links` links are known here now."""
        await self._change(introduced=links)

    def invitation(self) -> Invitation:
        """What to tell a device that was taken in. StateError as `active`."""
        stored, chain = self.active()
        return Invitation(stored.account_id, stored.relays, stored.email, chain.head.seq, chain.head.hash)
