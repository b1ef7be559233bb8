"""The Merkle summary's storage: leaves and nodes in the index, as `model.merkle` wants them."""

from __future__ import annotations

from collections.abc import Mapping

from p2psync.index import tables
from p2psync.model.hashing import DIGEST_SIZE, labelled
from p2psync.model.paths import PathKey
from p2psync.ports import ReadTxn, WriteTxn

_ROOT = b"root"


def leaf(key: PathKey, identifiers: list[bytes]) -> bytes:
    """Leaf hash of a path: over its key and its sorted record ids."""
    return labelled(b"\x00", key, *sorted(identifiers))


def root(txn: ReadTxn) -> bytes:
    """Root over all leaves."""
    return txn.get(tables.NODES, _ROOT) or bytes(DIGEST_SIZE)


def update(txn: WriteTxn, leaves: Mapping[PathKey, bytes | None]) -> None:
    """Set or remove leaves."""
    value = int.from_bytes(root(txn), "big")
    for key, new in leaves.items():
        value ^= int.from_bytes(txn.get(tables.LEAVES, key) or b"", "big") ^ int.from_bytes(new or b"", "big")
        if new:
            txn.put(tables.LEAVES, key, new)
        else:
            txn.delete(tables.LEAVES, key)
    txn.put(tables.NODES, _ROOT, value.to_bytes(DIGEST_SIZE, "big"))
