"""What a device keeps of its account: where the relay is, its session, and the chain of devices as verified.

HOME/account.json   relays, address, session; 0600     HOME/account/chain   the links; never shorter than they were
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from p2psync.errors import AuthenticationError, IntegrityError, StateError
from p2psync.membership.sigchain import ACCOUNT_ID_SIZE, MAX_CHAIN, AccountChain, fold_chain
from p2psync.node.files import read_private, sync_directory, write_private
from p2psync.protocol.relay_api import Session

ACCOUNT_VERSION = 1

AccountState = Literal["unverified", "joining", "active", "logged-out"]
"""Signed up, and the mailed code not typed yet; taken in by another device, and the relay not heard yet; in use."""


class StoredAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole of account.json."""

    version: int = ACCOUNT_VERSION
    relays: Annotated[tuple[str, ...], Meta(min_length=1)]
    """Addresses of one relay, in the order of preference."""
    email: str
    account_id: Annotated[bytes, Meta(min_length=ACCOUNT_ID_SIZE, max_length=ACCOUNT_ID_SIZE)]
    state: AccountState
    confirmed: int = 0
    """How many links of the chain kept here the relay has acknowledged: it may never show fewer."""
    head: bytes = b""
    """Hash of a link that the chain must have at `head_seq`, told by the device that took this one in."""
    head_seq: int = 0
    introduced: int = 0
    """Up to which link of the chain this device has come to know the devices: one that is forgotten stays so."""
    session: Session | None = None


class AccountStore(Protocol):
    """Where `StoredAccount` and the chain are: a `Home`, or a simulated one."""

    def load_account(self) -> tuple[StoredAccount, list[bytes]] | None:
        """The account and the links of its chain; None when this device is in no account."""
        ...

    def save_account(self, account: StoredAccount | None, links: list[bytes] | None = None) -> None:
        """Replace the account, and the links unless they are None, durably. None for the account forgets both."""
        ...


class AccountFiles:
    """The files in a home; see `AccountStore`."""

    def __init__(self, home: Path) -> None:
        self._account = home / "account.json"
        self._chain = home / "account" / "chain"

    def load(self) -> tuple[StoredAccount, list[bytes]] | None:
        """See `AccountStore.load_account`.

        Raises:
            StateError: others can read the file, or a newer p2psync wrote it.
            IntegrityError: a file is damaged.
        """
        try:
            data = read_private(self._account)
        except FileNotFoundError:
            return None
        try:
            version = msgspec.json.decode(data, type=_Versioned).version
            if version != ACCOUNT_VERSION:
                raise StateError(
                    f"{self._account} has format {version}, this p2psync knows {ACCOUNT_VERSION}; use the version of "
                    "p2psync that wrote it"
                )
            account = msgspec.json.decode(data, type=StoredAccount)
            links = msgspec.msgpack.decode(self._read_chain(), type=_Links)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise IntegrityError(
                f"{self._account} or {self._chain} is damaged ({error}); move both away and log in again: "
                "p2psync account login"
            ) from error
        return account, links

    def _read_chain(self) -> bytes:
        try:
            return read_private(self._chain)
        except FileNotFoundError:
            return msgspec.msgpack.encode([])

    def save(self, account: StoredAccount | None, links: list[bytes] | None = None) -> None:
        """See `AccountStore.save_account`. OSError when the home cannot be written."""
        if account is None:
            self._account.unlink(missing_ok=True)
            self._chain.unlink(missing_ok=True)
            sync_directory(self._account.parent)
            return
        if links is not None:
            # The chain first: it may be ahead of `confirmed`, never behind.
            self._chain.parent.mkdir(mode=0o700, exist_ok=True)
            write_private(self._chain, msgspec.msgpack.encode(links))
        content = msgspec.json.format(msgspec.json.encode(account), indent=2) + b"\n"
        write_private(self._account, content)


_Links = Annotated[list[bytes], Meta(max_length=MAX_CHAIN)]


class _Versioned(msgspec.Struct):
    version: int


def verified(stored: StoredAccount, known: AccountChain | None, links: list[bytes]) -> AccountChain:
    """What a relay shows of the account's chain, on the ground of what it had before and of what is `known` here.

    Raises:
        InputError, AuthenticationError: it is not this account's chain.
    """
    if known is not None and stored.confirmed:
        if len(known.links) > stored.confirmed:
            known = fold_chain(known.encoded_links()[: stored.confirmed])
        return known.extend(links)
    chain = fold_chain(links)
    if chain.account_id != stored.account_id:
        raise AuthenticationError("the relay shows the chain of another account")
    if stored.head and (len(chain.links) <= stored.head_seq or chain.links[stored.head_seq].hash != stored.head):
        raise AuthenticationError("the relay shows another chain of this account than the device that took this one in")
    return chain
