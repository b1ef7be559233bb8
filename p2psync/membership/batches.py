"""Record signatures: one Ed25519 signature covers up to `MAX_BATCH` records, and says who answers for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from p2psync.crypto.identity import KEY_SIZE, SIGNATURE_SIZE, DeviceKeys, verify_signature
from p2psync.errors import AuthenticationError, InputError, PermissionDenied
from p2psync.membership.fold import Membership
from p2psync.model.hashing import DIGEST_SIZE
from p2psync.model.ids import replica_device_prefix, short_id
from p2psync.model.records import BATCH_LABEL, MAX_BATCH, FileRecord, SignedBatch, decode_record, record_id


def sign_batch(keys: DeviceKeys, folder: bytes, epoch: int, encoded_records: Iterable[bytes]) -> SignedBatch:
    """Sign records this device has written. InputError unless there are 1 to `MAX_BATCH`."""
    ids = [record_id(encoded) for encoded in encoded_records]
    if not 0 < len(ids) <= MAX_BATCH:
        raise InputError(f"a batch has 1 to {MAX_BATCH} records, not {len(ids)}")
    unsigned = SignedBatch(folder, keys.card.signing_key, epoch, b"".join(ids), b"")
    return msgspec.structs.replace(unsigned, signature=keys.sign(BATCH_LABEL, unsigned.signed_bytes()))


def open_batch(
    batch: SignedBatch, membership: Membership, encoded: Mapping[int, bytes]
) -> list[tuple[FileRecord, bytes]]:
    """Check a batch and those of its records that came with it; (record, its bytes) in index order.

    `encoded` maps a position in the batch to a record's exact bytes. InputError for malformed bytes;
    AuthenticationError when the signature is wrong or a record is not the one that was signed; PermissionDenied, naming
    the author, when the author may not have written one of them.
    """
    check_shape(batch)
    if batch.folder != membership.folder:
        raise AuthenticationError("a batch of records belongs to another folder")
    author = batch.author
    if author not in membership.members and author not in membership.former:
        raise PermissionDenied(f"records by {short_id(author)}, who was never a member of {membership.label!r}")
    verify_signature(batch.signer, BATCH_LABEL, batch.signed_bytes(), batch.signature)
    opened = []
    for index, data in sorted(encoded.items()):
        if (
            not 0 <= index < batch.count
            or record_id(data) != batch.ids[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]
        ):
            raise AuthenticationError("a record is not the one its author signed")
        record = decode_record(data)
        dot = record.dot
        if replica_device_prefix(dot.replica) != replica_device_prefix(author):
            raise AuthenticationError("a record carries another device's event")
        if not membership.may_write(author, dot.replica, dot.counter):
            raise PermissionDenied(
                f"{short_id(author)} may not write in {membership.label!r} (record {dot.counter}); "
                "its change stays on that device"
            )
        opened.append((record, data))
    return opened


def check_shape(batch: SignedBatch) -> None:
    """InputError unless every field of a batch from outside has a possible length."""
    if len(batch.signer) != KEY_SIZE or len(batch.signature) != SIGNATURE_SIZE or not 0 <= batch.epoch < 2**63:
        raise InputError("malformed batch of records")
    if len(batch.ids) % DIGEST_SIZE or not 0 < batch.count <= MAX_BATCH:
        raise InputError(f"a batch has 1 to {MAX_BATCH} record ids")
