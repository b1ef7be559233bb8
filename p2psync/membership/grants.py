"""How a reader gets the key of an epoch: a grant, sealed to its device and signed by whoever gives it.

The Epoch link commits to the key, so a grant can bring no other one, whoever made it and whatever carried it.
"""

from __future__ import annotations

import msgspec

from p2psync.crypto import hpke
from p2psync.crypto.epochs import EPOCH_KEY_SIZE, FAILED, KEY_ID_SIZE, EpochKey, KeyRing
from p2psync.crypto.identity import KEY_SIZE, SIGNATURE_SIZE, DeviceCard, DeviceKeys, verify_signature
from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership.fold import Membership, make_link
from p2psync.membership.links import MAX_LADDER, Epoch, Ladder
from p2psync.model.ids import DEVICE_ID_SIZE, FOLDER_ID_SIZE, device_id_of, short_id

GRANT_FORMAT = 1
GRANT_LABEL = b"p2psync epoch grant"
MAX_GRANT = 512
"""Bytes of an encoded grant; each has 254."""

_INFO_LABEL = b"p2psync/1 grant\0"
_SEALED_SIZE = EPOCH_KEY_SIZE + hpke.OVERHEAD


class Grant(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The key of epoch `key_id` of `folder`, sealed to the device `recipient`. `signer` is an Ed25519 public key."""

    format: int
    folder: bytes
    key_id: bytes
    recipient: bytes
    signer: bytes
    sealed: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The canonical bytes: what is stored and sent."""
        return _encoder.encode(self)

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything before it."""
        return _encoder.encode((self.format, self.folder, self.key_id, self.recipient, self.signer, self.sealed))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Grant)


def decode_grant(data: bytes) -> Grant:
    """Decode and validate everything but signature and seal. InputError for anything but a canonical grant."""
    if len(data) > MAX_GRANT:
        raise InputError(f"a grant may have {MAX_GRANT} bytes, this one has {len(data)}")
    try:
        grant = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InputError(f"malformed grant: {error}") from None
    if grant.format != GRANT_FORMAT:
        raise InputError(f"grant of format {grant.format}, this program reads {GRANT_FORMAT}; update it")
    sizes = (FOLDER_ID_SIZE, KEY_ID_SIZE, DEVICE_ID_SIZE, KEY_SIZE, _SEALED_SIZE, SIGNATURE_SIZE)
    fields = (grant.folder, grant.key_id, grant.recipient, grant.signer, grant.sealed, grant.signature)
    if tuple(map(len, fields)) != sizes or grant.encode() != data:
        raise InputError("malformed grant: a field has the wrong length, or it is not in canonical form")
    return grant


def make_epoch(keys: DeviceKeys, membership: Membership, ring: KeyRing, secret: bytes) -> tuple[bytes, EpochKey]:
    """(signed link, key) of a new epoch. `secret` is 32 random bytes, `ring` the earlier keys that are passed on.

    PermissionDenied when this device may not start one. Then give the key to every reader by `make_grant`, at best
    before anything is sealed under it.
    """
    key = EpochKey(membership.folder, secret)
    covered = KeyRing(membership.folder)
    ladder: Ladder = []
    for epoch in membership.epochs.values():
        older = ring.get(epoch.key_id)
        if older is not None and older.id not in covered and len(ladder) < MAX_LADDER:
            ladder.append(key.seal_rung(older))
            covered = covered.climb(membership.rungs, older)
    return make_link(keys, membership, Epoch(membership.next_epoch, key.id, sorted(ladder))), key


def make_grant(keys: DeviceKeys, membership: Membership, key: EpochKey, card: DeviceCard, ephemeral: bytes) -> Grant:
    """`key` for the device that `card` belongs to. `ephemeral` is 32 random bytes, fresh at every call.

    PermissionDenied when this device may not give keys away, or that one may not read; InputError when `key` is of no
    epoch of the folder; AuthenticationError when the card is forged.
    """
    card.verify()
    recipient = card.device_id
    if not membership.may_edit(keys.device_id):
        raise PermissionDenied(f"the keys of {membership.label!r} are given by its owners and editors")
    if not membership.may_read(recipient):
        raise PermissionDenied(f"{short_id(recipient)} may not read {membership.label!r}, so it gets no key")
    if key.folder != membership.folder or key.id not in membership.epochs:
        raise InputError(f"a key that is of no epoch of {membership.label!r}")
    sealed = hpke.seal_to(card.sealing_key, _info(key.folder, key.id, recipient), key.secret, ephemeral)
    unsigned = Grant(GRANT_FORMAT, key.folder, key.id, recipient, keys.card.signing_key, sealed, b"")
    return msgspec.structs.replace(unsigned, signature=keys.sign(GRANT_LABEL, unsigned.signed_bytes()))


def open_grant(keys: DeviceKeys, membership: Membership, grant: Grant) -> EpochKey:
    """The key that was granted to this device. AuthenticationError, the same for every reason, when it does not count.

    It counts when it is for this device, by somebody who may edit or once might, and brings the key that a link of this
    membership commits to; look at `membership.epochs` first to tell a link that has not arrived from a forged grant.
    """
    if grant.key_id not in membership.epochs:
        raise AuthenticationError(FAILED)
    return open_early(keys, membership, grant)


def open_early(keys: DeviceKeys, membership: Membership, grant: Grant) -> EpochKey:
    """`open_grant` while the link that commits to the key is not known: for opening links only, which prove themselves.

    Who is given a new epoch's key while it is away finds the link of that epoch sealed under it, and nowhere else.
    """
    if grant.folder != membership.folder or not membership.has_edited(device_id_of(grant.signer)):
        raise AuthenticationError(FAILED)
    return open_unproven(keys, grant)


def open_unproven(keys: DeviceKeys, grant: Grant) -> EpochKey:
    """The key that somebody, whoever it is, has granted to this device: for opening the links that say who that is.

    AuthenticationError, the same for every reason, when it is for another device, or forged.
    """
    if grant.recipient != keys.device_id:
        raise AuthenticationError(FAILED)
    try:
        verify_signature(grant.signer, GRANT_LABEL, grant.signed_bytes(), grant.signature)
        info = _info(grant.folder, grant.key_id, grant.recipient)
        key = EpochKey(grant.folder, hpke.open_from(keys.sealing, info, grant.sealed))
    except (AuthenticationError, InputError):
        raise AuthenticationError(FAILED) from None
    if key.id != grant.key_id:
        raise AuthenticationError(FAILED)
    return key


def _info(folder: bytes, key_id: bytes, recipient: bytes) -> bytes:
    return _INFO_LABEL + folder + key_id + recipient
