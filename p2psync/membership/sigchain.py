"""The chain of an account: which devices belong to one person, in signed links that nobody can reorder or fork unseen.

A linear chain: each link names its place, the link before and the device that signs, which must be in the chain there.
The account's ID is cut from the hash of the first link. A printed recovery key is one more device. The links hold keys
and no names.

A relay keeps the chain for devices that are not online together. It is believed in nothing: a device folds what it
gets onto what it has, so a relay can at most withhold news. Two different links at one place, both signed by devices
that might, are an `Equivocation`: the proof, for anybody, that the chain was forked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from functools import cached_property
from types import MappingProxyType
from typing import NewType

import msgspec

from p2psync.crypto.identity import KEY_SIZE, SIGNATURE_SIZE, DeviceCard, DeviceKeys, verify_signature
from p2psync.errors import AuthenticationError, InputError
from p2psync.model.hashing import DIGEST_SIZE, labelled
from p2psync.model.ids import DEVICE_ID_SIZE, DeviceId, device_id_of

AccountId = NewType("AccountId", bytes)
"""The first 16 bytes of the hash of an account's first link."""

ACCOUNT_ID_SIZE = 16
CHAIN_FORMAT = 1
CHAIN_LABEL = b"p2psync account link"
MAX_CHAIN_LINK = 512
MAX_CHAIN = 4096
"""Links of one account, ever."""
MAX_DEVICES = 256
"""Devices of an account at a time, recovery keys included."""
GENESIS_RANDOM = 16

_OTHER_CHAIN = "a link of the account follows another chain than the one known here"


class HeadVerdict(Enum):
    """What a head that somebody else was shown says about a chain."""

    KNOWN = "known"
    AHEAD = "ahead"
    """The chain goes on, or is another one from some link on."""
    FORKED = "forked"
    """Somebody was shown another link in the place of one of these."""


class DeviceKind(IntEnum):
    """What holds a key of the account."""

    DEVICE = 1
    RECOVERY = 2
    """A printed key; see `p2psync.crypto.recovery`."""


class Genesis(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """Begins an account with the device that signs. `card` is its encoded card, `random` 16 random bytes."""

    card: bytes
    random: bytes


class Add(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Takes a device into the account. `card` is its encoded card."""

    card: bytes
    kind: DeviceKind


class Remove(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Puts a device out of the account; it may be the one that signs."""

    device: bytes


Action = Genesis | Add | Remove


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    account: bytes
    seq: int
    prev: bytes
    signer: bytes
    action: Action
    signature: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)


# ── links ───────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class ChainLink:
    """One signed statement about an account's devices. `account` and `prev` are empty in the first link, `seq` 0."""

    account: bytes
    seq: int
    prev: bytes
    """Hash of the link before, 32 bytes."""
    signer: bytes
    """Ed25519 public key of the device that signs, 32 bytes."""
    action: Action
    signature: bytes

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes: what is stored and sent."""
        fields = (CHAIN_FORMAT, self.account, self.seq, self.prev, self.signer, self.action, self.signature)
        return _encoder.encode(fields)

    @cached_property
    def hash(self) -> bytes:
        """32-byte name of this link."""
        return labelled(b"p2psync account link", self.encoded)

    @property
    def account_id(self) -> AccountId:
        """The account this link is about."""
        return AccountId(self.account or self.hash[:ACCOUNT_ID_SIZE])

    @cached_property
    def author(self) -> DeviceId:
        """The device that signed, once the signature is verified."""
        return device_id_of(self.signer)

    @cached_property
    def card(self) -> DeviceCard | None:
        """The card of the device that comes in."""
        return None if isinstance(self.action, Remove) else DeviceCard.decode(self.action.card)

    @property
    def target(self) -> DeviceId:
        """The device that comes in or goes."""
        if isinstance(self.action, Remove):
            return DeviceId(self.action.device)
        assert self.card is not None
        return self.card.device_id

    def verify(self) -> None:
        """AuthenticationError unless the signer has signed exactly this link."""
        verify_signature(self.signer, CHAIN_LABEL, _signed_bytes(self), self.signature)


def decode_chain_link(data: bytes) -> ChainLink:
    """Decode and validate everything but the signature; InputError or AuthenticationError for anything else."""
    if len(data) > MAX_CHAIN_LINK:
        raise InputError(f"a link of an account may have {MAX_CHAIN_LINK} bytes, this one has {len(data)}")
    try:
        wire = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"malformed link of an account: {error}; a later version of p2psync may read it") from None
    if wire.format != CHAIN_FORMAT:
        raise InputError(f"link of an account of format {wire.format}, this program reads {CHAIN_FORMAT}; update it")
    link = ChainLink(wire.account, wire.seq, wire.prev, wire.signer, wire.action, wire.signature)
    _check(link)
    if link.encoded != data:
        raise InputError("a link of an account is not in canonical form")
    return link


def _check(link: ChainLink) -> None:
    first = isinstance(link.action, Genesis)
    if len(link.signer) != KEY_SIZE or len(link.signature) != SIGNATURE_SIZE:
        raise InputError("a link of an account with a malformed signer or signature")
    sizes = (0, 0) if first else (ACCOUNT_ID_SIZE, DIGEST_SIZE)
    if (len(link.account), len(link.prev)) != sizes or not (link.seq == 0 if first else 0 < link.seq < MAX_CHAIN):
        raise InputError("a link of an account with a malformed place")
    match link.action:
        case Genesis(random=random) if len(random) != GENESIS_RANDOM:
            raise InputError("malformed first link of an account")
        case Remove(device=device) if len(device) != DEVICE_ID_SIZE:
            raise InputError("a link of an account names a malformed device")
    if link.card is not None:
        link.card.verify()
        if first and link.card.signing_key != link.signer:
            raise AuthenticationError("an account is begun by the device that signs")


def _sign(keys: DeviceKeys, account: bytes, seq: int, prev: bytes, action: Action) -> ChainLink:
    unsigned = ChainLink(account, seq, prev, keys.card.signing_key, action, b"")
    return decode_chain_link(replace(unsigned, signature=keys.sign(CHAIN_LABEL, _signed_bytes(unsigned))).encoded)


def _signed_bytes(link: ChainLink) -> bytes:
    return _encoder.encode((CHAIN_FORMAT, link.account, link.seq, link.prev, link.signer, link.action))


# ── chains ──────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True, slots=True)
class ChainDevice:
    """A device that is in the account."""

    card: DeviceCard
    kind: DeviceKind
    since: int
    """Place of the link that took it in."""

    @property
    def device_id(self) -> DeviceId:
        """Its identity."""
        return self.card.device_id


@dataclass(frozen=True)
class AccountChain:
    """A verified chain and what follows from it; made by `begin_account` and `fold_chain`, grown by `extend`."""

    links: tuple[ChainLink, ...]
    devices: Mapping[DeviceId, ChainDevice] = field(repr=False)
    """Who is in the account now, in the order they came."""

    @property
    def account_id(self) -> AccountId:
        """The account."""
        return self.links[0].account_id

    @property
    def head(self) -> ChainLink:
        """The newest link: its `seq` and `hash` are what devices tell each other, and what a store compares."""
        return self.links[-1]

    def judge_head(self, seq: int, link_hash: bytes) -> HeadVerdict:
        """What it means that somebody else was shown this link at this place.

        Of two whose chains differ in any place, at least one finds the other's head forked.
        """
        if seq >= len(self.links):
            return HeadVerdict.AHEAD
        return HeadVerdict.KNOWN if self.links[seq].hash == link_hash else HeadVerdict.FORKED

    @cached_property
    def paper(self) -> frozenset[DeviceId]:
        """The recovery keys that are or were in the account."""
        adds = ((link.target, link.action) for link in self.links)
        return frozenset(d for d, action in adds if isinstance(action, Add) and action.kind is DeviceKind.RECOVERY)

    def encoded_links(self) -> list[bytes]:
        """What `fold_chain` reads."""
        return [link.encoded for link in self.links]

    def sign(self, keys: DeviceKeys, action: Add | Remove) -> ChainLink:
        """The link that would come next. InputError or AuthenticationError when `extend` would refuse it."""
        link = _sign(keys, self.account_id, self.head.seq + 1, self.head.hash, action)
        _follow(dict(self.devices), link)
        return link

    def extend(self, encoded: Iterable[bytes]) -> AccountChain:
        """This chain with more links, which may begin before its end and must then be the same there.

        Raises:
            ForkedChain: a link might stand here, and another one does.
            InputError, AuthenticationError: a link is malformed, left out, forged or without effect.
        """
        links, devices = list(self.links), dict(self.devices)
        for data in encoded:
            link = decode_chain_link(data)
            if link.account_id != self.account_id:
                raise InputError("a link of another account")
            if link.seq < len(links):
                if link.hash != links[link.seq].hash:
                    raise _refusal(links, link)
                continue
            if link.seq > len(links):
                raise InputError(f"the chain of the account lacks link {len(links)}")
            if link.prev != links[-1].hash:
                raise AuthenticationError(_OTHER_CHAIN)
            _follow(devices, link)
            link.verify()
            links.append(link)
        return AccountChain(tuple(links), MappingProxyType(devices))


class ForkedChain(AuthenticationError):  # noqa: N818  (what it is, more than what went wrong)
    """Somebody presented another chain of the same account; `proof` convinces whoever has the links before."""

    def __init__(self, proof: Equivocation) -> None:
        super().__init__(
            f"the chain of this account was forked at link {proof.first.seq}: a relay or one of the account's devices "
            "is lying; compare the devices of the account with each other before you go on"
        )
        self.proof = proof


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two different links that follow the same one; see `verify`."""

    first: ChainLink
    second: ChainLink

    def verify(self, chain: AccountChain) -> None:
        """AuthenticationError unless both could follow, in a chain that has at least the links before them."""
        first, second = self.first, self.second
        if (first.account, first.seq, first.prev) != (second.account, second.seq, second.prev):
            raise AuthenticationError("two links that are no proof of a fork: they have different places")
        before = chain.links[: first.seq]
        if first.hash == second.hash or not before or before[-1].hash != first.prev:
            raise AuthenticationError("two links that are no proof of a fork of this chain")
        for link in (first, second):
            _follow(_devices_of(before), link)
            link.verify()


def begin_account(keys: DeviceKeys, random: bytes) -> AccountChain:
    """A new account with one device. `random` is 16 random bytes."""
    return fold_chain([_sign(keys, b"", 0, b"", Genesis(keys.card.encode(), random)).encoded])


def fold_chain(encoded: Iterable[bytes]) -> AccountChain:
    """Verify a whole chain, from its first link. InputError or AuthenticationError when it is none."""
    rest = iter(encoded)
    first = decode_chain_link(next(rest, b""))
    if not isinstance(first.action, Genesis):
        raise InputError("the chain of an account begins with its first link")
    first.verify()
    devices: dict[DeviceId, ChainDevice] = {}
    _take_in(devices, first, DeviceKind.DEVICE)
    return AccountChain((first,), MappingProxyType(devices)).extend(rest)


def _follow(devices: dict[DeviceId, ChainDevice], link: ChainLink) -> None:
    if link.author not in devices:
        raise AuthenticationError("a link of the account is signed by a device that is not in it")
    match link.action:
        case Genesis():
            raise InputError("an account begins once")
        case Add(kind=kind):
            if link.target in devices:
                raise InputError("this device is in the account already")
            if len(devices) >= MAX_DEVICES:
                raise InputError(f"an account may have {MAX_DEVICES} devices; remove one first")
            _take_in(devices, link, kind)
        case Remove():
            if devices.pop(link.target, None) is None:
                raise InputError("a device that is to be removed is not in the account")
            if not devices:
                raise InputError("the last device of an account cannot be removed; delete the account instead")


def _take_in(devices: dict[DeviceId, ChainDevice], link: ChainLink, kind: DeviceKind) -> None:
    assert link.card is not None
    devices[link.target] = ChainDevice(link.card, kind, link.seq)


def _devices_of(links: Iterable[ChainLink]) -> dict[DeviceId, ChainDevice]:
    """Who is in the account after `links`, which are verified."""
    devices: dict[DeviceId, ChainDevice] = {}
    for link in links:
        if isinstance(link.action, Genesis):
            _take_in(devices, link, DeviceKind.DEVICE)
        else:
            _follow(devices, link)
    return devices


def _refusal(links: list[ChainLink], other: ChainLink) -> Exception:
    """Why `other` cannot stand where these links have another one."""
    if other.prev != links[other.seq].prev:
        return AuthenticationError(_OTHER_CHAIN)
    try:
        _follow(_devices_of(links[: other.seq]), other)
        other.verify()
    except (AuthenticationError, InputError) as error:
        return error
    return ForkedChain(Equivocation(links[other.seq], other))
