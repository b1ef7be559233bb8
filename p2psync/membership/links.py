"""The format of membership links: what a folder's members sign about each other, byte for byte.

A link names every head its author knew (`prevs`), so the links of a folder form a DAG rooted in one genesis. The
folder's id is cut from the genesis' hash: nobody can present another founder for a folder one knows by id.

A link carries its signer's public key, whose hash is the author's device ID. So members are named by ID alone, and a
link can be verified by somebody who has never met its author.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import msgspec

from p2psync.crypto.epochs import KEY_ID_SIZE, RUNG_SIZE
from p2psync.crypto.identity import KEY_SIZE, SIGNATURE_SIZE, DeviceCard, DeviceKeys, verify_signature
from p2psync.errors import AuthenticationError, InputError
from p2psync.model.hashing import DIGEST_SIZE, Algorithm, labelled
from p2psync.model.ids import DEVICE_ID_SIZE, FOLDER_ID_SIZE, DeviceId, FolderId, device_id_of
from p2psync.model.manifest import Chunker
from p2psync.model.versions import MAX_COUNTER, REPLICA_SIZE

LINK_FORMAT = 1
LINK_LABEL = b"p2psync membership link"
MAX_LINK = 16 * 1024
MAX_PREVS = 64
"""Heads one link can join; a folder with more heads is joined by several links in a row."""
MAX_TEXT = 255
"""UTF-8 bytes of a label or a name."""
MAX_CUT = 256
"""Incarnations of one device that a cut can name."""
MAX_LADDER = 64
"""Earlier epochs whose keys one epoch passes on; those reach the ones before them."""
GENESIS_RANDOM = 16


class Role(IntEnum):
    """What a member may do; a greater value includes everything a lesser one may, from VIEWER up."""

    VAULT = 1
    """Stores sealed content, reads nothing."""
    VIEWER = 2
    EDITOR = 3
    OWNER = 4

    @property
    def label(self) -> str:
        """Lower-case name, as people type it."""
        return self.name.lower()


Cut = list[tuple[bytes, int]]
"""(replica, counter): the highest counter of each replica of a device that the link's author has seen."""


Ladder = list[tuple[bytes, bytes]]
"""(key id of an earlier epoch, its key sealed under a later one)."""


class Genesis(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    """Founds a folder. `device` is the founder, `random` 16 random bytes, `card` as in `Add`."""

    device: bytes
    name: str
    label: str
    algorithm: Algorithm
    chunker: Chunker
    random: bytes
    card: bytes = b""


class Add(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """Makes a device a member. What it writes must have counters above `floor`.

    `card` is its encoded card, to which keys can be sealed; empty when the author does not have it.
    """

    device: bytes
    role: Role
    name: str = ""
    floor: int = 0
    card: bytes = b""


class SetRole(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """Changes a member's role. `cut` is None for a promotion and given for a demotion; `floor` as in `Add`."""

    device: bytes
    role: Role
    cut: Cut | None
    floor: int = 0


class Remove(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """Ends a membership. Records of the device above `cut` are refused; of a replica not named, all are."""

    device: bytes
    cut: Cut


class Rename(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Changes the folder's label."""

    label: str


class Epoch(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Starts a key epoch. `number` is one more than the greatest in its past, `key_id` commits to the epoch's key.

    `ladder` has (key id, that key sealed under this epoch's key) of earlier epochs, sorted: whoever is given the newest
    key can read what is older. The key itself goes to each reader in a grant.
    """

    number: int
    key_id: bytes
    ladder: list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Unknown:
    """An action of a later version: kept and passed on, and without effect here."""

    tag: int
    encoded: bytes


Action = Genesis | Add | SetRole | Remove | Rename | Epoch | Unknown
_Known = Genesis | Add | SetRole | Remove | Rename | Epoch
_KNOWN_TAGS = range(6)


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    format: int
    folder: bytes
    prevs: list[bytes]
    signer: bytes
    action: msgspec.Raw
    signature: bytes


_encoder = msgspec.msgpack.Encoder()
_wire_decoder = msgspec.msgpack.Decoder(_Wire)
_known_decoder = msgspec.msgpack.Decoder(_Known)
_fields_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])


@dataclass(frozen=True)
class Link:
    """One signed statement about a folder's membership. `folder` is empty in the genesis, which makes that id.

    `signer` is the author's Ed25519 public key, 32 bytes.
    """

    folder: bytes
    prevs: tuple[bytes, ...]
    signer: bytes
    action: Action
    signature: bytes

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes: what is stored and sent."""
        action = _encode_action(self.action)
        return _encoder.encode(
            _Wire(LINK_FORMAT, self.folder, list(self.prevs), self.signer, msgspec.Raw(action), self.signature)
        )

    @cached_property
    def hash(self) -> bytes:
        """32-byte name of this link."""
        return labelled(b"p2psync link", self.encoded)

    @property
    def folder_id(self) -> FolderId:
        """The folder this link is about."""
        return FolderId(self.folder or self.hash[:FOLDER_ID_SIZE])

    @cached_property
    def author(self) -> DeviceId:
        """The device that signed, once the signature is verified."""
        return device_id_of(self.signer)

    @cached_property
    def card(self) -> DeviceCard | None:
        """The device card that a Genesis or Add brings along."""
        encoded = self.action.card if isinstance(self.action, Genesis | Add) else b""
        return DeviceCard.decode(encoded) if encoded else None

    @cached_property
    def target(self) -> DeviceId | None:
        """The device whose membership this link changes."""
        return target_of(self.action)

    @cached_property
    def revokes(self) -> bool:
        """Whether this takes rights away from its target."""
        return isinstance(self.action, Remove) or (isinstance(self.action, SetRole) and self.action.cut is not None)

    def verify(self) -> None:
        """AuthenticationError unless the author has signed exactly this link."""
        verify_signature(self.signer, LINK_LABEL, _signed_bytes(self), self.signature)


def target_of(action: Action) -> DeviceId | None:
    """The device whose membership an action changes."""
    return DeviceId(action.device) if isinstance(action, Genesis | Add | SetRole | Remove) else None


def sign_link(keys: DeviceKeys, folder: bytes, prevs: tuple[bytes, ...], action: Action) -> Link:
    """A link by `keys`; `prevs` in any order. InputError when it could not be read back."""
    _check_action(action)
    unsigned = Link(folder, tuple(sorted(prevs)), keys.card.signing_key, action, b"")
    link = replace(unsigned, signature=keys.sign(LINK_LABEL, _signed_bytes(unsigned)))
    return decode_link(link.encoded)


def decode_link(data: bytes) -> Link:
    """Decode and validate everything but the signature; InputError or AuthenticationError for anything else."""
    if len(data) > MAX_LINK:
        raise InputError(f"a membership link may have {MAX_LINK} bytes, this one has {len(data)}")
    try:
        wire = _wire_decoder.decode(data)
        if wire.format != LINK_FORMAT:
            raise InputError(f"membership link of format {wire.format}, this program reads {LINK_FORMAT}; update it")
        action = _decode_action(bytes(wire.action))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InputError(f"malformed membership link: {error}") from None
    link = Link(wire.folder, tuple(wire.prevs), wire.signer, action, wire.signature)
    _check(link)
    if link.encoded != data:
        raise InputError("membership link is not in canonical form")
    return link


def _check(link: Link) -> None:
    founding = isinstance(link.action, Genesis)
    if len(link.signer) != KEY_SIZE or len(link.signature) != SIGNATURE_SIZE:
        raise InputError("membership link with a malformed signer or signature")
    if len(link.folder) != (0 if founding else FOLDER_ID_SIZE):
        raise InputError("membership link with a malformed folder")
    if founding != (not link.prevs) or len(link.prevs) > MAX_PREVS or any(len(p) != DIGEST_SIZE for p in link.prevs):
        raise InputError("membership link with malformed predecessors")
    if list(link.prevs) != sorted(set(link.prevs)):
        raise InputError("the predecessors of a membership link must be sorted and different")
    _check_action(link.action)
    if founding and link.target != link.author:
        raise AuthenticationError("a folder is founded by the device that signs")
    if link.card is not None:
        link.card.verify()
        if link.card.device_id != link.target:
            raise AuthenticationError("a membership link brings another device's card")


def _check_action(action: Action) -> None:
    match action:
        case Genesis(device=device, label=label, name=name, random=random):
            _check_device(device)
            _check_text(label, name)
            if len(random) != GENESIS_RANDOM or not label:
                raise InputError("malformed genesis of a folder")
        case Add(device=device, name=name, floor=floor):
            _check_device(device)
            _check_text(name)
            _check_counter(floor)
        case SetRole(device=device, cut=cut, floor=floor):
            _check_counter(floor)
            _check_cut(device, cut or [])
        case Remove(device=device, cut=cut):
            _check_cut(device, cut)
        case Rename(label=label):
            _check_text(label)
            if not label:
                raise InputError("a folder's label cannot be empty")
        case Epoch(number=number, key_id=key_id, ladder=ladder):
            _check_counter(number)
            _check_ladder(key_id, ladder)
        case Unknown():
            pass


def _check_device(device: bytes) -> None:
    if len(device) != DEVICE_ID_SIZE:
        raise InputError("a membership link names a malformed device")


def _check_text(*texts: str) -> None:
    for text in texts:
        if not text.isprintable() or len(text.encode()) > MAX_TEXT:
            raise InputError(f"a label or name may have {MAX_TEXT} bytes of printable text, not {text[:MAX_TEXT]!r}")


def _check_counter(value: int) -> None:
    if not 0 <= value <= MAX_COUNTER:
        raise InputError("a counter in a membership link is out of range")


def _check_cut(device: bytes, cut: Cut) -> None:
    _check_device(device)
    if len(cut) > MAX_CUT:
        raise InputError(f"a cut names at most {MAX_CUT} replicas")
    replicas = [replica for replica, _ in cut]
    if replicas != sorted(set(replicas)) or any(len(r) != REPLICA_SIZE or r[:8] != device[:8] for r in replicas):
        raise InputError("a cut names replicas of its own device, sorted, each once")
    for _, counter in cut:
        _check_counter(counter)


def _check_ladder(key_id: bytes, ladder: Ladder) -> None:
    older = [rung for rung, _ in ladder]
    if len(ladder) > MAX_LADDER or older != sorted(set(older)) or key_id in older:
        raise InputError(f"an epoch passes on at most {MAX_LADDER} earlier keys, sorted, each once")
    if any(len(k) != KEY_ID_SIZE for k in (key_id, *older)) or any(len(sealed) != RUNG_SIZE for _, sealed in ladder):
        raise InputError("an epoch with a malformed key")


def _signed_bytes(link: Link) -> bytes:
    fields = (LINK_FORMAT, link.folder, list(link.prevs), link.signer, msgspec.Raw(_encode_action(link.action)))
    return _encoder.encode(fields)


def _encode_action(action: Action) -> bytes:
    return action.encoded if isinstance(action, Unknown) else _encoder.encode(action)


def _decode_action(data: bytes) -> Action:
    fields = _fields_decoder.decode(data)
    if not fields:
        raise InputError("membership link without an action")
    tag = msgspec.msgpack.decode(fields[0], type=int)
    return _known_decoder.decode(data) if tag in _KNOWN_TAGS else Unknown(tag, data)
